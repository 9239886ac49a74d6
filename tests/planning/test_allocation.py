"""The closed form against real networks, and the search against all combinations."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pbcompress import WidthConfig, plan_widths
from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.modules import copy_model
from pbcompress.costs.bounds import Bounds
from pbcompress.costs.closed_form import CostModel, parameter_costs, work_costs
from pbcompress.costs.measured import measure
from pbcompress.planning.allocation import FILL_GOAL, allocate, choices_of, narrowest
from pbcompress.planning.importance import unit_scores
from pbcompress.planning.proportions import preference_of
from pbcompress.planning.rounding import LEAST, allocate_rounded
from pbcompress.pruning.cuts import LayerCut, cut_all_
from pbcompress.structure.channel_groups import Axis, ChannelGroup, Member, find_groups
from pbcompress.structure.dimensions import dimension_size
from pbcompress.structure.layer_geometry import LayerGeometry, is_depthwise
from tests.support.nets import CASES
from tests.support.pairwise import pairwise, pairwise_by_default

ALLOCATIONS = ("uniform", "balanced", "global")
FILLED = list(itertools.product(CASES, (0.7, 0.5, 0.25), ALLOCATIONS))
ROUNDED = list(itertools.product(CASES, (4, 16), ALLOCATIONS))
LAYERS = [
    nn.Linear(6, 4),
    nn.Linear(6, 4, bias=False),
    nn.Conv1d(6, 4, 3),
    nn.Conv2d(6, 4, (1, 3)),
    nn.Conv3d(6, 4, 2, bias=False),
    nn.Conv2d(6, 4, 3, groups=2),
    nn.Conv2d(6, 6, 3, groups=6),
    nn.Conv2d(6, 12, 3, groups=6),
    nn.BatchNorm1d(6),
    nn.BatchNorm2d(6, affine=False),
    nn.PReLU(6),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_geometry_counts_the_parameters_of_a_layer(layer):
    geometry = LayerGeometry.of(layer)
    assert geometry.params(geometry.out_width, geometry.in_width) == sum(
        p.numel() for p in layer.parameters()
    )


def test_geometry_follows_the_widths():
    assert LayerGeometry.of(nn.Linear(6, 4)).params(3, 2) == 9
    assert LayerGeometry.of(nn.Conv2d(6, 4, 3, groups=2)).params(2, 4) == 2 * 2 * 9 + 2
    assert LayerGeometry.of(nn.Conv2d(6, 6, 3, groups=6)).params(3, 3) == 3 * 9 + 3
    assert LayerGeometry.of(nn.BatchNorm2d(6)).params(2, 2) == 4


def test_only_one_filter_per_channel_is_depthwise():
    assert is_depthwise(nn.Conv2d(6, 6, 3, groups=6))
    for other in (
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.Conv2d(1, 1, 3),
        nn.ConvTranspose2d(6, 6, 3, groups=6),
        nn.Linear(6, 6),
    ):
        assert not is_depthwise(other)


def costs_of(name):
    """The network, its groups, and the closed forms of its parameters and its FLOPs."""
    model = CASES[name].build()
    call = single_sample(as_call(CASES[name].inputs(1)))
    grouping = find_groups(copy_model(model).eval(), call)
    params = CostModel(grouping.groups, list(parameter_costs(model, grouping).values()))
    return model, grouping.groups, params, CostModel(grouping.groups, work_costs(grouping))


def cost_of(name):
    return costs_of(name)[:3]


def allocated(groups, cost, scores, target, config, multiple=1):
    return allocated_within(groups, Bounds([cost], [target]), scores, config, multiple)


def allocated_within(groups, bounds, scores, config, multiple=1, gives_way=False):
    """Two weights for each group, as in a chain."""
    weights, multiples = [2] * len(groups), [multiple] * len(groups)
    preference = preference_of(config.allocation, groups, scores, bounds, weights)
    if gives_way:
        return allocate_rounded(groups, bounds, preference, multiples, config)
    return allocate(bounds, preference, [choices_of(g, multiple, config) for g in groups])


def least(groups, multiple=1, gives_way=False, **floors):
    return narrowest(groups, [multiple] * len(groups), WidthConfig(**floors), gives_way)


def cut_to(model, groups, widths):
    """Remove the last units of every group."""
    removed = {}
    for group, width in zip(groups, widths, strict=True):
        for member in group.members:
            lost = member.positions[width:].flatten().tolist()
            removed.setdefault((member.layer, member.dim), []).extend(lost)
    small = copy_model(model)
    cut_all_(
        small,
        [
            LayerCut(name, dim, tuple(r), dimension_size(model, name, dim))
            for (name, dim), r in removed.items()
        ],
    )
    return small


def test_every_network_has_a_closed_form():
    assert len(CASES) == 21
    assert len(LAYERS) == 11


def test_every_two_choices_of_an_allocation_meet():
    assert (len(FILLED), len(pairwise(FILLED))) == (189, 63)
    assert (len(ROUNDED), len(pairwise(ROUNDED))) == (126, 63)


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_counts_what_remains_at_any_widths(name):
    model, groups, params, flops = costs_of(name)
    assert groups
    draw = random.Random(name)
    for _ in range(5):
        widths = [draw.randint(1, g.width) for g in groups]
        small = cut_to(model, groups, widths)
        assert params.total(widths) == sum(p.numel() for p in small.parameters())
    assert flops.total(widths) == measure(small, CASES[name].inputs(1)).flops


@pytest.mark.parametrize("name", CASES)
def test_a_change_is_the_difference_of_totals(name):
    _, groups, cost = cost_of(name)
    widths = [max(1, g.width // 2) for g in groups]
    for i, group in enumerate(groups):
        for width in (1, group.width):
            other = [*widths[:i], width, *widths[i + 1 :]]
            assert cost.change(i, width, widths) == cost.total(other) - cost.total(widths)


@pytest.mark.parametrize(("name", "share", "allocation"), pairwise_by_default(FILLED))
def test_97_percent_are_filled_wherever_any_widths_allow_it(name, share, allocation):
    model, groups, cost = cost_of(name)
    target = int(share * CASES[name].params)
    scores = list(unit_scores(model, groups).values())
    total = cost.total(allocated(groups, cost, scores, target, WidthConfig(allocation=allocation)))
    assert total <= target
    if total < FILL_GOAL * target:
        assert math.prod(g.width for g in groups) < 5000  # few enough to try all
        combinations = itertools.product(*(range(1, g.width + 1) for g in groups))
        best = max(t for w in combinations if (t := cost.total(list(w))) <= target)
        assert best < FILL_GOAL * target


@pytest.mark.parametrize(("name", "multiple", "allocation"), pairwise_by_default(ROUNDED))
def test_rounding_that_gives_way_misses_no_target_that_is_met_without(name, multiple, allocation):
    model, groups, cost = cost_of(name)
    scores = list(unit_scores(model, groups).values())
    for share in (0.7, 0.25):
        bounds = Bounds([cost], [int(share * CASES[name].params)])
        config = WidthConfig(allocation=allocation)
        loads = [
            bounds.load(bounds.totals(allocated_within(groups, bounds, scores, config, *rounding)))
            for rounding in ((1, False), (multiple, True))
        ]
        assert min(loads[0], LEAST) <= loads[1] <= 1


def test_rounding_gives_way_in_one_group_where_that_is_enough():
    groups, cost = chain_cost([64, 64, 64, 64])
    scores = [torch.ones(64)] * 4
    bounds = Bounds([cost], [int(0.4 * cost.total([64] * 4))])
    widths = allocated_within(groups, bounds, scores, WidthConfig(), 16, gives_way=True)
    assert LEAST <= bounds.load(bounds.totals(widths)) <= 1
    assert sum(width % 16 != 0 for width in widths) <= 1


def test_the_floor_is_reached_below_the_multiple_if_rounding_gives_way():
    groups, _ = chain_cost([40, 8])
    assert least(groups, 16, gives_way=True) == [1, 1]
    assert least(groups, 16) == [16, 8]


def test_widths_are_rounded_to_the_nearest_multiple():
    groups, cost = chain_cost([40])
    wanted = 31  # as many channels as the bound allows; 32 is nearer than 24, and too much
    for extra, expected in ((0, 24), (cost.change(0, 32, [31]), 32)):
        bounds = Bounds([cost], [cost.total([wanted]) + extra])
        widths = allocated_within(groups, bounds, [torch.ones(40)], WidthConfig(), multiple=8)
        assert widths == [expected]


def chain_cost(widths, taps=9, image=3, classes=10):
    """A chain of convolutions: group i is the output of layer i and the input of layer i + 1."""
    sizes = [image, *widths, classes]
    groups = [
        ChannelGroup(
            f"{i}",
            width,
            (
                Member(f"{i}", "out", torch.arange(width)[:, None]),
                Member(f"{i + 1}", "in", torch.arange(width)[:, None]),
            ),
        )
        for i, width in enumerate(widths)
    ]
    axes = [
        Axis(size, ((f"{i - 1}", 1),) if 0 < i <= len(widths) else ())
        for i, size in enumerate(sizes)
    ]
    terms = [(taps, pair) for pair in itertools.pairwise(axes)]
    terms += [(1, (axis,)) for axis in axes[1:]]  # biases
    return groups, CostModel(groups, terms)


def formula(widths, taps=9, image=3, classes=10):
    sizes = [image, *widths, classes]
    return sum((a * taps + 1) * b for a, b in itertools.pairwise(sizes))


CHAINS = st.lists(st.integers(8, 200), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    CHAINS,
    st.floats(0.05, 0.99),
    st.sampled_from(ALLOCATIONS),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 5]),
    st.floats(0.3, 0.99),
)
def test_random_chains_keep_target_floors_and_multiples(
    original, share, allocation, round_to, min_width, max_ratio
):
    groups, cost = chain_cost(original)
    torch.manual_seed(len(original))
    scores = [torch.rand(w, dtype=torch.float64) for w in original]
    config = WidthConfig(allocation=allocation, min_width=min_width, max_ratio=max_ratio)
    target = int(share * formula(original))
    widths = allocated(groups, cost, scores, target, config, round_to)
    smallest = least(groups, round_to, min_width=min_width, max_ratio=max_ratio)
    assert (widths is None) == (formula(smallest) > target)
    for width, floor, before in zip(widths or smallest, smallest, original, strict=True):
        assert width >= floor >= min_width
        assert before - width <= max_ratio * before
        assert width % round_to == 0 or width == before
    if widths is not None:
        assert cost.total(widths) == formula(widths) <= target


WIDTH = st.integers(8, 200)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(WIDTH, WIDTH, st.floats(0.05, 0.95), st.sampled_from(ALLOCATIONS))
def test_two_groups_are_filled_wherever_any_two_widths_allow_it(first, second, share, allocation):
    groups, cost = chain_cost([first, second])
    scores = [torch.rand(w, dtype=torch.float64) for w in (first, second)]
    target = int(share * formula([first, second]))
    widths = allocated(groups, cost, scores, target, WidthConfig(allocation=allocation))
    low = least(groups)
    a, b = np.ogrid[low[0] : first + 1, low[1] : second + 1]
    totals = 28 * a + (9 * a + 1) * b + (9 * b + 1) * 10
    fitting = totals[totals <= target]
    assert (widths is None) == (len(fitting) == 0)
    if widths is not None:
        goal = FILL_GOAL * target
        assert formula(widths) >= goal or fitting.max() < goal


def test_uniform_narrows_all_groups_alike():
    original = [64, 128, 256, 100]
    groups, cost = chain_cost(original)
    scores = [torch.rand(w, dtype=torch.float64) for w in original]
    config = WidthConfig(allocation="uniform")
    widths = allocated(groups, cost, scores, int(0.25 * formula(original)), config)
    kept = [w / full for w, full in zip(widths, original, strict=True)]
    # each is rounded to a channel, and the remainder goes to whatever is cheap enough for it
    assert max(kept) - min(kept) <= 2 / min(original)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(40, 200), min_size=3, max_size=6), st.floats(0.1, 0.6))
def test_accurate_groups_are_as_wide_as_what_they_hold_allows(original, share):
    groups, cost = chain_cost(original)
    scores = [torch.rand(w, dtype=torch.float64) for w in original]
    uniform, widths = (
        allocated(groups, cost, scores, int(share * formula(original)), WidthConfig(allocation=a))
        for a in ("uniform", "accurate")
    )
    reads = [28, *(9 * w + 1 for w in original[:-1])]  # see `formula`: what a channel reads,
    readers = [9 * w for w in original[1:]] + [90]  # and what reads it
    held = np.array([w * (a + b) for w, a, b in zip(original, reads, readers, strict=True)])
    kept = np.array(widths) / original
    levels = (kept * np.sqrt(held / held.max()))[kept < 1]
    # each is rounded to a channel, and the remainder goes to whatever is cheap enough for it
    assert np.ptp(levels) <= 2 / min(original)
    assert sum(1 / kept) <= sum(np.array(original) / uniform) * 1.02


def test_global_keeps_the_groups_that_matter():
    original = [64, 64]
    groups, cost = chain_cost(original)
    scores = [torch.full((64,), 3.0).double(), torch.full((64,), 1.0).double()]
    config = WidthConfig(allocation="global")
    widths = allocated(groups, cost, scores, formula(original) // 2, config)
    assert widths[0] == 64 > widths[1]


def test_min_width_counts_channels_and_not_units():
    unit = Member("a", "out", torch.stack([torch.arange(10), torch.arange(10) + 10], 1))
    group = ChannelGroup("a", 10, (unit,))
    assert least([group], min_width=6) == [3]
    assert least([group], min_width=5) == [3]
    assert least([group], 8) == [4]


def test_a_group_narrower_than_its_floor_stays():
    groups, _ = chain_cost([4, 20])
    assert least(groups, min_width=6) == [4, 6]
    assert least(groups, 8) == [4, 8]


def test_reserve_is_part_of_the_total():
    groups, cost = chain_cost([16, 16])
    layers = {"1": (Axis(16, (("1", 1),)), Axis(16, (("0", 1),)))}
    reserve = CostModel(groups, [(7, ())], {"1": lambda out, in_: 2 * out + in_}, layers)
    assert reserve.total([8, 4]) == 7 + 16
    assert reserve.reserved([8, 4]) == 16
    assert reserve.change(0, 9, [8, 4]) == 1
    assert cost.total([8, 4]) == formula([8, 4])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 4))
def test_a_change_is_the_difference_for_any_terms(data, count):
    """Dimensions that several groups share, terms with squares and cubes, and reserves."""
    original = data.draw(st.lists(st.integers(2, 9), min_size=count, max_size=count))
    groups, _ = chain_cost(original)
    places = st.sampled_from([("other", 1), *((f"{i}", n) for i in range(count) for n in (1, 2))])
    held = st.lists(places, max_size=3)
    axes = held.map(lambda own: Axis(90 + sum(map(len, own)), tuple(own)))
    terms = data.draw(
        st.lists(st.tuples(st.integers(1, 9), st.lists(axes, max_size=3)), max_size=5)
    )
    layer = data.draw(st.tuples(axes, axes))
    cost = CostModel(
        groups,
        [(number, tuple(own)) for number, own in terms],
        {"layer": lambda out, in_: 3 * out * in_ + out // 2},
        {"layer": layer},
    )
    widths, others = ([data.draw(st.integers(1, w)) for w in original] for _ in range(2))

    def size(axis, at):
        full = {f"{i}": original[i] for i in range(count)}
        now = {f"{i}": at[i] for i in range(count)}
        return axis.size - sum((full[g] - now[g]) * n for g, n in axis.groups if g in full)

    def total(at):
        out, in_ = (size(axis, at) for axis in layer)
        own = sum(number * math.prod(size(a, at) for a in axes) for number, axes in terms)
        return own + 3 * out * in_ + out // 2

    assert cost.total(widths) == total(widths)
    for i, width in enumerate(others):
        moved = [*widths[:i], width, *widths[i + 1 :]]
        before = list(widths)
        assert cost.change(i, width, widths) == total(moved) - total(widths)
        assert widths == before


class Counted(CostModel):
    """Counts how often it is asked."""

    asked = 0

    def total(self, widths):
        self.asked += 1
        return super().total(widths)

    def change(self, index, width, widths):
        self.asked += 1
        return super().change(index, width, widths)


def transformer_cost(depth, differ):
    """Four heads of eight channels that go through all layers, and a wide part in each."""
    inner = [128 + differ * i for i in range(depth)]
    groups, _ = chain_cost(inner)
    heads = Member("stream", "out", torch.arange(32).view(4, 8))
    stream = Axis(32, (("stream", 8),))
    terms = [(4 * depth, (stream, stream))]
    terms += [(2, (stream, Axis(width, ((f"{i}", 1),)))) for i, width in enumerate(inner)]
    groups = [ChannelGroup("stream", 4, (heads,)), *groups]
    return groups, Counted(groups, terms)


@pytest.mark.parametrize("differ", [0, 1], ids=["layers alike", "all different"])
def test_a_search_asks_for_costs_in_proportion_to_the_depth(differ):
    asked = []
    for depth in (64, 128, 256):
        groups, cost = transformer_cost(depth, differ)
        bounds = Bounds([cost], [int(0.4 * cost.total([g.width for g in groups]))])
        scores = [torch.ones(g.width, dtype=torch.float64) for g in groups]
        cost.asked = 0
        widths = allocated_within(groups, bounds, scores, WidthConfig())
        asked.append(cost.asked)
        assert FILL_GOAL <= bounds.load(bounds.totals(widths)) <= 1
    assert asked[1] <= 2.2 * asked[0]
    assert asked[2] <= 2.2 * asked[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    CHAINS,
    st.floats(0.2, 0.9),
    st.floats(0.2, 0.9),
    st.sampled_from(ALLOCATIONS),
)
def test_two_bounds_hold_at_once(original, share, other_share, allocation):
    groups, cost = chain_cost(original)
    squares = CostModel(
        groups, [(3, (Axis(w, ((f"{i}", 1),)),) * 2) for i, w in enumerate(original)]
    )
    limits = [int(share * cost.total(original)), int(other_share * squares.total(original))]
    scores = [torch.rand(w, dtype=torch.float64) for w in original]
    bounds = Bounds([cost, squares], limits)
    widths = allocated_within(groups, bounds, scores, WidthConfig(allocation=allocation))
    smallest = least(groups)
    assert (widths is None) == (bounds.load(bounds.totals(smallest)) > 1)
    if widths is not None:
        assert cost.total(widths) <= limits[0]
        assert 3 * sum(w * w for w in widths) == squares.total(widths) <= limits[1]


def test_isomorphic_groups_are_ranked_among_themselves():
    groups = [
        ChannelGroup(name, 10, (Member(name, "out", torch.arange(10)[:, None]),), kind)
        for name, kind in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    cost = CostModel(groups, [(1, (Axis(10, ((g.name, 1),)),)) for g in groups])
    scores = [torch.full((10,), v, dtype=torch.float64) + torch.rand(10) / 10 for v in (1, 2, 9)]
    config = WidthConfig(allocation="isomorphic")
    widths = allocated(groups, cost, scores, 15, config)
    assert widths[0] < widths[1]
    assert abs(widths[2] - 5) <= 1
    assert sum(widths) == 15


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.7, 0.8])
def test_a_unit_that_weighs_much_is_made_up_for_by_all_others(share):
    """Four heads, each with a quarter of every layer's width, beside small groups."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True)
    model = nn.Sequential(
        nn.Linear(9, 32),
        nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
        nn.Linear(32, 30),
        *(nn.Linear(30, 3) if i % 2 == 0 else nn.Linear(3, 30) for i in range(20)),
    )
    plan = plan_widths(model, torch.randn(1, 5, 9), share)
    assert FILL_GOAL <= plan.cost_after.params / plan.target_params <= 1
