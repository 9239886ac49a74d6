"""The picture of the page: how much of the saved multiply-adds is saved time.

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

STYLES = {DEFAULT: ("o", "C0"), PEER: ("D", "C1")}


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw speed-up against FLOP reduction: a panel for each target, a dot for each network."""
    timed = [line for line in lines if "network" in line]
    targets = sorted({line["target"] for line in timed}, reverse=True)
    width = max(1, len(targets))
    figure, axes = plt.subplots(
        1, width, figsize=(5.4 * width, 4.8), squeeze=False, layout="constrained"
    )
    for target, axis in zip(targets, axes.flat, strict=False):
        _panel(axis, rows_of(timed, target))
        axis.set_title(f"{target:.0%} of the parameters")
    axes.flat[0].legend(loc="upper left", fontsize=8)
    figure.suptitle(
        "The nearer to the line, the more of the saved FLOPs is saved time", fontsize=10
    )
    figure.savefig(path)
    plt.close(figure)


def _panel(axis: Any, rows: Rows) -> None:
    ends = [0.8, 1.0]
    for arm, (marker, color) in STYLES.items():
        own = {name: arms[arm] for name, arms in rows.items() if speed_up(arms.get(arm))}
        points = [(reduction(line), speed_up(line)) for line in own.values()]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, color=color, s=22, label=arm)
        for name, point in zip(own, points, strict=True):
            ends += point
            if arm == DEFAULT:
                axis.annotate(
                    name, point, (4, -3), textcoords="offset points", fontsize=7, color="0.3"
                )
    limits = (0.95 * min(ends), 1.05 * max(ends))
    axis.plot(limits, limits, color="0.6", linewidth=1, label="all of it")
    axis.axhline(1.0, color="0.6", linewidth=1, linestyle=":")
    axis.set(xlabel="FLOP reduction", ylabel="speed-up in ONNX Runtime, batch 1")
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    given = Path(sys.argv[2]) if sys.argv[2:] else Path(__file__).with_name(PACKED)
    plot(read_lines(given), Path(sys.argv[1]))
