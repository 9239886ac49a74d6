"""Configurations are frozen, checked at once, and always JSON."""

import dataclasses
import json
from typing import get_type_hints

import pytest

from pbcompress import (
    Budget,
    CompressConfig,
    Correlation,
    DendriteConfig,
    DistillationConfig,
    EngineConfig,
    Fp16,
    Full,
    Gradient,
    Grouped,
    Hybrid,
    Int8,
    LowRank,
    OptimizerConfig,
    RecoveryConfig,
    Shared,
    StateMismatchError,
    Tied,
    WidthConfig,
)
from pbcompress.config.whole import whole_config
from pbcompress.core.config_values import Choices
from pbcompress.core.records import checked
from tests.support.configs import FORMS, RULES

OTHERS = [
    Budget(params=0.25, flops=10_000),
    WidthConfig(
        same_width=8,
        allocation="global",
        importance="fisher",
        importance_batches=3,
        round_to=8,
        hardware="gpu int8",
        min_width=4,
        max_ratio=0.5,
        keep=("a", "b.*"),
        attention="dimensions",
        max_seconds=9.0,
        pin=(("a", 3), ("b.*", 0.5)),
    ),
    Full(),
    Grouped(groups=2),
    LowRank(rank=3),
    Shared(nodes=5),
    Tied(),
    Correlation(candidates=2, node_share=0.1),
    Gradient(),
    Hybrid(
        candidates=4,
        node_share=0.5,
        samples=64,
        initial_gain="least_squares",
        initialization="random",
    ),
    OptimizerConfig(
        algorithm="sgd",
        lr=0.1,
        dendrite_lr=0.2,
        growth_lr=0.5,
        retry_lr=0.5,
        weight_decay=0.0,
        momentum=0.5,
        schedule="linear",
        warmup=0.0,
        max_grad_norm=1.0,
        average=0.0,
    ),
    EngineConfig(precision="bf16", accumulate=2, compile=True, channels_last=False),
    DistillationConfig(
        share=0.5, loss="dist", temperature=2.0, features=0.1, outputs="values", axis=-1
    ),
    Int8(max_drop=0.01, recover_epochs=2),
    Fp16(max_drop=0.01),
]
DENDRITES = DendriteConfig(
    rule=OTHERS[9],
    form=OTHERS[5],
    backprop_through=True,
    freeze_after=False,
    activation="tanh",
    annealing=0.5,
    cascade=False,
    normalize=False,
    layers=("fc",),
    max_price=0.5,
    max_sets=3,
    at_start=True,
    share=0.2,
)
RECOVERY = RecoveryConfig(
    epochs=3,
    dendrite_epochs=2,
    thaw_epochs=2,
    patience=4,
    dendrite_patience=1,
    node_improvement=0.5,
    improvement=(0.1, 0.0),
    trial=0.3,
    max_failures=1,
    max_epochs=9,
    max_minutes=0.5,
    compensation_batches=3,
    replay=0.25,
    optimizer=OTHERS[10],
    engine=OTHERS[11],
    distillation=OTHERS[12],
)
WHOLE = CompressConfig(width=OTHERS[1], dendrites=DENDRITES, recovery=RECOVERY, deploy=False)
OTHERS += [DENDRITES, RECOVERY, WHOLE]
ids = [type(config).__name__ for config in OTHERS]


def test_every_configuration_is_in_the_list():
    kinds, found = [Choices], set()
    for kind in kinds:
        kinds += kind.__subclasses__()
        found |= {kind} - {c for k in kinds for c in k.__bases__}
    assert {type(config) for config in OTHERS} == found
    assert len(OTHERS) == 18


def test_every_field_of_the_list_differs_from_its_default():
    for config in OTHERS[1:]:
        default = type(config)()
        same = [
            f.name
            for f in dataclasses.fields(config)
            if getattr(config, f.name) == getattr(default, f.name)
            and type(config) is not Correlation  # Hybrid has the same fields
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
    known = [f.name for f in dataclasses.fields(config)] or ["no fields"]
    for nonsense in ("nonsense", 7):
        data = {**config.to_dict(), nonsense: 1}
        with pytest.raises(
            ValueError, match=f"{type(config).__name__} has no '{nonsense}'.*{known[0]}"
        ):
            type(config).from_dict(data)


def test_an_unknown_name_inside_is_refused():
    data = CompressConfig().to_dict()
    data["width"]["widht"] = 3
    with pytest.raises(ValueError, match="WidthConfig has no 'widht'"):
        CompressConfig.from_dict(data)


@pytest.mark.parametrize("config", OTHERS, ids=ids)
def test_a_configuration_is_frozen_and_hashable(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 1
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, 1)
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize("kind", [type(c) for c in OTHERS[1:]], ids=ids[1:])
def test_fields_are_given_by_name_only(kind):
    with pytest.raises(TypeError):
        kind("uniform")


BAD = [
    (WidthConfig, "allocation", ["local", None, 1, ["uniform"]]),
    (WidthConfig, "importance", ["l1", None, 2]),
    (WidthConfig, "importance_batches", [0, 1.5, None]),
    (WidthConfig, "round_to", [0, -1, 1.5, True, "4", None]),
    (WidthConfig, "hardware", ["tpu", None, 8]),
    (WidthConfig, "min_width", [0, 2.0, False]),
    (WidthConfig, "max_ratio", [0, 1, -0.1, 1.5, float("nan"), True, "0.5"]),
    (WidthConfig, "keep", ["head", b"head", (1,), None, {"a"}]),
    (WidthConfig, "attention", ["tokens", None]),
    (WidthConfig, "same_width", [0, -1, 1.5, "yes", None]),
    (WidthConfig, "max_seconds", [0, -1]),
    (WidthConfig, "pin", ["a", 3, {"a": 0}, {"a": 1.5}, (("a",),)]),
    (DendriteConfig, "rule", ["hebb", None, {"kind": "hybrid"}, Full()]),
    (DendriteConfig, "form", ["half", None, {"kind": "shared"}, Gradient(), Shared]),
    (DendriteConfig, "activation", ["softmax"]),
    (DendriteConfig, "annealing", [-0.1, 1, "fast", float("nan"), True]),
    (DendriteConfig, "backprop_through", [1, "yes"]),
    (DendriteConfig, "freeze_after", [0, "no"]),
    (DendriteConfig, "cascade", [1, None]),
    (DendriteConfig, "normalize", [0]),
    (DendriteConfig, "layers", ["fc", (1,), 3]),
    (DendriteConfig, "max_sets", [-1, 1.0, True]),
    (DendriteConfig, "at_start", [1, None]),
    (DendriteConfig, "max_price", [0, -1.0, "low"]),
    (DendriteConfig, "share", ["all", -0.1, 1.1, float("nan"), True, None]),
    (Grouped, "groups", [0, 1.5]),
    (LowRank, "rank", [0, "4"]),
    (Shared, "nodes", [0, None]),
    *(
        (kind, name, values)
        for kind in (Correlation, Hybrid)
        for name, values in {
            "candidates": [0, 1.0],
            "node_share": [0, 1.5, -0.1, True],
            "samples": [-1, 1.5, None, True],
            "initial_gain": ["one", 0.0],
            "initialization": ["closed", 1, None],
        }.items()
    ),
    (Int8, "max_drop", [-0.1, float("nan"), "0"]),
    (Int8, "recover_epochs", [-1, 1.5, "3", True]),
    (Fp16, "max_drop", [-0.1, float("nan"), True]),
    (RecoveryConfig, "epochs", [0, 1.5, "3", True]),
    (RecoveryConfig, "dendrite_epochs", [0]),
    (RecoveryConfig, "patience", [0, -1, 1.5]),
    (RecoveryConfig, "dendrite_patience", [0, None]),
    (RecoveryConfig, "node_improvement", [-0.1, float("nan")]),
    (RecoveryConfig, "improvement", [(), 0.1, ("a",), (float("nan"),)]),
    (RecoveryConfig, "trial", [0, 0.5, -0.1, "short"]),
    (RecoveryConfig, "max_failures", [0]),
    (RecoveryConfig, "max_epochs", [0, 2.5]),
    (RecoveryConfig, "max_minutes", [0, -1, float("inf")]),
    (RecoveryConfig, "thaw_epochs", [-1, 1.0]),
    (RecoveryConfig, "compensation_batches", [-1, 0.5, True, "all", None]),
    (RecoveryConfig, "replay", [-0.1, "much", float("inf")]),
    (RecoveryConfig, "optimizer", [None, {"lr": 0.1}, EngineConfig()]),
    (RecoveryConfig, "engine", [None, ["bf16"]]),
    (RecoveryConfig, "distillation", [None, OptimizerConfig()]),
    (OptimizerConfig, "algorithm", ["lion", None]),
    (OptimizerConfig, "lr", [0, -1, float("nan"), float("inf"), "1e-3"]),
    (OptimizerConfig, "dendrite_lr", [0, None]),
    (OptimizerConfig, "growth_lr", [0, -1.0]),
    (OptimizerConfig, "retry_lr", [0, 1, -0.1]),
    (OptimizerConfig, "weight_decay", [-1e-9, float("inf")]),
    (OptimizerConfig, "momentum", [-1]),
    (OptimizerConfig, "schedule", ["step"]),
    (OptimizerConfig, "warmup", [-0.1, 1, 2.0]),
    (OptimizerConfig, "max_grad_norm", [0, -1]),
    (OptimizerConfig, "average", [-0.1, 1, None, "long", float("nan")]),
    (EngineConfig, "precision", ["64", 16]),
    (EngineConfig, "accumulate", [0, 1.0]),
    (EngineConfig, "compile", [1, None]),
    (EngineConfig, "channels_last", [1, None]),
    (DistillationConfig, "share", [-0.1, 1.1]),
    (DistillationConfig, "loss", ["mse", None]),
    (DistillationConfig, "temperature", [0, -1.0]),
    (DistillationConfig, "features", [-1.0, None]),
    (DistillationConfig, "outputs", ["scores", None]),
    (DistillationConfig, "axis", [1.5, "last"]),
    (CompressConfig, "width", [None, {"round_to": 4}, DendriteConfig()]),
    (CompressConfig, "dendrites", [WidthConfig(), ""]),
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


def test_every_default_is_what_its_field_takes():
    tested = 0
    for kind in {type(config) for config in OTHERS}:
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            if field.default is not None and field.default is not dataclasses.MISSING:
                assert checked(hints[field.name], field.default) == field.default, field.name
                tested += 1
    assert tested > 40


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


def test_the_version_is_written_and_another_one_is_refused():
    data = CompressConfig().to_dict()
    assert data["version"] == 2
    with pytest.raises(StateMismatchError, match=r"version 3.*reads version 2.*Update"):
        CompressConfig.from_dict({**data, "version": 3})
    with pytest.raises(StateMismatchError, match=r"version 1.*reads version 2.*Write it anew"):
        CompressConfig.from_dict({**data, "version": 1})


@pytest.mark.parametrize("data", [[], "config", None, {"version": "1"}, {"version": None}])
def test_what_is_no_configuration_is_refused(data):
    with pytest.raises(StateMismatchError, match="configuration was expected"):
        CompressConfig.from_dict(data)


def test_a_part_that_is_no_dict_is_refused():
    with pytest.raises(ValueError, match="WidthConfig is made from a dict"):
        CompressConfig.from_dict({"width": 4})


@pytest.mark.parametrize("kinds", [FORMS, RULES], ids=["form", "rule"])
def test_a_name_stands_for_a_value_with_its_defaults(kinds):
    assert len(kinds) in (5, 3)
    name = "form" if kinds is FORMS else "rule"
    for kind, cls in kinds.items():
        config = DendriteConfig(**{name: kind})
        assert getattr(config, name) == cls()
        assert config == DendriteConfig(**{name: cls()})
        assert config == DendriteConfig.from_dict({name: kind})
        assert config == DendriteConfig.from_dict({name: {"kind": kind}})


def test_a_value_is_told_by_its_kind():
    data = {"form": {"kind": "grouped", "groups": 2}, "rule": {"kind": "hybrid", "samples": 9}}
    config = DendriteConfig.from_dict(data)
    assert config == DendriteConfig(form=Grouped(groups=2), rule=Hybrid(samples=9))
    assert data["form"] == config.to_dict()["form"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rule": {"kind": "gradient", "samples": 9}}, "has no 'samples'; it has no fields"),
        ({"form": {"kind": "shared", "rank": 2}}, "Shared has no 'rank'; it has nodes"),
        ({"form": {"kind": "half"}}, "form was given as .*one of 'full', 'grouped'"),
        ({"form": {"rank": 2}}, "form was given as .*or a value of Full, Grouped"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(data, message):
    with pytest.raises(ValueError, match=message):
        DendriteConfig.from_dict(data)


def test_a_part_may_stand_for_the_whole():
    parts = {"width": OTHERS[1], "dendrites": DENDRITES, "recovery": RECOVERY}
    kinds = [type(part) for part in parts.values()]
    for name, part in parts.items():
        assert whole_config(part, *kinds) == CompressConfig(**{name: part})
    assert whole_config(WHOLE) is WHOLE
    assert whole_config(None) == CompressConfig()


@pytest.mark.parametrize("config", [RecoveryConfig(), Budget(params=1), {"width": {}}, 3])
def test_what_is_no_part_is_refused_with_those_that_are(config):
    with pytest.raises(ValueError, match=r"given as .*a WidthConfig, a Dend.* or a CompressConfig"):
        whole_config(config, WidthConfig, DendriteConfig)


def test_a_part_of_another_function_is_refused_by_its_name_alone():
    with pytest.raises(ValueError, match="given as a RecoveryConfig; it must be a WidthConfig or"):
        whole_config(RecoveryConfig(), WidthConfig)


# --- a part by the names of its choices -----------------------------------------------------------


def test_every_choice_of_a_part_may_be_given_by_its_own_name():
    """With other values for all of them at once, so that none gets another one's."""
    parts = {
        "optimizer": OptimizerConfig,
        "engine": EngineConfig,
        "distillation": DistillationConfig,
    }
    values = {name: next(v for v in OTHERS if type(v) is kind) for name, kind in parts.items()}
    flat = {f.name: getattr(v, f.name) for v in values.values() for f in dataclasses.fields(v)}
    assert len(flat) == sum(len(dataclasses.fields(kind)) for kind in parts.values()) == 21
    assert RecoveryConfig(epochs=3, **flat) == RecoveryConfig(epochs=3, **values)
    assert not flat.keys() & {f.name for f in dataclasses.fields(RecoveryConfig)}


def test_a_part_may_be_given_as_its_first_choice_and_as_a_whole_with_a_change():
    short = RecoveryConfig(optimizer="sgd", momentum=0.0, distillation=0.5, engine="bf16")
    assert short == RecoveryConfig(
        optimizer=OptimizerConfig(algorithm="sgd", momentum=0.0),
        distillation=DistillationConfig(share=0.5),
        engine=EngineConfig(precision="bf16"),
    )
    whole = RecoveryConfig(optimizer=OptimizerConfig(lr=0.1, warmup=0.0), lr=0.2)
    assert whole.optimizer == OptimizerConfig(lr=0.2, warmup=0.0)
    assert dataclasses.replace(whole, momentum=0.5).optimizer.momentum == 0.5
    assert RecoveryConfig.from_dict(short.to_dict()) == short


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"optimizer": "rmsprop"}, r"OptimizerConfig\.algorithm was given as 'rmsprop'"),
        ({"lr": -1.0}, r"OptimizerConfig\.lr was given as -1\.0"),
        ({"optimizer": ""}, r"OptimizerConfig\.algorithm was given as ''"),
        ({"optimizer": None, "lr": 0.1}, r"RecoveryConfig\.optimizer was given as None"),
        ({"distillation": 2}, r"DistillationConfig\.share was given as 2"),
    ],
)
def test_a_choice_of_a_part_is_checked_as_its_own(choices, message):
    with pytest.raises(ValueError, match=message):
        RecoveryConfig(**choices)
    with pytest.raises(TypeError, match="learning_rate"):
        RecoveryConfig(learning_rate=0.1)
