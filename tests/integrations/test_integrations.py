"""Growth in the loops of other libraries: the phases and the weights of a loop of one's own."""

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from pbcompress import (
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    DivergedError,
    cycles,
    recover_,
)
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.integrations.lightning import GrowthCallback
from pbcompress.integrations.tensorboard import TensorBoard
from pbcompress.integrations.transformers import grow_with_trainer
from pbcompress.recovery.policy import PhaseKind
from tests.support.configs import recovery_of

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "hugging_face.py": "the same tokens: True",
    "loop_plain.py": "neuron phase 2",
    "loop_accelerate.py": "sets, loss",
    "loop_lightning.py": "stopped after",
    "loop_transformers.py": "'dendrite 1'",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:lightning"
)


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_has_less_than_30_lines_of_code(name: str, tmp_path: Path) -> None:
    path = ROOT / "examples" / name
    assert len([line for line in path.read_text().splitlines() if line.strip()]) < 30
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert EXAMPLES[name] in done.stdout
    assert list(tmp_path.iterdir()) == []


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def samples() -> TensorDataset:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, :3] ** 2).argmax(1))


def config(**recovery: object) -> CompressConfig:
    chosen = {"epochs": 2, "dendrite_epochs": 2, "max_failures": 1, "improvement": (0.0,)}
    return CompressConfig(
        dendrites=DendriteConfig(max_sets=1), recovery=recovery_of(**(chosen | recovery))
    )


def replayed(log: list, choices: CompressConfig) -> list[tuple[PhaseKind, int]]:
    """The phases that a loop of one's own takes with the same scores."""
    scores, seen = iter([s for phase in log for s in phase.scores]), []
    for phase in cycles(network(), config=choices):
        while not phase.done:
            phase.report(next(scores))
        seen.append((phase.kind, phase.sets))
    assert next(scores, None) is None
    return seen


class Module(pl.LightningModule):
    def __init__(self, metric: str = "acc", spoil: bool = False) -> None:
        super().__init__()
        self.net, self.metric, self.spoil = network(), metric, spoil
        self.held: list[tuple[set[int], set[int]]] = []
        self.frozen: dict[str, Tensor] = {}

    def training_step(self, batch: list[Tensor]) -> Tensor:
        held = {id(p) for group in self.optimizers().param_groups for p in group["params"]}
        self.held.append((held, {id(p) for p in self.parameters() if p.requires_grad}))
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        out = self.net(batch[0])
        value = cross_entropy(out, batch[1]) if self.metric == "loss" else out.argmax(1) == batch[1]
        self.log(self.metric, value.float().mean() * (float("nan") if self.spoil else 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 0.01)


def fit(module: Module, growth: GrowthCallback, **choices: object) -> pl.Trainer:
    settings = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 50,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=[growth], **(settings | choices))
    loader = DataLoader(samples(), batch_size=16)
    trainer.fit(module, loader, loader)
    return trainer


@pytest.mark.parametrize(("metric", "mode"), [("acc", "max"), ("loss", "min")])
@pytest.mark.parametrize("name", ["", "net"])
def test_lightning_takes_the_phases_of_a_loop_of_ones_own(metric, mode, name) -> None:
    module = Module(metric)
    growth = GrowthCallback(config(), metric, mode=mode, module=name)
    trainer = fit(module, growth)
    assert trainer.current_epoch == sum(len(phase.scores) for phase in growth.log) < 50
    assert [(p.kind, p.sets) for p in growth.log] == replayed(growth.log, config())
    assert [str(p.kind) for p in growth.log][:3] == ["neuron", "dendrite", "neuron"]
    assert all(held == trains for held, trains in module.held)
    assert len({frozenset(held) for held, _ in module.held}) == len(growth.log)
    assert all((s < 0) == (mode == "min") for p in growth.log for s in p.scores)
    best = max(s for p in growth.log if p.kind is not PhaseKind.DENDRITE for s in p.scores)
    x, y = samples().tensors
    with torch.no_grad():
        out = module.eval().net(x)
    now = -cross_entropy(out, y) if metric == "loss" else (out.argmax(1) == y).float().mean()
    assert now.item() == pytest.approx(best, abs=2e-6)


def test_a_lightning_trainer_that_ends_early_leaves_the_best_weights() -> None:
    module = Module()
    fit(module, GrowthCallback(config(), "acc", module="net"), max_epochs=3)  # a dendrite phase
    assert not dendrite_layers(module)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "monitor", "error", "message"),
    [
        (Module(), "f1", CompressionError, "monitors 'f1', which is not logged; logged are acc"),
        (Module(spoil=True), "acc", DivergedError, "score of an epoch is nan"),
    ],
)
def test_what_lightning_cannot_report_is_an_error(module, monitor, error, message) -> None:
    with pytest.raises(error, match=message):
        fit(module, GrowthCallback(config(), monitor, module="net"), num_sanity_val_steps=0)
    assert not dendrite_layers(module)


def test_a_wrong_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 'max' or 'min'"):
        GrowthCallback(config(), "acc", mode="up")


# --- transformers ---------------------------------------------------------------------------------


class Classifier(nn.Module):
    """What a Trainer takes: inputs and labels by name, a loss and scores back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.net(x)
        return {"loss": cross_entropy(out, labels), "logits": out}


def trainer_of(folder: Path, **choices: object) -> Trainer:
    settings = {
        "eval_strategy": "epoch", "save_strategy": "no", "metric_for_best_model": "loss",
        "greater_is_better": False, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "learning_rate": 0.02, "per_device_train_batch_size": 16, "label_names": ["labels"],
        "logging_strategy": "no",
    }  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in samples()]
    arguments = TrainingArguments(str(folder), **(settings | choices))
    return Trainer(
        Classifier(), arguments, train_dataset=data, eval_dataset=data,
        compute_metrics=lambda p: {"acc": float((p.predictions.argmax(1) == p.label_ids).mean())},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "greater"), [pytest.param("loss", False, marks=pytest.mark.slow), ("acc", True)]
)
def test_a_trainer_takes_the_phases_of_a_loop_of_ones_own(metric, greater, tmp_path) -> None:
    trainer = trainer_of(tmp_path, metric_for_best_model=metric, greater_is_better=greater)
    before = trainer.args.num_train_epochs
    phases = grow_with_trainer(trainer, config=config())
    log = phases[0]._owner.log
    assert [(p.kind, p.sets) for p in log] == replayed(log, config())
    assert [str(p.kind) for p in phases][:3] == ["neuron", "dendrite", "neuron"]
    assert trainer.args.num_train_epochs == before
    best = max(s for p in log if p.kind is not PhaseKind.DENDRITE for s in p.scores)
    found = trainer.evaluate()[f"eval_{metric}"]
    assert (found if greater else -found) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"eval_strategy": "no"}, "set it to 'epoch'"),
        ({"metric_for_best_model": None}, "name a metric"),
        ({"max_steps": 3}, "leave both to the growth"),
    ],
)
def test_a_trainer_that_cannot_report_is_refused(choices, message, tmp_path) -> None:
    trainer = trainer_of(tmp_path, **choices)
    with pytest.raises(CompressionError, match=message):
        grow_with_trainer(trainer, config=config())
    assert trainer.optimizer is None


def test_a_metric_that_is_not_there_ends_the_growth(tmp_path) -> None:
    trainer = trainer_of(tmp_path, metric_for_best_model="f1")
    with pytest.raises((CompressionError, KeyError), match="f1"):
        grow_with_trainer(trainer, config=config())
    assert not dendrite_layers(trainer.model)


# --- tensorboard ----------------------------------------------------------------------------------


def test_tensorboard_has_every_number_of_the_history(tmp_path: Path) -> None:
    x, y = samples().tensors
    batches = list(zip(x.split(16), y.split(16), strict=True))
    data = Data(train=batches, val=batches)
    history = recover_(network(), data, config=config(), callbacks=[TensorBoard(tmp_path)])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("loss", "metric", "lr", "sets"):
        found = [event.value for event in events.Scalars(f"dendrites/{name}")]
        assert found == pytest.approx([record[name] for record in history], rel=1e-6)
    grown = [record for record in history if record["kind"] == "dendrite"]
    assert len(grown) == 2
    for layer in ("0", "3"):
        found = [event.value for event in events.Scalars(f"dendrites/score/{layer}/best")]
        assert found == pytest.approx([r["scores"][layer][-1] for r in grown], rel=1e-6)
