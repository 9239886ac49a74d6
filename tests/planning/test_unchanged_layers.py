"""Every layer that keeps its width has a reason in the plan, and the reason is true."""

import itertools
import re
from functools import cache

import pytest
import torch
from torch import nn

from pbcompress import (
    Budget,
    CompressionError,
    TargetUnreachableError,
    UnsupportedLayerError,
    WidthConfig,
    measure,
    plan_widths,
    shrink,
)
from tests.support.hard_nets import NETS
from tests.support.nets import CASES, vectors

CONFIGS = {
    "balanced": WidthConfig(allocation="balanced", round_to=1),
    "eights": WidthConfig(allocation="uniform", round_to=8),
    "global": WidthConfig(allocation="global", round_to=1),
    "floor": WidthConfig(allocation="balanced", round_to=1, min_width=16),
}
FREE = re.compile(
    "few (weights|multiply-adds|weights and multiply-adds): the rule keeps it"
    "|the target is met with all its channels|all its channels rank above those that go"
    r"|one block of 8 channels: no smaller multiple|its \d+ channels are less than one block of 8"
    r"|it has \d+ channels, and WidthConfig.min_width is 16"
)
PLANS = [
    pytest.param(name, config, marks=() if (i + j) % 2 else pytest.mark.slow)
    for i, name in enumerate(CASES)
    for j, config in enumerate(CONFIGS)
]


@cache
def planned(name, config="balanced", target=0.8, nets="CASES"):
    case = {"CASES": CASES, "NETS": NETS}[nets][name]
    try:
        return plan_widths(case.build(), case.inputs(1), target, config=CONFIGS[config])
    except TargetUnreachableError as error:  # of the narrowest: all that can be is cut
        if error.smallest is None or error.smallest >= sum(
            p.numel() for p in case.build().parameters()
        ):
            return None
        return plan_widths(case.build(), case.inputs(1), error.smallest, config=CONFIGS[config])


def unchanged(plan):
    """Return the reason of each layer that has as many channels as before."""
    after = plan.cost_after.by_layer
    return {
        name: plan.left_alone.get(name, "")
        for name, layer in plan.cost_before.by_layer.items()
        if layer.width is not None and after[name].width == layer.width
    }


def is_true(layer, reason, plan, width):
    """Hold a reason against the numbers of its plan; what no number tells is held by a pin."""
    before, after = plan.cost_before.by_layer, plan.cost_after.by_layer
    size = before[layer].width
    for why in reason.split("; "):
        own = re.sub("^its channels go with those of '[^']*': ", "", why)
        if own.startswith("few ") and own == why:
            assert width.allocation == "balanced"
            cut = [b for n, b in before.items() if b.width and after[n].width < b.width]
            if "weights" in own:
                assert before[layer].params < sum(b.params for b in cut) / len(cut), (layer, why)
            if "multiply-adds" in own:
                assert before[layer].flops < sum(b.flops for b in cut) / len(cut), (layer, why)
        elif own.startswith("one block of 8"):
            assert width.round_to == 8
            assert own != why or size == 8
        elif "less than one block of 8" in own:
            assert width.round_to == 8
            assert own != why or size < 8
        elif "min_width" in own:
            assert own != why or size <= width.min_width
        elif "rank above" in own:
            assert width.allocation == "global"
        elif "the target is met" in own:
            assert plan.cost_after.params <= plan.target_params


def test_the_lists_are_long():
    assert (len(CASES), len(PLANS), len(NETS)) == (21, 84, 42)


@pytest.mark.parametrize(("name", "config"), PLANS)
def test_every_layer_that_keeps_its_width_has_a_reason_that_its_numbers_bear(name, config):
    plan = planned(name, config)
    if plan is None:
        assert config in ("floor", "eights")  # they leave nothing of so small a network to cut
        return
    found = unchanged(plan)
    assert found  # the outputs, if nothing else
    for layer, reason in found.items():
        assert reason, layer
        is_true(layer, reason, plan, CONFIGS[config])
        assert reason in str(plan) or "{" in str(plan)  # rows of alike layers are one


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_hard_networks_have_no_layer_without_a_reason_either(name):
    plan, case = planned(name, nets="NETS"), NETS[name]
    assert all(unchanged(plan).values())
    small = measure(shrink(case.build(), plan), case.inputs(1)).by_layer
    after = {n: layer for n, layer in plan.cost_after.by_layer.items() if n in small}
    assert {n: small[n].width for n in after} == {n: layer.width for n, layer in after.items()}


def can_be_narrower(name, layer):
    """Tell whether a layer can be given one unit less, or half of its units."""
    case = CASES[name]
    config = WidthConfig(pin={layer: 0.5}, round_to=1)
    try:
        plan = plan_widths(case.build(), case.inputs(1), 0.999, config=config)
    except UnsupportedLayerError:
        return False
    before, after = plan.cost_before.by_layer[layer], plan.cost_after.by_layer[layer]
    return after.width < before.width


@pytest.mark.parametrize("name", [*CASES][::2])
def test_a_layer_can_be_given_a_smaller_width_exactly_where_its_reason_is_a_choice(name):
    plan = planned(name)
    for layer, reason in unchanged(plan).items():
        assert can_be_narrower(name, layer) == bool(FREE.search(reason)), (layer, reason)


# --- reasons one by one ---------------------------------------------------------------------------


def mlp(*widths):
    torch.manual_seed(0)
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def reasons_of(model, target=0.7, **width):
    config = WidthConfig(**{"round_to": 1, "allocation": "balanced", **width})
    return plan_widths(
        model, torch.zeros(1, model[0].in_features), target, config=config
    ).left_alone


def test_a_pinned_layer_and_one_that_is_coupled_with_it_say_so():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(16, 32), nn.Linear(32, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            x = self.a(x)
            return self.head(x + self.c(torch.relu(self.b(x))))

    config = WidthConfig(pin={"a": 16}, round_to=1)
    found = plan_widths(Sum(), vectors(1), 0.7, config=config).left_alone
    assert found["a"] == "WidthConfig.pin gives it all its channels"
    assert found["c"] == "its channels go with those of 'a', to which WidthConfig.pin gives all"
    assert "b" not in found


def test_small_layers_beside_large_ones_have_few_weights():
    found = reasons_of(mlp(4, 16, 256, 256, 4))
    assert found["0"] == "few weights and multiply-adds: the rule keeps it"
    found = reasons_of(mlp(4, 16, 256, 256, 4), allocation="accurate")  # which leaves work aside
    assert found["0"] == "few weights: the rule keeps it"


def test_few_multiply_adds_keep_a_layer_where_these_are_bounded():
    class Images(nn.Sequential):
        """Many weights at the end, on one pixel; much work in front."""

    model = Images(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    config = WidthConfig(allocation="balanced", round_to=1)
    found = plan_widths(
        model, torch.zeros(1, 3, 12, 12), Budget(flops=0.7), config=config
    ).left_alone
    assert found["6"] == "few multiply-adds: the rule keeps it"


def test_channels_that_rank_above_all_that_go_say_so():
    model = mlp(8, 32, 32, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
        for tensor in (model[2].weight, model[2].bias):
            tensor[16:] = 1e-4
        model[4].weight[:, 16:] = 1e-4
    found = reasons_of(model, 0.6, allocation="global")
    assert found["0"] == "all its channels rank above those that go"


def test_blocks_floors_and_ratios_name_what_stops_them():
    model = mlp(10, 8, 64, 6, 64, 5)
    found = reasons_of(model, round_to=8)
    assert found["0"] == "one block of 8 channels: no smaller multiple"
    assert found["4"] == "its 6 channels are less than one block of 8"
    found = reasons_of(model, min_width=8)
    assert found["0"] == "it has 8 channels, and WidthConfig.min_width is 8"
    assert found["4"] == "it has 6 channels, and WidthConfig.min_width is 8"
    found = reasons_of(model, 0.95, max_ratio=0.15)
    assert found["4"] == "WidthConfig.max_ratio leaves no channel of its 6 to go"


def test_a_layer_whose_weight_is_computed_from_others_shows_the_width_that_it_gets():
    model = mlp(8, 32, 4)
    torch.nn.utils.parametrizations.weight_norm(model[0])
    config = WidthConfig(pin={"0": 12}, round_to=1)
    plan = plan_widths(model, torch.zeros(1, 8), 0.9, config=config)
    assert plan.cost_after.by_layer["0"].width == shrink(model, plan)[0].out_features == 12
    assert "0" not in plan.left_alone


def test_a_module_that_states_a_width_and_has_no_weight_says_so():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.out_features = 16
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.scale * x

    model = nn.Sequential(nn.Linear(10, 32), Scaled(), nn.Linear(32, 3))
    found = reasons_of(model, 0.5)
    assert found["1"] == "it has no weight of its own that could be cut"


def test_a_plan_tells_the_reason_of_what_was_refused_before_it_tells_of_choices():
    with pytest.raises(CompressionError, match="keeps its width of 4: its width is the network's"):
        reasons_of(mlp(8, 32, 4), pin={"2": 2})
