"""Halves of channels that are shuffled block after block, as in ShuffleNet."""

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from tests.support.masking import assert_equals_masked

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    n, channels, height, width = x.size()
    x = x.view(n, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(n, channels, height, width)


class Block(nn.Module):
    def __init__(self, half):
        super().__init__()
        self.a, self.b = nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.c, self.norm = nn.Conv2d(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        right = self.norm(self.c(self.b(self.a(right).relu()))).relu()
        return shuffled(torch.cat((left, right), 1))


class Net(nn.Module):
    def __init__(self, half, blocks):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, half, 1), nn.Conv2d(3, half, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(half) for _ in range(blocks)))
        self.head = nn.Linear(2 * half, 5)

    def forward(self, x):
        x = shuffled(torch.cat((self.a(x), self.b(x)), 1))
        return self.head(self.blocks(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("half", "blocks", "units"), [(24, 0, 24), (24, 1, 12), (24, 2, 6), (24, 3, 3), (20, 1, 10)]
)
def test_each_block_halves_how_many_units_there_are(half, blocks, units):
    model = Net(half, blocks).eval()
    plan = pb.plan_widths(model, X, 0.6)
    assert not {"a", "b", "blocks.0.c"}.intersection(plan.left_alone)
    small = pb.shrink(model, plan)
    assert small.a.out_channels == small.b.out_channels < half
    assert small.a.out_channels % (half // units) == 0
    assert_equals_masked(model, plan, X)


@pytest.mark.parametrize(("half", "blocks"), [(24, 4), (10, 2)])
def test_where_one_unit_is_left_all_channels_stay_and_say_why(half, blocks):
    model = Net(half, blocks).eval()
    plan = pb.plan_widths(model, X, 0.8)
    for layer in ("a", "b", "blocks.0.c"):
        assert f"its {half} channels can only go all together" in plan.left_alone[layer]
    small = pb.shrink(model, plan)
    assert small.a.out_channels == half
    assert small.blocks[0].a.out_channels < half
    assert_equals_masked(model, plan, X)
