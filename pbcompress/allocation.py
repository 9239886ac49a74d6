"""How wide every group is: a search over numbers alone, no tensors of the model.

Costs are sums of products of widths, so they are evaluated in closed form, and a target is a
bisection over one threshold, a greedy fill of what is left, and an exchange where that is coarse.
"""

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from pbcompress.config import WidthConfig
from pbcompress.geometry import LayerGeometry
from pbcompress.grouping import ChannelGroup

__all__ = ["CostModel", "allocate", "narrowest"]

Widths = list[int]
FILL_GOAL = 0.97
BISECTIONS = 40
EXHAUSTIVE = 4096


@dataclass
class CostModel:
    """Parameters of a network as a function of its groups' widths.

    Args:
        groups: The channel groups.
        geometries: Every layer that a group reaches.
        base: Parameters of everything else.
        reserve: Further parameters of a layer at (out, in) widths: its future dendrites.
    """

    groups: Sequence[ChannelGroup]
    geometries: Mapping[str, LayerGeometry]
    base: int
    reserve: Mapping[str, Callable[[int, int], int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reach: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for index, group in enumerate(self.groups):
            for member in group.members:
                self._reach[member.layer, member.dim].append((index, len(member.positions[0])))
        self._touched = [sorted({m.layer for m in g.members}) for g in self.groups]

    def layer_widths(self, name: str, widths: Widths) -> tuple[int, int]:
        """Return (out, in) widths of a layer."""
        geometry = self.geometries[name]
        out, in_ = geometry.out_width, geometry.in_width
        for index, channels in self._reach[name, "out"]:
            out -= (self.groups[index].width - widths[index]) * channels
        for index, channels in self._reach[name, "in"]:
            in_ -= (self.groups[index].width - widths[index]) * channels
        return (out, out) if geometry.groups == 0 else (out, in_)

    def _layer(self, name: str, widths: Widths) -> int:
        sizes = self.layer_widths(name, widths)
        extra = self.reserve[name](*sizes) if name in self.reserve else 0
        return self.geometries[name].params(*sizes) + extra

    def reserved(self, widths: Widths) -> int:
        """Return the part of `total` that waits for dendrites."""
        return sum(r(*self.layer_widths(name, widths)) for name, r in self.reserve.items())

    def total(self, widths: Widths) -> int:
        """Return the parameters of the whole network, reserve included."""
        return self.base + sum(self._layer(name, widths) for name in self.geometries)

    def change(self, index: int, width: int, widths: Widths) -> int:
        """Return how `total` changes when one group takes another width."""
        other = [*widths[:index], width, *widths[index + 1 :]]
        return sum(self._layer(n, other) - self._layer(n, widths) for n in self._touched[index])


def _choices(group: ChannelGroup, config: WidthConfig) -> Widths:
    """Return the allowed widths of a group, in units, narrowest first."""
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
    cost: CostModel, scores: Sequence[Tensor], target: int, config: WidthConfig
) -> Widths | None:
    """Return the width of every group so that the total is at most ``target`` and near it.

    Args:
        cost: The closed form.
        scores: Importance of every unit of every group, each with mean 1.
        target: Upper bound on `CostModel.total`.
        config: Allocation, floors and rounding.

    Returns:
        Widths in units, or None if even the narrowest network is above ``target``.
    """
    choices = [_choices(group, config) for group in cost.groups]
    ranked = [sorted(s.tolist(), reverse=True) for s in scores]
    every = sorted(value for values in ranked for value in values)

    def desired(level: float) -> Widths:
        """Widths at a level between 0 (narrowest) and 1 (as it was)."""
        if config.allocation == "uniform":
            wanted = [int(level * group.width) for group in cost.groups]
        else:
            threshold = every[min(int((1 - level) * len(every)), len(every) - 1)]
            wanted = [sum(v >= threshold for v in values) for values in ranked]
        return [
            max([c for c in cs if c <= w], default=cs[0])
            for cs, w in zip(choices, wanted, strict=True)
        ]

    widths = [c[0] for c in choices]
    if cost.total(widths) > target:
        return None
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        trial = desired(middle)
        if cost.total(trial) <= target:
            low, widths = middle, trial
        else:
            high = middle
    uniform = config.allocation == "uniform"

    def priority(index: int) -> float:
        if uniform:
            return -widths[index] / cost.groups[index].width
        return float(ranked[index][widths[index]])

    _fill(cost, widths, choices, target, priority)
    if cost.total(widths) < FILL_GOAL * target:
        _exchange(cost, widths, choices, target)
    is_small = math.prod(len(c) for c in choices) <= EXHAUSTIVE
    if cost.total(widths) < FILL_GOAL * target and is_small:
        widths = _nearest_of_all(cost, widths, choices, target)
    return widths


def _fill(
    cost: CostModel,
    widths: Widths,
    choices: Sequence[Widths],
    target: int,
    priority: Callable[[int], float],
) -> None:
    """Widen the groups that deserve it most, one step at a time, while that fits."""
    left = target - cost.total(widths)
    open_groups = {i for i, c in enumerate(choices) if widths[i] < c[-1]}
    while open_groups:
        index = max(open_groups, key=lambda i: (priority(i), -i))
        wider = next(w for w in choices[index] if w > widths[index])
        price = cost.change(index, wider, widths)
        if price > left:
            open_groups.discard(index)
            continue
        widths[index] = wider
        left -= price
        if wider == choices[index][-1]:
            open_groups.discard(index)


def _exchange(cost: CostModel, widths: Widths, choices: Sequence[Widths], target: int) -> None:
    """Narrow one group and widen another while that brings the total nearer to the target.

    The smallest narrowing that reaches `FILL_GOAL` wins, so that widths move little.
    """
    total = cost.total(widths)
    while total < FILL_GOAL * target:
        best = (total, widths)
        for distance in range(1, max(len(c) for c in choices)):
            for narrow, allowed in enumerate(choices):
                place = bisect_right(allowed, widths[narrow]) - 1 - distance
                if place >= 0:
                    trial = [*widths[:narrow], allowed[place], *widths[narrow + 1 :]]
                    best = max(best, _widest(cost, trial, narrow, choices, target))
            if best[0] >= FILL_GOAL * target:
                break
        if best[0] == total:
            return
        total, widths[:] = best


def _widest(
    cost: CostModel, trial: Widths, narrow: int, choices: Sequence[Widths], target: int
) -> tuple[int, Widths]:
    """Return the largest network that fits when one group other than ``narrow`` is widened."""
    base = cost.total(trial)
    best = (base, trial)

    def price(index: int, width: int) -> int:
        return cost.change(index, width, trial)

    for wide, allowed in enumerate(choices):
        wider = [w for w in allowed if w > trial[wide]] if wide != narrow else []
        left = target - base
        count = bisect_right(wider, left, key=partial(price, wide))
        if count:
            width = wider[count - 1]
            size = base + cost.change(wide, width, trial)
            if best[0] < size <= target:
                best = (size, [*trial[:wide], width, *trial[wide + 1 :]])
    return best


def _nearest_of_all(
    cost: CostModel, widths: Widths, choices: Sequence[Widths], target: int
) -> Widths:
    """Return the combination nearest to ``widths`` that reaches `FILL_GOAL`, or the largest."""

    def rank(trial: Widths) -> tuple[float, float]:
        total = cost.total(trial)
        moved = sum(abs(a - b) / max(a, b) for a, b in zip(trial, widths, strict=True))
        return (-1.0 if total > target else min(total, FILL_GOAL * target), -moved)

    return max((list(trial) for trial in itertools.product(*choices)), key=rank)
