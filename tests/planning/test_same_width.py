"""One width for each role: equal in all blocks, stated by the config, read back bit by bit."""

import re

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.core.model_config import config_of
from tests.support.hf_models import FAMILIES

FAST = ("DistilBERT",)
EVERY = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name) for name in FAMILIES
]


class Block(nn.Module):
    """An inner layer beside the stream."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), *(Block() for _ in range(4)), nn.Linear(16, 3))


@pytest.mark.parametrize("allocation", ["balanced", "uniform", "global", "isomorphic"])
def test_blocks_of_one_structure_have_one_width(allocation):
    config = pb.WidthConfig(same_width=True, allocation=allocation)
    plan = pb.plan_widths(blocks(), torch.zeros(1, 4), 0.5, config=config)
    widths = {plan.cost_after.by_layer[f"{i}.up"].width for i in range(1, 5)}
    assert len(widths) == 1
    assert widths != {64}
    assert 0.9 <= plan.cost_after.params / plan.target_params <= 1
    removed = [step.removed for step in plan.steps if step.layer.endswith("up")]
    assert len(set(removed)) > 1  # each chooses its own units


def test_a_number_is_what_every_width_is_a_multiple_of():
    config = pb.WidthConfig(same_width=16)
    plan = pb.plan_widths(blocks(), torch.zeros(1, 4), 0.6, config=config)
    assert {plan.cost_after.by_layer[f"{i}.up"].width for i in range(1, 5)} <= {16, 32, 48}
    assert plan.cost_after.by_layer["0"].width == 16


def test_blocks_have_widths_of_their_own_without_a_config():
    plan = pb.plan_widths(
        blocks(), torch.zeros(1, 4), 0.5, config=pb.WidthConfig(allocation="global", round_to=1)
    )
    assert len({plan.cost_after.by_layer[f"{i}.up"].width for i in range(1, 5)}) > 1
    assert plan.stated == {}


def logits(output):
    return next(v for k, v in output.items() if k.startswith("logits"))


@pytest.mark.parametrize("name", EVERY)
def test_the_config_states_the_widths_and_the_round_trip_is_bit_equal(name, tmp_path):
    pytest.importorskip("transformers")
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs()
    config = config_of(model).to_dict()
    plan = pb.plan_widths(model, inputs, 0.6)
    assert plan.stated
    assert set(plan.stated) <= family.stated
    assert plan.cost_after.params <= plan.target_params
    small = pb.shrink(model, plan)
    assert config_of(model).to_dict() == config  # the original's stays
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in again.parameters()) == plan.cost_after.params
    with torch.no_grad():
        assert torch.equal(logits(small(**inputs)), logits(again(**inputs)))
    if model.can_generate():
        given = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
        kinds = [
            net.generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=kept)
            for net, kept in ((small, True), (again, True), (again, False))
        ]
        assert torch.equal(kinds[0], kinds[1])
        assert torch.equal(kinds[1], kinds[2])
    number, keys = (getattr(small.config, n, None) for n in sorted(STATED_HEADS))
    if keys is not None and number is not None:
        assert number / keys == model.config.num_attention_heads / model.config.num_key_value_heads


STATED_HEADS = ("num_attention_heads", "num_key_value_heads")


@pytest.mark.parametrize("name", ["BERT", "Llama"])
@pytest.mark.slow
def test_heads_are_multiples_of_the_size_of_tensor_parallelism(name):
    pytest.importorskip("transformers")
    family = FAMILIES[name]
    config = pb.WidthConfig(same_width=2)
    plan = pb.plan_widths(family.build(), family.inputs(), 0.6, config=config)
    assert plan.stated
    assert all(value % 2 == 0 for value in plan.stated.values())


def test_widths_of_their_own_state_nothing():
    pytest.importorskip("transformers")
    family = FAMILIES["Llama"]
    model = family.build()
    config = pb.WidthConfig(same_width=False)
    plan = pb.plan_widths(model, family.inputs(), 0.6, config=config)
    assert plan.stated == {}
    assert pb.shrink(model, plan).config.hidden_size == 64


class Levels:
    """A config that states one number for all levels, so that no level can be narrowed alone."""

    model_type = "levels"

    def __init__(self, sizes=(24, 32)):
        self.sizes = list(sizes)

    def to_dict(self):
        return {"sizes": self.sizes}


class Leveled(nn.Module):
    def __init__(self, config):
        super().__init__()
        a, b = config.sizes
        self.config = config
        self.layers = nn.Sequential(nn.Linear(4, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU())
        self.head = nn.Linear(b, 3)

    def forward(self, x):
        return self.head(self.layers(x))


def test_what_no_config_can_state_is_narrowed_where_the_target_asks_for_it(caplog):
    torch.manual_seed(0)
    model, x = Leveled(Levels()).eval(), torch.randn(2, 4)
    plan = pb.plan_widths(model, x, 0.5)
    assert "every group of channels has its own" in caplog.text
    assert not plan.stated
    assert 0.9 <= plan.cost_after.params / plan.target_params <= 1
    small = pb.shrink(model, plan)
    assert small(x).shape == (2, 3)
    assert small.config.sizes == [24, 32]
    with pytest.raises(pb.TargetUnreachableError, match="no number of the config states its width"):
        pb.plan_widths(model, x, 0.5, config=pb.WidthConfig(same_width=True))


def test_a_network_of_several_with_configs_is_shrunk():
    """It has no config itself, and those of its parts stay as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(Leveled(Levels()), nn.ReLU(), nn.Linear(3, 2)).eval()
    plan = pb.plan_widths(model, torch.randn(2, 4), 0.5)
    small = pb.shrink(model, plan)
    assert small[0].config.sizes == [24, 32]
    assert small[0].head.in_features < 32


def test_a_config_that_its_class_does_not_follow_is_said():
    pytest.importorskip("transformers")
    family = FAMILIES["Llama"]
    model = family.build()
    model.lm_head = nn.Linear(64, 7)
    with pytest.raises(pb.CompressionError, match="cannot be made again from model"):
        pb.plan_widths(model, family.inputs(), 0.6, config=pb.WidthConfig(same_width=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "BERT", "GPT-2", "T5"])
def test_a_plan_on_the_meta_device_has_the_widths_of_one_with_weights(name, tmp_path):
    pytest.importorskip("transformers")
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs()
    with torch.device("meta"):
        empty = family.build()
    plan = pb.plan_widths(empty, inputs, 0.6)
    assert plan.stated == pb.plan_widths(model, inputs, 0.6).stated
    model.save_pretrained(tmp_path / "whole")
    done = pb.shrink_files(plan, tmp_path / "whole", tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(logits(again(**inputs)), logits(pb.shrink(model, done)(**inputs)))


def test_a_plan_says_why_it_leaves_a_part_of_the_target_unused():
    """Widths in steps of 16 hit few targets."""
    config, inputs = pb.WidthConfig(same_width=16), torch.zeros(1, 4)
    full = pb.measure(blocks(), inputs).params
    wasteful = []
    for target in range(full // 3, full - 1, full // 12):
        plan = pb.plan_widths(blocks(), inputs, target, config=config)
        reached = plan.cost_after.params
        assert bool(plan.unused) == (reached / target < 0.98)
        if plan.unused:
            assert plan.unused in str(plan)
            found = re.match(r"([\d,]+) parameters.* (\d+) more .* are ([\d,]+)$", plan.unused)
            left, channels, step = (int(part.replace(",", "")) for part in found.groups())
            assert (left, channels) == (target - reached, 16)
            assert step > left
            wasteful.append(reached + step)
    assert len(wasteful) > 2
    for wider in set(wasteful) - {full}:  # the step is a plan of its own
        plan = pb.plan_widths(blocks(), inputs, wider, config=config)
        assert plan.cost_after.params == wider


def test_a_target_that_is_used_up_needs_no_word():
    plan = pb.plan_widths(blocks(), torch.zeros(1, 4), 0.5)
    assert plan.unused == ""
    assert pb.WidthPlan.from_json(plan.to_json()).unused == ""
