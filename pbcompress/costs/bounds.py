"""Closed forms of costs, and the most that each may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pbcompress.costs.closed_form import Widths

__all__ = ["Bounds", "Cost"]

NEARLY_ALL = 0.98  # of a cost: a bound above it does not shape widths


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
    limits: Sequence[float]

    def totals(self, widths: Widths) -> list[int]:
        """Return every cost of a network."""
        return [cost.total(widths) for cost in self.costs]

    def load(self, totals: Sequence[int]) -> float:
        """Return the largest share of a bound that costs take; at most 1 fits."""
        return max(self.shares(totals))

    def shares(self, totals: Sequence[int]) -> list[float]:
        """Return the share of every bound that costs take."""
        return [t / max(b, 1) for t, b in zip(totals, self.limits, strict=True)]

    def scarce(self, full: Widths) -> "Bounds":
        """Return the bounds that a network of these widths breaks; all, if it breaks none."""
        totals = self.totals(full)
        pairs = zip(self.costs, self.limits, totals, strict=True)
        broken = [(cost, limit) for cost, limit, total in pairs if limit < NEARLY_ALL * total]
        costs, limits = zip(*broken or zip(self.costs, self.limits, strict=True), strict=True)
        return Bounds(costs, limits)

    def after(self, totals: Sequence[int], index: int, width: int, widths: Widths) -> list[int]:
        """Return the costs when one group takes another width."""
        changes = [cost.change(index, width, widths) for cost in self.costs]
        return [t + c for t, c in zip(totals, changes, strict=True)]
