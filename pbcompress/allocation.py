"""How wide every group is: a search over numbers alone, no tensors of the model.

Costs are evaluated in closed form, and a target is a bisection over one threshold, a greedy fill
of what is left, and an exchange where that is coarse. Several bounds hold at once: the load of a
network is the largest share of a bound that it uses.
"""

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pbcompress.config import WidthConfig
from pbcompress.costs import CostModel, Widths
from pbcompress.grouping import ChannelGroup

__all__ = ["Bounds", "allocate", "narrowest"]

FILL_GOAL = 0.98
BISECTIONS = 40
EXHAUSTIVE = 4096


@dataclass(frozen=True)
class Bounds:
    """Closed forms of costs, and the most that each may be.

    Args:
        costs: Cost models over the same groups.
        limits: Upper bound on each.
    """

    costs: Sequence[CostModel]
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


def _choices(group: ChannelGroup, config: WidthConfig) -> Widths:
    """Return the allowed widths of a group, in units, narrowest first."""
    if group.pinned is not None:
        return [group.pinned]
    per_unit = group.channels_per_unit
    floor = max(
        math.ceil(config.min_width / per_unit), group.width - int(config.max_ratio * group.width)
    )
    choices = [w for w in range(1, group.width + 1) if w * per_unit % config.round_to == 0]
    return [w for w in choices if w >= floor and w < group.width] + [group.width]


def narrowest(groups: Sequence[ChannelGroup], config: WidthConfig) -> Widths:
    """Return the smallest width in units that ``config`` allows each group."""
    return [_choices(group, config)[0] for group in groups]


def allocate(
    groups: Sequence[ChannelGroup],
    bounds: Bounds,
    scores: Sequence[Tensor],
    config: WidthConfig,
) -> Widths | None:
    """Return the width of every group so that all bounds hold, and one is nearly reached.

    Args:
        groups: The channel groups.
        bounds: The closed forms and their limits.
        scores: Importance of every unit of every group, each with mean 1.
        config: Allocation, floors and rounding.

    Returns:
        Widths in units, or None if even the narrowest network breaks a bound.
    """
    choices = [_choices(group, config) for group in groups]
    ranked = [sorted(s.tolist(), reverse=True) for s in scores]
    desired = _levels(groups, ranked, choices, config)
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
        if config.allocation == "uniform":
            return -widths[index] / groups[index].width
        return float(ranked[index][widths[index]])

    _fill(bounds, widths, choices, priority)
    if bounds.load(bounds.totals(widths)) < FILL_GOAL:
        _exchange(bounds, widths, choices)
    is_small = math.prod(len(c) for c in choices) <= EXHAUSTIVE
    if bounds.load(bounds.totals(widths)) < FILL_GOAL and is_small:
        widths = _nearest_of_all(bounds, widths, choices)
    return widths


def _levels(
    groups: Sequence[ChannelGroup],
    ranked: Sequence[Sequence[float]],
    choices: Sequence[Widths],
    config: WidthConfig,
) -> Callable[[float], Widths]:
    """Return the widths as a function of a level between 0 (narrowest) and 1 (as it was)."""
    lists: dict[str, list[float]] = defaultdict(list)
    kinds = [g.kind if config.allocation == "isomorphic" else "" for g in groups]
    for kind, values in zip(kinds, ranked, strict=True):
        lists[kind] += values
    for every in lists.values():
        every.sort()

    def wanted(level: float, index: int) -> int:
        if config.allocation == "uniform":
            return int(level * groups[index].width)
        every = lists[kinds[index]]
        threshold = every[min(int((1 - level) * len(every)), len(every) - 1)]
        return bisect_right(ranked[index], -threshold, key=lambda value: -value)

    def desired(level: float) -> Widths:
        return [cs[max(bisect_right(cs, wanted(level, i)) - 1, 0)] for i, cs in enumerate(choices)]

    return desired


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

    The smallest narrowing that reaches `FILL_GOAL` wins, so that widths move little.
    """
    load = bounds.load(bounds.totals(widths))
    while load < FILL_GOAL:
        best = (load, widths)
        for distance in range(1, max(len(c) for c in choices)):
            for narrow, allowed in enumerate(choices):
                place = bisect_right(allowed, widths[narrow]) - 1 - distance
                if place >= 0:
                    trial = [*widths[:narrow], allowed[place], *widths[narrow + 1 :]]
                    best = max(best, _widest(bounds, trial, narrow, choices))
            if best[0] >= FILL_GOAL:
                break
        if best[0] == load:
            return
        load, widths[:] = best


def _widest(
    bounds: Bounds, trial: Widths, narrow: int, choices: Sequence[Widths]
) -> tuple[float, Widths]:
    """Return the largest network that fits when one group other than ``narrow`` is widened."""
    totals = bounds.totals(trial)
    best = (bounds.load(totals), trial)

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
    """Return the combination nearest to ``widths`` that reaches `FILL_GOAL`, or the largest."""

    def rank(trial: Widths) -> tuple[float, float]:
        load = bounds.load(bounds.totals(trial))
        moved = sum(abs(a - b) / max(a, b) for a, b in zip(trial, widths, strict=True))
        return (-1.0 if load > 1 else min(load, FILL_GOAL), -moved)

    return max((list(trial) for trial in itertools.product(*choices)), key=rank)
