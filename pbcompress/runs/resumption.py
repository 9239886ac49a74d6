"""What a stopped run goes on from, beside its checkpoints; each file says to what it belongs.

A plan and a learning rate are of one network of one run. A checkpoint is of these two as well.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pbcompress.core.bounded_files import read_bounded
from pbcompress.core.field_types import Positive
from pbcompress.core.json_documents import damage_named, parse_record, render_record
from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import StateMismatchError
from pbcompress.planning.width_plan import WidthPlan

__all__ = ["mark_of", "owner_of", "read_plan", "read_rate", "write_plan", "write_rate"]

PLAN, RATE = ("pbcompress plan of a run", 1), ("pbcompress learning rate", 2)
ADVICE = "Put back the file of this run, or move it away: what it tells is then found anew"
Kept = TypeVar("Kept", "_Plan", "_Rate")


@dataclass(frozen=True)
class _Plan:
    """The plan that a network of a run was begun with."""

    owner: str
    plan: Mapping[str, Any]


@dataclass(frozen=True)
class _Rate:
    """The learning rate that a range test found for a network of a run."""

    owner: str
    lr: Positive


def owner_of(name: str, fingerprint: str) -> str:
    """Return what identifies a network among those of all runs."""
    return f"{name} of {fingerprint}"


def mark_of(owner: str, plan: WidthPlan, lr: float | str) -> str:
    """Return what identifies the training of a network; for a `Checkpoint`."""
    text = json.dumps([owner, plan.to_json(), lr])
    return hashlib.sha256(text.encode()).hexdigest()


def write_plan(path: Path, owner: str, plan: WidthPlan) -> None:
    """Keep the plan of a network; see `read_plan`."""
    kept = _Plan(owner, json.loads(plan.to_json()))
    write_bytes(path, render_record(kept, *PLAN).encode())


def write_rate(path: Path, owner: str, lr: float) -> None:
    """Keep the learning rate of a network; see `read_rate`."""
    write_bytes(path, render_record(_Rate(owner, lr), *RATE).encode())


def read_plan(path: Path, owner: str) -> WidthPlan:
    """Return the plan that a network of this run was begun with.

    Raises:
        StateMismatchError: The file is damaged, or of another network or run.
    """
    kept = _read(_Plan, path, PLAN, owner)
    with damage_named(str(path), ADVICE):
        return WidthPlan.from_json(json.dumps(kept.plan))


def read_rate(path: Path, owner: str) -> float:
    """Return the learning rate that a range test found for a network of this run.

    Raises:
        StateMismatchError: The file is damaged, or of another network or run.
    """
    return _read(_Rate, path, RATE, owner).lr


def _read(cls: type[Kept], path: Path, kind: tuple[str, int], owner: str) -> Kept:
    try:
        found = parse_record(cls, read_bounded(path), *kind, str(path))
    except StateMismatchError as err:
        raise StateMismatchError(f"{err} {ADVICE}.") from err
    if found.owner != owner:
        raise StateMismatchError(
            f"{path} is of {found.owner!r:.60}, and {owner!r:.60} was to go on. {ADVICE}."
        )
    return found
