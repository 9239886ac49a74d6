"""Do dendrites pay? Arms of one size and one number of optimizer steps, on real data.

A cell is a task, a target, an arm and a seed, and one line of JSON. Cells that the file has are
passed over, so that a run that was stopped goes on; several processes may share a file, each with
its part of the seeds. `tables.py` makes pages and pictures from the lines alone.

    pbcompress zoo fetch all
    python -m scripts.accuracy.run lines.jsonl --tasks 'fashion*' --targets 0.25 --seeds 0 1 2

Every arm trains `epochs` epochs of its task from the same trained network. Arms that grow share
them between neurons and dendrites, and sets stay whatever they do, or the arm would be of another
size. Weights are chosen on the validation split; the test split is scored once.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders
from model_zoo.minilm import load_minilm_
from pbcompress.core.randomness import seeded
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.pruning.shrinking import shrink
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from scripts.accuracy.grid import ARMS, OFF, TASKS, Arm, Task
from scripts.lines import append_line, read_lines

TARGETS = (0.5, 0.25, 0.125, 0.05)
AS_BEFORE = pb.EngineConfig(channels_last=False)  # so that lines that are there can be added to
NO_TEACHER = pb.DistillationConfig()
AVERAGE = pb.OptimizerConfig().average
LEANER = [1 - 0.02 * step for step in range(40)]  # of a target, for arms of equal FLOPs


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
        if self.task.pretrained:
            assert isinstance(self.model, nn.Sequential)
            folder = Path(self.folder)
            load_minilm_(self.model, folder / "minilm", folder / "reuters_r8" / "words.txt")
        lengths = [self.task.base_epochs]
        train(self.model, self.data, OFF, lengths, self.seed, lr=self.task.lr)
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
        """Return the result of one arm."""
        if arm.races:
            return self.race(arm, target)
        plan = self.lean_plan(arm, target) if arm.equal_flops else self.plan(arm, target)
        network = shrink(self.model, plan)
        started = time.perf_counter()
        if arm.compensated:
            pb.compensate_(network, self.model, plan, self.data, seed=self.seed)
        if arm.scratch:
            with seeded("scratch", self.name, self.seed):
                for module in network.modules():
                    getattr(module, "reset_parameters", lambda: None)()
        else:
            reestimate_batchnorm_(network, self.data, pb.Task(), seed=self.seed)
        lengths = _lengths(arm.parts, self.task.epochs)
        teacher = self.model if arm.distillation else None
        distillation = pb.DistillationConfig(share=arm.distillation, loss=arm.distance)
        steps = train(
            network, self.data, arm.dendrites, lengths, self.seed,
            layers=plan.grow, teacher=teacher, distillation=distillation,
            lr="auto" if arm.own_rate else self.task.lr, average=AVERAGE if arm.averaged else 0.0,
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

    def plan(self, arm: Arm, target: float | pb.Budget) -> pb.WidthPlan:
        """Return the widths of an arm, with room for its set."""
        dendrites = arm.dendrites
        if arm.only_last:
            dendrites = replace(dendrites, layers=(_layers(self.model, nn.Linear)[-1],))
        config = pb.CompressConfig(
            dendrites=dendrites,
            width=pb.WidthConfig(allocation=arm.allocation, round_to=arm.round_to),
        )
        plan = pb.plan_widths(self.model, self.example, target, config=config)
        if arm.wide_first:
            first = _layers(self.model, nn.Linear, nn.Conv1d, nn.Conv2d)[0]
            before, after = (c.by_layer[first].width for c in (plan.cost_before, plan.cost_after))
            plan = plan.edit(self.model, self.example, {first: min(2 * after, before)})
        if arm.dendrites.max_sets and not plan.grow:
            raise pb.TargetUnreachableError(f"{target} has no room for a set", None)
        return plan

    def lean_plan(self, arm: Arm, target: float) -> pb.WidthPlan:
        """Return the largest plan whose FLOPs, dendrites included, are those of width at most."""
        bound = self.plan(Arm(), target).cost_after.flops
        if not arm.dendrites.max_sets:
            return self.plan(arm, pb.Budget(params=target, flops=bound))
        for share in LEANER:
            plan = self.plan(arm, share * target)
            network = shrink(self.model, plan)
            pb.attach_dendrites_(network, arm.dendrites, layers=plan.grow)
            if pb.measure(network, self.example).flops <= bound:
                return plan
        raise pb.TargetUnreachableError(f"{target:g} has no set within {bound:,} FLOPs", None)

    def race(self, arm: Arm, target: float) -> dict[str, Any]:
        """Return the result of one call of `compress`."""
        recovery = recovery_of(
            self.task.lr,
            pb.DistillationConfig(share=arm.distillation, loss=arm.distance),
            epochs=self.task.epochs,
            trial=arm.trial,
            compensation_batches=0,  # as the other arms
        )
        config = pb.CompressConfig(
            width=pb.WidthConfig(allocation=arm.allocation, round_to=arm.round_to),
            dendrites=arm.dendrites,
            recovery=recovery,
            deploy=False,
        )
        result = pb.compress(
            self.model, target, data=self.data, config=config, seed=self.seed, progress=False
        )
        return facts_of(result)


def recovery_of(
    lr: float | Literal["auto"],
    distillation: pb.DistillationConfig,
    average: float = 0.0,
    **phases: Any,
) -> pb.RecoveryConfig:
    """Return how weights are trained."""
    return pb.RecoveryConfig(
        optimizer=pb.OptimizerConfig(lr=lr, average=average),
        engine=AS_BEFORE,
        distillation=distillation,
        **phases,
    )


def _layers(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def facts_of(result: pb.CompressionResult) -> dict[str, Any]:
    """Return the result of `compress` as a line."""
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
    lr: float | Literal["auto"] = 3e-3,
    distillation: pb.DistillationConfig = NO_TEACHER,
    average: float = 0.0,
) -> int:
    """Train phases of ``lengths`` epochs, and return the number of steps."""

    def config(**phases: Any) -> pb.CompressConfig:
        # a set always stays: without it the network would be smaller than its arm says
        phases |= {"max_failures": 1, "improvement": (-1.0,)}
        recovery = recovery_of(lr, distillation, average, **phases)
        return pb.CompressConfig(dendrites=dendrites, recovery=recovery)

    if len(lengths) == 1:
        history = pb.recover_(
            network, data, config=config(), seed=seed, lengths=lengths, teacher=teacher
        )
        return history.steps
    first, own, last, *thaw = [*lengths, 0]
    if not dendrites.at_start:  # halves of an odd number of epochs
        first, last = max(first, last), min(first, last)
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
    parser = parser_of(__doc__, tasks=["*"], targets=TARGETS, seeds=range(5))
    run_cells(parser.parse_args(argv), list(TASKS), list(ARMS), cell_of)
    return 0


def parser_of(
    description: str | None, tasks: Sequence[str], targets: Sequence[float], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """Return a parser of what `run_cells` needs, with its defaults."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument("--tasks", nargs="+", default=tasks, help="names or patterns")
    parser.add_argument("--arms", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--targets", nargs="+", type=float, default=targets)
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    return parser


def run_cells(
    options: argparse.Namespace,
    tasks: Sequence[str],
    arms: Sequence[str],
    cell: Callable[["Bench", str, float], dict[str, Any]],
) -> None:
    """Append the lines of all cells that are asked for and not yet there."""
    torch.set_num_threads(1)
    done = {key_of(line) for line in read_lines(options.lines)}
    arms = [arm for arm in arms if any(fnmatch(arm, pattern) for pattern in options.arms)]
    for seed in options.seeds:
        for name in tasks:
            if not any(fnmatch(name, pattern) for pattern in options.tasks):
                continue
            cells = [(name, target, arm, seed) for target in options.targets for arm in arms]
            cells = [key for key in cells if key not in done]
            if not cells:
                continue
            bench = Bench(name, seed, options.folder)
            for _, target, arm, _ in cells:
                append_line(options.lines, cell(bench, arm, target))


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
