"""What happened, epoch by epoch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pbcompress.core.json_documents import decoded
from pbcompress.core.records import from_data

__all__ = ["History", "Stage", "checked_records"]


class Stage(StrEnum):
    """Which network a training is of.

    The value stands in records and in names of files, and is part of the seed of every epoch: the
    same training under another name draws other batches.
    """

    BASE = "base"
    WIDTH = "width"
    DENDRITES = "dendrites"


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a record of an epoch has, to check those that are read."""

    stage: str
    phase: int
    kind: Literal["neuron", "dendrite", "thaw"]
    epoch: int
    sets: int
    loss: float
    metric: float
    steps: int
    lr: float
    seconds: float
    correlation: float | None = None
    improved: int | None = None
    replayed: bool | None = None
    scores: Mapping[str, tuple[float, ...]] | None = None
    nodes: Mapping[str, Any] | None = None
    absorbed: int | None = None


def checked_records(data: Any, where: str = "The history") -> list[dict[str, Any]]:
    """Return the records of epochs, each of which has what a record has.

    Args:
        data: JSON data.
        where: What they are, for messages.

    Raises:
        StateMismatchError: A field is missing, unknown or of another type.
    """
    records = list(data) if isinstance(data, list) else [data]
    for number, record in enumerate(records, start=1):
        from_data(_Record, record, f"{where}, line {number},")
    return records


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
        >>> record = {"stage": "width", "phase": 0, "kind": "neuron", "epoch": 0, "sets": 0}
        >>> record |= {"loss": 0.7, "metric": 0.9, "steps": 3, "lr": 0.1, "seconds": 0.5}
        >>> History.from_jsonl(History([record]).to_jsonl()).steps
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
    def from_jsonl(cls, text: str | bytes, where: str = "The history") -> "History":
        """Read what `to_jsonl` wrote.

        Args:
            text: JSON, a record in each line.
            where: What the text is, for messages.

        Raises:
            StateMismatchError: A line is truncated or no JSON, or is not a record of an epoch.
        """
        lines = [line for line in text.splitlines() if line.strip()]
        read = [decoded(line, f"{where}, line {i},") for i, line in enumerate(lines, start=1)]
        return cls(checked_records(read, where))

    @classmethod
    def joined(cls, parts: Sequence["History"]) -> "History":
        """Return the records of several histories, one after the other."""
        return cls([record for part in parts for record in part.records])
