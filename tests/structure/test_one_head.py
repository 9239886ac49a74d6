"""Attention with one head: its size sets the scale, so queries and keys keep it, and say so."""

import math

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from tests.support.masking import assert_equals_masked

F = nn.functional
WIDTH = 32
X = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, scores):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(16, WIDTH) for _ in range(3))
        self.out, self.head, self.scores = nn.Linear(WIDTH, 12), nn.Linear(12, 5), scores

    def forward(self, x):
        y = self.scores(self.q(x), self.k(x), self.v(x))
        return self.head(self.out(y).relu()).mean(1)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float | Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


BY_SIZE = {
    "of torch": (
        F.scaled_dot_product_attention,
        "the attention scales by the size of its heads, where it is given no scale=",
    ),
    "a root of math": (
        lambda q, k, v: attended(q, k, v, 1 / math.sqrt(q.shape[-1])),
        "the code of 'the model itself' computes a value from its size",
    ),
    "a power": (
        lambda q, k, v: attended(q, k, v, k.size(-1) ** -0.5),
        "the code of 'the model itself' computes a value from its size",
    ),
    "a root of torch": (
        lambda q, k, v: attended(q, k, v, torch.tensor(q.size(-1)).rsqrt()),
        "or computes with their number",
    ),
}
BY_NUMBER = {
    "of torch": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.2),
    "a number": lambda q, k, v: attended(q, k, v, WIDTH**-0.5),
    "none": lambda q, k, v: attended(q, k, v, 1.0),
}


@pytest.mark.parametrize("name", BY_SIZE)
def test_queries_and_keys_keep_the_size_that_scales_them_and_values_go(name):
    scores, reason = BY_SIZE[name]
    model = Attention(scores).eval()
    plan = pb.plan_widths(model, X, 0.6)
    assert set(plan.left_alone) == {"q", "k", "head"}
    assert reason in plan.left_alone["q"]
    small = pb.shrink(model, plan)
    assert small.q.out_features == small.k.out_features == WIDTH
    assert small.v.out_features == small.out.in_features < WIDTH
    assert_equals_masked(model, plan, X)


@pytest.mark.parametrize("name", BY_NUMBER)
def test_a_given_scale_lets_queries_and_keys_go(name):
    model = Attention(BY_NUMBER[name]).eval()
    plan = pb.plan_widths(model, X, 0.6)
    assert set(plan.left_alone) == {"head"}
    small = pb.shrink(model, plan)
    assert small.q.out_features == small.k.out_features < WIDTH
    for step in plan.steps:
        if step.layer in ("q", "k"):  # whose products nothing else blanks
            layer = model.get_submodule(step.layer)
            layer.weight.data[list(step.removed)] = layer.bias.data[list(step.removed)] = 0
    assert_equals_masked(model, plan, X)


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_layer_of_torch_with_one_head_keeps_its_stream(need_weights):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(16, WIDTH)
            self.attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True)
            self.b, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

        def forward(self, x):
            x = self.a(x)
            y, _ = self.attention(x, x, x, need_weights=need_weights)
            return self.head(self.b(y).relu()).mean(1)

    model = Net().eval()
    plan = pb.plan_widths(model, X, 0.8)
    reason = "the attention 'attention' has one head, and scales by its size"
    assert plan.left_alone["a"] == reason
    small = pb.shrink(model, plan)
    assert small.attention.embed_dim == WIDTH
    assert small.b.out_features < WIDTH
    assert_equals_masked(model, plan, X)
