"""Widths in multiples that give way: a target is used up, and no layer is far from its share.

Where there are many groups, what rounding takes from one another gets. Where there are few, all
ways to round them are tried. What is then left goes to as few groups as will do, and these leave
the multiples: for half of one first.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from pbcompress.config.widths import WidthConfig
from pbcompress.costs.bounds import Bounds
from pbcompress.costs.closed_form import Widths
from pbcompress.planning.allocation import (
    FILL_GOAL,
    all_choices,
    allocate,
    choices_of,
    complete,
    filled,
    is_full,
)
from pbcompress.planning.proportions import Preference
from pbcompress.structure.channel_groups import ChannelGroup

__all__ = ["LEAST", "allocate_rounded", "finer"]

FEW = 6  # groups: all ways to round them are tried
FARTHEST = 1.34  # a group moves by no larger factor to stay at a multiple: three blocks to four
# What leaving a multiple is as bad as, as a width that is this part off, by halvings: half a block
# is computed as a whole one, and less takes another way.
HALVINGS = (0.1, 0.5, 0.6)
UNUSED = 10.0  # the same for a bound of which nothing is used
LEAST = 0.97  # of a bound that is used
TOO_COARSE = 0.7  # of a group's logarithmic distance: it is better to leave the multiples


def allocate_rounded(
    groups: Sequence[ChannelGroup],
    bounds: Bounds,
    preference: Preference,
    multiples: Sequence[int],
    config: WidthConfig,
) -> Widths | None:
    """Return the width of every group, in multiples wherever the bounds allow it.

    Args:
        groups: The channel groups.
        bounds: The closed forms and their limits.
        preference: How wide the groups are beside each other.
        multiples: What the channels of each group should be a multiple of.
        config: Floors.

    Returns:
        Widths in units, or None if even the narrowest network breaks a bound.
    """
    if sum(group.pinned is None for group in groups) <= FEW:
        ideal = allocate(bounds, preference, [choices_of(g, 1, config) for g in groups])
        rounded = ideal and _nearest(groups, bounds, ideal, multiples, config)
        if rounded or ideal is None:
            return rounded
    choices = all_choices(groups, multiples, config, gives_way=True)
    widths = filled(bounds, preference, choices)
    if widths is None or is_full(bounds, widths):
        return widths
    completed = complete(bounds, preference, widths, choices)
    if max(multiples) == 1 or (
        is_full(bounds, completed) and _farthest(widths, completed) <= FARTHEST
    ):
        return completed
    _loosen(bounds, widths, groups, multiples, config)
    if is_full(bounds, widths):
        return widths
    return allocate_rounded(groups, bounds, preference, finer(multiples), config)


def finer(multiples: Sequence[int]) -> list[int]:
    """Return halves of multiples, at least 1."""
    return [max(multiple // 2, 1) for multiple in multiples]


def _farthest(old: Widths, new: Widths) -> float:
    """Return the largest factor by which a group is wider or narrower."""
    return max(max(a / b, b / a) for a, b in zip(old, new, strict=True))


def _nearest(
    groups: Sequence[ChannelGroup],
    bounds: Bounds,
    ideal: Widths,
    multiples: Sequence[int],
    config: WidthConfig,
) -> Widths | None:
    """Return the widths nearest to the ideal of which at most one is no multiple, or None."""
    options = [
        _around(choices, wanted)
        for choices, wanted in zip(all_choices(groups, multiples, config, True), ideal, strict=True)
    ]
    smaller = [
        _halved(group, multiple, config) for group, multiple in zip(groups, multiples, strict=True)
    ]
    best: tuple[float, Widths] = (math.inf, [])
    for some in itertools.product(*options):
        widths = list(some)
        for penalty, trial in _completions(bounds, widths, smaller):
            distances = [abs(math.log(a / b)) for a, b in zip(trial, ideal, strict=True)]
            if max(distances) <= TOO_COARSE:
                best = min(best, (sum(distances) + penalty, trial))
    return best[1] or None


def _around(choices: Widths, wanted: int) -> set[int]:
    """Return the allowed widths next to the wanted one, on both sides."""
    return {
        max((w for w in choices if w <= wanted), default=choices[0]),
        min((w for w in choices if w >= wanted), default=choices[-1]),
    }


def _halved(group: ChannelGroup, multiple: int, config: WidthConfig) -> list[Widths]:
    """Return the allowed widths in halves of a multiple, in quarters and in eighths."""
    steps = [multiple >> number for number in range(1, len(HALVINGS) + 1)]
    return [choices_of(group, step, config) for step in steps if step]


def _completions(
    bounds: Bounds, widths: Widths, smaller: Sequence[Sequence[Widths]]
) -> Iterator[tuple[float, Widths]]:
    """Yield widths that use up a bound, with what is to be said against them.

    Args:
        bounds: The closed forms and their limits.
        widths: In multiples.
        smaller: For each group, its allowed widths in smaller multiples; see `_halved`.
    """
    totals = bounds.totals(widths)
    if LEAST <= bounds.load(totals) <= 1:
        yield UNUSED * (1 - bounds.load(totals)), widths
    for index, halved in enumerate(smaller):

        def load(width: int, index: int = index) -> float:
            return bounds.load(bounds.after(totals, index, width, widths))

        for penalty, choices in zip(HALVINGS, halved, strict=False):
            count = bisect_right(choices, 1.0, key=load)
            width = choices[count - 1] if count else widths[index]
            share = load(width)
            if LEAST <= share <= 1:
                against = penalty + UNUSED * (1 - share)
                yield against, [*widths[:index], width, *widths[index + 1 :]]


def _loosen(
    bounds: Bounds,
    widths: Widths,
    groups: Sequence[ChannelGroup],
    multiples: Sequence[int],
    config: WidthConfig,
) -> None:
    """Widen single groups beyond their multiple until the load reaches `FILL_GOAL`.

    One group alone is tried first; half the multiple before a quarter of it, and the groups whose
    units cost least before the others.
    """
    load = bounds.load(bounds.totals(widths))
    while load < FILL_GOAL:
        best, steps = (load, widths), multiples
        while max(steps) > 1 and best[0] < FILL_GOAL:
            steps = finer(steps)
            choices = all_choices(groups, steps, config)
            best = max(best, _widened(bounds, widths, choices), key=lambda pair: pair[0])
        if best[0] == load:
            return
        load, widths[:] = best


def _widened(bounds: Bounds, widths: Widths, choices: Sequence[Widths]) -> tuple[float, Widths]:
    """Return the first network that reaches `FILL_GOAL` by one wider group, or the largest."""
    totals = bounds.totals(widths)
    best = (0.0, widths)

    def load(index: int, width: int) -> float:
        return bounds.load(bounds.after(totals, index, width, widths))

    open_groups = [i for i, allowed in enumerate(choices) if widths[i] < allowed[-1]]
    for index in sorted(open_groups, key=lambda i: load(i, widths[i] + 1)):
        fitting = [w for w in choices[index] if w > widths[index] and load(index, w) <= 1]
        if fitting:
            share = load(index, fitting[-1])
            if share > best[0]:
                best = (share, [*widths[:index], fitting[-1], *widths[index + 1 :]])
            if share >= FILL_GOAL:
                break
    return best
