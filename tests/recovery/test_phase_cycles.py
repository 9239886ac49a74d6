"""Cycles of growth: who trains when, what stays bit-equal, and going on from anywhere."""

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pbcompress import CompressConfig
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers, neuron_parameters
from pbcompress.dendrites.signals import ACTIVATIONS
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.recovery.phase_cycles import Cycles, Phase, cycles
from pbcompress.recovery.policy import PhaseKind
from tests.support.configs import dendrites_of, recovery_of

RULES = ("correlation", "gradient", "hybrid")
FORMS = ("full", "grouped", "lowrank", "shared")
NEURON, DENDRITE = PhaseKind.NEURON, PhaseKind.DENDRITE

MAKERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1),
}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


GENERATOR = torch.Generator().manual_seed(9)
X = torch.randn(32, 2, 5, generator=GENERATOR)
Y = X[:, 0, :3] * X[:, 1, 2:] - X[:, 1, :3]


def config_of(rule: str = "correlation", form: str = "full", **choices: Any) -> CompressConfig:
    recovery = {"epochs": 2, "dendrite_epochs": 2} | choices.pop("recovery", {})
    dendrites = {"activation": "tanh", "groups": 2, "rank": 2, "nodes": 3} | choices
    return CompressConfig(
        dendrites=dendrites_of(rule=rule, form=form, **dendrites),
        recovery=recovery_of(**recovery),
    )


def steps(
    model: nn.Module,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    count: int = 3,
    use_phase: bool = True,
) -> None:
    """Take steps on batches of 16."""
    for step in range(count):
        phase.train() if use_phase else model.train()
        half = slice(16 * (step % 2), 16 * (step % 2) + 16)
        optimizer.zero_grad()
        (model(X[half]) - Y[half]).square().mean().backward()
        optimizer.step()


def loss_of(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return (model(X) - Y).square().mean().item()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k for k in before if not torch.equal(before[k], after[k])}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and not changed(a, b)


def follow(growth: Cycles, scores: list[float]) -> Iterator[Phase]:
    """Yield every epoch's phase, and report the given scores in turn."""
    source = itertools.cycle(scores)
    for phase in growth:
        while not phase.done:
            yield phase
            phase.report(next(source))


RISING = [0.1 * i for i in range(1, 100)]
FALLING = [-0.1 * i for i in range(100)]


def dendrite_names(model: nn.Module, index: int) -> set[str]:
    """Names of the input weights, norms and V of one set."""
    return {
        name
        for name in model.state_dict()
        for layer in dendrite_layers(model)
        if name.startswith((f"{layer}.dendrites.{index}.", f"{layer}.links.{index}"))
    }


def gain_names(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if ".gains." in name}


def buffer_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers()}


# --- the contract's loop --------------------------------------------------------------------------


def inner_loop(model: nn.Module, config: CompressConfig) -> list[tuple[int, str, int]]:
    seen = []
    for phase in cycles(model, config=config):
        optimizer = MAKERS["adamw"](phase.parameters())
        while not phase.done:
            steps(model, phase, optimizer)
            phase.report(-loss_of(model))
            seen.append((phase.index, str(phase.kind), phase.sets))
    return seen


def turn_by_turn(model: nn.Module, config: CompressConfig) -> list[tuple[int, str, int]]:
    seen, index, optimizer = [], -1, None
    for phase in cycles(model, config=config):
        if phase.index != index:
            index, optimizer = phase.index, MAKERS["adamw"](phase.parameters())
        steps(model, phase, optimizer)
        phase.report(-loss_of(model))
        seen.append((phase.index, str(phase.kind), phase.sets))
    return seen


@pytest.mark.parametrize("rule", RULES)
def test_both_styles_of_loop_do_the_same(rule: str) -> None:
    one, other = network(), network()
    assert inner_loop(one, config_of(rule)) == turn_by_turn(other, config_of(rule))
    assert equal(snapshot(one), snapshot(other))


@pytest.mark.parametrize("rule", RULES)
def test_phases_come_in_the_order_of_the_rule(rule: str) -> None:
    growth = cycles(network(), config=config_of(rule, max_sets=2))
    seen = [(phase.index, str(phase.kind), phase.sets) for phase in follow(growth, RISING)]
    first = [(0, "neuron", 0)] * 2
    if rule == "gradient":
        assert seen == first + [(1, "neuron", 1)] * 2 + [(2, "neuron", 2)] * 2
    else:
        one = [(1, "dendrite", 1)] * 2 + [(2, "neuron", 1)] * 2
        two = [(3, "dendrite", 2)] * 2 + [(4, "neuron", 2)] * 2
        last = [(5, "thaw", 2)] * 2 if rule == "correlation" else []  # frozen dendrites go stale
        assert seen == first + one + two + last


@pytest.mark.parametrize("rule", RULES)
def test_a_set_from_the_start_has_all_of_the_training(rule: str) -> None:
    model = network()
    config = config_of(rule, at_start=True, recovery={"thaw_epochs": 0})
    growth = cycles(model, config=config)
    kinds = []
    for phase in growth:
        kinds.append(phase.kind)
        assert dendrite_layers(model)
        while not phase.done:
            phase.report(0.5)
    assert kinds == ([NEURON] if rule == "gradient" else [DENDRITE, NEURON])
    assert all(layer.num_sets == 1 for layer in dendrite_layers(model).values())


def test_report_says_whether_the_phase_goes_on() -> None:
    phase = next(cycles(network(), config=config_of()))
    assert phase.report(0.1)
    assert not phase.report(0.2)
    assert phase.done


def test_a_phase_says_where_it_is_and_nobody_else_ends_it() -> None:
    growth = cycles(network(), config=config_of(recovery={"epochs": 2, "dendrite_epochs": 3}))
    seen = [(phase.epoch, phase.length) for phase in follow(growth, RISING)]
    assert seen == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (0, 2), (1, 2)]
    phase = next(cycles(network(), config=config_of(), lengths=(4, 1)))
    assert phase.length == 4
    with pytest.raises(AttributeError):
        phase.done = True  # type: ignore[misc]


def test_a_turn_without_a_report_is_an_error_that_says_what_to_do() -> None:
    growth = cycles(network(), config=config_of())
    next(growth)
    with pytest.raises(CompressionError, match=r"phase\.report\(score\) once after each epoch"):
        next(growth)


def test_a_report_to_a_former_phase_is_an_error() -> None:
    growth = cycles(network(), config=config_of(recovery={"epochs": 1}))
    first = next(growth)
    first.report(0.1)
    next(growth)
    with pytest.raises(CompressionError, match="a later one has begun"):
        first.report(0.2)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_ends_the_growth(score: float) -> None:
    phase = next(cycles(network(), config=config_of()))
    with pytest.raises(DivergedError, match=r"is (nan|inf|-inf); the model has its best weights"):
        phase.report(score)


def test_a_score_may_be_a_tensor() -> None:
    growth = cycles(network(), config=config_of())
    next(growth).report(torch.tensor(0.25))  # type: ignore[arg-type]
    assert growth.log[0].scores == (0.25,)


def test_the_end_stays_the_end() -> None:
    growth = cycles(network(), config=config_of(max_sets=0))
    assert len(list(follow(growth, RISING))) == 2
    assert list(growth) == []


@pytest.mark.parametrize(
    ("choices", "kinds"),
    [
        ({"max_sets": 0}, "nn"),
        ({"recovery": {"max_epochs": 1}}, "n"),
        ({"recovery": {"max_epochs": 3}}, "nnd"),
        ({"recovery": {"max_epochs": 5}}, "nnddn"),
        ({"recovery": {"max_failures": 1}}, "nnddnn"),
        ({"recovery": {"max_failures": 2}}, "nnddnnddnn"),
    ],
)
def test_bounds_end_the_growth_with_the_original_structure(
    choices: dict[str, Any], kinds: str
) -> None:
    model = network()
    keys = list(model.state_dict())
    growth = cycles(model, config=config_of(**choices))
    assert "".join(str(p.kind)[0] for p in follow(growth, FALLING)) == kinds
    assert list(model.state_dict()) == keys
    assert all(p.requires_grad for p in model.parameters())


# --- who trains -----------------------------------------------------------------------------------


def epochs(
    rule: str, form: str, maker: str = "adamw", **choices: Any
) -> Iterator[tuple[nn.Module, Phase, dict[str, Tensor], dict[str, Tensor]]]:
    """Yield each epoch of a growth to two sets, with the weights before and after it."""
    model, index, optimizer = network(), -1, None
    growth = cycles(model, config=config_of(rule, form, max_sets=2, **choices))
    for phase in follow(growth, RISING):
        if phase.index != index:
            index, optimizer = phase.index, MAKERS[maker](phase.parameters())
        before = snapshot(model)
        steps(model, phase, optimizer, count=4)
        yield model, phase, before, snapshot(model)


def may_rest(name: str, value: Tensor) -> bool:
    """Tell what cannot move: nothing, or a bias that the norm right behind takes out again."""
    is_normed_bias = re.fullmatch(r"4\.(base_layer\.|dendrites\.\d\.0\.(1\.)?)?bias", name)
    return value.numel() == 0 or is_normed_bias is not None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["correlation", "hybrid"])
def test_a_dendrite_phase_moves_the_newest_set_and_nothing_else(rule: str, form: str) -> None:
    tried = 0
    for model, phase, before, after in epochs(rule, form):
        if phase.kind is not DENDRITE:
            continue
        tried += 1
        newest = dendrite_names(model, phase.sets - 1)
        moved = changed(before, after)
        assert moved <= newest
        assert all(may_rest(name, before[name]) for name in newest - moved)
    assert tried == 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rule", "choices", "expected"),
    [
        ("correlation", {}, "none"),
        ("correlation", {"freeze_after": False}, "all"),
        ("gradient", {}, "all"),
        ("gradient", {"freeze_after": True}, "newest"),
        ("hybrid", {}, "all"),
        ("hybrid", {"freeze_after": True}, "newest"),
    ],
)
def test_a_neuron_phase_moves_the_neurons_and_the_sets_of_the_rule(
    rule: str, choices: dict[str, Any], expected: str, form: str
) -> None:
    tried = 0
    for model, phase, before, after in epochs(rule, form, **choices):
        if phase.kind is not NEURON:
            continue
        tried += 1
        sets = [dendrite_names(model, index) for index in range(phase.sets)]
        learning = {"none": [], "newest": sets[-1:], "all": sets}[expected]
        allowed = set(before) - set().union(*sets) | set().union(*learning)
        moved = changed(before, after)
        assert moved <= allowed
        assert all(may_rest(name, before[name]) for name in allowed - moved)
    assert tried == 6


@pytest.mark.parametrize("rule", RULES)
def test_parameters_are_what_moves(rule: str) -> None:
    for model, phase, before, after in epochs(rule, "full"):
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        listed = {id(p) for p in phase.parameters()}
        assert listed == {id(p) for n, p in model.named_parameters() if n in names}
        assert changed(before, after) - buffer_names(model) <= names


def test_neurons_are_in_eval_mode_while_candidates_train() -> None:
    model = network()
    for phase in follow(cycles(model, config=config_of()), RISING):
        phase.train()
        if phase.kind is DENDRITE:
            training = {name for name, m in model.named_modules() if m.training}
            assert training
            assert all(".dendrites.0" in name for name in training)
        else:
            assert model.training
        if phase.kind is NEURON:
            assert all(not m.training for n, m in model.named_modules() if ".dendrites.0" in n)


@pytest.mark.parametrize("maker", MAKERS)
def test_dendrites_and_their_statistics_are_frozen_for_good(maker: str) -> None:
    check_frozen(maker, 200)


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS)
def test_dendrites_and_their_statistics_are_frozen_for_a_long_time(maker: str) -> None:
    check_frozen(maker, 1000)


def check_frozen(maker: str, count: int) -> None:
    model, accepted = network(), {}
    lengths = {"epochs": 1, "dendrite_epochs": 1, "thaw_epochs": 0}
    config = config_of(recovery=lengths, max_sets=2)
    for phase in follow(cycles(model, config=config), RISING):
        if phase.kind is NEURON and phase.sets:
            names = dendrite_names(model, phase.sets - 1)
            accepted |= {name: model.state_dict()[name].clone() for name in names}
        optimizer = MAKERS[maker](list(model.parameters()))  # also what must not move
        steps(model, phase, optimizer, count // 2 if phase.kind is NEURON else 5, use_phase=False)
        now = model.state_dict()
        assert all(torch.equal(value, now[name]) for name, value in accepted.items())
    assert sum("running_var" in name for name in accepted) == 4  # two normed layers, two sets


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("use_phase", [True, False])
def test_neurons_are_bit_equal_through_a_dendrite_phase(maker: str, use_phase: bool) -> None:
    model, before = network(), {}
    config = config_of(max_sets=1, recovery={"dendrite_epochs": 3})
    for phase in follow(cycles(model, config=config), RISING):
        if phase.kind is NEURON and phase.sets:
            newest = dendrite_names(model, 0)
            after = snapshot(model)
            assert before
            assert all(torch.equal(before[k], after[k]) for k in set(after) - newest)
            return
        if phase.kind is DENDRITE and not before:
            before = snapshot(model)
        optimizer = MAKERS[maker](list(model.parameters()))
        steps(model, phase, optimizer, use_phase=use_phase)


def test_no_stale_gradient_is_left_on_what_a_phase_freezes() -> None:
    model, index = network(), -1
    for phase in follow(cycles(model, config=config_of(max_sets=2)), RISING):
        if phase.index != index:
            index = phase.index
            assert all(p.grad is None for p in model.parameters())
        steps(model, phase, MAKERS["sgd"](phase.parameters()))


def test_layers_that_the_user_froze_never_move() -> None:
    model = network()
    model[4].requires_grad_(False)
    before, index = model[4].weight.clone(), -1
    for phase in follow(cycles(model, config=config_of("hybrid", max_sets=2)), RISING):
        if phase.index != index:
            index, optimizer = phase.index, MAKERS["adamw"](phase.parameters())
        steps(model, phase, optimizer)
        base = getattr(model[4], "base_layer", model[4])
        assert not base.weight.requires_grad
        assert torch.equal(base.weight, before)
    flags = {
        n.replace(".base_layer", ""): p.requires_grad
        for n, p in model.named_parameters()
        if p.numel() > 0
    }
    assert [n for n, trains in flags.items() if not trains] == ["4.weight", "4.bias"]


def test_flags_are_back_after_a_growth_in_which_nothing_helped() -> None:
    model = network()
    model[0].requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    list(follow(cycles(model, config=config_of()), FALLING))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_correlation_of_candidates_is_measured() -> None:
    model = network()
    for phase in follow(cycles(model, config=config_of(max_sets=1)), RISING):
        steps(model, phase, MAKERS["adamw"](phase.parameters()))
        if phase.kind is NEURON:
            assert phase.correlation is None
            continue
        phase.report(9.0)
        assert 0 < phase.correlation <= 1
        assert phase.improved > 0
        return


def test_a_dendrite_phase_without_a_backward_pass_ends_too() -> None:
    config = config_of(recovery={"dendrite_epochs": 50, "dendrite_patience": 3}, max_sets=1)
    kinds = [phase.kind for phase in follow(cycles(network(), config=config), RISING)]
    assert kinds.count(DENDRITE) == 3


# --- roll-back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_a_failed_set_leaves_the_best_weights_and_keys(rule: str, form: str) -> None:
    model, best = network(), {}
    source = iter([0.1, 0.9, *[0.2] * 100])
    growth = cycles(model, config=config_of(rule, form))
    for phase in growth:
        if phase.sets == 0 and phase.index:
            raise AssertionError("growth begins anew")
        optimizer = MAKERS["adamw"](phase.parameters())
        while not phase.done:
            steps(model, phase, optimizer)
            score = next(source)
            if score == 0.9:
                best = snapshot(model)
            phase.report(score)
    assert equal(snapshot(model), best)


@pytest.mark.parametrize("rule", RULES)
def test_a_failed_second_set_leaves_the_first(rule: str) -> None:
    model, best = network(), {}
    growth = cycles(model, config=config_of(rule, max_sets=3))
    for phase in growth:
        optimizer = MAKERS["adamw"](phase.parameters())
        while not phase.done:
            steps(model, phase, optimizer)
            helps = phase.kind is NEURON and phase.sets == 1
            if helps:  # of equal scores the last is the best
                best = snapshot(model)
            phase.report(0.9 if helps else 0.1)
    assert equal(snapshot(model), best)
    assert {layer.num_sets for layer in dendrite_layers(model).values()} == {1}
    assert all(layer.pool is None for layer in dendrite_layers(model).values())


def test_each_attempt_starts_from_the_best_weights_with_new_candidates() -> None:
    model, starts, index = network(), [], -1
    for phase in follow(cycles(model, config=config_of()), FALLING):
        if phase.kind is DENDRITE and phase.index != index:
            starts.append(snapshot(model))
        index = phase.index
        steps(model, phase, MAKERS["sgd"](phase.parameters()))
    first, second = starts
    new = changed(first, second)
    assert all(".dendrites.0." in name for name in new)
    assert {n for n in first if ".dendrites.0." in n and first[n].dim() > 1} <= new


def test_without_help_the_function_is_the_one_before_growth() -> None:
    model = network()
    growth = cycles(model, config=config_of(recovery={"epochs": 1}))
    output = None
    for phase in follow(growth, FALLING):
        steps(model, phase, MAKERS["adamw"](phase.parameters()))
        if output is None:
            output = model.eval()(X)
    assert torch.equal(model.eval()(X), output)


# --- models that have dendrites already -----------------------------------------------------------


def test_a_set_that_was_attached_is_the_first_candidate() -> None:
    model = network()
    attached = config_of("hybrid", "shared", layers=("4",)).dendrites
    attach_dendrites_(model, attached)
    before = model.eval()(X)
    growth = cycles(model, config=config_of("correlation", "full", max_sets=2))
    seen = []
    for phase in follow(growth, RISING):
        seen.append((str(phase.kind), phase.sets))
        assert set(dendrite_layers(model)) <= {"4"}
        assert all(m.config.form.kind == "shared" for m in dendrite_layers(model).values())
        assert all(m.config.rule.kind == "hybrid" for m in dendrite_layers(model).values())
    assert seen[:4] == [("neuron", 0)] * 2 + [("dendrite", 1)] * 2
    assert seen[-1] == ("neuron", 2)
    assert torch.equal(model.eval()(X), before)  # nothing was trained


def test_two_sets_that_were_attached_are_both_untrained() -> None:
    model = network()
    for _ in range(2):
        attach_dendrites_(model, config_of().dendrites)
    assert next(cycles(model, config=config_of())).sets == 0


def trained_model() -> nn.Module:
    model = network()
    attach_dendrites_(model, config_of().dendrites)
    for layer in dendrite_layers(model).values():
        for gain in layer.gains:
            nn.init.normal_(gain)
    return model


def test_trained_sets_stay_and_count_as_grown() -> None:
    model = trained_model()
    before = snapshot(model)
    seen = [p.sets for p in follow(cycles(model, config=config_of(max_sets=2)), RISING)]
    assert seen == [1, 1, 2, 2, 2, 2, 2, 2]
    assert all(torch.equal(before[n], model.state_dict()[n]) for n in dendrite_names(model, 0))


def test_a_failed_set_on_top_of_trained_ones_goes_alone() -> None:
    model = trained_model()
    before = snapshot(model)
    list(follow(cycles(model, config=config_of(max_sets=2)), FALLING))
    assert equal(snapshot(model), before)


def test_no_more_than_max_sets_in_all() -> None:
    assert {p.sets for p in follow(cycles(trained_model(), config=config_of()), RISING)} == {1}


def test_a_second_growth_goes_on_from_the_first() -> None:
    model = network()
    list(follow(cycles(model, config=config_of()), RISING))
    for layer in dendrite_layers(model).values():
        for gain in layer.gains:
            nn.init.normal_(gain)
    list(follow(cycles(model, config=config_of(max_sets=2)), RISING))
    assert {layer.num_sets for layer in dendrite_layers(model).values()} == {2}


def test_only_the_given_layers_grow_with_the_given_norms() -> None:
    model = network()
    list(follow(Cycles(model, config_of(), layers={"0": False, "7": False}), RISING))
    layers = dendrite_layers(model)
    assert {name: layer.normalized for name, layer in layers.items()} == {"0": False, "7": False}


# --- refusals before the first change -------------------------------------------------------------


def test_a_model_without_anything_to_train_is_refused_as_it_was() -> None:
    model = trained_model()
    attach_dendrites_(model, config_of().dendrites)
    model.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(CompressionError, match=r"model\.requires_grad_\(True\)"):
        cycles(model, config=config_of())
    assert equal(snapshot(model), before)


@pytest.mark.parametrize("lengths", [(), (0,), (3, 0)])
def test_empty_phases_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(CompressionError, match="at least one epoch"):
        cycles(network(), config=config_of(), lengths=lengths)


# --- the control ----------------------------------------------------------------------------------


def test_fixed_lengths_grow_nothing_and_run_as_long_as_told() -> None:
    model = network()
    growth = cycles(model, config=config_of(recovery={"patience": 1}), lengths=(1, 3, 2))
    seen = [(p.index, p.kind) for p in follow(growth, FALLING)]
    assert [index for index, _ in seen] == [0, 1, 1, 1, 2, 2]
    assert {kind for _, kind in seen} == {NEURON}
    assert not dendrite_layers(model)


def test_fixed_lengths_restart_from_the_best_weights() -> None:
    model, best = network(), {}
    growth = cycles(model, config=config_of(), lengths=(2, 1))
    for phase in growth:
        optimizer = MAKERS["adamw"](phase.parameters())
        if phase.index == 1:
            assert equal(snapshot(model), best)
        while not phase.done:
            steps(model, phase, optimizer)
            best = best or snapshot(model)
            phase.report(-float(len(growth.log[0].scores) + phase.index))
    assert equal(snapshot(model), best)


# --- state and restore ----------------------------------------------------------------------------


def run(
    config: CompressConfig,
    maker: str,
    *,
    stop_after: int | None = None,
    saved: dict[str, Any] | None = None,
    make: Callable[[], nn.Module] = network,
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Train a growth; stop after so many epochs with all that is needed to go on."""
    model = make()
    growth = Cycles(model, config)
    optimizer, count = None, 0
    if saved is not None:
        growth.restore(saved["tensors"], json.loads(saved["state"]))
        count = saved["count"]
    for phase in growth:
        optimizer = MAKERS[maker](phase.parameters())
        if saved is not None and saved["phase"] == phase.index and growth.log[-1].scores:
            optimizer.load_state_dict(saved["optimizer"])
        while not phase.done:
            steps(model, phase, optimizer)
            phase.report(-loss_of(model))
            count += 1
            if count == stop_after:
                tensors, state = growth.state()
                return model, {
                    "tensors": {k: v.clone() for k, v in tensors.items()},
                    "state": json.dumps(state),
                    "optimizer": copy.deepcopy(optimizer.state_dict()),
                    "phase": phase.index,
                    "count": count,
                }
    return model, None


@pytest.mark.parametrize(
    ("rule", "form", "maker", "normalize", "at_start"),
    [
        ("correlation", "full", "adamw", True, False),
        ("correlation", "shared", "sgd", True, True),
        ("hybrid", "shared", "adamw", False, False),
        ("hybrid", "grouped", "sgd", True, False),
        ("gradient", "lowrank", "adamw", True, True),
        ("gradient", "full", "sgd", False, False),
    ],
)
def test_a_growth_goes_on_bit_equal_from_every_epoch(
    rule: str, form: str, maker: str, normalize: bool, at_start: bool
) -> None:
    config = config_of(rule, form, max_sets=2, normalize=normalize, at_start=at_start)
    whole, _ = run(config, maker)
    expected, after = snapshot(whole), 1
    while True:
        _, saved = run(config, maker, stop_after=after)
        if saved is None:
            break
        resumed, _ = run(config, maker, saved=saved)
        assert equal(snapshot(resumed), expected), f"stopped after epoch {after}"
        after += 1
    assert after > (4 if at_start else 6)


def test_a_growth_over_a_trained_set_goes_on_bit_equal() -> None:
    config = config_of(max_sets=2)
    whole, _ = run(config, "adamw", make=trained_with_seed)
    for after in range(1, 6):
        _, saved = run(config, "adamw", stop_after=after, make=trained_with_seed)
        resumed, _ = run(config, "adamw", saved=saved, make=trained_with_seed)
        assert equal(snapshot(resumed), snapshot(whole))


def trained_with_seed() -> nn.Module:
    torch.manual_seed(4)
    return trained_model()


def test_flags_of_the_user_survive_a_restore() -> None:
    def make() -> nn.Module:
        model = network()
        model[4].requires_grad_(False)
        return model

    _, saved = run(config_of(), "sgd", stop_after=3, make=make)
    model, _ = run(config_of(), "sgd", saved=saved, make=make)
    base = getattr(model[4], "base_layer", model[4])
    assert not base.weight.requires_grad
    assert torch.equal(base.weight, network()[4].weight)


# --- abandoning -----------------------------------------------------------------------------------


def test_an_abandoned_growth_leaves_the_best_weights_that_train() -> None:
    model, best = network(), {}
    growth = cycles(model, config=config_of())
    for phase in growth:
        optimizer = MAKERS["adamw"](phase.parameters())
        steps(model, phase, optimizer)
        if phase.kind is DENDRITE:
            break
        best = best or snapshot(model)
        phase.report(-float(len(growth.log[0].scores)))
    growth.abandon()
    assert equal(snapshot(model), best)
    assert all(p.requires_grad for p in model.parameters())


def test_a_growth_abandoned_before_its_first_score_leaves_the_model_as_it_came() -> None:
    model = network()
    attach_dendrites_(model, config_of().dendrites)
    before = snapshot(model)
    growth = cycles(model, config=config_of())
    phase = next(growth)
    steps(model, phase, MAKERS["sgd"](phase.parameters()))
    growth.abandon()
    assert equal(snapshot(model), before)


def test_a_config_is_not_changed_by_a_growth() -> None:
    config = config_of(max_sets=2)
    twin = replace(config)
    list(follow(cycles(network(), config=config), RISING))
    assert config == twin


# --- networks that do something of their own ------------------------------------------------------


def grow(model: nn.Module, x: Tensor, config: CompressConfig | None = None) -> list[PhaseKind]:
    """Run all phases, one step each; every dendrite set is taken for an improvement."""
    score, kinds = 0.0, []
    for phase in cycles(model, config=config or config_of()):
        optimizer = torch.optim.SGD(phase.parameters(), 0.01)
        phase.train()
        model(x).square().mean().backward()
        optimizer.step()
        score += 1
        phase.report(score)
        kinds.append(phase.kind)
    assert set(kinds) >= {NEURON, DENDRITE}
    return kinds


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rule", ["correlation", "hybrid"])
def test_a_penalty_on_what_hooks_keep_of_every_layer_trains(rule: str, activation: str) -> None:
    model, kept = network(), []
    config = config_of(rule, activation=activation, recovery={"dendrite_epochs": 1})

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept.append(output.square().mean())

    score, steps_taken = 0.0, 0
    for phase in cycles(model, config=config):
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
        handles = [layer.register_forward_hook(keep) for layer in layers]
        kept.clear()
        phase.train()
        (model(X).square().mean() + sum(kept)).backward()
        for handle in handles:
            handle.remove()
        score, steps_taken = score + 1, steps_taken + 1
        phase.report(score)
    assert steps_taken >= 4


class Named(nn.Module):
    """Has a layer of the name that a layer with dendrites gives to the one in it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.up = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(torch.relu(self.base_layer(x)))
        return y


def test_a_network_may_call_its_own_layers_base_layer() -> None:
    model = nn.Sequential(Named(), nn.Tanh(), Named())
    model[2].base_layer = nn.Linear(2, 8)
    names = [name for name, _ in model.named_parameters()]
    grow(model, torch.randn(16, 3))
    assert list(neuron_parameters(model)) == names
    assert all(p.requires_grad for p in neuron_parameters(model).values())


class Reluctant(nn.Module):
    """Leaves a part of itself out of its state, which has more than tensors."""

    def __init__(self, is_frozen: bool) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.trunk.requires_grad_(not is_frozen)
        self.seen = 0
        self._register_state_dict_hook(self._leave_out)

    @staticmethod
    def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for key in list(state):
            if key.startswith("trunk"):
                del state[key]

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        y: Tensor = self.head(torch.tanh(self.trunk(x)))
        return y


def test_what_a_state_leaves_out_and_has_beside_tensors_stays_as_it_is() -> None:
    model = Reluctant(is_frozen=True)
    before = model.trunk.weight.clone()
    kinds = grow(model, torch.randn(16, 3))
    assert torch.equal(model.trunk.weight, before)
    assert model.seen == len(kinds)


def test_a_state_that_leaves_out_what_trains_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"leaves out trunk\.weight, trunk\.bias"):
        cycles(Reluctant(is_frozen=False))


class Checkpointed(nn.Module):
    """A block behind an embedding, which cannot grow; and a layer that is never called."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.table, self.block, self.idle = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head, self.reentrant = nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.block, self.table(x), use_reentrant=self.reentrant)
        y = self.head(torch.tanh(y))
        return y


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("reentrant", "named"), [(False, "idle"), (True, "block, idle")])
def test_candidates_that_no_error_reached_are_named(
    reentrant: bool, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    grow(Checkpointed(reentrant), torch.randint(9, (16,)))
    assert f"No error reached the candidates of {named}, which" in caplog.text


def test_of_many_layers_that_no_error_reached_a_few_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for phase in cycles(nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)]), config=config_of()):
        phase.report(0.5)  # a loop that takes no step
    assert "No error reached the candidates of 0, 1, 2, 3 and 2 more, which" in caplog.text


def test_a_recurrent_layer_without_dropout_keeps_the_mode_that_gradients_can_pass() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm = nn.Linear(3, 4), nn.LSTM(4, 4, batch_first=True)
            self.gru = nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.gru(self.lstm(self.first(x))[0])[0]
            return y

    model = Recurrent()
    for phase in cycles(model, config=config_of()):
        phase.train()
        is_dendrite = phase.kind is DENDRITE
        assert (model.lstm.training, model.gru.training) == (True, not is_dendrite)
        phase.report(0.5)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_one_passes_where_the_users_batchnorm_rests(form: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    for phase in cycles(model, config=config_of(form=form)):
        optimizer = torch.optim.SGD(phase.parameters(), 0.1)
        for x in (torch.randn(8, 3), torch.randn(1, 3)):
            phase.train()
            model[1].eval()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        phase.report(0.5)
    assert all(p.isfinite().all() for p in model.parameters())
