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
from typing import cast

from pbcompress.costs.bounds import Bounds, Cost
from pbcompress.costs.closed_form import Widths
from pbcompress.structure.channel_groups import ChannelGroup

__all__ = ["Scarcity"]

LEAST = 1e-12  # of the largest size: a group that costs nothing
STEPS = 40
FASTER, SLOWER = 1.3, 0.5  # factors on the next step, after a good and a bad one
LOWEST = 1e-9  # level
EXACT = 1e-7  # of a load, in which a level is found
TRIES = 50  # of levels
NEAR = 0.005  # loads within this of each other bind at once
FARTHEST = 2.0  # of an exponent from the middle


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
        scarce = bounds.scarce(self._full)
        count = len(scarce.costs)
        sizes = [self._logarithms(cost) for cost in scarce.costs]
        exponents, gain = [1 / count] * count, 1.0
        best, last = (math.inf, exponents), math.inf
        for _ in range(STEPS if count > 1 else 0):
            loads = self._loads(scarce, _ratios(sizes, exponents))
            apart = max(loads) - min(loads)
            best = min(best, (apart, exponents))
            if apart < NEAR:
                break
            gain, last = gain * (FASTER if apart < last else SLOWER), apart
            excess = [gain * math.log(load) for load in loads]
            middle = sum(excess) / count
            exponents = [
                min(max(own + more - middle, 1 / count - FARTHEST), 1 / count + FARTHEST)
                for own, more in zip(exponents, excess, strict=True)
            ]
        return _ratios(sizes, best[1])

    def compromise(self, bounds: Bounds, work: Cost, speed: float) -> Bounds:
        """Return bounds with one more, on work, by what `ratios` and equal shares come to.

        Args:
            bounds: What is scarce.
            work: The cost that would else be free.
            speed: 0 leaves the work as it is with `ratios`; 1 asks for that of equal shares, and
                more than 1 for less, by the same steps.
        """
        own, equal = (
            work.total(self._filled(bounds, ratios))
            for ratios in (self.ratios(bounds), [1.0] * len(self._full))
        )
        limit: float = min(own, own ** (1 - speed) * equal**speed)
        return Bounds([*bounds.costs, work], [*bounds.limits, limit])

    def _logarithms(self, cost: Cost) -> list[float]:
        """Return the logarithms of the mean sizes of the layers of every group."""
        sizes = []
        for index, (width, count) in enumerate(zip(self._full, self._weights, strict=True)):
            spent = -cost.change(index, 1, self._full)
            sizes.append(spent * width / max(width - 1, 1) / max(count, 1))
        largest = max(sizes, default=0.0)
        return [math.log(max(size / largest, LEAST)) if largest > 0 else 0.0 for size in sizes]

    def _filled(self, bounds: Bounds, ratios: Sequence[float]) -> Widths:
        """Return the widths, not yet whole, of the highest level that keeps to all bounds.

        Loads are nearly powers of a level, so it is found by false position in logarithms, where
        an end that stays twice counts half (the Illinois method).
        """

        def excess(level: float) -> float:
            load = bounds.load(bounds.totals(self._widths(ratios, math.exp(level))))
            return math.log(max(load, LEAST))

        low, high = math.log(LOWEST), 0.0
        below, above = excess(low), excess(high)
        if above <= 0:
            return self._widths(ratios, 1.0)
        moved_low: bool | None = None
        for _ in range(TRIES if below < 0 else 0):
            level = high - above * (high - low) / (above - below)
            own = excess(level)
            if own <= 0:
                low, below, above = level, own, above / 2 if moved_low is True else above
                if own > -EXACT:
                    break
            else:
                high, above, below = level, own, below / 2 if moved_low is False else below
            moved_low = own <= 0
        return self._widths(ratios, math.exp(low))

    def _widths(self, ratios: Sequence[float], level: float) -> Widths:
        widths = [
            full if pinned else max(min(level * ratio, 1.0) * full, 1.0)
            for full, ratio, pinned in zip(self._full, ratios, self._is_pinned, strict=True)
        ]
        return cast(Widths, widths)  # closed forms take fractions of a channel too

    def _loads(self, bounds: Bounds, ratios: Sequence[float]) -> list[float]:
        return bounds.shares(bounds.totals(self._filled(bounds, ratios)))


def _ratios(sizes: Sequence[Sequence[float]], exponents: Sequence[float]) -> list[float]:
    """Return one over the roots of the geometric means, the least of them 1."""
    means = [
        sum(exponent * size for exponent, size in zip(exponents, own, strict=True))
        for own in zip(*sizes, strict=True)
    ]
    largest = max(means, default=0.0)
    return [math.exp(min((largest - mean) / 2, 300.0)) for mean in means]
