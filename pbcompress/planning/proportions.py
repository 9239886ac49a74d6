"""How wide groups want to be beside each other: in given ratios, or by the rank of their units."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from pbcompress.costs.bounds import Bounds
from pbcompress.planning.scarcity import Scarcity
from pbcompress.structure.channel_groups import Axis, ChannelGroup

__all__ = ["SPEED", "Preference", "count_weights", "preference_of"]

# How far multiply-adds go from those of the most accurate widths to those of equal shares, 1, and
# beyond: pruners that round every layer down to a multiple have fewer.
SPEED = {"accurate": 0.0, "balanced": 1.0, "fast": 1.25}


class Preference(Protocol):
    """What an allocation asks at every level, and where it puts what is left."""

    def wanted(self, index: int, level: float) -> int:
        """Return the units of a group at a level between 0 (none) and 1 (all)."""

    def priority(self, index: int, width: int) -> float:
        """Return how much a group of ``width`` units deserves one more."""


class _Proportional:
    """Groups keep equal shares of their units, or shares in given ratios.

    Args:
        groups: The channel groups.
        ratios: Of their kept shares, at least 1; None: all alike.
    """

    def __init__(
        self, groups: Sequence[ChannelGroup], ratios: Sequence[float] | None = None
    ) -> None:
        self._widths = [group.width for group in groups]
        self._ratios = [1.0] * len(groups) if ratios is None else ratios

    def wanted(self, index: int, level: float) -> int:
        """See `Preference`."""
        return int(min(level * self._ratios[index], 1.0) * self._widths[index])

    def priority(self, index: int, width: int) -> float:
        """See `Preference`."""
        return -width / (self._ratios[index] * self._widths[index])


class _Ranked:
    """The units of all groups stand in one list, or those of each kind of group in its own.

    Args:
        groups: The channel groups.
        scores: Importance of every unit of every group, each with mean 1.
        by_kind: Whether each kind has its own list.
    """

    def __init__(
        self, groups: Sequence[ChannelGroup], scores: Sequence[Tensor], *, by_kind: bool
    ) -> None:
        self._ranked = [sorted(own.tolist(), reverse=True) for own in scores]
        self._kinds = [group.kind if by_kind else "" for group in groups]
        self._lists: dict[str, list[float]] = defaultdict(list)
        for kind, values in zip(self._kinds, self._ranked, strict=True):
            self._lists[kind] += values
        for every in self._lists.values():
            every.sort()

    def wanted(self, index: int, level: float) -> int:
        """See `Preference`."""
        every = self._lists[self._kinds[index]]
        threshold = every[min(int((1 - level) * len(every)), len(every) - 1)]
        return bisect_right(self._ranked[index], -threshold, key=lambda value: -value)

    def priority(self, index: int, width: int) -> float:
        """See `Preference`."""
        return float(self._ranked[index][width])


def preference_of(
    allocation: str,
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    bounds: Bounds,
    weights: Sequence[int],
) -> Preference:
    """Return what an allocation of `pbcompress.WidthConfig` prefers.

    Args:
        allocation: Its name.
        groups: The channel groups.
        scores: Importance of every unit of every group, each with mean 1.
        bounds: What is scarce.
        weights: See `count_weights`.
    """
    if allocation == "uniform":
        return _Proportional(groups)
    if allocation in SPEED:
        return _Proportional(groups, Scarcity(groups, weights).ratios(bounds))
    return _Ranked(groups, scores, by_kind=allocation == "isomorphic")


def count_weights(
    groups: Sequence[ChannelGroup], shapes: Mapping[str, Sequence[Axis]]
) -> list[int]:
    """Return how many weights (parameters of two axes and more) each group narrows.

    Args:
        groups: The channel groups.
        shapes: The axes of every parameter, by its name.
    """
    counts = dict.fromkeys((group.name for group in groups), 0)
    for axes in shapes.values():
        for name in {name for axis in axes for name, _ in axis.groups if len(axes) > 1}:
            if name in counts:
                counts[name] += 1
    return list(counts.values())
