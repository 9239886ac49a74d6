"""A training in several processes: ``torchrun distributed_run.py FOLDER``; see test_distributed."""

import dataclasses
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pbcompress import (
    CompressConfig,
    Correlation,
    Data,
    DendriteConfig,
    EngineConfig,
    Hybrid,
    OptimizerConfig,
    RecoveryConfig,
    Shared,
    Task,
    recover_,
)
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.training.engine import make_engine
from pbcompress.training.loop import evaluate
from pbcompress.training.task import accuracy
from tests.support import compress_run

CASES = {
    "correlation": DendriteConfig(max_sets=2),
    "hybrid": DendriteConfig(rule=Hybrid(candidates=2, samples=6), form=Shared(nodes=3)),
    "gradient": DendriteConfig(rule="gradient", form="grouped"),
    "spectral": DendriteConfig(rule=Correlation(initialization="spectral")),
    "tied": DendriteConfig(
        rule=Correlation(node_share=0.6, initial_gain="least_squares"), form="tied"
    ),
    "from memory": DendriteConfig(
        rule=Correlation(candidates=2, initial_gain="least_squares"), max_sets=2
    ),
}
BATCH, ROUNDS = 6, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2 * BATCH * ROUNDS, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = (x.mean((1, 2, 3)) * 9).long() % 3
    return list(zip(x.split(size), y.split(size), strict=True))


def config(name: str) -> CompressConfig:
    sgd = OptimizerConfig(algorithm="sgd", lr=0.05, dendrite_lr=0.05, max_grad_norm=1.0)
    recovery = RecoveryConfig(
        epochs=2,
        dendrite_epochs=2,
        max_failures=1,
        improvement=(0.0,),
        replay=1.0 if name == "from memory" else 0.0,
        optimizer=sgd,
        engine=EngineConfig(accumulate=2 if name == "hybrid" else 1),
    )
    return CompressConfig(dendrites=CASES[name], recovery=recovery)


def train(name: str, size: int) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    model, val = network(), batches(2 * BATCH)
    history = recover_(model, Data(train=batches(size), val=val), config=config(name))
    return model.state_dict(), history.records


def train_from_a_loader(folder: Path, stop_after: int = 0) -> dict[str, Tensor]:
    """Train a network with BatchNorm; with ``stop_after`` epochs, die then and go on."""
    x, y = (torch.cat(part) for part in zip(*batches(BATCH), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    data, scored = Data(train=loader, val=batches(BATCH)), 0

    def metric(output: Tensor, target: Tensor) -> float:
        nonlocal scored
        scored += 1
        if scored == stop_after + 1 and stop_after:
            raise KeyboardInterrupt
        return accuracy(output, target)

    checkpoint = Checkpoint(folder / f"{stop_after}.safetensors", "loader")
    for _ in range(2 if stop_after else 1):
        model = nn.Sequential(nn.BatchNorm2d(1).double(), *network())
        with suppress(KeyboardInterrupt):
            recover_(
                model, data, Task(metric=metric), config=config("correlation"),
                checkpoint=checkpoint,
            )  # fmt: skip
    assert scored > stop_after
    return model.state_dict()


def epochs_in_time() -> int:
    """Train until the time is over, with clocks that run at another speed in each process."""
    rank, monotonic = int(os.environ["RANK"]), time.monotonic
    choices = config("correlation")
    recovery = dataclasses.replace(choices.recovery, max_minutes=0.5, epochs=3)
    time.monotonic = lambda: monotonic() * (1 if rank else 1e6)
    try:
        history = recover_(
            network(), Data(train=batches(BATCH), val=batches(BATCH)),
            config=dataclasses.replace(choices, recovery=recovery),
        )  # fmt: skip
    finally:
        time.monotonic = monotonic
    return len(history.records)


def median_error(output: Tensor, target: Tensor) -> Tensor:
    """A metric that no means of parts add up to."""
    return (output.argmax(1) * 1.5 - target).abs().median() + output.std()


def evaluation() -> tuple[float, int, int]:
    """Score five batches; return also how many of them ran here."""
    model, val, ran = network(), batches(BATCH)[:5], 0

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal ran
        ran += 1
        return model(batch[0]), batch[1]

    task = Task(metric=median_error, forward=forward)
    return *evaluate(model, val, task, make_engine(model, EngineConfig()).processes), ran


def main() -> None:
    folder = Path(sys.argv[1])
    results = {name: train(name, BATCH) for name in CASES}
    loaded = [train_from_a_loader(folder, stop_after) for stop_after in (0, 3)]
    epochs = epochs_in_time()
    rank = torch.distributed.get_rank()
    compressed = compress_run.first_findings(rank, folder)
    torch.save((results, loaded, evaluation(), epochs, compressed), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
