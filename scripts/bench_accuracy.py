"""Do dendrites pay? Arms of one size and one number of optimizer steps, on real data.

A cell is a task, a target, an arm and a seed, and one line of JSON. Cells that the file has are
passed over, so that a run that was stopped goes on; several processes may share a file, each with
its part of the seeds. `accuracy_tables.py` makes tables and plots from the lines alone.

    python scripts/fetch_data.py all
    python scripts/bench_accuracy.py lines.jsonl --tasks 'fashion*' --targets 0.25 --seeds 0 1 2

Every arm trains `epochs` epochs of its task from the same trained network. Arms that grow share
them between neurons and dendrites, and sets stay whatever they do, or the arm would be of another
size. Weights are chosen on the validation split; the test split is scored once.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders
from pbcompress.dendrite import dendrite_layers
from pbcompress.shrinking import shrink
from pbcompress.statistics import reestimate_batchnorm_
from pbcompress.surgery import seeded

TARGETS = (0.5, 0.25, 0.125, 0.05)
LEANER = [1 - 0.02 * step for step in range(40)]  # of a target, for arms of equal FLOPs
OFF = pb.DendriteConfig(max_sets=0)


@dataclass(frozen=True)
class Task:
    """A network and its data.

    Attributes:
        data: Arguments of `load_loaders`.
        model: Arguments of `create_model`.
        epochs: Of every arm.
        base_epochs: Of the network that is compressed.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    epochs: int
    base_epochs: int


def _images(data: str, train: int, epochs: int, base_epochs: int, **model: Any) -> Task:
    images = {"name": data, "num_val": 2000, "train_limit": train, "batch_size": 64}
    return Task(images, model, epochs, base_epochs)


def _table(name: str, features: int, classes: int, num_val: int, epochs: int) -> Task:
    data = {"name": name, "num_val": num_val, "batch_size": 128}
    model = {"name": "mlp", "in_features": features, "hidden": (128, 64), "num_classes": classes}
    return Task(data, model, epochs, epochs)


POOLED = {"name": "small_cnn", "widths": (16, 32, 64), "pool": True}
TASKS = {
    "digits_mlp": Task(
        {"name": "digits", "num_val": 288, "batch_size": 64},
        {"name": "mlp", "in_features": 64, "hidden": (64, 64)},
        60,
        40,
    ),
    "mnist_1200": _images("mnist", 1200, 40, 30, name="lenet"),
    "fashion_1200": _images("fashion_mnist", 1200, 40, 30, **POOLED),
    "fashion_resnet_1200": _images(
        "fashion_mnist", 1200, 30, 30, name="resnet20", in_channels=1, width=0.5
    ),
    "fashion_12000": _images("fashion_mnist", 12_000, 12, 10, name="lenet"),
    "fashion_mlp_12000": _images(
        "fashion_mnist", 12_000, 20, 15, name="mlp", hidden=(128, 64), batch_norm=True
    ),
    "cifar_5000": _images("cifar10", 5000, 20, 20, **POOLED, in_channels=3),
    "cifar_mobilenet_2000": Task(
        {"name": "cifar10", "num_val": 1000, "train_limit": 2000, "batch_size": 64},
        {"name": "mobilenet_small", "width": 0.25},
        15,
        20,
    ),
    "digits_resnet": Task(
        {"name": "digits", "num_val": 288, "batch_size": 64},
        {"name": "resnet20", "in_channels": 1, "width": 0.5},
        20,
        15,
    ),
    "watch_cnn": Task(
        {"name": "watch", "num_val": 271, "batch_size": 64},
        {"name": "cnn1d", "widths": (16, 32, 64)},
        30,
        20,
    ),
    "r8_transformer": Task(
        {"name": "reuters_r8", "num_val": 400, "train_limit": 1600, "batch_size": 64},
        {"name": "text_transformer"},
        12,
        20,
    ),
    "letter_mlp": _table("letter", 16, 26, 2000, 30),
    "penbased_mlp": _table("penbased", 16, 10, 1000, 30),
    "satimage_mlp": _table("satimage", 36, 6, 800, 40),
}


@dataclass(frozen=True)
class Arm:
    """How a network of a given size is made and trained.

    Attributes:
        dendrites: What grows; `OFF` for width alone.
        parts: Shares of the epochs of the phases: first neurons, dendrites, neurons, thaw. One
            share is neurons alone.
        distillation: Weight of the original network's scores.
        scratch: Whether the weights are drawn anew.
        allocation: How widths are shared out.
        races: Whether `compress` chooses, by a trial of dendrites and of width alone.
        equal_flops: Whether FLOPs, dendrites included, are at most those of width alone too; the
            parameters are then fewer.
    """

    dendrites: pb.DendriteConfig = OFF
    parts: tuple[float, ...] = (1.0,)
    distillation: float = 0.0
    scratch: bool = False
    allocation: str = "uniform"
    races: bool = False
    equal_flops: bool = False


def _grow(rule: str, **choices: Any) -> pb.DendriteConfig:
    return pb.DendriteConfig(rule=rule, max_sets=1, share=1.0, **choices)


def _joint(form: str, distillation: float = 0.0, **choices: Any) -> Arm:
    """Dendrites that are there from the start and train by the task's loss with all the rest."""
    grown = _grow("gradient", form=form, at_start=True, **choices)
    return Arm(grown, (0, 0, 1), distillation)


STAGED = (0.35, 0.2, 0.3, 0.15)
AT_ONCE = (0.4, 0.2, 0.4)
ARMS = {
    "width": Arm(),
    "width, distilled": Arm(distillation=0.5),
    "width, isomorphic": Arm(allocation="isomorphic"),
    "scratch": Arm(scratch=True),
    "correlation": Arm(_grow("correlation"), STAGED),
    "correlation first": Arm(_grow("correlation", at_start=True), (0, 0.2, 0.65, 0.15)),
    "correlation, shared": Arm(_grow("correlation", form="shared"), STAGED),
    "gradient": Arm(_grow("gradient"), (0.5, 0.0, 0.5)),
    "hybrid": Arm(_grow("hybrid"), AT_ONCE),
    "hybrid, distilled": Arm(_grow("hybrid"), AT_ONCE, 0.5),
    "joint full": _joint("full"),
    "joint grouped": _joint("grouped"),
    "joint lowrank": _joint("lowrank"),
    "joint shared": _joint("shared"),
    "joint shared, distilled": _joint("shared", 0.5),
    "joint tied": _joint("tied"),
    "joint full, cheap": _joint("full", max_price=0.25),
    "joint shared, cheap": _joint("shared", max_price=0.25),
    "joint shared, cheap, distilled": _joint("shared", 0.5, max_price=0.25),
    "joint shared, cheap, equal FLOPs": replace(_joint("shared", max_price=0.25), equal_flops=True),
    "joint full, cheap, equal FLOPs": replace(_joint("full", max_price=0.25), equal_flops=True),
    "auto": Arm(pb.DendriteConfig.cheap(), races=True),
    "auto, distilled": Arm(pb.DendriteConfig.cheap(), distillation=0.5, races=True),
}


@dataclass
class Bench:
    """A task with one seed: its data, and the trained network that every arm starts from."""

    name: str
    seed: int
    folder: str
    task: Task = field(init=False)
    data: pb.Data = field(init=False)
    model: nn.Module = field(init=False)
    scores: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.task = TASKS[self.name]
        loaders = load_loaders(folder=self.folder, seed=self.seed, **self.task.data)
        self.data = pb.Data(loaders.train, loaders.val, loaders.test)
        with seeded("base", self.name, self.seed):
            self.model = create_model(**self.task.model)
        train(self.model, self.data, OFF, [self.task.base_epochs], self.seed)
        self.scores = self.score(self.model)

    @property
    def example(self) -> torch.Tensor:
        """One sample."""
        inputs: torch.Tensor = next(iter(self.data.val))[0][:1]
        return inputs

    def score(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy on validation and test."""
        assert self.data.test is not None
        splits = {"val": self.data.val, "test": self.data.test}
        return {name: pb.evaluate(model, split, pb.Task())[0] for name, split in splits.items()}

    def line(self, arm: str, target: float, found: dict[str, Any]) -> dict[str, Any]:
        """Return what is written about one run."""
        about = {"task": self.name, "target": target, "arm": arm, "seed": self.seed}
        base = self.scores | {"params": pb.measure(self.model, self.example).params}
        rest = {
            "base": base,
            "epochs": self.task.epochs,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        return about | found | rest

    def run(self, arm: Arm, target: float) -> dict[str, Any]:
        """Return what one arm came to."""
        if arm.races:
            return self.race(arm, target)
        plan = self.lean_plan(arm, target) if arm.equal_flops else self.plan(arm, target)
        network = shrink(self.model, plan)
        started = time.perf_counter()
        if arm.scratch:
            with seeded("scratch", self.name, self.seed):
                for module in network.modules():
                    getattr(module, "reset_parameters", lambda: None)()
        else:
            reestimate_batchnorm_(network, self.data, pb.Task(), seed=self.seed)
        lengths = _lengths(arm.parts, self.task.epochs)
        teacher = self.model if arm.distillation else None
        steps = train(
            network, self.data, arm.dendrites, lengths, self.seed,
            layers=plan.grow, teacher=teacher, distillation=arm.distillation,
        )  # fmt: skip
        layers = dendrite_layers(network).values()
        cost = pb.measure(network, self.example)
        return {
            "params": cost.params,
            "flops": cost.flops,
            "sets": max((layer.num_sets for layer in layers), default=0),
            "steps": steps,
            "seconds": round(time.perf_counter() - started, 1),
            **self.score(network),
        }

    def plan(self, arm: Arm, target: float) -> pb.WidthPlan:
        """Return the widths of an arm, with room for its set."""
        config = pb.CompressConfig(
            dendrites=arm.dendrites, width=pb.WidthConfig(allocation=arm.allocation)
        )
        plan = pb.plan_widths(self.model, self.example, target, config=config)
        if arm.dendrites.max_sets and not plan.grow:
            raise pb.TargetUnreachableError(f"{target:g} has no room for a set", None)
        return plan

    def lean_plan(self, arm: Arm, target: float) -> pb.WidthPlan:
        """Return the largest plan whose FLOPs, dendrites included, are those of width at most."""
        bound = self.plan(Arm(), target).cost_after.flops
        for share in LEANER:
            plan = self.plan(arm, share * target)
            network = shrink(self.model, plan)
            pb.attach_dendrites_(network, arm.dendrites, layers=plan.grow)
            if pb.measure(network, self.example).flops <= bound:
                return plan
        raise pb.TargetUnreachableError(f"{target:g} has no set within {bound:,} FLOPs", None)

    def race(self, arm: Arm, target: float) -> dict[str, Any]:
        """Return what the one call came to."""
        recovery = pb.RecoveryConfig(epochs=self.task.epochs, distillation=arm.distillation)
        config = pb.CompressConfig(dendrites=arm.dendrites, recovery=recovery, deploy=False)
        result = pb.compress(
            self.model, target, data=self.data, config=config, seed=self.seed, progress=False
        )
        assert result.score_after is not None
        return {
            "params": result.cost_after.params,
            "flops": result.cost_after.flops,
            "sets": result.chosen.sets,
            "steps": result.history.steps,
            "seconds": round(result.history.seconds, 1),
            "val": result.score_after.val,
            "test": result.score_after.test,
        }


def _lengths(parts: Sequence[float], epochs: int) -> list[int]:
    """Return whole epochs of the phases that sum up to ``epochs``."""
    ends = [round(sum(parts[: i + 1]) * epochs) for i in range(len(parts))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def train(
    network: nn.Module,
    data: pb.Data,
    dendrites: pb.DendriteConfig,
    lengths: Sequence[int],
    seed: int,
    *,
    layers: Any = None,
    teacher: nn.Module | None = None,
    **choices: Any,
) -> int:
    """Train phases of so many epochs in all, and return the number of steps."""

    def config(**more: Any) -> pb.CompressConfig:
        # a set always stays: a network without the one it has room for is no arm of this size
        recovery = pb.RecoveryConfig(max_failures=1, improvement=(-1.0,), **choices, **more)
        return pb.CompressConfig(dendrites=dendrites, recovery=recovery)

    if len(lengths) == 1:
        history = pb.recover_(
            network, data, config=config(), seed=seed, lengths=lengths, teacher=teacher
        )
        return history.steps
    first, own, last, *thaw = [*lengths, 0]
    # the machine has one length for neuron phases; what the first has more comes before it
    before = 0 if dendrites.at_start else first - last
    assert before >= 0
    grown = config(
        epochs=last,
        dendrite_epochs=max(own, 1),
        dendrite_patience=max(own, 1),
        thaw_epochs=thaw[0],
    )
    done = pb.History()
    if before:
        done = pb.recover_(
            network, data, config=config(), seed=seed, lengths=[before], teacher=teacher
        )
    history = pb.recover_(
        network, data, config=grown, seed=seed + 1, layers=layers, teacher=teacher
    )
    assert len(done) + len(history) == sum(lengths)
    return done.steps + history.steps


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where fetch_data.py put the data sets")
    parser.add_argument("--tasks", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--arms", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    known = options.lines.read_text().splitlines() if options.lines.is_file() else []
    done = {key_of(json.loads(line)) for line in known}
    arms = {n: arm for n, arm in ARMS.items() if any(fnmatch(n, p) for p in options.arms)}
    for seed in options.seeds:
        for name in TASKS:
            if not any(fnmatch(name, pattern) for pattern in options.tasks):
                continue
            cells = [(name, target, arm, seed) for target in options.targets for arm in arms]
            cells = [cell for cell in cells if cell not in done]
            if not cells:
                continue
            bench = Bench(name, seed, options.folder)
            for _, target, arm, _ in cells:
                line = cell_of(bench, arm, target)
                with options.lines.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return 0


def key_of(line: dict[str, Any]) -> tuple[str, float, str, int]:
    """Return which cell a line is of."""
    return line["task"], line["target"], line["arm"], line["seed"]


def cell_of(bench: Bench, name: str, target: float) -> dict[str, Any]:
    """Return the line of one cell."""
    try:
        found = bench.run(deepcopy(ARMS[name]), target)
    except pb.TargetUnreachableError as err:
        found = {"unreachable": str(err)}
    return bench.line(name, target, found | {"config": asdict(ARMS[name])})


if __name__ == "__main__":
    raise SystemExit(main())
