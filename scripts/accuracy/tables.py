"""Tables and a plot from the lines of `bench_accuracy.py`, and nothing else.

    python scripts/accuracy_tables.py lines.jsonl --page accuracy.md --plot accuracy.svg

Lines that cannot be compared are an error: arms of a cell must have begun with the same trained
network and taken as many optimizer steps, and none may be larger than its target.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paired import Difference, paired

CONTROL = "width"
PLOTTED = (
    *(CONTROL, "width, distilled", "correlation", "joint shared, cheap", "auto"),
    *("width, balanced", "auto, balanced", "correlation, balanced"),
)
STYLES = {
    "auto": "x--",
    "auto, balanced": "x--",
}  # it lies on the control where that is what it chose


@dataclass(frozen=True)
class Cell:
    """An arm on a task at a target.

    Attributes:
        lines: One for each seed.
        against: Test accuracy against that of the control, in points; None for the control.
        against_val: The same on the validation split, which decided.
    """

    lines: dict[int, dict[str, Any]]
    against: Difference | None
    against_val: Difference | None

    def mean(self, key: str) -> float:
        """Return the mean over seeds."""
        return statistics.mean(line[key] for line in self.lines.values())


Cells = dict[tuple[str, float, str], Cell]


def cells_of(lines: Iterable[dict[str, Any]], control: str = CONTROL) -> Cells:
    """Return all cells that have as many seeds as their control, at least two.

    Raises:
        ValueError: Lines cannot be compared.
    """
    found: dict[tuple[str, float, str], dict[int, dict[str, Any]]] = {}
    for line in lines:
        if "unreachable" not in line:
            key = (line["task"], line["target"], line["arm"])
            found.setdefault(key, {})[line["seed"]] = line
    cells: Cells = {}
    for (task, target, arm), seeds in found.items():
        beside = found.get((task, target, control), {})
        if len(beside) < 2 or not seeds.keys() >= beside.keys():
            continue
        for seed, line in seeds.items():
            _check(line, beside.get(seed, line))
        against = [
            None if arm == control else paired(_points(seeds, split), _points(beside, split))
            for split in ("test", "val")
        ]
        cells[task, target, arm] = Cell(seeds, *against)
    return cells


def _check(line: dict[str, Any], control: dict[str, Any]) -> None:
    where = f"{line['task']} at {line['target']:g}, {line['arm']!r}, seed {line['seed']}"
    if line["steps"] != control["steps"]:
        raise ValueError(f"{where}: {line['steps']} steps, the control took {control['steps']}")
    if line["base"] != control["base"]:
        raise ValueError(f"{where}: it began with another network than the control")
    if line["params"] > line["target"] * line["base"]["params"]:
        raise ValueError(f"{where}: {line['params']} parameters are more than the target")


def _points(seeds: dict[int, dict[str, Any]], split: str) -> dict[int, float]:
    return {seed: 100 * line[split] for seed, line in seeds.items()}


def page(cells: Cells, intro: str, title: str = "Do dendrites pay?", control: str = CONTROL) -> str:
    """Return the page: what was run, how each arm fared over all cells, and every cell."""
    out = [f"# {title}", "", intro.rstrip(), "", *_summary(cells, control), ""]
    for task in dict.fromkeys(task for task, _, _ in cells):
        own = {key[1:]: cell for key, cell in cells.items() if key[0] == task}
        any_line = next(iter(next(iter(own.values())).lines.values()))
        steps = f"{any_line['steps']:,} optimizer steps in every arm"
        out += [f"## {task}", "", f"{_original(own)}; {steps}.", ""]
        for target in sorted({target for target, _ in own}, reverse=True):
            arms = {arm: cell for (t, arm), cell in own.items() if t == target}
            out += [*_table(target, arms, control), ""]
    return "\n".join(out).rstrip() + "\n"


def _original(own: dict[tuple[float, str], Cell]) -> str:
    bases = next(iter(own.values())).lines.values()
    mean = 100 * statistics.mean(line["base"]["test"] for line in bases)
    params = next(iter(bases))["base"]["params"]
    return f"Original network: {params:,} parameters, {mean:.2f} % on test"


def _summary(cells: Cells, control: str) -> list[str]:
    out = [f"| arm | cells | better than {control} | no difference seen | worse | mean, points |"]
    out += ["| --- | --- | --- | --- | --- | --- |"]
    for arm in dict.fromkeys(arm for _, _, arm in cells):
        found = [cell.against for (_, _, a), cell in cells.items() if a == arm]
        own = [difference for difference in found if difference is not None]
        if own:
            verdicts = [difference.verdict for difference in own]
            mean = statistics.mean(difference.mean for difference in own)
            counts = " | ".join(str(verdicts.count(v)) for v in (1, 0, -1))
            out.append(f"| {arm} | {len(own)} | {counts} | {mean:+.2f} |")
    runs = sum(len(cell.lines) for cell in cells.values())
    compared = sum(cell.against is not None for cell in cells.values())
    said = f"{runs:,} runs, {compared} comparisons with {control}"
    return [*out, "", f"{said}: {compared / 40:.0f} on each side are expected by chance alone."]


def _table(target: float, arms: dict[str, Cell], control: str) -> list[str]:
    seeds = sorted({len(cell.lines) for cell in arms.values()})
    out = [f"Target {target:.3g} of the parameters, {'-'.join(map(str, seeds))} seeds:", ""]
    out += [f"| arm | parameters | FLOPs | sets | test, % | against {control} | on validation |"]
    out += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for arm, cell in sorted(arms.items(), key=lambda entry: entry[0] != control):
        name = f"**{arm}**" if cell.against and cell.against.verdict > 0 else arm
        row = [
            name, f"{cell.mean('params'):,.0f}", f"{cell.mean('flops'):,.0f}",
            f"{cell.mean('sets'):.2g}", f"{100 * cell.mean('test'):.2f}",
            str(cell.against or ""), str(cell.against_val or ""),
        ]  # fmt: skip
        out.append(f"| {' | '.join(row)} |")
    return out


def plot(cells: Cells, path: Path, control: str = CONTROL) -> None:
    """Draw test accuracy against parameters, one panel for each task."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for task, axis in zip(tasks, axes.flat, strict=False):
        own = {key[1:]: cell for key, cell in cells.items() if key[0] == task}
        base = [line["base"] for line in next(iter(own.values())).lines.values()]
        level = 100 * statistics.mean(b["test"] for b in base)
        axis.axhline(level, color="0.6", linestyle="--", label="original")
        for number, arm in enumerate(dict.fromkeys([control, *PLOTTED])):
            points = sorted(
                (cell.mean("params"), 100 * cell.mean("test"))
                for (_, a), cell in own.items()
                if a == arm
            )
            if points:
                style = STYLES.get(arm, "o-")
                axis.plot(
                    *zip(*points, strict=True), style, color=f"C{number}", markersize=4, label=arm
                )
        axis.set(title=task, xscale="log", xlabel="parameters", ylabel="test accuracy, %")
        ticks = sorted({round(cell.mean("params")) for (_, a), cell in own.items() if a == control})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    _legend(figure)
    figure.savefig(path)
    plt.close(figure)


def _legend(figure: Any) -> None:
    """One legend of all panels, for no panel has every arm."""
    labelled = [axis.get_legend_handles_labels() for axis in figure.axes]
    pairs = (pair for handles, labels in labelled for pair in zip(labels, handles, strict=True))
    entries = dict(pairs)
    figure.legend(entries.values(), entries, loc="outside lower right", ncols=3, fontsize=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--intro", type=Path, help="text that stands first on the page")
    parser.add_argument("--title", default="Do dendrites pay?")
    parser.add_argument("--control", default=CONTROL, help="the arm that others are compared with")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(argv)
    cells = cells_of(map(json.loads, options.lines.read_text().splitlines()), options.control)
    if options.page:
        intro = options.intro.read_text() if options.intro else ""
        options.page.write_text(page(cells, intro, options.title, options.control))
    if options.plot:
        plot(cells, options.plot, options.control)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
