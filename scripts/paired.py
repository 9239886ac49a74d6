"""Differences that are paired by seed, with their intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

__all__ = ["Difference", "half_width", "paired"]


@dataclass(frozen=True)
class Difference:
    """A mean difference.

    Attributes:
        mean: Over the pairs.
        half: Half the width of its 95 % interval.
    """

    mean: float
    half: float

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval lies above or below zero, otherwise 0."""
        return 0 if abs(self.mean) <= self.half else int(math.copysign(1, self.mean))

    def __str__(self) -> str:
        """Return mean, interval and verdict, as in a table."""
        mark = {1: " better", 0: "", -1: " worse"}[self.verdict]
        return f"{self.mean:+.2f} ± {self.half:.2f}{mark}"


def paired(values: Mapping[int, float], control: Mapping[int, float]) -> Difference:
    """Return how far ``values`` lie above ``control``, over the seeds that both have.

    Raises:
        ValueError: They share one seed or none.
    """
    both = sorted(values.keys() & control.keys())
    if len(both) < 2:
        raise ValueError(f"{len(both)} seeds in common; an interval needs at least 2")
    differences = [values[seed] - control[seed] for seed in both]
    # the quantile as in printed tables, with which the first pages were made
    return Difference(statistics.mean(differences), half_width(differences, decimals=3))


def half_width(values: Sequence[float], decimals: int | None = None) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t.

    Args:
        values: At least two.
        decimals: Of the quantile of t; all of them if left out.
    """
    quantile = float(student.ppf(0.975, len(values) - 1))
    if decimals is not None:
        quantile = round(quantile, decimals)
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
