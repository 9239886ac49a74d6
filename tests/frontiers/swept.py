"""A frontier that other processes take part in: what they import. See test_elsewhere."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pbcompress as pb

CONFIG = pb.CompressConfig(
    recovery=pb.RecoveryConfig(
        epochs=8, compensation_batches=0, optimizer=pb.OptimizerConfig(lr=0.01)
    ),
    deploy=False,
)
TARGETS = [0.5, 0.3]


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3)
    )


class Batches:
    """Batches in memory, whose passes are noted; a pass may end the process that makes it.

    Args:
        samples: Number of samples.
        notes: A file that gets a line for each pass: the process.
        deadly: The process that has made so many passes dies, once; 0: none does.
    """

    def __init__(self, samples: int, notes: Path, deadly: int = 0) -> None:
        x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(samples))
        self.pairs = list(zip(x.split(32), x[:, :3].argmax(1).split(32), strict=True))
        self.notes, self.deadly, self.parent = notes, deadly, os.getpid()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        may_die = self.deadly and os.getpid() != self.parent and not self.grave.exists()
        if may_die and passes(self.notes).count(os.getpid()) == self.deadly:
            self.grave.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(self.pairs)

    @property
    def grave(self) -> Path:
        """Has the process that died."""
        return self.notes.with_suffix(".died")


def passes(notes: Path) -> list[int]:
    """Return the process of each pass so far."""
    return [int(line) for line in notes.read_text().split()]


def sweep(data: pb.Data, **options: Any) -> pb.Frontier:
    """Return a frontier of the network."""
    options = {"config": CONFIG, "device": "cpu", "progress": False} | options
    return pb.frontier(make_network(), TARGETS, data=data, **options)
