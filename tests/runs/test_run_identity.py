"""A folder goes on with its own run alone: whatever decides it is noticed, and what cannot be."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pbcompress as pb
from pbcompress.runs.run_folder import read_facts
from tests.support.changed_json import rewrite

CONFIG = pb.CompressConfig(
    deploy=False,
    dendrites=pb.DendriteConfig(max_sets=0),
    recovery=pb.RecoveryConfig(epochs=1),
)
LABELS = torch.arange(40) % 3


def network(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), act(), nn.Linear(16, 3))


def samples() -> Tensor:
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


def batches(labels: Tensor = LABELS, size: int = 10, x: Tensor | None = None) -> list[Any]:
    x = samples() if x is None else x
    return list(zip(x.split(size), labels.split(size), strict=True))


def changed(place: int) -> Tensor:
    labels = LABELS.clone()
    labels[place] = (labels[place] + 1) % 3
    return labels


def loader(labels: Tensor = LABELS, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(samples(), labels), batch_size=10, **options)


def run(folder: Path, **changes: Any) -> pb.CompressionResult:
    call = {"model": network(), "target_params": 0.6, "config": CONFIG, "progress": False}
    call["data"] = pb.Data(train=batches(), val=batches(), test=batches())
    call.update(changes)
    return pb.compress(**call, run_dir=folder)


def sampled(last: int) -> DataLoader[Any]:
    """A loader whose last index is beyond the batches that are read."""
    order = [*(i % 40 for i in range(99)), last]
    return DataLoader(TensorDataset(samples(), LABELS), batch_size=2, sampler=order)


def joined(factor: float) -> DataLoader[Any]:
    """A loader whose way to join samples differs beyond the batches that are read."""

    def join(items: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return (x * factor if torch.equal(x[-1], samples()[39]) else x), y

    return DataLoader(
        TensorDataset(samples(), LABELS), sampler=[0] * 70 + [39], collate_fn=join, batch_size=1
    )


def smoothed(output: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    return nn.functional.cross_entropy(output, target, label_smoothing=smoothing)


def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]) * 2, batch[1]


DATA = pb.Data(train=batches(), val=batches(), test=batches())
OTHER_CALLS = {
    "labels of the last train batch": (
        {"data": replace(DATA, train=batches(changed(39)))},
        "train",
    ),
    "one number of val": ({"data": replace(DATA, val=batches(x=samples() + 1e-7))}, "Data.val"),
    "labels of test": ({"data": replace(DATA, test=batches(changed(0)))}, "Data.test"),
    "no test": ({"data": replace(DATA, test=None)}, "Data.test"),
    "fewer batches": ({"data": replace(DATA, train=batches()[:-1])}, "Data.train"),
    "other batches": ({"data": replace(DATA, val=batches(size=20))}, "Data.val"),
    "another order": ({"data": replace(DATA, train=batches()[::-1])}, "Data.train"),
    "a loss": ({"task": pb.Task(loss=smoothed)}, "Task.loss"),
    "a lambda": ({"task": pb.Task(loss=lambda o, t: smoothed(o, t))}, "Task.loss"),
    "a metric": ({"task": pb.Task(metric=lambda o, t: 0.5)}, "Task.metric"),
    "a forward": ({"task": pb.Task(forward=forward)}, "Task.forward"),
    "a direction": ({"task": pb.Task(higher_is_better=False)}, "Task.higher_is_better"),
    "an activation": ({"model": network(nn.Tanh)}, "model"),
    "a seed": ({"seed": 1}, "seed"),
    "a target": ({"target_params": 0.5}, "target"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(folder)
    return folder


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_another_call_is_refused_by_what_differs(name: str, finished: Path) -> None:
    change, place = OTHER_CALLS[name]
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(pb.StateMismatchError, match="another call") as caught:
        run(finished, **change)
    assert place in str(caught.value)
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


def test_the_same_call_with_equal_objects_goes_on(finished: Path) -> None:
    first = read_facts(finished).fingerprint
    assert run(finished).fingerprint == first
    assert run(finished, control=True, device="cpu").fingerprint == first


@pytest.mark.parametrize("value", [0.1, 0.2])
def test_closures_count(value: float, tmp_path: Path) -> None:
    def made(smoothing: float) -> pb.Task:
        return pb.Task(loss=lambda o, t: smoothed(o, t, smoothing))

    run(tmp_path, task=made(0.1))
    if value == 0.1:
        run(tmp_path, task=made(value))
        return
    with pytest.raises(pb.StateMismatchError, match=r"Task.loss.smoothing"):
        run(tmp_path, task=made(value))


def test_a_late_label_of_a_data_set_is_noticed_and_a_shuffled_loader_is_itself(
    tmp_path: Path,
) -> None:
    def data(labels: Tensor) -> pb.Data:
        return pb.Data(train=loader(labels, shuffle=True), val=loader())

    run(tmp_path, data=data(LABELS))
    torch.manual_seed(99)
    run(tmp_path, data=data(LABELS))
    with pytest.raises(pb.StateMismatchError, match=r"Data\.train"):
        run(tmp_path, data=data(changed(39)))


LOADERS = {
    "sampler": (sampled(0), sampled(0), sampled(5)),
    "collate_fn": (joined(1.0), joined(1.0), joined(2.0)),
}


@pytest.mark.parametrize("part", LOADERS)
def test_a_loader_that_differs_beyond_the_batches_that_are_read_is_noticed(
    part: str, tmp_path: Path
) -> None:
    one, same, other = (pb.Data(train=loader, val=batches()) for loader in LOADERS[part])
    run(tmp_path, data=one)
    run(tmp_path, data=same)
    with pytest.raises(pb.StateMismatchError, match=rf"Data\.train\.{part}"):
        run(tmp_path, data=other)


def test_a_list_that_the_loss_fills_identifies_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        found = nn.functional.cross_entropy(output, target)
        seen.append(float(found.detach()))
        return found

    first = run(tmp_path, task=pb.Task(loss=loss))
    assert "Task.loss.seen (is not the same after use)" in caplog.text
    assert run(tmp_path, task=pb.Task(loss=loss)).fingerprint == first.fingerprint
    noted = json.loads((tmp_path / "identity.json").read_text())["unseen"]
    assert noted == {"Task.loss.seen": "is not the same after use"}


class Unsteady(IterableDataset[Any]):
    """Its batches are others at every pass, whatever is seeded."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(batches(x=samples() + self.passes))


class Many(Dataset[Any]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        return torch.full((4,), float(index)), index % 3


def test_batches_that_are_never_the_same_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, data=pb.Data(train=Unsteady(), val=batches()))
    assert "they differ under one seed" in caplog.text
    run(tmp_path, data=pb.Data(train=Unsteady(), val=batches()))


def test_how_far_a_split_was_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, data=pb.Data(train=DataLoader(Many(), batch_size=1), val=batches()))
    assert "only the first 32 of 50 were read" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_random_states_are_left_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    data = pb.Data(train=loader(shuffle=True, generator=generator), val=loader())
    model = network()
    state, own = torch.get_rng_state(), generator.get_state()
    pb.compress(model, 0.6, data=data, config=CONFIG, run_dir=tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generator.get_state(), own)


def test_a_folder_of_an_older_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "identity.json").unlink()
    rewrite(tmp_path / "state.json", lambda state: state["facts"].update(fingerprint="ab" * 32))
    with pytest.raises(pb.StateMismatchError, match="an older pbcompress made"):
        run(tmp_path)


def test_a_model_that_keeps_what_it_computed_is_itself(tmp_path: Path) -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kept = network(), None

        def forward(self, x: Tensor) -> Tensor:
            self.kept = x.detach()
            return self.body(x)

    model = Keeping()
    first = run(tmp_path, model=model)
    model(samples())
    assert run(tmp_path, model=model).fingerprint == first.fingerprint
