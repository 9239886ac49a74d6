"""Query heads that share one key head, or some: they go, however the code copies that head."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import pbcompress as pb
from tests.support.masking import assert_equals_masked

HEADS, SIZE, WIDTH = 8, 4, 24


def by_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / SIZE**0.5).softmax(-1) @ v


def by_repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, dim=1), torch.repeat_interleave(v, times, 1)
    return scaled_dot_product_attention(q, k, v)


def by_flag(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Shared(nn.Module):
    def __init__(self, keys: int, attend) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.q, self.o = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, keys * SIZE), nn.Linear(WIDTH, keys * SIZE)
        self.attend = attend

    def forward(self, x):
        y = self.a(x)
        q, k, v = (
            f(y).view(*y.shape[:2], -1, SIZE).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        return self.head(y + self.o(self.attend(q, k, v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    ("keys", "attend"), [(1, by_product), (1, by_repeat), (2, by_repeat), (2, by_flag)]
)
def test_query_heads_go_with_their_key_head_or_alone_where_it_is_the_only_one(keys, attend):
    x = torch.randn(2, 5, 6)
    model = Shared(keys, attend).eval()
    plan = pb.plan_widths(model, x, 0.5)
    small = pb.shrink(model, plan)
    heads, left = small.q.out_features // SIZE, small.k.out_features // SIZE
    assert heads < HEADS
    assert left == 1
    assert small.q.out_features % SIZE == 0
    assert_equals_masked(model, plan, x)
