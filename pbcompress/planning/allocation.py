"""How wide every group is: a search over numbers alone, no tensors of the model.

Costs are evaluated in closed form, and a target is a bisection over one threshold, a greedy fill
of what is left, and an exchange where that is coarse. Several bounds hold at once: the load of a
network is the largest share of a bound that it uses. Where widths are rounded, they are chosen
among the multiples in all of this, so that rounding cannot break a bound.
"""

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from heapq import heapify, heappop, heapreplace
from operator import gt

from pbcompress.config.widths import WidthConfig
from pbcompress.costs.bounds import Bounds
from pbcompress.costs.closed_form import Widths
from pbcompress.planning.proportions import Preference
from pbcompress.structure.channel_groups import ChannelGroup

__all__ = [
    "FILL_GOAL",
    "all_choices",
    "allocate",
    "choices_of",
    "complete",
    "filled",
    "is_full",
    "narrowest",
]

FILL_GOAL = 0.98
BISECTIONS = 40
EXHAUSTIVE = 4096
COARSEST = 8
KINDS = 32


def choices_of(
    group: ChannelGroup, multiple: int, config: WidthConfig, gives_way: bool = False
) -> Widths:
    """Return the allowed widths of a group, in units, narrowest first.

    Args:
        group: The group.
        multiple: What its channels are a multiple of.
        config: Floors.
        gives_way: Whether widths may also lie between the floor and one multiple.
    """
    if group.pinned is not None:
        return [group.pinned]
    per_unit, width = group.channels_per_unit, group.width
    floor = max(math.ceil(config.min_width / per_unit), width - int(config.max_ratio * width))
    floor = min(max(floor, 1), width)
    allowed = {w for w in range(floor, width) if w * per_unit % multiple == 0}
    if gives_way:
        small = floor
        while small * per_unit < multiple and small < width:
            allowed.add(small)
            small *= 2
        allowed.add(floor)
    return sorted(allowed | {width})


def all_choices(
    groups: Sequence[ChannelGroup],
    multiples: Sequence[int],
    config: WidthConfig,
    gives_way: bool = False,
) -> list[Widths]:
    """Return the allowed widths of every group; see `choices_of`."""
    pairs = zip(groups, multiples, strict=True)
    return [choices_of(group, multiple, config, gives_way) for group, multiple in pairs]


def narrowest(
    groups: Sequence[ChannelGroup],
    multiples: Sequence[int],
    config: WidthConfig,
    gives_way: bool = False,
) -> Widths:
    """Return the smallest width in units that is allowed to each group; see `choices_of`."""
    return [choices[0] for choices in all_choices(groups, multiples, config, gives_way)]


def allocate(bounds: Bounds, preference: Preference, choices: Sequence[Widths]) -> Widths | None:
    """Return the width of every group so that all bounds hold, and one is nearly reached.

    Args:
        bounds: The closed forms and their limits.
        preference: How wide the groups are beside each other.
        choices: The allowed widths of every group, in units, narrowest first.

    Returns:
        Widths in units, or None if even the narrowest network breaks a bound.
    """
    widths = filled(bounds, preference, choices)
    if widths is None or is_full(bounds, widths):
        return widths
    return complete(bounds, preference, widths, choices)


def is_full(bounds: Bounds, widths: Widths) -> bool:
    """Tell whether the tightest bound is nearly reached."""
    return bounds.load(bounds.totals(widths)) >= FILL_GOAL


def complete(
    bounds: Bounds, preference: Preference, widths: Widths, choices: Sequence[Widths]
) -> Widths:
    """Return widths that come nearer to a bound, by leaving the order of the preference."""
    if math.prod(len(c) for c in choices) <= EXHAUSTIVE:
        return _nearest_of_all(bounds, widths, choices)
    widths = list(widths)
    _exchange(bounds, widths, choices)
    return widths if is_full(bounds, widths) else _stepped(bounds, preference, choices, widths)


def filled(bounds: Bounds, preference: Preference, choices: Sequence[Widths]) -> Widths | None:
    """Return the widths of the highest level that fits, filled up; None if no level does."""
    widths = [c[0] for c in choices]
    if bounds.load(bounds.totals(widths)) > 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        trial = [_nearest(c, preference.wanted(i, middle)) for i, c in enumerate(choices)]
        if bounds.load(bounds.totals(trial)) <= 1:
            low, widths = middle, trial
        else:
            high = middle
    _fill(bounds, preference, widths, choices)
    return widths


def _stepped(
    bounds: Bounds, preference: Preference, choices: Sequence[Widths], widths: Widths
) -> Widths:
    """Move one of the coarsest groups a step, fit all others to that; return the fullest network.

    The coarsest are those of which a step weighs most. Where a unit is an attention head with its
    part of every layer, no exchange of two groups makes up for it.
    """
    totals = bounds.totals(widths)
    best = (bounds.load(totals), widths)

    def weight(index: int) -> float:
        full = bounds.load(bounds.after(totals, index, choices[index][-1], widths))
        least = bounds.load(bounds.after(totals, index, choices[index][0], widths))
        return (full - least) / len(choices[index])

    for index in sorted(range(len(choices)), key=weight, reverse=True)[:COARSEST]:
        place = choices[index].index(widths[index])
        for step in (place + 1, place - 1):
            if 0 <= step < len(choices[index]) and best[0] < FILL_GOAL:
                held = [*choices[:index], [choices[index][step]], *choices[index + 1 :]]
                trial = filled(bounds, preference, held)
                if trial is not None:
                    best = max(best, (bounds.load(bounds.totals(trial)), trial))
    return best[1]


def _nearest(allowed: Widths, wanted: int) -> int:
    """Return the allowed width nearest to the wanted one, the narrower of two."""
    place = bisect_right(allowed, wanted)
    around = allowed[max(place - 1, 0) : place + 1]
    return min(around, key=lambda width: abs(width - wanted))


def _fill(
    bounds: Bounds, preference: Preference, widths: Widths, choices: Sequence[Widths]
) -> None:
    """Widen the groups that deserve it most, one step at a time, while that fits."""
    totals = bounds.totals(widths)
    queue = [
        (-preference.priority(i, widths[i]), i) for i, c in enumerate(choices) if widths[i] < c[-1]
    ]
    heapify(queue)
    while queue:
        index = queue[0][1]
        wider = choices[index][bisect_right(choices[index], widths[index])]
        trial = bounds.after(totals, index, wider, widths)
        if bounds.load(trial) > 1:
            heappop(queue)
            continue
        widths[index] = wider
        totals = trial
        if wider == choices[index][-1]:
            heappop(queue)
        else:
            heapreplace(queue, (-preference.priority(index, wider), index))


def _exchange(bounds: Bounds, widths: Widths, choices: Sequence[Widths]) -> None:
    """Narrow one group and widen another while that brings the load nearer to 1.

    The first step of narrowing at which `FILL_GOAL` is reached ends the search. Of groups that
    are alike, one or two are tried, so that the work does not grow with the square of the depth.
    """
    load = bounds.load(bounds.totals(widths))
    while load < FILL_GOAL:
        best = (load, list(widths))
        alike = _alike(bounds, widths, choices)
        others, totals = sorted(i for own in alike for i in own), bounds.totals(widths)
        moved = partial(_exchanged, bounds, list(widths), totals, choices, others)
        places = {own[0]: bisect_right(choices[own[0]], widths[own[0]]) - 1 for own in alike}
        open_groups = [  # at their least width another one can be widened
            i for i, place in places.items() if place and any(map(gt, moved(i, 0)[1], widths))
        ]
        for distance in range(1, max(len(c) for c in choices)):
            for narrow in open_groups:
                if places[narrow] >= distance:
                    found = moved(narrow, places[narrow] - distance)
                    best = max(best, found, key=lambda pair: _rank(pair[0], pair[1], widths))
            if best[0] >= FILL_GOAL:
                break
        if best[0] == load:
            return
        load, widths[:] = best


def _alike(bounds: Bounds, widths: Widths, choices: Sequence[Widths]) -> list[list[int]]:
    """Return the first two of every kind of groups: those at whose widths the same costs the same.

    In a deep network many layers are the same. Costs are compared at the least width, the next
    narrower and wider ones, and the largest. Where there are more than `KINDS` kinds, some stand
    for all.
    """
    totals, found = bounds.totals(widths), defaultdict(list)
    for index, allowed in enumerate(choices):
        place = bisect_right(allowed, widths[index])
        steps = {allowed[0], *allowed[max(place - 2, 0) : place + 1], allowed[-1]}
        costs = [(w, *bounds.after(totals, index, w, widths)) for w in sorted(steps)]
        found[len(allowed), widths[index], *costs].append(index)
    kinds = [own[:2] for own in found.values()]
    return kinds[:: math.ceil(len(kinds) / KINDS)]


def _rank(load: float, trial: Widths, widths: Widths) -> tuple[float, float, float]:
    """Return what is better the higher it is: load, up to the goal, then small moves.

    A move counts by its ratio: from 4 channels to 2 is further than from 40 to 30.
    """
    moves = [abs(math.log(a / b)) for a, b in zip(trial, widths, strict=True) if a != b]
    return (-1.0 if load > 1 else min(load, FILL_GOAL), -max(moves, default=0.0), -sum(moves))


def _exchanged(
    bounds: Bounds,
    widths: Widths,
    totals: Sequence[int],
    choices: Sequence[Widths],
    others: Sequence[int],
    narrow: int,
    place: int,
) -> tuple[float, Widths]:
    """Return the largest network that fits when a group takes its width at ``place``.

    One of the ``others`` is widened as far as it goes, where any can be.
    """
    trial = [*widths[:narrow], choices[narrow][place], *widths[narrow + 1 :]]
    totals = bounds.after(totals, narrow, trial[narrow], widths)
    narrowed = bounds.load(totals)
    best = (narrowed if narrowed <= 1 else 0.0, trial)  # narrower may cost more: see `Bounds`

    def load(index: int, width: int) -> float:
        return bounds.load(bounds.after(totals, index, width, trial))

    for wide in others:
        allowed = choices[wide]
        wider = allowed[bisect_right(allowed, trial[wide]) :] if wide != narrow else []
        count = bisect_right(wider, 1.0, key=partial(load, wide))
        if count:
            width = wider[count - 1]
            share = load(wide, width)
            if best[0] < share <= 1:
                best = (share, [*trial[:wide], width, *trial[wide + 1 :]])
    return best


def _nearest_of_all(bounds: Bounds, widths: Widths, choices: Sequence[Widths]) -> Widths:
    """Return the best combination of all by load and by its distance from ``widths``."""

    def rank(trial: Widths) -> tuple[float, float, float]:
        return _rank(bounds.load(bounds.totals(trial)), trial, widths)

    return max((list(trial) for trial in itertools.product(*choices)), key=rank)
