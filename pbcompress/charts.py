"""Charts: inline SVG that takes its colours from the page, and pictures in files of their own.

The only module on matplotlib.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbcompress.errors import CompressionError
from pbcompress.tensorfile import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Curve",
    "correlation_chart",
    "learning_chart",
    "metric_range",
    "score_chart",
    "width_picture",
]

# matplotlib knows no CSS variables: it draws in these colours, and each is then replaced
COLOURS = {
    "accent": "#010102",
    "quiet": "#010103",
    "dendrite": "#010104",
    "ink": "#010105",
    "muted": "#010106",
    "rule": "#010107",
    "surface": "#010108",
}
PRINTED = {  # of a picture that lies in no page
    "accent": "#2454c6",
    "quiet": "#cdd2da",
    "muted": "#5b616c",
    "rule": "#e2e3e7",
    "page": "#ffffff",
}
ROW_INCHES = 0.2
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

    return _both_sizes("learning", draw, title, wide=(880, 340))


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

    return _both_sizes("correlation", draw, title, wide=(640, 220))


def score_chart(phases: Sequence[tuple[Mapping[str, Sequence[float]], bool]], *, title: str) -> str:
    """Return how |r| spreads over the nodes of each layer: one line for each dendrite phase.

    Args:
        phases: By layer, the eleven deciles of |r|, and whether the set was kept. All phases have
            the same layers, at least one.
        title: What a screen reader says.
    """
    names = list(phases[0][0])

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
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(left=0)

    height = 70 + 26 * len(names)
    return _both_sizes("scores", draw, title, wide=(640, height), label="|r|")


def width_picture(widths: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Write a bar for every layer: its width, and in it what remains of it.

    Args:
        widths: Width before and after, by layer, in the order of the network.
        path: A file that ends in .svg or .png.

    Raises:
        CompressionError: The ending is another one, matplotlib is not installed, or the file
            cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise CompressionError(
            f"A picture was to be written to {path}; it can be an .svg or a .png. Name one of them."
        )
    try:
        content = _width_bytes(widths, kind)
    except ImportError as err:
        raise CompressionError(
            "A picture needs matplotlib, which is not installed. Install pbcompress[report]."
        ) from err
    write_bytes(path, content)


def _width_bytes(widths: Mapping[str, tuple[int, int]], kind: str) -> bytes:
    with _own_settings("widths", PRINTED):
        from matplotlib.figure import Figure

        height = 0.9 + ROW_INCHES * len(widths)
        figure = Figure(figsize=(8.5, height), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(widths))
        before, after = zip(*widths.values(), strict=True) if widths else ((), ())
        axes.barh(places, before, 0.72, color=PRINTED["quiet"], label="before")
        axes.barh(places, after, 0.72, color=PRINTED["accent"], label="after")
        for place, (was, now) in zip(places, widths.values(), strict=True):
            note = f"{was:,}" if was == now else f"{was:,} \u2192 {now:,}"
            axes.annotate(
                note, (was, place), (5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_yticks(places, list(widths), fontsize=9)
        axes.set_ylim(len(widths) - 0.4, -0.6)
        axes.set_xlim(0, max(before, default=1) * 1.16)
        axes.set_xlabel("output channels")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        if widths:
            figure.legend(loc="outside upper right", ncols=2, frameon=False)
        content = BytesIO()
        dated = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=160, metadata=dated)
    return content.getvalue()


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
            f"{value:.4f}",
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


def _both_sizes(
    name: str,
    draw: Callable[["Axes"], None],
    title: str,
    wide: tuple[int, int],
    label: str = "epoch",
) -> str:
    """Draw for a desk or paper, and for a phone; the page shows one of them."""
    narrow = (340, 240 if label == "epoch" else wide[1])
    return "".join(
        _svg(f"{name}-{kind}", *size, draw, title, label)
        for kind, size in (("wide", wide), ("narrow", narrow))
    )


def _style(colours: Mapping[str, str]) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "font.size": 12.0,
        "axes.edgecolor": colours["rule"],
        "axes.facecolor": "none",
        "axes.labelcolor": colours["muted"],
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.formatter.useoffset": False,
        "figure.facecolor": colours.get("page", "none"),
        "grid.color": colours["rule"],
        "grid.linewidth": 0.7,
        "lines.solid_capstyle": "round",
        "xtick.color": colours["rule"],
        "xtick.labelcolor": colours["muted"],
        "ytick.left": False,
        "ytick.labelcolor": colours["muted"],
    }


@contextmanager
def _own_settings(salt: str, colours: Mapping[str, str]) -> Iterator[None]:
    """Draw by our settings alone, and leave the user's as they were."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_style(colours), "svg.hashsalt": salt})
        yield


def _svg(
    name: str, width: int, height: int, draw: Callable[["Axes"], None], title: str, label: str
) -> str:
    with _own_settings(name, COLOURS):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        is_by_epoch = label == "epoch"
        axes.grid(axis="y" if is_by_epoch else "x")
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        most = 8 if width > 400 else 5
        axes.xaxis.set_major_locator(MaxNLocator(most, integer=is_by_epoch))
        if is_by_epoch:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        text = StringIO()
        nothing: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=dict(nothing))
    return _for_page(text.getvalue(), name, width, height, title)


def _for_page(text: str, name: str, width: int, height: int, title: str) -> str:
    """Turn a file of matplotlib's into an element of a page: own ids, its colours, its fonts."""
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"xlink:href=", "href=", body)
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*; ", "", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r">\s+<", "><", body).strip()
    size = name.rsplit("-", 1)[1]
    return (
        f'<svg class="chart {size}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>{body}\n'
    )
