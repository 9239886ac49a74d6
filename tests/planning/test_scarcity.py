"""Where width goes when several costs are scarce: closed forms against what the ratios come to."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model_zoo import create_model
from pbcompress import Budget, CompressConfig, DendriteConfig, WidthConfig, plan_widths
from pbcompress.costs.bounds import Bounds
from pbcompress.costs.closed_form import CostModel
from pbcompress.planning.proportions import SPEED
from pbcompress.planning.scarcity import Scarcity
from pbcompress.structure.channel_groups import Axis, ChannelGroup, Member
from tests.support.nets import CASES

SHARES = (0.7, 0.5, 0.3)


def chain(widths, areas):
    """Groups between the layers of a chain, its parameters, and its work at these areas."""
    sizes = [3, *widths, 10]
    groups = [
        ChannelGroup(f"{i}", width, (Member(f"{i}", "out", torch.arange(width)[:, None]),))
        for i, width in enumerate(widths)
    ]
    axes = [
        Axis(size, ((f"{i - 1}", 1),) if 0 < i <= len(widths) else ())
        for i, size in enumerate(sizes)
    ]
    pairs = list(itertools.pairwise(axes))
    params = CostModel(groups, [(9, pair) for pair in pairs])
    work = CostModel(groups, [(9 * area, pair) for area, pair in zip(areas, pairs, strict=True)])
    return groups, params, work


def loads_of(bounds, full, ratios):
    """The loads at the highest level that fits."""

    def shares(level):
        widths = [max(min(level * r, 1.0) * w, 1.0) for r, w in zip(ratios, full, strict=True)]
        return bounds.shares(bounds.totals(widths))

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if max(shares(middle)) <= 1 else (low, middle)
    return shares(low)


WIDTHS = st.lists(st.integers(64, 512), min_size=4, max_size=8)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.2, 0.7), st.floats(0.8, 1.3))
def test_both_bounds_bind_where_early_layers_work_more(full, share, more):
    areas = [4.0**-i for i in range(len(full) + 1)]
    groups, params, work = chain(full, areas)
    limits = [share * params.total(full), share * more * work.total(full)]
    bounds = Bounds([params, work], limits)
    ratios = Scarcity(groups, [2] * len(full)).ratios(bounds)
    assert min(ratios) == pytest.approx(1)
    assert min(loads_of(bounds, full, ratios)) > 0.97


@settings(max_examples=10, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.1, 0.8))
def test_a_bound_that_the_original_keeps_to_changes_nothing(full, share):
    groups, params, work = chain(full, [1.0] * (len(full) + 1))
    scarcity = Scarcity(groups, [2] * len(full))
    limit = share * params.total(full)
    alone = scarcity.ratios(Bounds([params], [limit]))
    beside = scarcity.ratios(Bounds([params, work], [limit, work.total(full) - 1e-6]))
    assert alone == beside


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_compromise_lies_between_its_ends(share):
    full = [64, 64, 128, 256]
    groups, params, work = chain(full, [4.0**-i for i in range(5)])
    scarcity = Scarcity(groups, [2] * 4)
    bounds = Bounds([params], [share * params.total(full)])
    asked = [scarcity.compromise(bounds, work, speed).limits[1] for speed in (0.0, 0.5, 1.0)]
    assert asked[0] > asked[1] > asked[2]
    assert asked[1] == pytest.approx((asked[0] * asked[2]) ** 0.5)
    assert asked[2] == pytest.approx(share * work.total(full), rel=0.1)  # equal shares


PLANS = [
    (name, share, other)
    for name, share, other in itertools.product(CASES, SHARES, SHARES)
    if abs(share - other) < 0.3
]


def test_every_network_is_asked():
    assert (len(CASES), len(PLANS)) == (21, 147)


# Networks too small or too coarse for two bounds at once are held to what brute force finds.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "params", "flops"), PLANS)
def test_two_bounds_are_both_kept(name, params, flops):
    case = CASES[name]
    config = CompressConfig(width=WidthConfig(round_to=1), dendrites=DendriteConfig(max_sets=0))
    plan = plan_widths(
        case.build(), case.inputs(1), Budget(params=params, flops=flops), config=config
    )
    assert plan.cost_after.params <= plan.target_params
    assert plan.cost_after.flops <= plan.target_flops


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_whole_blocks_do_not_miss_the_price_of_work(name):
    model = create_model(name, num_classes=10, in_channels=3)

    def flops(allocation):
        config = WidthConfig(allocation=allocation)
        plan = plan_widths(model, torch.randn(2, 3, 32, 32), 0.25, config=config)
        assert plan.cost_after.params >= 0.98 * 0.25 * plan.cost_before.params
        return plan.cost_after.flops

    share = SPEED["balanced"] / SPEED["fast"]
    middle = flops("accurate") ** (1 - share) * flops("fast") ** share
    assert abs(flops("balanced") / middle - 1) < 0.1


class Block(nn.Module):
    """An attention of few heads beside a wide layer: rounding moves much of it at once."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(96, 3, batch_first=True)
        self.up, self.down = nn.Linear(96, 384), nn.Linear(384, 96)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(x)))


def few_heads():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 96), *(Block() for _ in range(6)), nn.Linear(96, 10))


FASTEST = [
    ("few_heads", few_heads, torch.zeros(1, 17, 24)),
    *(
        (name, partial(create_model, name, in_channels=3), torch.zeros(1, 3, 32, 32))
        for name in ("resnet20", "mobilenet_small")
    ),
    ("text", partial(create_model, "text_transformer"), torch.zeros(1, 48, dtype=torch.long)),
]


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize(("name", "build", "inputs"), FASTEST, ids=[own[0] for own in FASTEST])
def test_fast_never_has_more_work_than_the_default(name, build, inputs, share):
    model = build()
    flops = {}
    for allocation in ("balanced", "fast"):
        config = WidthConfig(allocation=allocation)
        plan = plan_widths(model, inputs, share, config=config)
        flops[allocation] = plan.cost_after.flops
        assert plan.cost_after.params >= 0.97 * plan.target_params or plan.unused
    assert flops["fast"] <= flops["balanced"]
