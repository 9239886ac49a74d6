"""A recovery from beginning to end: repeatable, killable, and safe for the caller's model."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pbcompress import CompressConfig
from pbcompress.core.tensor_files import read_tensors, write_bytes, write_tensors
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError, DivergedError, StateMismatchError
from pbcompress.recovery.checkpoint import CHECKPOINT_FORMAT, Checkpoint
from pbcompress.recovery.recover import recover_
from pbcompress.training.callbacks import Callback
from pbcompress.training.history import History
from pbcompress.training.loop import evaluate
from pbcompress.training.task import Data, Task
from tests.support.configs import dendrites_of, recovery_of

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(40, 2, 4, 4, generator=GENERATOR)
Y = (X[:, 0].mean((1, 2)) * X[:, 1].amax((1, 2)) > 0).long()


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(64, 2),
        )


def data_of() -> Data:
    train, val = TensorDataset(X[:24], Y[:24]), TensorDataset(X[24:], Y[24:])
    generator = torch.Generator().manual_seed(8)
    return Data(
        train=DataLoader(train, batch_size=8, shuffle=True, generator=generator),
        val=DataLoader(val, batch_size=8),
    )


TASK = Task(metric=nn.functional.cross_entropy, higher_is_better=False)


def config_of(
    rule: str = "correlation", form: str = "full", max_sets: int = 1, **choices: Any
) -> CompressConfig:
    dendrites = dendrites_of(
        rule=rule, form=form, activation="tanh", groups=2, rank=2, nodes=3, max_sets=max_sets,
        samples=32,  # a quarter of the positions
    )  # fmt: skip
    lengths: dict[str, Any] = {"epochs": 2, "dendrite_epochs": 2, "lr": 0.02, "dendrite_lr": 0.02}
    lengths["max_failures"] = 1
    return CompressConfig(dendrites=dendrites, recovery=recovery_of(**(lengths | choices)))


def recover(model: nn.Module, config: CompressConfig | None = None, **choices: Any) -> History:
    data, task = choices.pop("data", None) or data_of(), choices.pop("task", TASK)
    return recover_(model, data, task, config=config or config_of(), **choices)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def without_time(history: History) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest


class Recorder(Callback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_stage(self, stage: str, total_epochs: int) -> None:
        self.told.append((stage, total_epochs))

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.told.append(record["epoch"])

    def on_end(self) -> None:
        self.told.append("end")


class KilledError(Exception):
    pass


class Killer(Callback):
    """Raises after so many epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


# --- what it does ---------------------------------------------------------------------------------


def test_the_model_ends_with_the_best_score_of_its_history_in_eval_mode() -> None:
    model, data = network(), data_of()
    history = recover(model, data=data)
    neuron = [r["metric"] for r in history if r["kind"] == "neuron"]
    assert not any(m.training for m in model.modules())
    assert evaluate(model, data.val, TASK)[0] == min(neuron)


def test_it_learns() -> None:
    model, data = network(), data_of()
    before, _ = evaluate(model, data.train, TASK)
    recover(model, config_of(epochs=10), data=data)
    assert evaluate(model, data.train, TASK)[0] < 0.5 * before


def test_records_say_what_happened() -> None:
    history = recover(network(), stage="trial")
    assert [r["epoch"] for r in history][:6] == [0, 1, 0, 1, 0, 1]
    assert [r["kind"] for r in history][:6] == ["neuron"] * 2 + ["dendrite"] * 2 + ["neuron"] * 2
    assert [r["phase"] for r in history][:6] == [0, 0, 1, 1, 2, 2]
    assert [r["sets"] for r in history][:6] == [0, 0, 1, 1, 1, 1]
    assert {r["stage"] for r in history} == {"trial"}
    assert {r["steps"] for r in history} == {3}
    for record in history:
        assert ("correlation" in record) == (record["kind"] == "dendrite")
        assert 0 <= record["lr"] <= 0.02
    assert history.steps == 3 * len(history)
    json.dumps(history.records)


def test_the_train_loss_of_a_dendrite_phase_is_that_of_the_neurons() -> None:
    history = recover(network())
    first, second = [r["loss"] for r in history if r["phase"] == 1]
    assert first == pytest.approx(second, rel=1e-6)  # only the order of the samples differs


def test_the_schedule_spans_the_phase() -> None:
    rates: list[float] = []

    class Watcher(Callback):
        def on_epoch(self, record: dict[str, Any]) -> None:
            rates.append(record["lr"])

    config = config_of(epochs=5, schedule="linear", warmup=0.0, max_epochs=5)
    recover(network(), config, callbacks=[Watcher()])
    # three steps in each of five epochs: the last of an epoch is at (epoch + 2.5 / 3) / 5
    expected = [0.02 * (1 - (epoch + 2.5 / 3) / 5) for epoch in range(5)]
    assert rates == pytest.approx(expected)


def test_one_step_in_all_is_not_taken_at_a_rate_of_zero() -> None:
    model = network()
    before = snapshot(model)
    data = Data([(X, Y)], [(X, Y)])
    recover(model, config_of(epochs=1, max_epochs=1), data=data)
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_max_epochs_bounds_all_phases_together() -> None:
    for bound in range(1, 7):
        assert len(recover(network(), config_of(max_epochs=bound))) == bound


def test_a_tiny_max_minutes_ends_after_one_epoch() -> None:
    assert len(recover(network(), config_of(max_minutes=1e-9))) == 1


def test_a_clipped_gradient_changes_the_result() -> None:
    free, clipped = network(), network()
    sgd = {"algorithm": "sgd", "max_epochs": 1}
    recover(free, config_of(**sgd))
    recover(clipped, config_of(**sgd, max_grad_norm=1e-6))
    start = network()
    moved = [(m[5].weight - start[5].weight).norm().item() for m in (free, clipped)]
    assert moved[1] < 1e-3 * moved[0]


def test_callbacks_hear_of_stage_epochs_and_end() -> None:
    recorder = Recorder()
    history = recover(network(), config_of(max_epochs=3), callbacks=[recorder], stage="s")
    assert recorder.told == [("s", 3), *[r["epoch"] for r in history], "end"]


@pytest.mark.parametrize("rule", ["correlation", "gradient"])
def test_the_announced_epochs_are_an_upper_bound(rule: str) -> None:
    recorder = Recorder()
    history = recover(network(), config_of(rule), callbacks=[recorder])
    assert len(history) <= recorder.told[0][1]


def test_the_control_trains_as_long_as_told() -> None:
    model = network()
    history = recover(model, lengths=[2, 1])
    assert [r["phase"] for r in history] == [0, 0, 1]
    assert not dendrite_layers(model)


def test_layers_that_the_user_froze_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    recover(model, config_of("hybrid"))
    weights = {n.replace("base_layer.", ""): p for n, p in model.named_parameters()}
    assert torch.equal(weights["0.weight"], network()[0].weight)
    assert not weights["0.weight"].requires_grad
    assert weights["5.weight"].requires_grad


# --- repeatable -----------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_history_and_weights() -> None:
    one, other = network(), network()
    first = recover(one, seed=4)
    torch.manual_seed(99)
    second = recover(other, seed=4)
    assert without_time(first) == without_time(second)
    assert equal(snapshot(one), snapshot(other))


def test_every_epoch_has_an_order_of_its_own() -> None:
    orders: list[list[float]] = []

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        if model.training or any(m.training for m in model.modules()):
            orders[-1].extend(batch[0].flatten(1).sum(1).tolist())
        return model(batch[0]), batch[1]

    class Turner(Callback):
        def on_stage(self, stage: str, total_epochs: int) -> None:
            orders.append([])

        def on_epoch(self, record: dict[str, Any]) -> None:
            orders.append([])

    task, choices = replace(TASK, forward=forward), config_of(replay=0.0)
    history = recover(network(), choices, task=task, callbacks=[Turner()])
    epochs = orders[: len(history)]
    assert {tuple(sorted(order)) for order in epochs} == {tuple(sorted(epochs[0]))}
    assert len({tuple(order) for order in epochs}) == len(history)


def test_another_seed_gives_other_weights() -> None:
    one, other = network(), network()
    recover(one, config_of(max_epochs=2), seed=4)
    recover(other, config_of(max_epochs=2), seed=5)
    assert not equal(snapshot(one), snapshot(other))


def test_random_states_and_generators_are_left_alone() -> None:
    model, data = network(), data_of()
    before, own = random_states(), data.train.generator.get_state()  # type: ignore[attr-defined]
    recover(model, data=data)
    assert random_states() == before
    assert torch.equal(data.train.generator.get_state(), own)  # type: ignore[attr-defined]


# --- killed and called again ----------------------------------------------------------------------

NO_SET_HELPS = {"improvement": (10.0,), "max_failures": 3, "epochs": 1, "dendrite_epochs": 1}
KILLS = [
    ("correlation", "full", "adamw", {}),
    ("correlation", "shared", "sgd", {}),
    ("gradient", "grouped", "adam", {"patience": 1}),
    ("hybrid", "lowrank", "sgd", {"momentum": 0.0}),
    ("correlation", "full", "sgd", NO_SET_HELPS),
]


@pytest.mark.parametrize(("rule", "form", "optimizer", "choices"), KILLS)
def test_a_run_killed_after_any_epoch_ends_as_if_it_had_not_been(
    tmp_path: Path, rule: str, form: str, optimizer: str, choices: dict[str, Any]
) -> None:
    config, whole = config_of(rule, form, algorithm=optimizer, **choices), network()
    history = recover(whole, config)
    assert len(history) >= 4
    for after in range(1, len(history) + 1):
        checkpoint = Checkpoint(tmp_path / f"{after}.safetensors", "call")
        with pytest.raises(KilledError):
            recover(network(), config, checkpoint=checkpoint, callbacks=[Killer(after)])
        resumed = network()
        again = recover(resumed, config, checkpoint=checkpoint)
        assert without_time(again) == without_time(history)
        assert equal(snapshot(resumed), snapshot(whole))


def test_a_run_killed_after_every_epoch_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, config = network(), config_of(max_sets=2, epochs=1, max_failures=2)
    history = recover(whole, config)
    checkpoint = Checkpoint(tmp_path / "c", "call")
    for after in range(1, len(history) + 1):
        with pytest.raises(KilledError):
            recover(network(), config, checkpoint=checkpoint, callbacks=[Killer(after)])
    resumed = network()
    assert without_time(recover(resumed, config, checkpoint=checkpoint)) == without_time(history)
    assert equal(snapshot(resumed), snapshot(whole))


def test_the_model_of_a_killed_run_can_go_on_itself(tmp_path: Path) -> None:
    whole = network()
    history = recover(whole)
    for after in range(1, len(history) + 1):
        checkpoint, model = Checkpoint(tmp_path / f"{after}", "call"), network()
        with pytest.raises(KilledError):
            recover(model, checkpoint=checkpoint, callbacks=[Killer(after)])
        recover(model, checkpoint=checkpoint)
        assert equal(snapshot(model), snapshot(whole))


def test_a_run_with_attached_sets_goes_on(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = network()
        attach_dendrites_(model, replace(config_of("hybrid", "shared").dendrites, layers=("5",)))
        return model

    whole = make()
    history = recover(whole)
    for after in (1, 3, 5):
        checkpoint, model = Checkpoint(tmp_path / f"{after}", "call"), make()
        with pytest.raises(KilledError):
            recover(model, checkpoint=checkpoint, callbacks=[Killer(after)])
        recover(model, checkpoint=checkpoint)
        assert equal(snapshot(model), snapshot(whole))
    assert len(history) > 5


def test_a_control_killed_after_any_epoch_goes_on(tmp_path: Path) -> None:
    whole, lengths = network(), [2, 2]
    recover(whole, lengths=lengths)
    for after in range(1, 5):
        checkpoint, resumed = Checkpoint(tmp_path / f"{after}", "call"), network()
        with pytest.raises(KilledError):
            recover(network(), lengths=lengths, checkpoint=checkpoint, callbacks=[Killer(after)])
        recover(resumed, lengths=lengths, checkpoint=checkpoint)
        assert equal(snapshot(resumed), snapshot(whole))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    model, checkpoint = network(), Checkpoint(tmp_path / "c", "call")
    first = recover(model, checkpoint=checkpoint)
    content = checkpoint.path.read_bytes()
    again = network()
    assert recover(again, checkpoint=checkpoint).records == first.records
    assert equal(snapshot(again), snapshot(model))
    assert checkpoint.path.read_bytes() == content


def test_callbacks_hear_of_the_epochs_before_the_kill(tmp_path: Path) -> None:
    checkpoint, recorder = Checkpoint(tmp_path / "c", "call"), Recorder()
    with pytest.raises(KilledError):
        recover(network(), checkpoint=checkpoint, callbacks=[Killer(2)])
    history = recover(network(), checkpoint=checkpoint, callbacks=[recorder])
    assert recorder.told[1:-1] == [r["epoch"] for r in history]


def test_a_checkpoint_does_not_change_the_result(tmp_path: Path) -> None:
    one, other = network(), network()
    recover(one)
    recover(other, checkpoint=Checkpoint(tmp_path / "c", "call"))
    assert equal(snapshot(one), snapshot(other))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


# --- checkpoints that do not fit ------------------------------------------------------------------


def of_another_call(path: Path) -> None:
    tensors, state = read_tensors(path)
    write_tensors(path, tensors, state | {"fingerprint": "another"})


def of_a_newer_version(path: Path) -> None:
    tensors, state = read_tensors(path)
    write_tensors(path, tensors, state | {"format": CHECKPOINT_FORMAT + 1})


def of_an_older_version(path: Path) -> None:
    tensors, state = read_tensors(path)
    write_tensors(path, tensors, state | {"format": CHECKPOINT_FORMAT - 1})


def truncated(path: Path) -> None:
    write_bytes(path, path.read_bytes()[:-100])


def of_another_kind(path: Path) -> None:
    torch.save({"model": 1}, path)


def weights_of_a_result(path: Path) -> None:
    write_tensors(path, {"0.weight": torch.ones(2)}, {"format": 1, "kind": "weights"})


def of_another_model(path: Path) -> None:
    tensors, state = read_tensors(path)
    write_tensors(path, {k: v for k, v in tensors.items() if k != "model.1.bias"}, state)


READS = f"this pbcompress reads {CHECKPOINT_FORMAT}"
MISFITS: dict[Callable[[Path], None], str] = {
    of_another_call: "belongs to another model, data, task, target, plan, configuration or seed",
    of_a_newer_version: f"of version {CHECKPOINT_FORMAT + 1}; {READS}",
    of_an_older_version: f"of version {CHECKPOINT_FORMAT - 1}; {READS}",
    truncated: "truncated or of another kind",
    of_another_kind: "truncated or of another kind",
    weights_of_a_result: "was to be a checkpoint and is another file of pbcompress",
    of_another_model: r"does not fit, or was changed .*do not both have 1\.bias",
}


def test_the_list_of_misfits_is_whole() -> None:
    assert len(MISFITS) == 7


@pytest.mark.parametrize("spoil", MISFITS)
def test_a_checkpoint_that_does_not_fit_has_its_own_sentence_and_changes_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    checkpoint = Checkpoint(tmp_path / "c", "call")
    with pytest.raises(KilledError):
        recover(network(), checkpoint=checkpoint, callbacks=[Killer(3)])
    spoil(checkpoint.path)
    content, model = checkpoint.path.read_bytes(), network()
    attach_dendrites_(model, config_of().dendrites)
    before = snapshot(model)
    with pytest.raises(StateMismatchError, match=MISFITS[spoil]):
        recover(model, checkpoint=checkpoint)
    assert equal(snapshot(model), before)
    assert checkpoint.path.read_bytes() == content


# --- errors and the caller's model ----------------------------------------------------------------


def test_bad_data_is_refused_before_the_model_is_touched() -> None:
    model = network()
    attach_dendrites_(model, config_of().dendrites)
    before = snapshot(model)
    with pytest.raises(CompressionError, match=r"Data\.val yielded no batch"):
        recover(model, data=Data([(X, Y)], []))
    assert equal(snapshot(model), before)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(CompressionError, match="without gradient"):
        recover(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(CompressionError, match="requires grad"):
        recover(network().requires_grad_(False))


class Breaking:
    """A loss that turns to NaN after so many calls."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        loss = nn.functional.cross_entropy(output, target)
        return loss * float("nan") if self.left < 0 else loss


@pytest.mark.parametrize("epochs_before", [0, 1, 3])
def test_divergence_is_an_error_and_the_model_has_its_best_weights(epochs_before: int) -> None:
    model, best = network(), snapshot(network())
    scores: list[float] = []

    class Keeper(Callback):
        def on_epoch(self, record: dict[str, Any]) -> None:
            nonlocal best
            if record["kind"] == "neuron" and record["metric"] < min(scores, default=9e9):
                best = snapshot(model)
                scores.append(record["metric"])

    loss = Breaking(1 + 3 * epochs_before + 1)  # one call checks the data, three make an epoch
    task = Task(loss=loss, metric=TASK.metric, higher_is_better=False)
    with pytest.raises(DivergedError, match=r"The loss became nan .* Lower OptimizerConfig\.lr"):
        recover(model, task=task, callbacks=[Keeper()])
    assert equal(snapshot(model), best)
    assert all(p.requires_grad for p in model.parameters())


class Once(Breaking):
    """Breaks in one call only."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().__call__(output, target)
        if self.left < 0:
            self.left = 10**9
        return loss


@pytest.mark.parametrize("at", [2, 5, 8, 11, 14])
def test_a_phase_that_diverges_once_goes_on_slower(
    at: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain = recover(network())
    task = Task(loss=Once(at), metric=TASK.metric, higher_is_better=False)
    model = network()
    history = recover(model, task=task)
    assert "goes on from its best weights at 0.1 of its learning rate" in caplog.text
    rates = {(r["phase"], r["epoch"]): r["lr"] for r in plain}
    broken = [r for r in history if r["lr"] < 0.5 * rates.get((r["phase"], r["epoch"]), r["lr"])]
    assert len({r["phase"] for r in broken}) == 1
    assert all(r["lr"] == pytest.approx(0.1 * rates[r["phase"], r["epoch"]]) for r in broken)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("at", range(5))
def test_a_run_that_fails_gives_every_module_its_former_mode(at: int) -> None:
    class Failing(Callback):
        def on_epoch(self, record: dict[str, Any]) -> None:
            epochs.append(record)
            if len(epochs) > at:
                raise KeyError("of the caller")

    model, epochs = network(), list[dict[str, Any]]()
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = {module: module.training for module in model.modules()}
    with pytest.raises(KeyError, match="of the caller"):
        recover(model, callbacks=[Failing()])
    assert {module: module.training for module in modes} == modes


def test_a_metric_of_nan_is_no_divergence_and_nothing_is_trained() -> None:
    task = Task(metric=lambda output, target: float("nan"))
    model, before = network(), snapshot(network())
    with pytest.raises(CompressionError, match=r"returned nan on .*Data\.val") as caught:
        recover(model, task=task)
    assert not isinstance(caught.value, DivergedError)
    assert equal(snapshot(model), before)


def test_a_huge_learning_rate_diverges_with_an_error_of_ours() -> None:
    task = Task(loss=lambda o, t: o.exp().sum(), metric=TASK.metric, higher_is_better=False)
    with pytest.raises(DivergedError):
        recover(network(), config_of(algorithm="sgd", lr=1e6, epochs=9), task=task)


def test_a_model_can_be_recovered_after_a_failed_recovery() -> None:
    model = network()
    with pytest.raises(KilledError):
        recover(model, callbacks=[Killer(3)])  # while candidates train
    assert len(recover(model)) >= 6


def test_a_thaw_trains_everything_at_the_rate_of_grown_networks() -> None:
    moved: dict[str, set[str]] = {}
    model, before = network(), {}

    class Watch(Callback):
        def on_epoch(self, record: dict[str, Any]) -> None:
            nonlocal before
            now = snapshot(model)
            changed = {n for n in now if n in before and not torch.equal(now[n], before[n])}
            moved.setdefault(record["kind"] + str(record["sets"]), set()).update(changed)
            before = now

    rising = count()
    task = Task(loss=TASK.loss, metric=lambda output, target: float(next(rising)))
    choices = config_of(thaw_epochs=3, growth_lr=0.5)
    history = recover(model, choices, task=task, callbacks=[Watch()])
    assert [r["kind"] for r in history][-3:] == ["thaw"] * 3
    weights = {n for n in before if ".dendrites." in n and n.endswith("weight")}
    assert weights <= moved["thaw1"]
    assert not weights & moved["neuron1"]
    rates = {(r["kind"], r["sets"], r["epoch"]): r["lr"] for r in history}
    assert rates["neuron", 1, 0] == pytest.approx(0.5 * rates["neuron", 0, 0])
