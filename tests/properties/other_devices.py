"""Everything runs on a device that is not the CPU, and the host seldom waits for it.

`test_other_devices.py` runs these cases.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.recovery.policy import PhaseKind
from pbcompress.training import loss_checks
from pbcompress.training.distillation import make_objective
from pbcompress.training.engine import Engine
from pbcompress.training.loop import Stepper, train_epoch
from pbcompress.training.weight_average import WeightAverage
from scripts.gpu import smoke
from tests.support.pretended_device import DEVICE, OnDevice, PretendedDevice, on_host


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4),
    )  # fmt: skip


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(count, 16, 1, 8, 8, generator=generator)
    return [(x, x.flatten(1)[:, :4].argmax(1)) for x in xs]


DATA = pb.Data(batches(3), batches(2))
PLAIN = pb.EngineConfig(channels_last=False)  # as on any device but the CPU


def recovery(**choices: Any) -> pb.RecoveryConfig:
    own = {"epochs": 1, "dendrite_epochs": 1, "engine": PLAIN} | choices
    return pb.RecoveryConfig(optimizer=pb.OptimizerConfig(lr=0.01), **own)


GROWN: dict[str, pb.DendriteConfig] = {
    "correlation": pb.DendriteConfig(rule=pb.Correlation(candidates=2)),
    "random first weights": pb.DendriteConfig(rule=pb.Correlation(initialization="random")),
    "annealed": pb.DendriteConfig(rule="hybrid", annealing=0.5),
    "linear": pb.DendriteConfig(rule="gradient", activation="linear", at_start=True),
    "shared": pb.DendriteConfig(rule="gradient", form="shared", at_start=True),
    "tied": pb.DendriteConfig(rule="hybrid", form="tied"),
}


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert isinstance(ours[name], OnDevice)
        assert torch.equal(on_host(ours[name]), tensor), name


@pytest.mark.parametrize("name", GROWN)
def test_a_recovery_on_a_device_is_that_of_a_cpu(name: str) -> None:
    choices: dict[str, Any] = {
        "config": pb.CompressConfig(dendrites=GROWN[name], recovery=recovery()),
        "seed": 3,
    }
    wanted, found = network(), network()
    pb.recover_(wanted, DATA, **choices)
    with PretendedDevice():
        pb.recover_(found.to(DEVICE), DATA, **choices)
        assert_same(found, wanted)


@pytest.mark.parametrize("deploy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compress_on_a_device_is_that_of_a_cpu(deploy: bool) -> None:
    choices: dict[str, Any] = {
        "data": DATA,
        "progress": False,
        "config": pb.CompressConfig(
            deploy=deploy,
            recovery=pb.RecoveryConfig(
                epochs=1, engine=PLAIN, distillation=pb.DistillationConfig(share=0.5, loss="dist")
            ),
        ),
    }
    wanted = pb.compress(network(), 0.5, device="cpu", **choices)
    with PretendedDevice():
        found = pb.compress(network().to(DEVICE), 0.5, device=DEVICE, **choices)
        assert_same(found.model, wanted.model)
    assert found.score_after == wanted.score_after


def phase(model: nn.Module, kind: PhaseKind, dendrites: pb.DendriteConfig) -> None:
    """Bring a network into the first phase of a kind."""
    config = pb.CompressConfig(dendrites=dendrites, recovery=recovery())
    for step in pb.cycles(model, config=config):
        if step.kind is kind:
            step.train()
            return
        step.report(0.0)
    raise AssertionError("there is no such phase")


NOT_PRETENDED = {"bf16", "compiled", "own loop"}  # torch and Fabric do not know the device


@pytest.mark.slow
def test_every_path_is_fit_for_a_device() -> None:
    with PretendedDevice():
        found = list(smoke.run(DEVICE, [name for name in smoke.PATHS if name not in NOT_PRETENDED]))
    assert len(found) == len(smoke.PATHS) - len(NOT_PRETENDED) == 10
    assert [line for line in found if line["error"]] == []


CASES = {
    "plain": (PhaseKind.NEURON, pb.DendriteConfig(max_sets=0), {}),
    "distilled": (
        PhaseKind.NEURON,
        pb.DendriteConfig(max_sets=0),
        {"distillation": pb.DistillationConfig(share=0.5)},
    ),
    "accumulated": (
        PhaseKind.NEURON,
        pb.DendriteConfig(max_sets=0),
        {"engine": pb.EngineConfig(channels_last=False, accumulate=2)},
    ),
    "correlation": (PhaseKind.DENDRITE, GROWN["correlation"], {}),
    "linear": (PhaseKind.NEURON, GROWN["linear"], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_once_in_many_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loss_checks.BATCHES >= 50
    monkeypatch.setattr(loss_checks, "BATCHES", 10)
    kind, dendrites, choices = CASES[name]
    config = recovery(**choices)
    with PretendedDevice() as device:
        model, teacher = network().to(DEVICE), network().to(DEVICE)
        phase(model, kind, dendrites)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-3)
        stepper = Stepper(Engine(), model, optimizer, config, length=1)
        objective = make_objective(pb.Task(), config.distillation, teacher)
        x, y = batches(1)[0]
        there = [(x.to(DEVICE), y.to(DEVICE))] * 24
        objective(model, there[0])  # what is found out once
        device.waits.clear()
        train_epoch(stepper, there, objective, seed=(0,))
    assert 0 < device.waits.total() <= 3, device.waits  # after 10, after 20 and at the end


def test_an_average_of_weights_never_waits() -> None:
    with PretendedDevice() as device:
        model = network().to(DEVICE)
        average = WeightAverage(model, 10.0)
        for _ in range(3):
            average.update()
        with average.applied():
            pass
    assert not device.waits


def test_a_late_batch_without_numbers_is_named() -> None:
    nan, few = batches(6), batches(6)
    nan[3][0][0, 0, 0, 0] = math.nan
    few[3] = (few[3][0][:3], few[3][1][:3])
    task = pb.Task(loss=lambda out, y: out.sum() * (math.inf if len(y) == 3 else 1.0))
    objective = make_objective(task, pb.DistillationConfig(), None)
    for data, error in ((nan, pb.CompressionError), (few, pb.DivergedError)):
        with PretendedDevice():
            model = network().to(DEVICE)
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
            stepper = Stepper(Engine(), model, optimizer, recovery(), length=1)
            with pytest.raises(error, match=r"batch 3 of Data\.train") as found:
                train_epoch(stepper, data, objective, seed=(0,))
        assert type(found.value) is error


def test_the_pretended_device_is_as_strict_as_a_real_one() -> None:
    with PretendedDevice() as device:
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        for wrong in (
            lambda: there + here,
            lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
            lambda: there.add_(here),
        ):
            with pytest.raises(RuntimeError, match="pretended"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert not device.waits
        assert (there + 1).sum().item() == 6
        assert (there * torch.tensor(2.0))[[0, 2]].tolist() == [2, 2]
        assert device.waits.total() == 2
