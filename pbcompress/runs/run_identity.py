"""What decides a run, as digests: by them a folder knows the call that it belongs to.

Not part of it are the device, the number of threads and the versions of torch and pbcompress: a run
may go on elsewhere, and is then the same up to rounding.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pbcompress.core.inputs import Call, tensors_of
from pbcompress.core.json_documents import parse_record, render_record
from pbcompress.core.modules import copy_model
from pbcompress.core.object_identity import (
    OF_LOADERS,
    Identity,
    changed_places,
    identify,
    identify_all,
)
from pbcompress.core.processes import Processes
from pbcompress.core.randomness import seeded
from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import CompressionError, StateMismatchError, a_few
from pbcompress.training.task import Data, Task, batch_count, seeded_generators

__all__ = [
    "IDENTITY_FILE",
    "RunIdentity",
    "check_identity",
    "check_same",
    "identity_of",
    "task_identity",
]

KIND, VERSION = "pbcompress run identity", 1
IDENTITY_FILE = "identity.json"
FIRST_BATCHES, FIRST_BYTES = 32, 2**26
DRAWN_AGAIN = 4
MOVES = "is not the same after use"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What decides a run.

    Attributes:
        places: Digests by the place of what they are of: "model", "Data.val", "Task.loss.weight".
        unseen: Places of which nothing is known but their class, with the reason.
        processes: How many train together. It decides how large the batches of all are, and is no
            part of the fingerprint.
    """

    places: Mapping[str, str]
    unseen: Mapping[str, str]
    processes: int = 1

    @property
    def fingerprint(self) -> str:
        """One digest of all of them."""
        text = json.dumps(dict(self.places), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def task_identity(task: Task) -> Identity:
    """Return what a task is: code, closures, defaults and choices of its functions."""
    parts = {
        "loss": task.loss,
        "metric": task.metric,
        "forward": task.forward,
        "name": task.metric_name,
        "higher_is_better": task.higher_is_better,
        **({} if task.reduce is None else {"reduce": task.reduce}),
    }
    return _joined(identify(value, f"Task.{name}") for name, value in parts.items())


def identity_of(
    *,
    model: nn.Module,
    inputs: Call | None,
    choices: Mapping[str, Any],
    data: Data | None,
    task: Task,
    task_before: Identity,
) -> RunIdentity:
    """Return what decides a run.

    What is not the same after use identifies nothing, and is listed as unseen: a list that a loss
    appends to, batches that differ under one seed.

    Args:
        model: The original; a copy of it runs once.
        inputs: Of one forward pass; only types and shapes of their tensors count.
        choices: By name, as JSON data.
        data: The splits; the first batches of each are drawn.
        task: Its functions.
        task_before: `task_identity`, before they were called.
    """
    task_now = task_identity(task)
    of_task = task_now.without(_moved(task_before, task_now))
    parts = [_of_model(model, inputs), of_task]
    if inputs is not None:
        shapes = [(str(t.dtype), tuple(t.shape)) for t in tensors_of(tuple(inputs))]
        parts.append(identify(shapes, "example inputs"))
    if data is not None:
        splits = {"train": data.train, "val": data.val, "test": data.test}
        parts += [_of_split(split, f"Data.{name}") for name, split in splits.items()]
    parts += [identify(value, name) for name, value in choices.items()]
    joined = _joined(parts)
    return RunIdentity(joined.places, joined.unseen)


def _joined(parts: "Iterator[Identity] | list[Identity]") -> Identity:
    places: dict[str, str] = {}
    unseen: dict[str, str] = {}
    for part in parts:
        places.update(part.places)
        unseen.update(part.unseen)
    return Identity(places, unseen)


def _moved(before: Identity, after: Identity) -> dict[str, str]:
    return dict.fromkeys(changed_places(before, after), MOVES)


def _of_model(model: nn.Module, inputs: Call | None) -> Identity:
    """Return what a network is, in one digest: weights, choices and code of its modules."""
    copied = copy_model(model)
    before = identify(copied, "model", is_open=True)
    if inputs is not None:
        with torch.no_grad(), seeded("check"):
            copied(*inputs.args, **inputs.kwargs)
    after = identify(copied, "model", is_open=True)
    seen = after.without(_moved(before, after))
    return replace(seen, places={"model": _digest(sorted(seen.places.items()))})


def _of_split(split: Any, name: str) -> Identity:
    """Return what a split is: its data set or itself, its order, first batches and their number."""
    if split is None:
        return Identity({name: "none"}, {})
    source = _source(split, name)
    before = identify_all(source)
    first, unseen, is_whole = _first_batches(split, name, FIRST_BATCHES)
    again, _, _ = _first_batches(split, name, DRAWN_AGAIN)
    after = identify_all(source)
    found = after.without(_moved(before, after))
    number, places, notes = batch_count(split), dict(found.places), {**found.unseen, **unseen}
    places[f"{name}: number of batches"] = _digest(number)
    if first[: len(again)] == again:
        places[f"{name}: first batches"] = _digest(first)
        if not is_whole:
            of = f" of {number:,}" if number else ""
            notes[f"{name}: batches"] = f"only the first {len(first)}{of} were read"
    else:
        notes[f"{name}: batches"] = "they differ under one seed"
    return Identity(places, notes)


def _source(split: Any, name: str) -> dict[str, Any]:
    """Return what batches come from, by place: of a loader its data set, its order and its joining.

    The data set comes first, so that it has its own place where the order knows it too.
    """
    if not hasattr(split, "dataset"):
        return {name: split}
    beside = {part: getattr(split, part, None) for part in OF_LOADERS}
    return {name: split.dataset, **{f"{name}.{k}": v for k, v in beside.items() if v is not None}}


def _first_batches(split: Any, name: str, most: int) -> tuple[list[str], dict[str, str], bool]:
    """Return digests of the first batches, what is unseen in them, and whether these are all."""
    digests: list[str] = []
    unseen: dict[str, str] = {}
    size, is_whole = 0, True
    with seeded("identity"), seeded_generators(split, 0):
        for batch in islice(split, most + 1):
            if len(digests) == most or size > FIRST_BYTES:
                is_whole = False
                break
            found = identify(batch, f"{name}: batch", is_open=True)
            size += sum(getattr(leaf, "nbytes", 0) for leaf in tree_leaves(batch))
            digests.append(_digest(sorted(found.places.items())))
            unseen.update(found.unseen)
    return digests, unseen, is_whole


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def check_same(processes: Processes, identity: RunIdentity) -> None:
    """Raise if processes of one call were given different things.

    The functions of the task are left out: they may know in which process they are.

    Args:
        processes: Of the call.
        identity: Of this process.
    """
    own = {name: mark for name, mark in identity.places.items() if not name.startswith("Task.")}
    first, *others = (Identity(places, {}) for places in processes.gathered(own))
    for number, other in enumerate(others, start=1):
        if changed := changed_places(first, other):
            raise CompressionError(
                f"compress was called in {processes.world} processes, and process {number} has "
                f"another {a_few(sorted(changed))} than process 0. Give all of them the same "
                "model, data, target, configuration and seed: each takes its part of every batch."
            )


def check_identity(folder: Path, identity: RunIdentity, known: str | None) -> None:
    """Raise if a folder is that of another run, else note in it what decides this one.

    Args:
        folder: Of the run.
        identity: Of this call.
        known: The fingerprint in the run's state; None where it has not ended.

    Raises:
        StateMismatchError: The folder holds another run; what differs is named.
    """
    path = folder / IDENTITY_FILE
    former = _read(path)
    noted = former.fingerprint if former is not None else None
    if former is not None and former.processes != identity.processes:
        raise StateMismatchError(
            f"{folder} holds a run in {former.processes} process(es), and this call is one in "
            f"{identity.processes}: the batches of all would have another size. Start "
            f"{former.processes}, or choose another run_dir."
        )
    if any(mark not in (None, identity.fingerprint) for mark in (known, noted)):
        raise StateMismatchError(f"{_difference(folder, former, identity)} {ADVICE}")
    if former is None:
        write_bytes(path, render_record(identity, KIND, VERSION).encode())
    if identity.unseen:
        level = logging.INFO if all("only the first" in w for w in identity.unseen.values()) else 30
        logger.log(level, "%s", _told(folder, identity.unseen))


ADVICE = "Choose another run_dir, or move this one away to start anew."


def _read(path: Path) -> RunIdentity | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    return parse_record(RunIdentity, text, KIND, VERSION, str(path))


def _difference(folder: Path, former: RunIdentity | None, now: RunIdentity) -> str:
    if former is None:
        return (
            f"{folder} holds a run of another model, data, task, target, configuration or seed, or "
            "one that an older pbcompress made, which noted less of what decides it."
        )
    one, other = (Identity(i.places, i.unseen) for i in (former, now))
    changed = changed_places(one, other)
    named = [p for p in changed if ": " not in p or p.partition(": ")[0] not in changed]
    return f"{folder} holds a run of another call, from which this one differs in {a_few(named)}."


def _told(folder: Path, unseen: Mapping[str, str]) -> str:
    shown = a_few([f"{place} ({why})" for place, why in sorted(unseen.items())])
    return (
        f"{folder} knows its run by all that decides it but {shown}: keep these as they are until "
        f"it has ended. {IDENTITY_FILE} has the whole list."
    )
