"""Pictures of what a compression did: widths, cost by layer, and the metric against the size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pbcompress.comparison.intervals import Estimate
from pbcompress.core.bars import ROW_INCHES, draw_bars, short_tick
from pbcompress.core.drawing import COLOURS, PRINTED, page_chart, write_picture
from pbcompress.core.markdown import without_controls
from pbcompress.core.text_tables import compact
from pbcompress.costs.flop_counters import LayerCost
from pbcompress.errors import CompressionError

if TYPE_CHECKING:
    from pbcompress.core.drawing import Axes, Figure

__all__ = ["Point", "accuracy_chart", "accuracy_picture", "layer_picture"]

CLOSE = 0.03  # of the axis: points nearer than this are drawn beside each other
ROLES = {"before": ("ink", "s"), "after": ("accent", "o"), "control": ("quiet", "D")}


@dataclass(frozen=True)
class Point:
    """One network in the picture of metric against size.

    Attributes:
        label: In words.
        role: "before", "after" or "control".
        params: Its size.
        score: Its metric; None: it is not shown.
    """

    label: str
    role: str
    params: int
    score: Estimate | None


def layer_picture(
    layers: Mapping[str, tuple[LayerCost | None, LayerCost | None]], path: Path
) -> None:
    """Write width, parameters and FLOPs of every layer, before and after.

    Args:
        layers: The layers of two networks, None where one of them has none of the name.
        path: A file that ends in .svg or .png.

    Raises:
        CompressionError: See `write_picture`.
    """
    names = [without_controls(name) or "(the network)" for name in layers]
    panels: list[tuple[str, Callable[[LayerCost], int | None]]] = [
        ("output channels", lambda layer: layer.width),
        ("parameters", lambda layer: layer.params),
        ("FLOPs", lambda layer: layer.flops),
    ]

    def draw(figure: "Figure") -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True)
        for axes, (label, number) in zip(all_axes, panels, strict=True):
            pairs = [(_of(a, number), _of(b, number)) for a, b in layers.values()]
            draw_bars(axes, names, pairs, label, compact)
        if layers:
            handles, words = all_axes[0].get_legend_handles_labels()
            figure.legend(handles, words, loc="outside upper right", ncols=2, frameon=False)

    write_picture(path, "layers", (12, 1 + ROW_INCHES * len(layers)), draw)


def _of(layer: LayerCost | None, number: Callable[[LayerCost], int | None]) -> int | None:
    return None if layer is None else number(layer)


def accuracy_picture(points: Sequence[Point], metric: str, path: Path) -> None:
    """Write the metric against the number of parameters, with intervals.

    Args:
        points: The networks.
        metric: Its name.
        path: A file that ends in .svg or .png.

    Raises:
        CompressionError: No network has a metric; also see `write_picture`.
    """
    shown = [point for point in points if point.score]
    if not shown:
        raise CompressionError(
            "A picture of the metric against size was asked for, and no metric was measured. Give "
            "data to compare."
        )

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _scatter(axes, shown, PRINTED | {"quiet": "#8d95a3"})
        axes.set_xlabel("parameters")
        axes.set_ylabel(without_controls(metric))
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=1, frameon=False)

    write_picture(path, "accuracy", (7, 4.6), draw)


def accuracy_chart(points: Sequence[Point], *, title: str) -> str:
    """Return the same for a page.

    Args:
        points: The networks, at least one of them with a metric.
        title: What a screen reader says.
    """
    shown = [point for point in points if point.score]
    return page_chart(
        "accuracy",
        lambda axes: _scatter(axes, shown, COLOURS),
        title,
        wide=(640, 260),
        label="parameters",
    )


def _scatter(axes: "Axes", points: Sequence[Point], colours: Mapping[str, str]) -> None:
    right = 1.12 * max(point.params for point in points)
    drawn: list[float] = []
    for point in points:
        assert point.score is not None
        colour, marker = ROLES[point.role]
        place = float(point.params)
        while any(abs(place - other) < CLOSE * right for other in drawn):
            place += CLOSE * right
        drawn.append(place)
        value, low, high = point.score.value, point.score.low, point.score.high
        if low is not None and high is not None:
            axes.plot([place, place], [low, high], color=colours[colour], lw=2, zorder=3)
        label = without_controls(point.label)
        axes.plot([place], [value], marker, color=colours[colour], ms=8, label=label, zorder=4)
    axes.set_xlim(0, right)
    axes.margins(y=0.15)
    axes.grid(axis="y")
    axes.xaxis.set_major_formatter(short_tick)
