"""The page of compensation, from the lines of `run.py` and `widths.py`.

python -m scripts.compensation.tables > docs/benchmarks/compensation.md

The lines are the packed ones beside this script.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pbcompress.core.text_tables import render_markdown
from scripts.lines import Line, read_lines
from scripts.paired import paired

HERE = Path(__file__).parent
LINES, WIDTHS = HERE / "lines.jsonl.gz", HERE / "widths.jsonl.gz"
STAGES = {
    "cut": "cut",
    "reestimated": "BatchNorm measured anew",
    "torch-pruning": "torch-pruning, measured anew",
    "compensated": "compensated",
    "both": "compensated, then BatchNorm",
}
ARMS = ("compensated", "plain")
FEWEST = 3  # seeds that an interval needs to say something
WAYS = (("rule", "greedy"), ("price", "magnitude"), ("price", "greedy"))


def page(lines: Sequence[Line], widths: Sequence[Line]) -> str:
    """Return the page."""
    text = [
        "# Compensation in closed form",
        "",
        "Every layer that reads narrowed channels is refitted by ridge regression on 32 train "
        "batches, without labels or a gradient (`compensate_`). Widths are the planner's, the "
        "networks and their training those of [accuracy.md](accuracy.md). Test accuracy in per "
        "cent, mean over seeds; differences in points, paired by seed, with 95 % intervals where "
        f"there are {FEWEST} seeds or more. Made by `scripts/compensation/`.",
        "",
        "## At once",
        "",
        "No training. *seconds* are those of one thread for the cut and its compensation.",
        "",
        *_at_once(lines),
        "",
        "## After recovery",
        "",
        "Both ways have BatchNorm measured anew and the same epochs, batches and learning rate.",
        "",
        *_recovered(lines),
        "",
        "## Gram matrices as a price",
        "",
        "All ways are compensated and have the parameters of the planner's widths at most. "
        "*greedy*: those channels stay that explain most of what layers read. *price*: widths by "
        "equal marginal error for each removed parameter. Differences to the planner's widths with "
        "channels by magnitude, in points of test accuracy.",
        "",
        *_priced(widths),
    ]
    return "\n".join(text) + "\n"


def _groups(lines: Sequence[Line], *names: str) -> Mapping[tuple[object, ...], list[Line]]:
    found: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[name] for name in names), []).append(line)
    return found


def _at_once(lines: Sequence[Line]) -> list[str]:
    rows = [("task", "parameters", "seeds", "original", *STAGES.values(), "seconds")]
    for (task, target), own in _groups(_of(lines, "cut"), "task", "target").items():
        stages = (_scored([line[stage] for line in own if stage in line]) for stage in STAGES)
        original = _mean([line["base"]["test"] for line in own])
        seconds = statistics.median(line["compensated seconds"] for line in own)
        about = str(task), f"{target:.0%}", str(len(own))
        rows.append((*about, original, *stages, f"{seconds:.1f}"))
    return render_markdown(rows).splitlines()


def _scored(found: Sequence[Mapping[str, float]]) -> str:
    """Return the mean of the runs that gave a network."""
    scores = [scored["test"] for scored in found if "test" in scored]
    return _mean(scores) if scores else "-"


def _recovered(lines: Sequence[Line]) -> list[str]:
    rows = [("task", "parameters", "epochs", "seeds", "plain", "compensated", "test", "validation")]
    rest = [line for line in lines if line["part"] != "cut"]
    for (task, target, epochs), own in _groups(rest, "task", "target", "epochs").items():
        means = (_mean([line[arm]["test"] for line in own]) for arm in ("plain", "compensated"))
        differences = (_difference(own, split) for split in ("test", "val"))
        about = str(task), f"{target:.0%}", str(epochs), str(len(own))
        rows.append((*about, *means, *differences))
    return render_markdown(rows).splitlines()


def _difference(lines: Sequence[Line], split: str) -> str:
    arms = [{line["seed"]: 100 * line[arm][split] for line in lines} for arm in ARMS]
    return _compared(*arms)


def _compared(values: Mapping[int, float], control: Mapping[int, float]) -> str:
    if len(values) < FEWEST:
        return f"{statistics.mean(values.values()) - statistics.mean(control.values()):+.2f}"
    return str(paired(values, control))


def _priced(lines: Sequence[Line]) -> list[str]:
    rows = [("task", "parameters", "seeds", "widths", "channels", "at once", "short recovery")]
    for (task, target), own in _groups(lines, "task", "target").items():
        ways = _groups(own, "widths", "channels")
        for way in WAYS:
            stages = (
                _compared(
                    *(
                        {line["seed"]: 100 * line[stage]["test"] for line in ways[one]}
                        for one in (way, ("rule", "magnitude"))
                    )
                )
                for stage in ("compensated", "short")
            )
            rows.append((str(task), f"{target:.0%}", str(len(ways[way])), *way, *stages))
    return render_markdown(rows).splitlines()


def _of(lines: Sequence[Line], part: str) -> list[Line]:
    return [line for line in lines if line["part"] == part]


def _mean(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.2f}"


if __name__ == "__main__":
    print(page(read_lines(LINES), read_lines(WIDTHS)), end="")
