"""The picture of a page: test accuracy against parameters."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from scripts.accuracy.cells import CONTROL, Cell

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

__all__ = ["plot"]

PLOTTED = (
    *(CONTROL, "width, distilled", "correlation", "joint shared, cheap", "auto"),
    *("width, balanced", "auto, balanced", "correlation, balanced"),
)
CHOOSERS = ("auto", "auto, balanced")  # dashed: they lie on the control where they chose it


def plot(cells: Sequence[Cell], path: Path, control: str = CONTROL) -> None:
    """Draw test accuracy against parameters, one panel for each task."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for task, axis in zip(tasks, axes.flat, strict=False):
        _panel(axis, [cell for cell in cells if cell.task == task], control)
        axis.set(title=task, xscale="log", xlabel="parameters", ylabel="test accuracy, %")
        ticks = sorted({round(c.params) for c in cells if (c.task, c.arm) == (task, control)})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    _legend(figure)
    figure.savefig(path)
    plt.close(figure)


def _panel(axis: Any, cells: Sequence[Cell], control: str) -> None:
    axis.axhline(cells[0].base_test, color="0.6", linestyle="--", label="original")
    for number, arm in enumerate(dict.fromkeys([control, *PLOTTED])):
        points = sorted((cell.params, cell.test) for cell in cells if cell.arm == arm)
        if points:
            style = "x--" if arm in CHOOSERS else "o-"
            axis.plot(
                *zip(*points, strict=True), style, color=f"C{number}", markersize=4, label=arm
            )


def _legend(figure: Any) -> None:
    """One legend of all panels, because no panel has every arm."""
    labelled = [axis.get_legend_handles_labels() for axis in figure.axes]
    pairs = (pair for handles, labels in labelled for pair in zip(labels, handles, strict=True))
    entries = dict(pairs)
    figure.legend(entries.values(), entries, loc="outside lower right", ncols=3, fontsize=8)
