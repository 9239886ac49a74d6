"""The picture of a frontier: the metric against what a network costs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pbcompress.core.bars import short_tick
from pbcompress.core.drawing import PRINTED, write_picture
from pbcompress.core.markdown import without_controls
from pbcompress.errors import CompressionError
from pbcompress.report.headline import speed
from pbcompress.runs.contenders import Score, Split
from pbcompress.runs.facts import RunFacts

if TYPE_CHECKING:
    from pbcompress.core.drawing import Axes, Figure

__all__ = ["frontier_picture"]

SPLITS: dict[Split, tuple[str, str]] = {
    "val": ("validation", PRINTED["muted"]),
    "test": ("test", PRINTED["accent"]),
}


def frontier_picture(runs: Sequence[RunFacts], path: Path) -> None:
    """Write the metric of original and results against each of their costs.

    Args:
        runs: Of one original.
        path: A file that ends in .svg or .png.

    Raises:
        CompressionError: No metric was measured; also see `write_picture`.
    """
    scores = [run.after.score for run in runs if run.after.score]
    first = runs[0].before.score
    if not scores or first is None:
        raise CompressionError(
            "A picture of the metric against size was asked for, and no metric was measured. Give "
            "the frontier data with labels."
        )
    panels = dict(_panels(runs))

    def draw(figure: "Figure") -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True)
        for axes, (label, sizes) in zip(all_axes, panels.items(), strict=True):
            _draw_panel(axes, sizes, [first, *scores])
            axes.set_xlabel(label)
        all_axes[0].set_ylabel(without_controls(runs[0].metric.name))
        handles, words = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside upper right", ncols=4, frameon=False)

    write_picture(path, "frontier", (4.2 * len(panels), 4), draw)


def _panels(runs: Sequence[RunFacts]) -> Iterator[tuple[str, list[float]]]:
    """Yield each cost with its unit: of the original, then of every result."""
    before, after = runs[0].before.cost, [run.after.cost for run in runs]
    yield "parameters", [before.params, *(cost.params for cost in after)]
    yield "FLOPs", [before.flops, *(cost.flops for cost in after)]
    speeds = [found for run in runs if (found := speed(run))]
    if len(speeds) == len(runs):  # each by its own timing of the original
        known = " or ".join(sorted({found.known for found in speeds}))
        yield f"time of a run, {known}", [1, *(1 / found.ratio for found in speeds)]


def _draw_panel(axes: "Axes", sizes: Sequence[float], scores: Sequence[Score]) -> None:
    for split, (label, colour) in SPLITS.items():
        values = [value for score in scores if (value := score.on(split)) is not None]
        if len(values) < len(scores):
            continue
        pairs = sorted(zip(sizes[1:], values[1:], strict=True))
        axes.plot(*zip(*pairs, strict=True), "o-", color=colour, ms=5, lw=1.6, label=label)
        axes.plot(sizes[0], values[0], "s", color=colour, ms=8, label=f"{label}: the original")
    axes.set_xlim(0, 1.06 * max(sizes))
    axes.margins(y=0.12)
    axes.grid()
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    if max(sizes) > 100:  # counts, not shares
        axes.xaxis.set_major_formatter(short_tick)
