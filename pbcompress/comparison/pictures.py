"""Pictures of what a compression did: widths, cost by layer, and the metric against the size."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pbcompress.comparison.intervals import Estimate
from pbcompress.core.drawing import COLOURS, PRINTED, page_chart, write_picture
from pbcompress.costs.flop_counters import LayerCost
from pbcompress.errors import CompressionError
from pbcompress.report.tables import compact

if TYPE_CHECKING:
    from pbcompress.core.drawing import Axes, Figure

__all__ = ["Point", "accuracy_chart", "accuracy_picture", "layer_picture", "width_picture"]

ROW_INCHES = 0.2
CLOSE = 0.03  # of the axis: points nearer than this are drawn beside each other
ROLES = {"before": ("ink", "s"), "after": ("accent", "o"), "control": ("quiet", "D")}

Pair = tuple[int | None, int | None]


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


def width_picture(widths: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Write a bar for every layer: its width, and in it what remains of it.

    Args:
        widths: Width before and after, by layer, in the order of the network.
        path: A file that ends in .svg or .png.

    Raises:
        CompressionError: See `write_picture`.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        _bars(axes, list(widths), list(widths.values()), "output channels", "{:,}".format)
        if widths:
            figure.legend(loc="outside upper right", ncols=2, frameon=False)

    write_picture(path, "widths", (8.5, 0.9 + ROW_INCHES * len(widths)), draw)


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
    names = [name or "(the network)" for name in layers]
    panels: list[tuple[str, Callable[[LayerCost], int | None]]] = [
        ("output channels", lambda layer: layer.width),
        ("parameters", lambda layer: layer.params),
        ("FLOPs", lambda layer: layer.flops),
    ]

    def draw(figure: "Figure") -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True)
        for axes, (label, number) in zip(all_axes, panels, strict=True):
            pairs = [(_of(a, number), _of(b, number)) for a, b in layers.values()]
            _bars(axes, names, pairs, label, compact)
        if layers:
            handles, words = all_axes[0].get_legend_handles_labels()
            figure.legend(handles, words, loc="outside upper right", ncols=2, frameon=False)

    write_picture(path, "layers", (12, 1 + ROW_INCHES * len(layers)), draw)


def _of(layer: LayerCost | None, number: Callable[[LayerCost], int | None]) -> int | None:
    return None if layer is None else number(layer)


def _bars(
    axes: "Axes",
    names: Sequence[str],
    pairs: Sequence[Pair],
    label: str,
    show: Callable[[int], str],
) -> None:
    places = range(len(names))
    before, after = ([pair[i] or 0 for pair in pairs] for i in (0, 1))
    axes.barh(places, before, 0.72, color=PRINTED["quiet"], label="before")
    axes.barh(places, after, 0.5, color=PRINTED["accent"], label="after")
    for place, (was, now) in zip(places, pairs, strict=True):
        if was is None and now is None:
            continue
        texts = ["\N{EN DASH}" if number is None else show(number) for number in (was, now)]
        note = texts[0] if texts[0] == texts[1] else " \N{RIGHTWARDS ARROW} ".join(texts)
        axes.annotate(
            note,
            (max(was or 0, now or 0), place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max([*before, *after], default=1) * 1.35 or 1)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(_tick)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _tick(value: float, _: object) -> str:
    """Return a number of an axis without zeros that say nothing: 2k, 1.5k."""
    return re.sub(r"\.0+(?=\D)|(?<=\.\d)0+(?=\D)", "", compact(round(value)))


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
        axes.set_ylabel(metric)
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
        axes.plot(
            [place], [value], marker, color=colours[colour], ms=8, label=point.label, zorder=4
        )
    axes.set_xlim(0, right)
    axes.margins(y=0.15)
    axes.grid(axis="y")
    axes.xaxis.set_major_formatter(_tick)
