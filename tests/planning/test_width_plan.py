"""Plans as things to read, keep, change and compare."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pbcompress import (
    Budget,
    CompressConfig,
    CompressionError,
    DendriteConfig,
    PlanDiff,
    StateMismatchError,
    TargetUnreachableError,
    UnsupportedLayerError,
    WidthConfig,
    WidthPlan,
    measure,
    plan_widths,
    shrink,
)
from pbcompress.planning.explanation import reasons_text
from tests.support.nets import CASES, images, vectors

every_net = pytest.mark.parametrize("name", CASES)
CONFIG = CompressConfig(
    width=WidthConfig(allocation="global", keep=("stem",)), dendrites=DendriteConfig(share=0.2)
)


@cache
def model_of(name):
    return CASES[name].build()


def plan_of(name, target=0.5, config=None, **width):
    config = config or CompressConfig(width=WidthConfig(**width))
    return plan_widths(model_of(name), CASES[name].inputs(1), target, config=config)


@cache
def planned(name):
    return plan_of(name)


def widths(model):
    """Output channels of every layer that has some, read from its weight."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            found[name] = module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            found[name] = module.weight.shape[0]
    return found


def cells(text):
    """The rows of a printed plan, by layer, without the folded ones."""
    lines = text.split("\n\n")[1].splitlines()
    return {line.split()[0]: line for line in lines[2:]}


# --- costs and text ----------------------------------------------------------------------------


def test_every_network_is_in_the_list():
    assert len(CASES) == 21


@every_net
def test_the_predicted_costs_are_those_of_the_shrunk_network(name):
    plan = planned(name)
    small = shrink(model_of(name), plan)
    counted = measure(small, CASES[name].inputs(1))
    assert plan.cost_after.params == sum(p.numel() for p in small.parameters())
    assert (plan.cost_after.params, plan.cost_after.flops) == (counted.params, counted.flops)
    first = str(plan).partition("\n")[0]
    assert f"% of the parameters ({plan.cost_before.params:,} -> {counted.params:,})" in first
    assert f"% of the multiply-adds ({plan.cost_before.flops:,} -> {counted.flops:,})" in first


@every_net
def test_the_text_has_the_widths_that_the_shrunk_network_has(name):
    plan, model = planned(name), model_of(name)
    before, after = widths(model), widths(shrink(model, plan))
    rows = cells(str(plan))
    folded = [row for row in rows if "{" in row]
    assert before.keys() <= rows.keys() or folded
    for layer in before.keys() & rows.keys():
        share = f"{after[layer] / before[layer]:.1%}"
        _, kind, was, now, kept, *_ = rows[layer].split()
        assert kind == type(model.get_submodule(layer)).__name__
        assert (int(was), int(now), kept) == (before[layer], after[layer], share)


@every_net
def test_the_rows_add_up_to_the_total(name):
    plan = planned(name)
    rows = cells(str(plan))
    if any("{" in row for row in rows):
        return
    numbers = [re.findall(r"(?<= )[\d,]+(?= |$)", row) for row in rows.values()]
    totals = [0, 0, 0, 0]
    for name_, row in rows.items():
        parts = re.split(r" {2,}", row)
        is_rest = name_.startswith("(")
        costs = parts[1:5] if is_rest else parts[5:9]
        for i, cost in enumerate(costs):
            totals[i] += int(cost.replace(",", ""))
    assert numbers
    before, after = plan.cost_before, plan.cost_after
    assert totals == [before.params, after.params, before.flops, after.flops]


def test_attention_of_torch_is_counted_as_predicted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.layer(x).mean(1))

    plan = plan_widths(Net(), torch.randn(1, 5, 16), 0.7)
    by_hand = 5 * (4 * 16 * 16 + 2 * 16 * plan.cost_after.by_layer["layer.linear1"].width)
    by_hand += 2 * 5 * 5 * 16  # queries with keys, and what they choose
    norms, head = 2 * 5 * 16 * 5, 16 * 3  # fvcore: an affine LayerNorm is 5 per element
    assert plan.cost_after.flops == by_hand + norms + head


def test_the_text_says_every_bound_as_asked_and_as_a_count():
    plan = plan_of("chain", Budget(params=0.6, flops=100_000))
    text = str(plan)
    after = plan.cost_after
    share = f"{after.params / 24.55:.1f} % of it"
    assert (
        f"at most 2,455 parameters (0.6 of the original), reached {after.params:,} ({share})"
        in text
    )
    assert f"at most 100,000 FLOPs, reached {after.flops:,}" in text
    assert "at most 2,046 parameters (0.5 of the original)" in str(planned("chain"))


def test_the_text_says_what_is_kept_for_dendrites_and_where():
    plan = plan_of("chain", config=CompressConfig(dendrites=DendriteConfig(share=0.5)))
    assert f"kept for dendrites: {plan.reserved_params:,} parameters" in str(plan)
    noted = [name for name, row in cells(str(plan)).items() if "room for dendrites" in row]
    assert sorted(noted) == sorted(plan.grow)
    assert noted


@every_net
def test_the_text_gives_the_reason_of_every_layer_that_keeps_its_width(name):
    plan = planned(name)
    for layer, reason in plan.left_alone.items():
        assert reason in cells(str(plan)).get(layer, reason)
    assert any(reason in str(plan) for reason in plan.left_alone.values())


def test_a_layer_coupled_with_a_kept_one_says_so():
    plan = plan_of("residual", 0.8, keep=("stem",))
    assert "'stem.0': WidthConfig.keep names it" in plan.left_alone["second"]
    assert "'stem.0'" in cells(str(plan))["second"]


class Blocks(nn.Module):
    """Alike blocks, and within each a layer whose width cannot change, with the block's name."""

    def __init__(self, count):
        super().__init__()
        self.stem = nn.Linear(10, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(count)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


HALVED = CompressConfig(width=WidthConfig(pin={"blocks": 0.5}))


def test_alike_layers_of_a_long_network_stand_in_one_row():
    plan = plan_widths(Blocks(12), vectors(1), 0.5, config=HALVED)
    rows = cells(str(plan))
    assert list(rows) == ["stem", "blocks.{0-11}.0", "blocks.{0-11}.2", "head"]
    first = plan.cost_after.by_layer["blocks.7.0"]
    assert rows["blocks.{0-11}.0"].split()[3] == str(first.width)
    assert f"{first.params:,}" in rows["blocks.{0-11}.0"].split()


def test_a_layer_that_differs_from_its_like_has_a_row_of_its_own():
    config = CompressConfig(width=WidthConfig(pin={"blocks": 0.5, "blocks.3.0": 30}))
    rows = cells(str(plan_widths(Blocks(8), vectors(1), 0.6, config=config)))
    assert "pinned by 'blocks.3.0'" in rows["blocks.3.0"]
    others = ["blocks.{0-2,4-7}.0", "blocks.{0-2,4-7}.2"]  # 3.2 reads more, so it costs more
    assert list(rows) == ["stem", *others, "blocks.3.0", "blocks.3.2", "head"]


def test_notes_that_name_the_block_are_folded_with_it():
    class Attentions(Blocks):
        def __init__(self):
            super().__init__(8)
            self.attend = nn.ModuleList(nn.MultiheadAttention(16, 2) for _ in range(8))

        def forward(self, x):
            x = self.stem(x)[None]
            for attend, block in zip(self.attend, self.blocks, strict=True):
                x = x + attend(x, x, x)[0]
                x = x + block(x)
            return self.head(x[0])

    config = CompressConfig(width=WidthConfig(pin={"blocks.*.0": 0.5}))
    text = str(plan_widths(Attentions(), vectors(2), 0.9, config=config))
    assert "blocks.{0-7}.0 " in text
    assert "attend.{0-7}.out_proj " in text
    assert len(text.splitlines()) < 14


def test_reasons_are_folded_by_kind_with_few_names():
    left = {f"blocks.{i}.fc": f"its channels meet x in 'blocks.{i}'" for i in range(300)}
    text = reasons_text({**left, "head": "its width is the network's output"})
    assert "300 layers: 'blocks.0.fc', 'blocks.1.fc'" in text
    assert "'head'" in text
    assert len(text) < 300
    many = {f"l{i}": f"reason {'abcdefghijklmnop'[i]}" for i in range(16)}
    assert reasons_text(many).endswith("other reasons (10 layers)")


def test_an_unreachable_target_of_a_long_network_is_said_in_few_words():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)) for _ in range(200)))
    config = CompressConfig(width=WidthConfig(keep=("*",)))
    with pytest.raises(TargetUnreachableError) as caught:
        plan_widths(model, torch.randn(1, 4), 0.5, config=config)
    assert len(str(caught.value)) < 900


# --- JSON --------------------------------------------------------------------------------------


@every_net
def test_a_plan_from_json_is_equal_and_shrinks_to_the_same_bits(name):
    plan = planned(name)
    again = WidthPlan.from_json(plan.to_json())
    assert again == plan
    assert str(again) == str(plan)
    first, second = (shrink(model_of(name), p).state_dict() for p in (plan, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_json_keeps_choices_bounds_and_reserve():
    config = CompressConfig(
        width=WidthConfig(pin={"1.0": 0.5}, round_to=2), dendrites=DendriteConfig(share=0.4)
    )
    plan = plan_of("chain", Budget(params=0.7, flops=0.8), config=config)
    again = WidthPlan.from_json(plan.to_json())
    assert again.config == config
    assert again.budget == Budget(params=0.7, flops=0.8)
    assert again.grow == plan.grow
    assert again.reserved_params == plan.reserved_params > 0


def test_a_plan_of_before_there_was_an_expected_speedup_is_read_without_one():
    plan = planned("chain")
    assert plan.expected_speedup == plan.solution.expected_speedup > 0
    old = WidthPlan.from_json(damaged(lambda d: d.pop("expected_speedup")))
    assert old.expected_speedup is None
    assert old == replace(plan, solution=replace(plan.solution, expected_speedup=None))


def damaged(change):
    data = json.loads(planned("chain").to_json())
    del data["sha256_of_content"]  # as a plan that somebody wrote by hand
    change(data)
    return json.dumps(data)


BAD_TEXTS = {
    "truncated": (lambda: planned("chain").to_json()[:-40], "truncated"),
    "empty": (lambda: "", "truncated or no JSON"),
    "other kind": (lambda: '{"kind": "pbcompress run", "version": 1}', "another kind"),
    "a list": (lambda: "[1]", "another kind"),
    "newer": (lambda: damaged(lambda d: d.update(version=99)), "version 99.*Update pbcompress"),
    "older": (
        lambda: damaged(lambda d: d.update(version=1)),
        "The plan has version 1.*reads version 2",
    ),
    "no version": (lambda: damaged(lambda d: d.pop("version")), "version None"),
    "no steps": (lambda: damaged(lambda d: d.pop("steps")), "steps is missing"),
    "short step": (lambda: damaged(lambda d: d["steps"][0].pop()), r"steps\.0\.3 is missing"),
    "unknown choice": (lambda: damaged(lambda d: d["config"].update(x=1)), "does not fit.*no 'x'"),
    "layers": (lambda: damaged(lambda d: d["before"].update(layers=[])), "before.layers is"),
    "a number changed": (
        lambda: planned("chain").to_json().replace('"flops": ', '"flops": 1', 1),
        "was changed since",
    ),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_what_is_no_whole_plan_of_this_version_is_refused_in_its_own_words(name):
    assert len(BAD_TEXTS) == 12
    make, match = BAD_TEXTS[name]
    with pytest.raises(StateMismatchError, match=match):
        WidthPlan.from_json(make())


# --- pins --------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_pinned_layer_has_its_width_and_the_budget_is_kept(name, share):
    layer = next(s.layer for s in planned(name).steps if s.dim in ("out", "weight:0"))
    try:
        plan = plan_of(name, 0.8, pin={layer: share})
    except TargetUnreachableError:  # nothing else is left to narrow
        assert share == 1
        return
    small, model = shrink(model_of(name), plan), model_of(name)
    was, now = widths(model)[layer], widths(small)[layer]
    unit = next((m for m in (1, 2, 3, 4) if round(now * m) == now * m), 1)
    assert abs(now - share * was) <= 4 * unit if share < 1 else now == was
    assert plan.cost_after.params <= plan.target_params


def test_a_pin_holds_against_floors_and_rounding_and_the_rest_keeps_them():
    plan = plan_of("chain", 0.6, pin={"0.0": 3}, min_width=8, round_to=4)
    small = widths(shrink(model_of("chain"), plan))
    assert small["0.0"] == 3
    assert small["1.0"] >= 8
    assert small["1.0"] % 4 == 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 32), st.integers(1, 24))
def test_any_two_widths_of_a_plain_network_can_be_given(first, second):
    model = model_of("mlp")
    config = CompressConfig(width=WidthConfig(pin={"0": first, "4": second}))
    size = 10 * first + 3 * first + first * second + 5 * second + 5
    if size > 1279:
        with pytest.raises(TargetUnreachableError, match="pin"):
            plan_widths(model, vectors(1), 1279, config=config)
        return
    plan = plan_widths(model, vectors(1), 1279, config=config)
    assert widths(shrink(model, plan)) == {"0": first, "4": second, "6": 5}
    assert plan.cost_after.params == size


def test_of_several_pins_of_a_layer_the_last_counts():
    plan = plan_of("mlp", 0.9, pin=(("*[04]", 6), ("0", 9)))
    assert widths(shrink(model_of("mlp"), plan)) == {"0": 9, "4": 6, "6": 5}


def test_a_pin_on_a_folder_reaches_what_lies_below():
    small = shrink(model_of("residual"), plan_of("residual", 0.6, pin={"stem": 5}))
    assert widths(small)["stem.0"] == widths(small)["second"] == 5


REFUSED_PINS = [
    ("residual", {"stem": 6, "second": 7}, "'second' to 7.*go with those of 'stem.0'.*6"),
    ("residual", {"stem.0": 17}, "'stem.0' to 17.*can have 1 to 16, together with 'second'"),
    ("residual", {"head": 3}, "'head' to 3.*keeps its width of 5.*network's output"),
    ("residual", {"steem": 3}, "'steem'; the model has no such layer.*'stem.0', 'first.0'"),
    ("residual", {"norm": 3}, "'norm'; the model has no such layer with a width"),
    ("grouped", {"1.0": 7}, "'1.0' to 7.*can have 4 to 48 in steps of 4"),
    ("grouped", {"1.0": 2}, "'1.0' to 2.*can have 4 to 48"),
    ("depthwise separable", {"0.0": 4, "1.0": 5}, "'1.0' to 5.*go with those of '0.0'"),
]


@pytest.mark.parametrize(("name", "pin", "match"), REFUSED_PINS)
def test_a_width_that_cannot_be_is_refused_with_those_that_can(name, pin, match):
    assert len(REFUSED_PINS) == 8
    with pytest.raises(CompressionError, match=match):
        plan_of(name, 0.7, pin=pin)


def test_the_refused_layer_and_the_reason_can_be_read():
    with pytest.raises(UnsupportedLayerError) as caught:
        plan_of("residual", 0.7, pin={"down": 99})
    assert caught.value.layer == "down"
    assert "1 to 20" in caught.value.reason
    assert "'skip'" in caught.value.reason


def test_a_pin_against_keep_is_refused_with_that_reason():
    with pytest.raises(UnsupportedLayerError, match=r"'stem.0' to 3.*keep names 'second'"):
        plan_of("residual", 0.7, pin={"stem.0": 3}, keep=("second",))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(10, 48), nn.Linear(16, 10)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(n, t, -1))


class Parts(nn.Module):
    """Two sizes of one layer's output that are read by different layers, so they shrink apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 16, 1), nn.Conv2d(24, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(24), nn.Linear(24, 5)
        self.both = nn.Conv2d(24, 24, 1, groups=1)

    def forward(self, x):
        x = self.a(x)
        x = self.both(x) + torch.cat([self.b(x), self.c(x)], 1)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


def pinned_to(model, inputs, layer, width):
    config = CompressConfig(width=WidthConfig(pin={layer: width}))
    return plan_widths(model, inputs, 0.9, config=config)


def test_a_layer_of_two_parts_takes_a_share_and_no_count():
    model = Parts()
    small = shrink(model, pinned_to(model, images(1), "both", 0.5))
    assert widths(small) | {"a": 0} == {"a": 0, "b": 8, "c": 4, "both": 12, "head": 5}
    with pytest.raises(UnsupportedLayerError, match=r"'both' to 12.*2 parts.*Give a share"):
        pinned_to(model, images(1), "both", 12)


def test_pins_of_attention_heads_are_whole_heads():
    model, inputs = Attention(), torch.randn(1, 5, 10)
    small = shrink(model, pinned_to(model, inputs, "qkv", 24))
    assert widths(small) == {"qkv": 24, "proj": 10}
    with pytest.raises(UnsupportedLayerError, match=r"12 to 48 in steps of 12"):
        pinned_to(model, inputs, "qkv", 30)


@pytest.mark.parametrize("width", [0, -3, 0.0, 1.5, -0.5, 48.0])
def test_a_width_that_is_neither_count_nor_share_is_refused_at_once(width):
    with pytest.raises(ValueError, match=r"WidthConfig.pin.*count from 1"):
        WidthConfig(pin={"a": width})


@pytest.mark.parametrize("pin", [{"a": True}, {"a": "b"}, {3: 4}, ("a",), 5, (("a", 1, 2),)])
def test_what_is_no_pair_of_layer_and_width_is_refused_at_once(pin):
    with pytest.raises(ValueError, match=r"WidthConfig.pin"):
        WidthConfig(pin=pin)


# --- edit --------------------------------------------------------------------------------------


def test_an_edit_holds_the_widths_and_keeps_bounds_and_choices():
    plan = plan_of("u-net", Budget(params=0.6, flops=0.7), allocation="global")
    inputs = CASES["u-net"].inputs(1)
    edited = plan.edit(model_of("u-net"), inputs, {"mid": 11}, keep=("up",))
    small = widths(shrink(model_of("u-net"), edited))
    assert small["mid.0"] == 11
    assert small["up"] == 8
    assert edited.budget == plan.budget
    assert edited.config.width.allocation == "global"
    assert edited.config.width.pin == (("mid", 11),)
    assert edited.cost_after.params <= plan.target_params == edited.target_params
    assert edited.cost_after.flops <= plan.target_flops == edited.target_flops
    again = edited.edit(model_of("u-net"), inputs, {"mid.0": 9})
    small = widths(shrink(model_of("u-net"), again))
    assert (small["mid.0"], small["up"]) == (9, 8)


def test_an_edit_without_widths_is_the_same_plan():
    plan = planned("chain")
    assert plan.edit(model_of("chain"), images(1)) == plan


def test_an_edit_of_a_loaded_plan_works():
    plan = WidthPlan.from_json(planned("chain").to_json())
    edited = plan.edit(model_of("chain"), images(1), {"0": 5})
    assert widths(shrink(model_of("chain"), edited))["0.0"] == 5


def test_an_edit_on_another_network_is_refused():
    with pytest.raises(StateMismatchError, match="architecture"):
        planned("chain").edit(model_of("residual"), images(1), {"0": 5})


def test_an_edit_that_leaves_the_budget_no_room_is_refused():
    with pytest.raises(TargetUnreachableError, match=r"smallest reachable.*pin"):
        planned("chain").edit(model_of("chain"), images(1), {"0": 16, "1": 24})


# --- diff --------------------------------------------------------------------------------------


def test_a_diff_names_layers_widths_and_costs():
    one = planned("chain")
    other = one.edit(model_of("chain"), images(1), {"0": 5})
    diff = one.diff(other)
    first, second = (widths(shrink(model_of("chain"), p)) for p in (one, other))
    originals = widths(model_of("chain"))
    wanted = {k: (originals[k], first[k], second[k]) for k in first if first[k] != second[k]}
    assert diff.widths == wanted
    assert diff.params == (one.cost_after.params, other.cost_after.params)
    assert diff.flops == (one.cost_after.flops, other.cost_after.flops)
    text = str(diff)
    assert f"{other.cost_after.params - one.cost_after.params:+,}" in text
    assert all(f"\n{name} " in text for name in wanted)
    assert wanted


def test_a_plan_does_not_differ_from_itself():
    diff = planned("chain").diff(planned("chain"))
    assert diff == PlanDiff({}, (), diff.params, diff.flops)
    assert "same width in both" in str(diff)


def test_a_diff_tells_other_channels_of_the_same_number():
    one = planned("chain")
    torch.manual_seed(1)
    model = CASES["chain"].make()
    other = plan_widths(model, images(1), 0.5)
    diff = one.diff(other)
    assert diff.widths == {}
    assert "0.0" in diff.channels
    assert "Other channels" in str(diff)


@pytest.mark.parametrize("other", ["residual", "grouped"])
def test_plans_of_different_networks_are_not_compared(other):
    with pytest.raises(StateMismatchError, match="different networks or inputs"):
        planned("chain").diff(planned(other))


# --- plot --------------------------------------------------------------------------------------


def test_a_picture_has_every_layer_with_its_widths(tmp_path):
    pytest.importorskip("matplotlib")
    plan = planned("u-net")
    plan.plot(tmp_path / "widths.svg")
    text = (tmp_path / "widths.svg").read_text()
    small = widths(shrink(model_of("u-net"), plan))
    for name, was in widths(model_of("u-net")).items():
        assert f">{name}<" in text
        assert f">{was} \u2192 {small[name]}<" in text or (was == small[name])
    plan.plot(str(tmp_path / "again.svg"))
    assert (tmp_path / "again.svg").read_text() == text
    plan.plot(tmp_path / "widths.png")
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.svg", "widths.png", "widths.svg"]


def test_a_picture_of_another_kind_or_nowhere_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(CompressionError, match=r"\.svg or a \.png"):
        planned("chain").plot(tmp_path / "widths.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressionError, match="could not be"):
        planned("chain").plot(tmp_path / "file" / "widths.svg")
