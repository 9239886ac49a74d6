import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention as flexible
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import pbcompress as pb
from pbcompress.core.flexible_attention import plain_flex_attention

HEADS, TOKENS = 4, 5
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
TABLE = torch.linspace(-1, 1, HEADS * (2 * TOKENS - 1)).view(HEADS, -1)

SCORES = {
    "same": None,
    "distance": lambda s, b, h, q, k: s + (q - k),
    "by_head": lambda s, b, h, q, k: s - SLOPES[h] * abs(q - k),
    "table": lambda s, b, h, q, k: s + TABLE[h, q - k + TOKENS - 1],
    "in_turn": lambda s, b, h, q, k: s + TABLE[h][q],
    "capped": lambda s, b, h, q, k: 2 * (s / 2).tanh(),
}
MASKS = {
    "none": None,
    "causal": lambda b, h, q, k: q >= k,
    "documents": lambda b, h, q, k: DOCUMENTS[b, q] == DOCUMENTS[b, k],
    "some_heads": lambda b, h, q, k: (q >= k) | (h < 2),
}


def reference(query, key, value, change, counts):
    """Place by place, in float64."""
    result = np.zeros(query.shape)
    samples, heads, tokens, width = query.shape
    for b in range(samples):
        for h in range(heads):
            own = h * key.shape[1] // heads
            for q in range(tokens):
                scores = np.full(tokens, -np.inf)
                for k in range(tokens):
                    places = [torch.tensor(i) for i in (b, h, q, k)]
                    if counts is None or counts(*places):
                        score = (query[b, h, q] @ key[b, own, k]).double() / width**0.5
                        scores[k] = score if change is None else change(score, *places)
                weights = np.exp(scores - scores.max())
                result[b, h, q] = weights @ value[b, own].double().numpy() / weights.sum()
    return result


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("score", SCORES)
def test_it_computes_what_the_places_say(score, mask):
    torch.manual_seed(0)
    key_heads = HEADS if score == "same" else 2
    query, key, value = (torch.randn(2, n, TOKENS, 8) for n in (HEADS, key_heads, key_heads))
    counts = MASKS[mask]
    blocks = create_block_mask(counts, 2, HEADS, TOKENS, TOKENS, device="cpu") if counts else None
    with plain_flex_attention():
        found = flex_attention(
            query, key, value, SCORES[score], blocks, enable_gqa=key_heads != HEADS
        )
    expected = reference(query, key, value, SCORES[score], counts)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_torch_has_its_own_back():
    names = ("flex_attention_hop", "_create_empty_block_mask")
    before = [getattr(flexible, name) for name in names]
    with plain_flex_attention():
        assert flexible.flex_attention_hop is not before[0]
    assert [getattr(flexible, name) for name in names] == before


class Network(nn.Module):
    def __init__(self, score, mask):
        super().__init__()
        self.heads, self.score, self.mask = HEADS, SCORES[score], MASKS[mask]
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        blocks = None
        if self.mask is not None:
            blocks = create_block_mask(self.mask, None, None, length, length, device="cpu")
        found = flex_attention(q, k, v, self.score, blocks)
        return self.head(self.out(found.transpose(1, 2).reshape(n, length, -1)).mean(1))


@pytest.mark.parametrize(("score", "mask"), [("same", "none"), ("distance", "causal")])
def test_heads_go(score, mask):
    model = Network(score, mask).eval()
    plan = pb.plan_widths(model, torch.randn(2, TOKENS, 16), 0.6)
    small = pb.shrink(model, plan)
    assert small.heads < HEADS
    assert set(plan.left_alone) == {"head"}
    with torch.no_grad(), plain_flex_attention():
        assert small(torch.randn(2, TOKENS, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("score", "mask"), [("by_head", "none"), ("in_turn", "none"), ("same", "some_heads")]
)
def test_heads_that_are_told_apart_stay(score, mask):
    model = Network(score, mask).eval()
    plan = pb.plan_widths(model, torch.randn(2, TOKENS, 16), 0.9)
    assert pb.shrink(model, plan).heads == HEADS
    assert "meet a tensor of fixed size" in plan.left_alone["qkv"]


def test_its_products_are_counted():
    cost = pb.measure(Network("distance", "none"), torch.randn(1, TOKENS, 16))
    linear = TOKENS * 16 * (48 + 16) + 16 * 3
    assert cost.flops == linear + 2 * TOKENS * TOKENS * 16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_an_exported_network_is_equal(tmp_path):
    report = pb.export_onnx(
        Network("by_head", "none").eval(), tmp_path / "model.onnx", torch.randn(2, TOKENS, 16)
    )
    assert report.max_relative < 1e-4
