"""Configurations are frozen, checked at once, and always JSON."""

import dataclasses
import json

import pytest

from pbcompress.config import (
    Budget,
    CompressConfig,
    DendriteConfig,
    RecoveryConfig,
    WidthConfig,
)
from pbcompress.errors import StateMismatchError

OTHERS = [
    Budget(params=0.25, flops=10_000),
    WidthConfig(
        allocation="global",
        importance="fisher",
        importance_batches=3,
        round_to=8,
        min_width=4,
        max_ratio=0.5,
        keep=("a", "b.*"),
        attention="dimensions",
        max_seconds=9.0,
        pin=(("a", 3), ("b.*", 0.5)),
    ),
    DendriteConfig(
        rule="hybrid",
        backprop_through=True,
        freeze_after=False,
        form="shared",
        activation="tanh",
        cascade=False,
        normalize=False,
        layers=("fc",),
        max_price=0.5,
        max_sets=3,
        at_start=True,
        candidates=4,
        node_share=0.5,
        samples=64,
        initial_gain="least_squares",
        initialization="random",
        share=0.2,
        groups=2,
        rank=3,
        nodes=5,
    ),
    RecoveryConfig(
        epochs=3,
        dendrite_epochs=2,
        patience=4,
        dendrite_patience=1,
        node_improvement=0.5,
        improvement=(0.1, 0.0),
        trial=0.3,
        max_failures=1,
        max_epochs=9,
        max_minutes=0.5,
        optimizer="sgd",
        lr=0.1,
        dendrite_lr=0.2,
        weight_decay=0.0,
        momentum=0.5,
        schedule="linear",
        warmup=0.0,
        max_grad_norm=1.0,
        precision="bf16",
        accumulate=2,
        compile=True,
        channels_last=False,
        retry_lr=0.5,
        replay=0.25,
        thaw_epochs=2,
        growth_lr=0.5,
        distillation=0.5,
        temperature=2.0,
        feature_distillation=0.1,
    ),
]
OTHERS.append(
    CompressConfig(width=OTHERS[1], dendrites=OTHERS[2], recovery=OTHERS[3], deploy=False)
)
ids = [type(config).__name__ for config in OTHERS]


def test_every_configuration_is_in_the_list():
    subclasses = Budget.__mro__[1].__subclasses__()
    assert {type(config) for config in OTHERS} == set(subclasses)
    assert len(OTHERS) == 5


def test_every_field_of_the_list_differs_from_its_default():
    for config in OTHERS[1:]:
        default = type(config)()
        same = [
            f.name
            for f in dataclasses.fields(config)
            if getattr(config, f.name) == getattr(default, f.name)
        ]
        assert same == []


@pytest.mark.parametrize("config", OTHERS, ids=ids)
def test_json_round_trip_gives_an_equal_value(config):
    data = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert type(config).from_dict(data) == config


@pytest.mark.parametrize("kind", [type(c) for c in OTHERS[1:]], ids=ids[1:])
def test_missing_fields_take_their_defaults(kind):
    assert kind.from_dict({}) == kind()


@pytest.mark.parametrize("config", OTHERS, ids=ids)
def test_an_unknown_name_is_refused_with_the_known_ones(config):
    first = dataclasses.fields(config)[0].name
    with pytest.raises(ValueError, match=rf"{type(config).__name__} has no nonsense.*{first}"):
        type(config).from_dict({**config.to_dict(), "nonsense": 1})


def test_an_unknown_name_inside_is_refused():
    data = CompressConfig().to_dict()
    data["width"]["widht"] = 3
    with pytest.raises(ValueError, match="WidthConfig has no widht"):
        CompressConfig.from_dict(data)


@pytest.mark.parametrize("config", OTHERS, ids=ids)
def test_a_configuration_is_frozen_and_hashable(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)
    assert hash(config) == hash(type(config).from_dict(config.to_dict()))


@pytest.mark.parametrize("kind", [type(c) for c in OTHERS[1:]], ids=ids[1:])
def test_fields_are_given_by_name_only(kind):
    with pytest.raises(TypeError):
        kind("uniform")


BAD = [
    (WidthConfig, "allocation", ["local", None, 1, ["uniform"]]),
    (WidthConfig, "importance", ["l1", None, 2]),
    (WidthConfig, "importance_batches", [0, 1.5, None]),
    (WidthConfig, "round_to", [0, -1, 1.5, True, "4", None]),
    (WidthConfig, "min_width", [0, 2.0, False]),
    (WidthConfig, "max_ratio", [0, 1, -0.1, 1.5, float("nan"), True, "0.5"]),
    (WidthConfig, "keep", ["head", b"head", (1,), None, {"a"}]),
    (DendriteConfig, "rule", ["hebb", None]),
    (DendriteConfig, "form", ["half"]),
    (DendriteConfig, "activation", ["softmax"]),
    (DendriteConfig, "backprop_through", [1, "yes"]),
    (DendriteConfig, "freeze_after", [0, "no"]),
    (DendriteConfig, "cascade", [1, None]),
    (DendriteConfig, "normalize", [0]),
    (DendriteConfig, "layers", ["fc", (1,), 3]),
    (DendriteConfig, "max_sets", [-1, 1.0, True]),
    (DendriteConfig, "at_start", [1, None]),
    (DendriteConfig, "max_price", [0, -1.0, "low"]),
    (DendriteConfig, "candidates", [0, 1.0]),
    (DendriteConfig, "node_share", [0, 1.5, -0.1, True]),
    (DendriteConfig, "samples", [-1, 1.5, None, True]),
    (DendriteConfig, "initial_gain", ["one", 0.0]),
    (DendriteConfig, "initialization", ["closed", 1]),
    (DendriteConfig, "share", ["all", -0.1, 1.1, float("nan"), True, None]),
    (DendriteConfig, "groups", [0, 1.5]),
    (DendriteConfig, "rank", [0, "4"]),
    (DendriteConfig, "nodes", [0, None]),
    (RecoveryConfig, "epochs", [0, 1.5, "3", True]),
    (RecoveryConfig, "dendrite_epochs", [0]),
    (RecoveryConfig, "patience", [0, -1, 1.5]),
    (RecoveryConfig, "dendrite_patience", [0, None]),
    (RecoveryConfig, "node_improvement", [-0.1, float("nan")]),
    (RecoveryConfig, "improvement", [(), 0.1, ("a",), (float("nan"),)]),
    (WidthConfig, "attention", ["tokens", None]),
    (WidthConfig, "max_seconds", [0, -1]),
    (WidthConfig, "pin", ["a", 3, {"a": 0}, {"a": 1.5}, (("a",),)]),
    (RecoveryConfig, "trial", [0, 0.5, -0.1, "short"]),
    (RecoveryConfig, "max_failures", [0]),
    (RecoveryConfig, "max_epochs", [0, 2.5]),
    (RecoveryConfig, "max_minutes", [0, -1, float("inf")]),
    (RecoveryConfig, "optimizer", ["lion", None]),
    (RecoveryConfig, "lr", [0, -1, float("nan"), float("inf"), "1e-3"]),
    (RecoveryConfig, "dendrite_lr", [0, None]),
    (RecoveryConfig, "weight_decay", [-1e-9, float("inf")]),
    (RecoveryConfig, "momentum", [-1]),
    (RecoveryConfig, "schedule", ["step"]),
    (RecoveryConfig, "warmup", [-0.1, 1, 2.0]),
    (RecoveryConfig, "max_grad_norm", [0, -1]),
    (RecoveryConfig, "precision", ["64", 16]),
    (RecoveryConfig, "accumulate", [0, 1.0]),
    (RecoveryConfig, "compile", [1, None]),
    (RecoveryConfig, "channels_last", [1, None]),
    (RecoveryConfig, "retry_lr", [0, 1, -0.1]),
    (RecoveryConfig, "replay", [-0.1, "much", float("inf")]),
    (RecoveryConfig, "thaw_epochs", [-1, 1.0]),
    (RecoveryConfig, "growth_lr", [0, -1.0]),
    (RecoveryConfig, "distillation", [-0.1, 1.1]),
    (RecoveryConfig, "temperature", [0, -1.0]),
    (RecoveryConfig, "feature_distillation", [-1.0, None]),
    (CompressConfig, "width", [None, {"round_to": 4}, DendriteConfig()]),
    (CompressConfig, "dendrites", [WidthConfig()]),
    (CompressConfig, "recovery", [3]),
    (CompressConfig, "deploy", [1, None]),
    (Budget, "params", ["half", True, float("nan")]),
    (Budget, "flops", ["half", float("inf")]),
    (Budget, "latency_ms", ["fast", float("nan"), True]),
    (Budget, "file_bytes", ["small", float("inf")]),
]


def test_every_field_has_a_value_that_is_refused():
    fields = {(type(c), f.name) for c in OTHERS for f in dataclasses.fields(c)}
    tested = {(kind, name) for kind, name, _ in BAD}
    assert fields == tested


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, name, value) for kind, name, values in BAD for value in values],
)
def test_a_bad_value_is_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{name} was given as .*must be"):
        kind(**{name: value})


def test_a_list_becomes_a_tuple():
    assert WidthConfig(keep=["a"]) == WidthConfig(keep=("a",))


@pytest.mark.parametrize("bound", ["params", "flops", "latency_ms", "file_bytes"])
def test_one_bound_is_enough(bound):
    budget = Budget(**{bound: 0.5})
    assert Budget.from_dict(budget.to_dict()) == budget


def test_a_budget_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="no bound"):
        Budget()


@pytest.mark.parametrize(
    ("rule", "through", "frozen"),
    [("correlation", False, True), ("gradient", True, False), ("hybrid", True, False)],
)
def test_a_rule_brings_its_own_switches(rule, through, frozen):
    config = DendriteConfig(rule=rule)
    assert (config.backprop_through, config.freeze_after) == (through, frozen)
    turned = DendriteConfig(rule=rule, backprop_through=not through, freeze_after=not frozen)
    assert (turned.backprop_through, turned.freeze_after) == (not through, not frozen)


def test_the_version_is_written_and_a_newer_one_is_refused():
    data = CompressConfig().to_dict()
    assert data["version"] == 1
    with pytest.raises(StateMismatchError, match=r"version 2.*up to 1.*Update"):
        CompressConfig.from_dict({**data, "version": 2})


@pytest.mark.parametrize("data", [[], "config", None, {"version": "1"}, {"version": None}])
def test_what_is_no_configuration_is_refused(data):
    with pytest.raises(StateMismatchError, match="configuration was expected"):
        CompressConfig.from_dict(data)


def test_a_part_that_is_no_dict_is_refused():
    with pytest.raises(ValueError, match="WidthConfig is made from a dict"):
        CompressConfig.from_dict({"width": 4})
