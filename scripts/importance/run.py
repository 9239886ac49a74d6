"""Compare importance criteria and allocations on small trained networks, after recovery too.

One network is trained for each seed, and shrunk and recovered with every criterion, allocation and
target; one JSON line per run. A run that has its line is skipped, so a stopped one can go on. The
table is made from the lines alone. Choices are made by validation; each test split is scored once
per run, and is there to be reported.

    python scripts/compare_importance.py run lines.jsonl --folder data
    python scripts/compare_importance.py table lines.jsonl > docs/benchmarks/importance.md
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_dataset, make_loaders

CRITERIA = ("magnitude", "bn_scale", "taylor", "variance", "fisher")
ALLOCATIONS = ("uniform", "global", "isomorphic")
TARGETS = (0.5, 0.125)
SEEDS = (0, 1, 2)
TEST_SAMPLES = 4000
OFF = pb.DendriteConfig(max_sets=0)
DEFAULT = ("magnitude", "uniform")
STAGES = {
    "cut": "as cut",
    "reestimated": "BatchNorm re-estimated",
    "val": "recovered",
    "test": "recovered, test",
}


@dataclass(frozen=True)
class Case:
    """A network, what it learns, and how long it is trained before and after it is shrunk."""

    network: str
    options: dict[str, Any]
    data: str
    train: int
    val: int
    epochs: int
    recovery: int = 2


CASES = {
    "mlp": Case("mlp", {"in_features": 64, "hidden": (64, 32)}, "digits", 1000, 400, 30, 10),
    "small_cnn": Case("small_cnn", {"widths": (16, 32, 64)}, "fashion_mnist", 6000, 2000, 10),
    "resnet20": Case("resnet20", {"width": 0.5}, "cifar10", 4000, 2000, 12),
    "mobilenet": Case(
        "mobilenet_small", {"in_channels": 1, "width": 0.5}, "fashion_mnist", 4000, 2000, 10
    ),
}


@dataclass(frozen=True)
class Halved:
    """Batches of images at half the resolution, which makes a run four times as short."""

    batches: Any

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels."""
        for images, labels in self.batches:
            yield functional.avg_pool2d(images, 2), labels


def data_of(case: Case, folder: str) -> pb.Data:
    """Return the splits of a case; they are the same for all seeds."""
    full = load_dataset(case.data, folder)
    dataset = replace(
        full,
        test_images=full.test_images[:TEST_SAMPLES],
        test_labels=full.test_labels[:TEST_SAMPLES],
    )
    loaders = make_loaders(dataset, 128, num_val=case.val, train_limit=case.train)
    if case.data == "digits":
        return pb.Data(loaders.train, loaders.val, loaders.test)
    return pb.Data(Halved(loaders.train), Halved(loaders.val), Halved(loaders.test))


def runs(path: Path, folder: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the line of every run that ``path`` does not have."""
    done = {key_of(line) for line in lines_of(path)}
    for name, seed in product(names, SEEDS):
        arms = [
            (name, seed, *arm)
            for arm in product(CRITERIA, ALLOCATIONS, TARGETS)
            if (name, seed, *arm) not in done
        ]
        if arms:
            case = CASES[name]
            data = data_of(case, folder)
            model = trained(case, data, seed)
            base = pb.evaluate(model, data.val, pb.Task())[0]
            for arm in arms:
                yield {"base": base, **run(model, data, *arm)}


def trained(case: Case, data: pb.Data, seed: int) -> nn.Module:
    """Return the network that is to be shrunk."""
    torch.manual_seed(seed)
    model = create_model(case.network, **case.options)
    config = pb.CompressConfig(dendrites=OFF, recovery=pb.RecoveryConfig(epochs=case.epochs))
    pb.recover_(model, data, config=config, seed=seed)
    return model


def run(
    model: nn.Module,
    data: pb.Data,
    name: str,
    seed: int,
    criterion: str,
    allocation: str,
    target: float,
) -> dict[str, Any]:
    """Shrink, score, re-estimate, score, recover and score one network."""
    started = time.process_time()
    task = pb.Task()
    width = pb.WidthConfig(importance=criterion, allocation=allocation)
    config = pb.CompressConfig(
        width=width, dendrites=OFF, recovery=pb.RecoveryConfig(epochs=CASES[name].recovery)
    )
    example = next(iter(data.val))[0][:1]
    plan = pb.plan_widths(model, example, target, config=config, data=data, task=task, seed=seed)
    planned = time.process_time()
    small = pb.shrink(model, plan)
    cut = pb.evaluate(small, data.val, task)[0]
    pb.reestimate_batchnorm_(small, data, task, seed=seed)
    reestimated = pb.evaluate(small, data.val, task)[0]
    pb.recover_(small, data, task, config=config, seed=seed)
    return {
        "network": name,
        "seed": seed,
        "importance": criterion,
        "allocation": allocation,
        "target": target,
        "params": plan.cost_after.params,
        "flops": plan.cost_after.flops,
        "cut": cut,
        "reestimated": reestimated,
        "val": pb.evaluate(small, data.val, task)[0],
        "test": pb.evaluate(small, data.test or (), task)[0],
        "plan_seconds": round(planned - started, 3),
        "seconds": round(time.process_time() - started, 3),
    }


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return what names a run."""
    return tuple(line[k] for k in ("network", "seed", "importance", "allocation", "target"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return all lines."""
    return [json.loads(t) for t in path.read_text().splitlines()] if path.is_file() else []


# --- table --------------------------------------------------------------------------------------

Figures = dict[tuple[Any, ...], dict[str, Any]]


def interval(differences: Sequence[float]) -> str:
    """Return mean and 95 % interval (Student's t) in points, in bold where it excludes zero."""
    mean = 100 * statistics.mean(differences)
    error = 100 * statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(student.ppf(0.975, len(differences) - 1)) * error
    text = f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
    return f"**{text}**" if abs(mean) > half else text


def paired(
    figures: Figures, stage: str, arms: Sequence[tuple[str, str]], reference: Callable[..., Any]
) -> list[float]:
    """Return a mean over arms and targets, less that of their references, per trained network."""
    bases = sorted({key[:2] for key in figures})
    found = []
    for base in bases:
        gaps = []
        for (criterion, allocation), target in product(arms, TARGETS):
            own, other = (*base, criterion, allocation, target), (*base, *reference(allocation))
            if own in figures and (*other, target) in figures:
                gaps.append(figures[own][stage] - figures[*other, target][stage])
        if gaps:
            found.append(statistics.mean(gaps))
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the page."""
    named = [(criterion, [(criterion, a) for a in ALLOCATIONS]) for criterion in CRITERIA[1:]]
    text = [*_introduction(lines), "", "## Against magnitude: all networks, both targets", ""]
    text += _comparison("importance", named, lines)
    for target in TARGETS:
        text += ["", f"## Against magnitude: {target:.1%} of the parameters", ""]
        text += _comparison("importance", named, _at(lines, target=target))
    for name in CASES:
        text += ["", f"## Against magnitude: {name}, both targets", ""]
        text += _comparison("importance", named, _at(lines, network=name))
    arms = [arm for arm in product(CRITERIA, ALLOCATIONS) if arm != DEFAULT]
    named = [(", ".join(arm), [arm]) for arm in arms]
    text += ["", "## Against magnitude, uniform: all networks, both targets", ""]
    text += _comparison("importance, allocation", named, lines, lambda _: DEFAULT)
    text += [
        "",
        "## BatchNorm",
        "",
        "What re-estimating its statistics gives right after the cut: ",
    ]
    text[-1] += interval(_gains(lines)) + " points, one number per trained network that has any."
    return "\n".join([*text, "", "## Means over the seeds", "", *_means(lines)])


def _introduction(lines: Sequence[dict[str, Any]]) -> list[str]:
    seconds = sum(line["seconds"] for line in lines) / 60
    bases = {key_of(line)[:2] for line in lines}
    epochs = ", ".join(f"{c.recovery} epochs ({n})" for n, c in CASES.items())
    targets = " or ".join(f"{t:.1%}" for t in TARGETS)
    originals = "; ".join(
        f"{name} on {case.train} of {case.data} {_bases(lines, name)}"
        for name, case in CASES.items()
    )
    return [
        "# Importance criteria and allocations",
        "",
        f"Made by `scripts/compare_importance.py` from {len(lines)} runs of {len(bases)} trained "
        f"networks, {seconds:.0f} minutes of one thread without the training of the originals. "
        f"Every run: plan to {targets} of the parameters, shrink, re-estimate BatchNorm, recover "
        f"for {epochs}. Accuracies in per cent, on validation unless the column says test.",
        "",
        "Differences are in points and paired: the same trained network, allocation and target. "
        "Each trained network gives one number, its mean over the runs of the row, so the runs of "
        "one network do not count as independent. Intervals are 95 %, Student's t over these "
        "numbers; bold ones exclude zero. There is no correction for the number of comparisons, "
        "and three numbers per network make wide intervals.",
        "",
        f"Originals by seed: {originals}. Images other than the digits are at half resolution.",
    ]


def _comparison(
    head: str,
    named: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    lines: Sequence[dict[str, Any]],
    reference: Callable[[str], tuple[str, str]] = lambda allocation: ("magnitude", allocation),
) -> list[str]:
    figures = {key_of(line): line for line in lines}
    text = _header([head, *STAGES.values()])
    for name, arms in named:
        cells = [interval(paired(figures, stage, arms, reference)) for stage in STAGES]
        text.append(_row([name, *cells]))
    return text


def _means(lines: Sequence[dict[str, Any]]) -> list[str]:
    text = _header(["network", "parameters", "importance", "allocation", *STAGES.values()])
    for name, target, criterion, allocation in product(CASES, TARGETS, CRITERIA, ALLOCATIONS):
        own = _at(lines, network=name, target=target, importance=criterion, allocation=allocation)
        cells = [f"{100 * statistics.mean(line[s] for line in own):.1f}" for s in STAGES]
        text.append(_row([name, f"{target:.1%}", criterion, allocation, *cells]))
    return text


def _header(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _at(lines: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [line for line in lines if all(line[k] == v for k, v in wanted.items())]


def _bases(lines: Sequence[dict[str, Any]], name: str) -> str:
    found = {line["seed"]: line["base"] for line in _at(lines, network=name)}
    return ", ".join(f"{100 * value:.1f}" for _, value in sorted(found.items()))


def _gains(lines: Sequence[dict[str, Any]]) -> list[float]:
    gains: dict[Any, list[float]] = {}
    for line in lines:
        if line["network"] != "mlp":  # it has no BatchNorm
            gains.setdefault(key_of(line)[:2], []).append(line["reestimated"] - line["cut"])
    return [statistics.mean(values) for values in gains.values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("run", "table"))
    parser.add_argument("lines", type=Path)
    parser.add_argument("--folder", default="data", help="where fetch_data.py put the data sets")
    parser.add_argument("--networks", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(argv)
    if options.job == "table":
        print(table(lines_of(options.lines)))
        return 0
    torch.set_num_threads(1)
    for line in runs(options.lines, options.folder, options.networks):
        with options.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
