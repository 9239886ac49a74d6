"""The picture of the page: how fast each network is, beside the multiply-adds that it saves.

python -m scripts.speed.plot docs/benchmarks/speed.svg
python -m scripts.speed.plot speed.svg lines.jsonl
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from scripts.lines import PACKED, Line, read_lines
from scripts.speed.arms import DEFAULT, PEER
from scripts.speed.tables import Rows, reduction, rows_of, speed_up

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["plot"]

STYLES = {PEER: ("D", "#b76a00"), DEFAULT: ("o", "#2454c6")}  # the colours of the README's picture
SAVED = "#8d95a3"


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw a panel for each target, with a row for each network."""
    timed = [line for line in lines if "network" in line]
    targets = sorted({line["target"] for line in timed}, reverse=True)
    count = len({line["network"] for line in timed})
    figure, axes = plt.subplots(
        1,
        max(1, len(targets)),
        figsize=(5.2 * max(1, len(targets)), 1.6 + 0.3 * count),
        squeeze=False,
        layout="constrained",
    )
    for target, axis in zip(targets, axes.flat, strict=False):
        _panel(axis, rows_of(timed, target))
        axis.set_title(f"{target:.0%} of the parameters", fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def _panel(axis: Any, rows: Rows) -> None:
    """Draw a row for each network, the fastest at the top."""
    able = {name: arms for name, arms in rows.items() if speed_up(arms.get(DEFAULT))}
    names = sorted(able, key=lambda name: speed_up(able[name][DEFAULT]) or 0.0)
    saved = [reduction(able[name][DEFAULT]) for name in names]
    label = "saved multiply-adds of the default"
    axis.scatter(saved, range(len(names)), marker="|", color=SAVED, s=90, label=label)
    for arm, (marker, color) in STYLES.items():
        points = [
            (speed, row)
            for row, name in enumerate(names)
            if (speed := speed_up(able[name].get(arm))) is not None
        ]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, color=color, s=26, label=arm)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.axvline(1.0, color=SAVED, linewidth=1, linestyle=":")
    axis.set_xlabel("times as fast as the original (ONNX Runtime, batch 1)", fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    given = Path(sys.argv[2]) if sys.argv[2:] else Path(__file__).with_name(PACKED)
    plot(read_lines(given), Path(sys.argv[1]))
