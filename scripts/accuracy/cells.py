"""Lines of `run.py` as cells: one row for a task, a target and an arm.

Lines that cannot be compared are an error: arms of a cell must have begun with the same trained
network and taken the same number of steps, and none may be larger than its target.
"""

import csv
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from io import StringIO
from typing import Any

from scripts.lines import Line
from scripts.paired import Difference, paired

__all__ = ["CONTROL", "Cell", "cells_of", "from_csv", "to_csv"]

CONTROL = "width"


@dataclass(frozen=True)
class Cell:
    """An arm on a task at a target. Accuracies are in per cent, differences in points.

    Attributes:
        task: Name in `grid.TASKS`.
        target: Share of the parameters.
        arm: Name in `grid.ARMS`, or of a peer.
        seeds: How many.
        steps: Optimizer steps of each run.
        params: Mean number of parameters.
        flops: Mean number of multiply-adds.
        sets: Mean number of sets of dendrites.
        test: Mean accuracy on the test split.
        against: Difference to the control on the test split; None for the control itself.
        against_val: The same on the validation split, which decided.
        base_params: Parameters of the original network.
        base_test: Mean accuracy of the original networks on the test split.
        commits: Where the lines were made.
    """

    task: str
    target: float
    arm: str
    seeds: int
    steps: int
    params: float
    flops: float
    sets: float
    test: float
    against: Difference | None
    against_val: Difference | None
    base_params: int
    base_test: float
    commits: str


def cells_of(lines: Iterable[Line], control: str = CONTROL) -> list[Cell]:
    """Return all cells that have all seeds of their control, at least two.

    Raises:
        ValueError: Lines cannot be compared.
    """
    found: dict[tuple[str, float, str], dict[int, Line]] = {}
    for line in lines:
        if "unreachable" not in line:
            key = (line["task"], line["target"], line["arm"])
            found.setdefault(key, {})[line["seed"]] = line
    cells = []
    for (task, target, arm), runs in found.items():
        beside = found.get((task, target, control), {})
        if len(beside) < 2 or not runs.keys() >= beside.keys():
            continue
        for seed, line in runs.items():
            _check(line, beside.get(seed, line))
        cells.append(_cell(runs, None if arm == control else beside))
    return cells


def _check(line: Line, control: Line) -> None:
    where = f"{line['task']} at {line['target']:g}, {line['arm']!r}, seed {line['seed']}"
    if line["steps"] != control["steps"]:
        raise ValueError(f"{where}: {line['steps']} steps, the control took {control['steps']}")
    if line["base"] != control["base"]:
        raise ValueError(f"{where}: it began with another network than the control")
    if line["params"] > line["target"] * line["base"]["params"]:
        raise ValueError(f"{where}: {line['params']} parameters are more than the target")


def _cell(runs: Mapping[int, Line], control: Mapping[int, Line] | None) -> Cell:
    first = next(iter(runs.values()))
    means = {
        key: statistics.mean(line[key] for line in runs.values())
        for key in ("params", "flops", "sets", "test")
    }
    against, against_val = (
        None if control is None else paired(_points(runs, split), _points(control, split))
        for split in ("test", "val")
    )
    return Cell(
        **{key: first[key] for key in ("task", "target", "arm", "steps")},
        **means | {"test": 100 * means["test"]},
        seeds=len(runs),
        against=against,
        against_val=against_val,
        base_params=first["base"]["params"],
        base_test=100 * statistics.mean(line["base"]["test"] for line in runs.values()),
        commits=" ".join(dict.fromkeys(line["commit"] for line in runs.values())),
    )


def _points(runs: Mapping[int, Line], split: str) -> dict[int, float]:
    return {seed: 100 * line[split] for seed, line in runs.items()}


# --- files ----------------------------------------------------------------------------------------


def to_csv(cells: Iterable[Cell]) -> str:
    """Return the text of a file of cells; a difference has two columns, its mean and its half."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_columns())
    for cell in cells:
        values = asdict(cell)
        for name in ("against", "against_val"):
            difference = values[name] or {"mean": "", "half": ""}
            values |= {name: difference["mean"], f"{name}_half": difference["half"]}
        writer.writerow(values[column] for column in _columns())
    return out.getvalue()


def from_csv(text: str) -> list[Cell]:
    """Return the cells of a file."""
    return [_from_row(row) for row in csv.DictReader(StringIO(text))]


def _columns() -> list[str]:
    out: list[str] = []
    for field in fields(Cell):
        out += [field.name, f"{field.name}_half"] if "against" in field.name else [field.name]
    return out


def _from_row(row: Mapping[str, str]) -> Cell:
    values: dict[str, Any] = {}
    for field in fields(Cell):
        text = row[field.name]
        if field.type in (int, float, str):
            values[field.name] = field.type(text)
        else:
            half = row[f"{field.name}_half"]
            values[field.name] = Difference(float(text), float(half)) if text else None
    return Cell(**values)
