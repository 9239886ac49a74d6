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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import Tensor

from pbcompress.config import WidthConfig
from pbcompress.costs import Widths
from pbcompress.grouping import ChannelGroup

__all__ = ["Bounds", "Cost", "allocate", "narrowest"]

FILL_GOAL = 0.98
BISECTIONS = 40
EXHAUSTIVE = 4096
COARSEST = 8


class Cost(Protocol):
    """A closed form in the widths of all groups."""

    def total(self, widths: Widths) -> int:
        """Return the cost of the whole network."""

    def change(self, index: int, width: int, widths: Widths) -> int:
        """Return how `total` changes when one group takes another width."""


@dataclass(frozen=True)
class Bounds:
    """Closed forms of costs, and the most that each may be.

    A cost need not rise with every width: grouped dendrites are cheap where the groups divide it.

    Args:
        costs: Cost models over the same groups.
        limits: Upper bound on each.
    """

    costs: Sequence[Cost]
    limits: Sequence[int]

    def totals(self, widths: Widths) -> list[int]:
        """Return every cost of a network."""
        return [cost.total(widths) for cost in self.costs]

    def load(self, totals: Sequence[int]) -> float:
        """Return the largest share of a bound that costs take; at most 1 fits."""
        shares = [t / max(b, 1) for t, b in zip(totals, self.limits, strict=True)]
        return max(shares)

    def after(self, totals: Sequence[int], index: int, width: int, widths: Widths) -> list[int]:
        """Return the costs when one group takes another width."""
        changes = [cost.change(index, width, widths) for cost in self.costs]
        return [t + c for t, c in zip(totals, changes, strict=True)]


def _choices(group: ChannelGroup, config: WidthConfig, gives_way: bool) -> Widths:
    """Return the allowed widths of a group, in units, narrowest first."""
    if group.pinned is not None:
        return [group.pinned]
    per_unit, width, multiple = group.channels_per_unit, group.width, _multiple(config)
    floor = max(math.ceil(config.min_width / per_unit), width - int(config.max_ratio * width))
    floor = min(max(floor, 1), width)
    allowed = {w for w in range(floor, width) if w * per_unit % multiple == 0}
    if gives_way:  # below one multiple, and down to the floor
        small = floor
        while small * per_unit < multiple and small < width:
            allowed.add(small)
            small *= 2
        allowed.add(floor)
    return sorted(allowed | {width})


def _multiple(config: WidthConfig) -> int:
    return 1 if config.round_to == "auto" else int(config.round_to)


def narrowest(
    groups: Sequence[ChannelGroup], config: WidthConfig, gives_way: bool = False
) -> Widths:
    """Return the smallest width in units that ``config`` allows each group; see `allocate`."""
    return [_choices(group, config, gives_way)[0] for group in groups]


def allocate(
    groups: Sequence[ChannelGroup],
    bounds: Bounds,
    scores: Sequence[Tensor],
    config: WidthConfig,
    gives_way: bool = False,
) -> Widths | None:
    """Return the width of every group so that all bounds hold, and one is nearly reached.

    Args:
        groups: The channel groups.
        bounds: The closed forms and their limits.
        scores: Importance of every unit of every group, each with mean 1.
        config: Allocation, floors and rounding.
        gives_way: Whether widths may also lie between the floor and the multiple that they are
            rounded to, and single groups leave the multiples where no bound would be reached.

    Returns:
        Widths in units, or None if even the narrowest network breaks a bound.
    """
    choices = [_choices(group, config, gives_way) for group in groups]
    widths = _filled(groups, bounds, scores, choices, config)
    multiple = _multiple(config)
    if widths is None or bounds.load(bounds.totals(widths)) >= FILL_GOAL:
        return widths
    if gives_way and multiple > 1:
        _loosen(bounds, widths, groups, config)
        if bounds.load(bounds.totals(widths)) >= FILL_GOAL:
            return widths
        finer = replace(config, round_to=multiple // 2)
        return allocate(groups, bounds, scores, finer, gives_way)
    if math.prod(len(c) for c in choices) <= EXHAUSTIVE:
        return _nearest_of_all(bounds, widths, choices)
    _exchange(bounds, widths, choices)
    if bounds.load(bounds.totals(widths)) < FILL_GOAL:
        widths = _stepped(groups, bounds, scores, choices, config, widths)
    return widths


def _filled(
    groups: Sequence[ChannelGroup],
    bounds: Bounds,
    scores: Sequence[Tensor],
    choices: Sequence[Widths],
    config: WidthConfig,
) -> Widths | None:
    """Return the widths of the highest level that fits, filled up; None if no level does."""
    ranked = [sorted(s.tolist(), reverse=True) for s in scores]
    ratios = _ratios(groups, bounds, config.allocation)
    desired = _levels(groups, ranked, choices, config.allocation, ratios)
    widths = [c[0] for c in choices]
    if bounds.load(bounds.totals(widths)) > 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        trial = desired(middle)
        if bounds.load(bounds.totals(trial)) <= 1:
            low, widths = middle, trial
        else:
            high = middle

    def priority(index: int) -> float:
        if ratios:
            return -widths[index] / (groups[index].width * ratios[index])
        return float(ranked[index][widths[index]])

    _fill(bounds, widths, choices, priority)
    return widths


def _stepped(
    groups: Sequence[ChannelGroup],
    bounds: Bounds,
    scores: Sequence[Tensor],
    choices: Sequence[Widths],
    config: WidthConfig,
    widths: Widths,
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

    for index in sorted(range(len(groups)), key=weight, reverse=True)[:COARSEST]:
        place = choices[index].index(widths[index])
        for step in (place + 1, place - 1):
            if 0 <= step < len(choices[index]) and best[0] < FILL_GOAL:
                held = [*choices[:index], [choices[index][step]], *choices[index + 1 :]]
                trial = _filled(groups, bounds, scores, held, config)
                if trial is not None:
                    best = max(best, (bounds.load(bounds.totals(trial)), trial))
    return best[1]


def _ratios(groups: Sequence[ChannelGroup], bounds: Bounds, allocation: str) -> list[float]:
    """Return how the kept shares of the groups are to each other, the least being 1.

    Of all shares r that fit a bound, those proportional to 1 / sqrt(c) make the sum of 1 / r least,
    if the channels of a group hold c of it: a bottleneck costs as much as it is narrow, and is
    cheaper to avoid where channels are cheap. None of them where units are ranked by importance.
    """
    if allocation not in ("uniform", "balanced"):
        return []
    if allocation == "uniform":
        return [1.0] * len(groups)
    full = [group.pinned or group.width for group in groups]
    totals = bounds.totals(full)
    held = []
    for index, width in enumerate(full):
        single = bounds.after(totals, index, 1, full)
        shares = [(a - b) / max(c, 1) for a, b, c in zip(totals, single, bounds.limits, strict=True)]
        held.append(max(sum(shares), 0.0) * width / max(width - 1, 1))
    most = max(held, default=0.0)
    return [math.sqrt(most / own) if own > 0 else 1.0 for own in held]


def _levels(
    groups: Sequence[ChannelGroup],
    ranked: Sequence[Sequence[float]],
    choices: Sequence[Widths],
    allocation: str,
    ratios: Sequence[float],
) -> Callable[[float], Widths]:
    """Return the widths as a function of a level between 0 (narrowest) and 1 (as it was)."""
    lists: dict[str, list[float]] = defaultdict(list)
    kinds = [g.kind if allocation == "isomorphic" else "" for g in groups]
    for kind, values in zip(kinds, ranked, strict=True):
        lists[kind] += values
    for every in lists.values():
        every.sort()

    def wanted(level: float, index: int) -> int:
        if ratios:
            return int(min(level * ratios[index], 1.0) * groups[index].width)
        every = lists[kinds[index]]
        threshold = every[min(int((1 - level) * len(every)), len(every) - 1)]
        return bisect_right(ranked[index], -threshold, key=lambda value: -value)

    def desired(level: float) -> Widths:
        return [_nearest(cs, wanted(level, i)) for i, cs in enumerate(choices)]

    return desired


def _nearest(allowed: Widths, wanted: int) -> int:
    """Return the allowed width nearest to the wanted one, the narrower of two."""
    place = bisect_right(allowed, wanted)
    around = allowed[max(place - 1, 0) : place + 1]
    return min(around, key=lambda width: abs(width - wanted))


def _fill(
    bounds: Bounds,
    widths: Widths,
    choices: Sequence[Widths],
    priority: Callable[[int], float],
) -> None:
    """Widen the groups that deserve it most, one step at a time, while that fits."""
    totals = bounds.totals(widths)
    open_groups = {i for i, c in enumerate(choices) if widths[i] < c[-1]}
    while open_groups:
        index = max(open_groups, key=lambda i: (priority(i), -i))
        wider = choices[index][bisect_right(choices[index], widths[index])]
        trial = bounds.after(totals, index, wider, widths)
        if bounds.load(trial) > 1:
            open_groups.discard(index)
            continue
        widths[index] = wider
        totals = trial
        if wider == choices[index][-1]:
            open_groups.discard(index)


def _exchange(bounds: Bounds, widths: Widths, choices: Sequence[Widths]) -> None:
    """Narrow one group and widen another while that brings the load nearer to 1.

    The first step of narrowing at which `FILL_GOAL` is reached ends the search.
    """
    load = bounds.load(bounds.totals(widths))
    while load < FILL_GOAL:
        best = (load, list(widths))
        for distance in range(1, max(len(c) for c in choices)):
            for narrow, allowed in enumerate(choices):
                place = bisect_right(allowed, widths[narrow]) - 1 - distance
                if place >= 0:
                    trial = [*widths[:narrow], allowed[place], *widths[narrow + 1 :]]
                    found = _widest(bounds, trial, narrow, choices)
                    best = max(best, found, key=lambda pair: _rank(pair[0], pair[1], widths))
            if best[0] >= FILL_GOAL:
                break
        if best[0] == load:
            return
        load, widths[:] = best


def _rank(load: float, trial: Widths, widths: Widths) -> tuple[float, float, float]:
    """Return what is better the higher it is: load, up to the goal, then small moves.

    A move counts by its ratio: from 4 channels to 2 is further than from 40 to 30.
    """
    moves = [abs(math.log(a / b)) for a, b in zip(trial, widths, strict=True) if a != b]
    return (-1.0 if load > 1 else min(load, FILL_GOAL), -max(moves, default=0.0), -sum(moves))


def _widest(
    bounds: Bounds, trial: Widths, narrow: int, choices: Sequence[Widths]
) -> tuple[float, Widths]:
    """Return the largest network that fits when one group other than ``narrow`` is widened."""
    totals = bounds.totals(trial)
    narrowed = bounds.load(totals)
    best = (narrowed if narrowed <= 1 else 0.0, trial)  # narrower may cost more: see `Bounds`

    def load(index: int, width: int) -> float:
        return bounds.load(bounds.after(totals, index, width, trial))

    for wide, allowed in enumerate(choices):
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


def _loosen(
    bounds: Bounds, widths: Widths, groups: Sequence[ChannelGroup], config: WidthConfig
) -> None:
    """Widen single groups beyond their multiple until the load reaches `FILL_GOAL`.

    One group is to do, if there is one; half the multiple is tried before a quarter of it, and the
    groups whose units cost least before the others.
    """
    load = bounds.load(bounds.totals(widths))
    while load < FILL_GOAL:
        best, multiple = (load, widths), _multiple(config)
        while multiple > 1 and best[0] < FILL_GOAL:
            multiple //= 2
            finer = [_choices(g, replace(config, round_to=multiple), False) for g in groups]
            best = max(best, _widened(bounds, widths, finer), key=lambda pair: pair[0])
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
