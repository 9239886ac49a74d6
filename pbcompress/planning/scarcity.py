"""How wide layers are beside each other where several costs are scarce at once.

Let a layer lose 1 / (r s) by keeping shares r and s of what it reads and writes, and cost p r s of
a bound. Where the sum of losses is least, each group has r^2 in proportion to k / c, if k layers
read or write it and cost c together: to first order, with all other shares alike. So ratios go by
one over the root of the mean size of a group's layers.

Where costs differ, a size is the geometric mean of all of them with exponents that sum to 1. They
are chosen so that all bounds bind at once: the costs of which less is left weigh more.
"""

import math
from collections.abc import Sequence

from pbcompress.costs.bounds import Bounds, Cost
from pbcompress.structure.channel_groups import ChannelGroup

__all__ = ["Scarcity"]

LEAST = 1e-12  # of the largest size: a group that costs nothing
STEPS = 40
BISECTIONS = 24
NEAR = 0.005  # loads within this of each other bind at once
FARTHEST = 2.0  # of an exponent from the middle
FULL = 0.999  # a bound above this share of the original is none


class Scarcity:
    """Ratios of kept shares for one network.

    Args:
        groups: The channel groups.
        weights: How many weights each group narrows; see `count_weights`.
    """

    def __init__(self, groups: Sequence[ChannelGroup], weights: Sequence[int]) -> None:
        self._weights = weights
        self._is_pinned = [group.pinned is not None for group in groups]
        self._full = [group.pinned or group.width for group in groups]

    def ratios(self, bounds: Bounds) -> list[float]:
        """Return the ratios at which all bounds bind at once, as far as widths allow.

        Args:
            bounds: What is scarce; a bound that the original keeps to does not count.
        """
        scarce = self._scarce(bounds)
        count = len(scarce.costs)
        sizes = [self._logarithms(cost) for cost in scarce.costs]
        exponents = [1 / count] * count
        for _ in range(STEPS if count > 1 else 0):
            loads = self._loads(scarce, _ratios(sizes, exponents))
            if max(loads) - min(loads) < NEAR:
                break
            excess = [math.log(load) for load in loads]
            middle = sum(excess) / count
            exponents = [
                min(max(own + more - middle, 1 / count - FARTHEST), 1 / count + FARTHEST)
                for own, more in zip(exponents, excess, strict=True)
            ]
        return _ratios(sizes, exponents)

    def compromise(self, bounds: Bounds, work: Cost, speed: float) -> Bounds:
        """Return bounds with one more, on work: between what `ratios` and equal shares come to.

        Args:
            bounds: What is scarce.
            work: The cost that would else be free.
            speed: 0 leaves the work as it is with `ratios`; 1 asks for that of equal shares.
        """
        full = float(work.total(self._full))
        own, equal = (
            work.total(self._filled(bounds, ratios))
            for ratios in (self.ratios(bounds), [1.0] * len(self._full))
        )
        limit = own ** (1 - speed) * equal**speed if own and equal else full
        return Bounds([*bounds.costs, work], [*bounds.limits, limit])

    def _scarce(self, bounds: Bounds) -> Bounds:
        pairs = [
            (cost, limit)
            for cost, limit in zip(bounds.costs, bounds.limits, strict=True)
            if limit < FULL * cost.total(self._full)
        ]
        costs, limits = zip(*pairs or [(bounds.costs[0], bounds.limits[0])], strict=True)
        return Bounds(costs, limits)

    def _logarithms(self, cost: Cost) -> list[float]:
        """Return the logarithms of the mean sizes of the layers of every group."""
        sizes = []
        for index, (width, count) in enumerate(zip(self._full, self._weights, strict=True)):
            spent = -cost.change(index, 1, self._full)
            sizes.append(spent * width / max(width - 1, 1) / max(count, 1))
        largest = max(sizes, default=0.0)
        return [math.log(max(size / largest, LEAST)) if largest > 0 else 0.0 for size in sizes]

    def _filled(self, bounds: Bounds, ratios: Sequence[float]) -> list[float]:
        """Return the widths, not yet whole, of the highest level that keeps to all bounds."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            level = (low + high) / 2
            if bounds.load(bounds.totals(self._widths(ratios, level))) <= 1:
                low = level
            else:
                high = level
        return self._widths(ratios, low)

    def _widths(self, ratios: Sequence[float], level: float) -> list[float]:
        return [
            full if pinned else max(min(level * ratio, 1.0) * full, 1.0)
            for full, ratio, pinned in zip(self._full, ratios, self._is_pinned, strict=True)
        ]

    def _loads(self, bounds: Bounds, ratios: Sequence[float]) -> list[float]:
        totals = bounds.totals(self._filled(bounds, ratios))
        return [total / limit for total, limit in zip(totals, bounds.limits, strict=True)]


def _ratios(sizes: Sequence[Sequence[float]], exponents: Sequence[float]) -> list[float]:
    """Return one over the roots of the geometric means, the least of them 1."""
    means = [
        sum(exponent * size for exponent, size in zip(exponents, own, strict=True))
        for own in zip(*sizes, strict=True)
    ]
    largest = max(means, default=0.0)
    return [math.exp(min((largest - mean) / 2, 300.0)) for mean in means]
