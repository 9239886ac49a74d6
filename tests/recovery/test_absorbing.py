"""Cycles whose dendrites become linear and are absorbed: which epochs count, and what is left."""

import contextlib
import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pbcompress import CompressConfig, Data, DendriteConfig, compress, fuse, recover_
from pbcompress.core.modules import copy_model, parameter_count
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.phase_cycles import Cycles, cycles
from pbcompress.recovery.policy import PhaseKind, PhaseLog, best_epoch, counts_from, linearity
from pbcompress.training.history import History
from tests.support.configs import dendrites_of, recovery_of

NEURON, DENDRITE, THAW = PhaseKind.NEURON, PhaseKind.DENDRITE, PhaseKind.THAW
LINEAR = {"activation": "linear"}
ANNEALED = {"activation": "tanh", "annealing": 0.6}
RULES = ("correlation", "gradient", "hybrid")


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    )


X = torch.randn(64, 2, 5, generator=torch.Generator().manual_seed(9))
Y = (X[:, 0, :3] * X[:, 1, 2:]).sum(1).gt(0).long()
DATA = Data(
    train=[(X[i : i + 16], Y[i : i + 16]) for i in range(0, 48, 16)], val=[(X[48:], Y[48:])]
)


def config_of(rule: str, dendrites: dict[str, Any], **recovery: Any) -> CompressConfig:
    lengths = {"epochs": 5, "dendrite_epochs": 2, "improvement": (-1.0,)} | recovery
    return CompressConfig(
        dendrites=dendrites_of(rule=rule, **dendrites), recovery=recovery_of(**lengths)
    )


# --- the policy -----------------------------------------------------------------------------------


def test_epochs_of_what_is_not_linear_do_not_count() -> None:
    config = config_of("gradient", ANNEALED)
    first = PhaseLog(NEURON, 0, (0.1, 0.2))
    assert counts_from(NEURON, [first], config.recovery, config.dendrites, has_new_set=True) == 2
    annealed = PhaseLog(NEURON, 1, (0.9, 0.8, 0.3, 0.4), counts_from=2)
    assert annealed.best == (0.4, 3)
    assert best_epoch([first, annealed], config.recovery) == (1, 3)
    begun = PhaseLog(NEURON, 1, (0.9, 0.8), counts_from=2)
    assert begun.best is None
    assert best_epoch([first, begun], config.recovery) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "sets", "annealing", "bound", "expected"),
    [
        (NEURON, 1, 0.6, None, 2),
        (NEURON, 1, 0.0, None, 0),  # linear at once
        (NEURON, 0, 0.6, None, 0),  # no set yet
        (DENDRITE, 1, 0.6, None, 0),
        (THAW, 1, 0.6, None, 0),
        (NEURON, 1, 0.6, 4, 1),  # two epochs are left: the second is linear
        (NEURON, 1, None, None, 0),
    ],
)
def test_when_a_phase_begins_to_count(
    kind: PhaseKind, sets: int, annealing: float | None, bound: int | None, expected: int
) -> None:
    log = [PhaseLog(NEURON, 0, (0.1, 0.2))]
    config = config_of("gradient", {"annealing": annealing}, max_epochs=bound)
    found = counts_from(kind, log, config.recovery, config.dendrites, has_new_set=sets > 0)
    assert found == expected


def test_the_linearity_rises_to_one_where_epochs_begin_to_count() -> None:
    logs = [PhaseLog(NEURON, 1, (0.5,) * n, counts_from=3) for n in range(5)]
    assert [linearity(log) for log in logs] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert linearity(PhaseLog(DENDRITE, 1)) == 0


# --- cycles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [LINEAR, ANNEALED, {**ANNEALED, "max_sets": 2}])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_left_is_the_plain_network(rule: str, choices: dict[str, Any]) -> None:
    net, plain = network(), network()
    history = recover_(net, DATA, config=config_of(rule, choices))
    assert repr(net) == repr(plain.eval())
    assert not dendrite_layers(net)
    assert parameter_count(net) == parameter_count(plain)
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in net.parameters())
    assert history.records[-1]["absorbed"] == choices.get("max_sets", 1)


@pytest.mark.parametrize("at_start", [False, True])
def test_the_absorbed_network_is_the_grown_one(at_start: bool) -> None:
    """The score of the last record is that of the network that is left, without dendrites."""
    config = config_of("gradient", {**ANNEALED, "at_start": at_start}, patience=None)
    net = network()
    outputs = []
    growth = cycles(net, config=config, seed=3)
    for phase in growth:
        optimizer = torch.optim.SGD(phase.parameters(), 0.05)
        while not phase.done:
            phase.train()
            for x, y in DATA.train:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            net.eval()
            outputs.append(net(X).detach())
            phase.report(len(outputs))
    assert growth.absorbed == 1
    np.testing.assert_allclose(net(X).detach(), outputs[-1], rtol=1e-5, atol=1e-6)
    assert float((outputs[-1] - outputs[-3]).abs().max()) > 1e-3  # annealing moved it


def test_a_set_that_does_not_help_leaves_no_trace() -> None:
    net = network()
    growth = cycles(net, config=config_of("gradient", LINEAR, improvement=(1e-3,), max_failures=1))
    best: dict[str, torch.Tensor] = {}
    for phase in growth:
        while not phase.done:
            if not phase.sets:
                best = copy.deepcopy(net.state_dict())
            with torch.no_grad():
                for p in phase.parameters():
                    p.add_(0.1)
            phase.report(1.0 if not phase.sets and phase.epoch == 0 else 0.5)
            if not phase.sets and phase.epoch == 1:
                best = copy.deepcopy(net.state_dict())
    assert growth.absorbed == 0
    assert net.state_dict().keys() == best.keys()


@pytest.mark.parametrize("epochs", range(1, 12))
@pytest.mark.parametrize("rule", ["correlation", "gradient"])
def test_a_run_goes_on_bit_equal(rule: str, epochs: int, tmp_path: Any) -> None:
    config = config_of(rule, ANNEALED)
    whole = network()
    expected = recover_(whole, DATA, config=config)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "x")

    class StoppedError(Exception):
        pass

    class Kill:
        seen = 0

        def on_stage(self, *_: Any) -> None: ...
        def on_end(self) -> None: ...
        def on_epoch(self, _: Any) -> None:
            self.seen += 1
            if self.seen == epochs:
                raise StoppedError

    first = network()
    with contextlib.suppress(StoppedError):
        recover_(first, DATA, config=config, checkpoint=checkpoint, callbacks=[Kill()])
    second = network()
    history = recover_(second, DATA, config=config, checkpoint=checkpoint)
    assert without_time(history) == without_time(expected)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def without_time(history: History) -> Any:
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in history.records]
    return json.loads(json.dumps(records))


def test_a_failed_run_leaves_a_plain_network() -> None:
    class Failing(torch.optim.SGD):
        pass

    net = network()
    growth = Cycles(net, config_of("gradient", {**LINEAR, "at_start": True}))
    phase = next(growth)
    phase.report(0.5)
    growth.abandon()
    assert not dendrite_layers(net)
    assert growth.absorbed == 1


def test_time_cannot_end_before_anything_is_linear() -> None:
    config = config_of("gradient", {**ANNEALED, "at_start": True}, max_minutes=1.0)
    with pytest.raises(CompressionError, match=r"annealing=0\.6, at_start=True.*max_epochs"):
        recover_(network(), DATA, config=config)


def test_every_attempt_anneals() -> None:
    """A set that failed is no reason for the next one to be linear from the start."""
    config = config_of("gradient", ANNEALED, improvement=(1.0,), max_failures=2)
    growth = Cycles(network(), config)
    begins = []
    for phase in growth:
        begins.append(growth.log[-1].counts_from)
        while not phase.done:
            phase.report(1.0)
    assert begins == [0, 2, 2]


def test_a_network_that_came_with_sets_is_linear_at_once() -> None:
    net = network()
    attach_dendrites_(net, config_of("gradient", ANNEALED).dendrites)
    for layer in dendrite_layers(net).values():
        nn.init.ones_(layer.gains[0])
    history = recover_(net, DATA, config=config_of("gradient", ANNEALED), lengths=[2])
    assert len(history) == 2
    assert not dendrite_layers(net)


# --- what else meets them -------------------------------------------------------------------------


def test_compress_spends_the_whole_target_on_width() -> None:
    config = config_of("gradient", {**LINEAR, "at_start": True})
    result = compress(network(), 0.6, data=DATA, config=config, control=True, progress=False)
    assert (result.chosen.sets, result.chosen.absorbed) == (0, 1)
    assert result.chosen.dendrite_params == 0
    assert result.other is not None
    assert result.cost_after.params == result.other.cost.params
    assert "absorbed by their neurons" in result.note
    assert not dendrite_layers(result.model)


@pytest.mark.parametrize("reached", [0.0, 0.4, 1.0])
def test_the_inference_form_computes_what_is_half_linear(reached: float) -> None:
    net = network().double()
    attach_dendrites_(net, DendriteConfig(activation="tanh", annealing=0.5))
    for layer in dendrite_layers(net).values():
        nn.init.normal_(layer.gains[0])
        layer.annealing[0].linearity.fill_(reached)
    net.eval()
    fused = fuse(net)
    x = X.double()
    np.testing.assert_allclose(fused(x), net(x).detach(), rtol=1e-9, atol=1e-9)
    is_plain = type(fused[4]) is nn.Linear
    assert is_plain == (reached == 1)


def test_a_copy_keeps_how_far_it_is() -> None:
    net = network()
    attach_dendrites_(net, DendriteConfig(activation="tanh", annealing=0.5))
    net[0].annealing[0].linearity.fill_(0.4)
    assert float(copy_model(net)[0].annealing[0].linearity) == pytest.approx(0.4)
    assert "0.annealing.0.linearity" in net.state_dict()
