"""The page of importance criteria and allocations, from the lines of `run.py`.

python -m scripts.importance.tables > docs/benchmarks/importance.md

Other lines than the packed ones are named as its argument.
"""

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from scripts.importance.run import ALLOCATIONS, CASES, CRITERIA, TARGETS, key_of
from scripts.lines import Line, named_lines
from scripts.paired import half_width

DEFAULT = ("magnitude", "uniform")
STAGES = {
    "cut": "as cut",
    "reestimated": "BatchNorm re-estimated",
    "val": "recovered",
    "test": "recovered, test",
}
Figures = dict[tuple[Any, ...], Line]


def interval(differences: Sequence[float]) -> str:
    """Return mean and 95 % interval (Student's t) in points, in bold where it excludes zero."""
    mean = 100 * statistics.mean(differences)
    half = 100 * half_width(differences)
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


def page(lines: Sequence[Line]) -> str:
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
    return "\n".join([*text, "", "## Means over the seeds", "", *_means(lines)]) + "\n"


def _introduction(lines: Sequence[Line]) -> list[str]:
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
        f"Made by `scripts/importance/run.py` from {len(lines)} runs of {len(bases)} trained "
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
    lines: Sequence[Line],
    reference: Callable[[str], tuple[str, str]] = lambda allocation: ("magnitude", allocation),
) -> list[str]:
    figures = {key_of(line): line for line in lines}
    text = _header([head, *STAGES.values()])
    for name, arms in named:
        cells = [interval(paired(figures, stage, arms, reference)) for stage in STAGES]
        text.append(_row([name, *cells]))
    return text


def _means(lines: Sequence[Line]) -> list[str]:
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


def _at(lines: Sequence[Line], **wanted: Any) -> list[Line]:
    return [line for line in lines if all(line[k] == v for k, v in wanted.items())]


def _bases(lines: Sequence[Line], name: str) -> str:
    found = {line["seed"]: line["base"] for line in _at(lines, network=name)}
    return ", ".join(f"{100 * value:.1f}" for _, value in sorted(found.items()))


def _gains(lines: Sequence[Line]) -> list[float]:
    gains: dict[Any, list[float]] = {}
    for line in lines:
        if line["network"] != "mlp":  # it has no BatchNorm
            gains.setdefault(key_of(line)[:2], []).append(line["reestimated"] - line["cut"])
    return [statistics.mean(values) for values in gains.values()]


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
