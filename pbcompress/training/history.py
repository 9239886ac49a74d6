"""What happened, epoch by epoch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["History", "Stage"]


class Stage(StrEnum):
    """Which network a training is of.

    The value stands in records and in names of files, and is part of the seed of every epoch: the
    same training under another name draws other batches.
    """

    BASE = "base"
    WIDTH = "width"
    DENDRITES = "dendrites"


@dataclass
class History:
    """Records of epochs, in order; it decides nothing.

    Each record is a dict with ``stage`` (the network that was trained, see `Stage`),
    ``phase`` (0, 1, ...), ``kind`` ("neuron", "dendrite" or "thaw"), ``epoch`` (within its phase),
    ``sets``, ``loss`` (mean train loss), ``metric`` (validation), ``steps`` (optimizer steps),
    ``lr`` (at the end of the epoch), ``seconds``, and in dendrite phases ``correlation`` (mean |r|
    of the candidates), ``improved`` (nodes whose |r| rose) and ``scores`` (by layer, the eleven
    deciles of |r| over its nodes, the smallest and the largest included). The first epoch of a
    neuron phase with dendrites has ``nodes``: by layer, how many its newest set has, and a whole
    one.

    Example:
        >>> history = History([{"stage": "width", "kind": "neuron", "steps": 3, "seconds": 0.5}])
        >>> History.from_jsonl(history.to_jsonl()).steps
        3
    """

    records: list[dict[str, Any]] = field(default_factory=list)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return sum(record["steps"] for record in self.records)

    @property
    def seconds(self) -> float:
        """Seconds of training and validation in all."""
        return float(sum(record["seconds"] for record in self.records))

    def stage(self, name: str) -> "History":
        """Return the records of one stage."""
        return History([record for record in self.records if record["stage"] == name])

    def to_jsonl(self) -> str:
        """Return one line of JSON for each record."""
        return "".join(json.dumps(record) + "\n" for record in self.records)

    @classmethod
    def from_jsonl(cls, text: str) -> "History":
        """Read what `to_jsonl` wrote."""
        return cls([json.loads(line) for line in text.splitlines() if line.strip()])

    @classmethod
    def joined(cls, parts: Sequence["History"]) -> "History":
        """Return the records of several histories, one after the other."""
        return cls([record for part in parts for record in part.records])
