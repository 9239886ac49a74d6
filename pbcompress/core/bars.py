"""Bars before and after, one pair for each layer, as plans and comparisons draw them."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pbcompress.core.drawing import PRINTED
from pbcompress.core.text_tables import compact

if TYPE_CHECKING:
    from pbcompress.core.drawing import Axes

__all__ = ["ROW_INCHES", "Pair", "draw_bars", "short_tick"]

ROW_INCHES = 0.2
Pair = tuple[int | None, int | None]


def draw_bars(
    axes: "Axes",
    names: Sequence[str],
    pairs: Sequence[Pair],
    label: str,
    show: Callable[[int], str],
) -> None:
    """Draw a pair of bars for every name, the later one inside the former one.

    Where the later one is longer, it has another colour and is hatched.
    """
    places = range(len(names))
    before, after = ([pair[i] or 0 for pair in pairs] for i in (0, 1))
    more = [i for i in places if after[i] > before[i]]
    axes.barh(places, before, 0.72, color=PRINTED["quiet"], label="before")
    axes.barh(places, after, 0.5, color=PRINTED["accent"], label="after")
    if more:
        axes.barh(more, [after[i] for i in more], 0.5, color=PRINTED["worse"], hatch="///")
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
    axes.xaxis.set_major_formatter(short_tick)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def short_tick(value: float, _: object) -> str:
    """Return a number of an axis without zeros that say nothing: 2k, 1.5k."""
    return re.sub(r"\.0+(?=\D)|(?<=\.\d)0+(?=\D)", "", compact(round(value)))
