"""Compare importance criteria and allocations on small trained networks, after recovery too.

One network is trained for each seed, and shrunk and recovered with every criterion, allocation and
target; one JSON line per run. A run that has its line is skipped, so a stopped one can go on.
Choices are made by validation; each test split is scored once per run, and is there to be reported.

    python -m scripts.importance.run lines.jsonl --folder data
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_dataset, make_loaders
from scripts.lines import append_line, read_lines

CRITERIA = ("magnitude", "bn_scale", "taylor", "variance", "fisher")
ALLOCATIONS = ("uniform", "global", "isomorphic")
TARGETS = (0.5, 0.125)
SEEDS = (0, 1, 2)
TEST_SAMPLES = 4000
OFF = pb.DendriteConfig(max_sets=0)


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
    done = {key_of(line) for line in read_lines(path)}
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument("--networks", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for line in runs(options.lines, options.folder, options.networks):
        append_line(options.lines, line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
