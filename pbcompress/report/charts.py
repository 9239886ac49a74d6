"""What the charts of the training show, and how it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pbcompress.core.drawing import COLOURS, page_chart
from pbcompress.core.markdown import without_controls
from pbcompress.core.text_tables import figure

if TYPE_CHECKING:
    from pbcompress.core.drawing import Axes

__all__ = ["Curve", "correlation_chart", "learning_chart", "metric_range", "score_chart"]

SHOWN = 0.93  # share of the epochs that the metric's axis spans, from the best on
MARKERS_UP_TO = 12


@dataclass(frozen=True)
class Curve:
    """The validation metric of one network, epoch by epoch.

    Attributes:
        values: One value an epoch.
        is_chosen: Whether this network became the result.
        kept: Index of the epoch whose weights were kept; None if it is not known.
        phases: First epoch and the one after the last, and whether dendrites learned.
    """

    values: Sequence[float]
    is_chosen: bool
    kept: int | None
    phases: Sequence[tuple[int, int, bool]]


def learning_chart(
    curves: Sequence[Curve],
    *,
    original: float | None,
    higher_is_better: bool,
    title: str,
) -> str:
    """Return the learning curve, wide for a desk and paper and narrow for a phone.

    Args:
        curves: At most one a network, each with at least one epoch.
        original: The metric of the original, drawn as a dashed line.
        higher_is_better: The metric's direction.
        title: What a screen reader says.
    """

    def draw(axes: "Axes") -> None:
        for curve in sorted(curves, key=lambda c: c.is_chosen):
            _draw_curve(axes, curve, higher_is_better)
        _mark_phases(axes, curves)
        if original is not None:
            axes.axhline(original, color=COLOURS["ink"], lw=1, ls=(0, (4, 3)), zorder=2.5)
        values = [value for curve in curves for value in curve.values]
        known = values if original is None else [*values, original]
        axes.set_ylim(metric_range(known, higher_is_better))
        longest = max(len(curve.values) for curve in curves)
        axes.set_xlim(0.5, max(longest, 2) + 0.5)

    return page_chart("learning", draw, title, wide=(880, 340))


def correlation_chart(phases: Sequence[tuple[Sequence[float], bool]], *, title: str) -> str:
    """Return the mean |r| of the dendrites by epoch.

    Args:
        phases: The values of each dendrite phase, at least one, and whether its set was kept.
        title: What a screen reader says.
    """

    def draw(axes: "Axes") -> None:
        for values, is_kept in phases:
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=COLOURS["dendrite" if is_kept else "quiet"],
                lw=2.2 if is_kept else 1.4,
                marker="o",
                ms=4,
            )
        axes.set_ylim(0, max(*(max(values) * 1.1 for values, _ in phases), 0.01))
        axes.set_xlim(0.8, max(len(values) for values, _ in phases) + 0.2)

    return page_chart("correlation", draw, title, wide=(640, 220))


def score_chart(phases: Sequence[tuple[Mapping[str, Sequence[float]], bool]], *, title: str) -> str:
    """Return how |r| spreads over the nodes of each layer: one line for each dendrite phase.

    Args:
        phases: By layer, the eleven deciles of |r|, and whether the set was kept. All phases have
            the same layers, at least one.
        title: What a screen reader says.
    """
    names = list(phases[0][0])
    shown = [without_controls(name) for name in names]

    def draw(axes: "Axes") -> None:
        for number, (scores, is_kept) in enumerate(phases):
            colour = COLOURS["dendrite" if is_kept else "quiet"]
            shift = 0.6 * ((number + 1) / (len(phases) + 1) - 0.5)
            for place, name in enumerate(names):
                deciles = scores[name]
                axes.plot(deciles[::10], [place + shift] * 2, color=colour, lw=1)
                axes.plot(deciles[1:10:8], [place + shift] * 2, color=colour, lw=3.4)
                axes.plot(deciles[5], place + shift, color=colour, marker="o", ms=5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), shown)
        axes.set_xlim(left=0)

    height = 70 + 26 * len(names)
    return page_chart("scores", draw, title, wide=(640, height), label="|r|")


def metric_range(values: Sequence[float], higher_is_better: bool) -> tuple[float, float]:
    """Return an axis that shows the differences that count: the worst first epochs lie outside.

    Example:
        >>> metric_range([0.1] + [0.90 + i / 1000 for i in range(30)], True)[0] > 0.8
        True
    """
    ordered = sorted(values, reverse=higher_is_better)
    last = len(ordered) - 1
    best, worst = ordered[0], ordered[int(SHOWN * last) if last > MARKERS_UP_TO else last]
    margin = 0.12 * abs(best - worst) or 0.02 * abs(best) or 0.5
    return min(best, worst) - margin, max(best, worst) + 1.4 * margin


def _draw_curve(axes: "Axes", curve: Curve, higher_is_better: bool) -> None:
    epochs = range(1, len(curve.values) + 1)
    colour = COLOURS["accent" if curve.is_chosen else "quiet"]
    axes.plot(
        epochs,
        curve.values,
        color=colour,
        lw=2.2 if curve.is_chosen else 1.4,
        marker="o" if len(epochs) <= MARKERS_UP_TO else "",
        ms=4,
        zorder=4 if curve.is_chosen else 3,
    )
    if curve.kept is None:
        return
    value = curve.values[curve.kept]
    axes.plot(
        [curve.kept + 1],
        [value],
        "o",
        color=colour,
        ms=8.5 if curve.is_chosen else 7,
        mec=COLOURS["surface"],
        mew=1.5,
        zorder=5,
    )
    if curve.is_chosen:
        axes.annotate(
            figure(value),
            (curve.kept + 1, value),
            (0, 9 if higher_is_better else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if higher_is_better else "top",
            color=COLOURS["ink"],
            annotation_clip=False,
            zorder=6,
        )


def _mark_phases(axes: "Axes", curves: Sequence[Curve]) -> None:
    restarts: set[int] = set()
    for curve in curves:
        for first, end, is_dendrite in curve.phases:
            if is_dendrite:
                axes.axvspan(first + 0.5, end + 0.5, color=COLOURS["dendrite"], alpha=0.16, lw=0)
            if first:
                restarts.add(first)
    for epoch in sorted(restarts):
        axes.axvline(epoch + 0.5, color=COLOURS["muted"], lw=0.7, alpha=0.6, zorder=1)
