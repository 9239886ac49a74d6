"""Differences that are paired by seed, with their intervals."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Difference", "paired"]

# Student's t, two-sided 95 %, by the number of pairs
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Difference:
    """A mean difference.

    Attributes:
        mean: Over the pairs.
        half: Half the width of its 95 % interval.
        pairs: How many.
    """

    mean: float
    half: float
    pairs: int

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
        ValueError: They share one seed or none, or more than the table of quantiles has.
    """
    both = sorted(values.keys() & control.keys())
    if len(both) not in T95:
        raise ValueError(f"{len(both)} seeds in common; an interval needs {min(T95)} to {max(T95)}")
    differences = [values[seed] - control[seed] for seed in both]
    half = T95[len(both)] * statistics.stdev(differences) / math.sqrt(len(both))
    return Difference(statistics.mean(differences), half, len(both))
