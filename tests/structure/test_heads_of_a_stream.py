"""Code that divides the width of a stream by the number of its heads: both lose whole heads."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize, scaled_dot_product_attention

import pbcompress as pb
from tests.support.masking import assert_equals_masked

HEADS, WIDTH = 4, 24


class Attention(nn.Module):
    """The result is as wide as it comes out: nothing but the division tells of the stream."""

    def __init__(self, heads, kind):
        super().__init__()
        self.heads, self.kind = heads, kind
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, length, width = x.shape
        size = width // self.heads
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        if self.kind == "cosine":
            found = (normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        else:
            found = scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).reshape(n, length, -1))


class Outlook(nn.Module):
    """Weights of neighbours by head, as in VOLO."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.v, self.weights = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 9 * heads)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, length, width = x.shape
        v = self.v(x).transpose(1, 2).unsqueeze(-1)
        v = nn.functional.unfold(v, (3, 1), padding=(1, 0))
        v = v.reshape(n, self.heads, width // self.heads, 3, length).permute(0, 1, 4, 3, 2)
        weights = self.weights(x).reshape(n, length, self.heads, 3, 3).permute(0, 2, 1, 3, 4)
        found = (weights.softmax(-1) @ v).sum(3)
        return self.out(found.transpose(1, 2).reshape(n, length, -1))


class Network(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.entry, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        x = self.entry(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


LAYERS = {
    "cosine": lambda: Attention(HEADS, "cosine"),
    "scaled": lambda: Attention(HEADS, "scaled"),
    "outlook": lambda: Outlook(HEADS),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_stream_loses_as_many_heads_as_its_layers(kind):
    x = torch.randn(2, 5, 6)
    model = Network(LAYERS[kind](), LAYERS[kind]()).eval()
    plan = pb.plan_widths(model, x, 0.5)
    small = pb.shrink(model, plan)
    heads = small.layers[0].heads
    assert heads < HEADS
    assert small.entry.out_features == heads * WIDTH // HEADS
    assert set(plan.left_alone) == {"head"}
    assert_equals_masked(model, plan, x)


def test_layers_of_other_heads_lose_what_both_can():
    x = torch.randn(2, 5, 6)
    model = Network(Attention(4, "cosine"), Attention(2, "cosine")).eval()
    plan = pb.plan_widths(model, x, 0.6)
    small = pb.shrink(model, plan)
    first, second = small.layers
    assert small.entry.out_features == first.heads * 6 == second.heads * 12 == WIDTH // 2
    assert_equals_masked(model, plan, x)


def test_one_head_that_is_scaled_by_its_size_says_why_the_stream_stays():
    mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH))
    model = Network(Attention(1, "scaled"), mlp).eval()
    plan = pb.plan_widths(model, torch.randn(2, 5, 6), 0.9)
    for layer in ("entry", "layers.0.qkv", "layers.0.out"):
        assert "'layers.0' scales by the size of its heads" in plan.left_alone[layer]
