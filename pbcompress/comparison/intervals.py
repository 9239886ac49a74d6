"""How sure a metric is: 95 % intervals of one network, and of what changed between two."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from pbcompress.core.text_tables import figure

__all__ = ["Estimate", "bootstrap", "change_of_hits", "mcnemar", "share_of_hits", "wilson"]

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 200  # of which an interval is made where the metric is slow
MAX_SECONDS = 20.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Estimate:
    """A metric, or a change of one, with its 95 % interval.

    Attributes:
        value: The metric of the whole split.
        samples: Of the split.
        low: Lower end; None where there is no interval.
        high: Upper end.
        method: How the interval was made, or why there is none.
        p_value: Of a change of accuracy: chance of one so large among equals (exact McNemar test).
    """

    value: float
    samples: int
    low: float | None
    high: float | None
    method: str
    p_value: float | None = None

    def meets(self, other: "Estimate") -> bool:
        """Tell whether two intervals have a point in common; False where there are none."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" ({figure(self.low)} to {figure(self.high)})"
        return f"{figure(self.value)}{interval}"


def wilson(hits: float, samples: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share.

    Args:
        hits: At most ``samples``.
        samples: At least 1.

    Example:
        >>> [round(end, 4) for end in wilson(90, 100)]
        [0.8256, 0.9448]

    Source:
        Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    share = hits / samples
    middle = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    scale = 1 + z * z / samples
    low, high = (middle - half) / scale, (middle + half) / scale
    return (0.0 if hits == 0 else low), (1.0 if hits == samples else high)


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Args:
        lost: Samples that only the first network has right.
        won: Samples that only the second has right.

    Example:
        >>> mcnemar(1, 5)
        0.21875
    """
    count, term, total = lost + won, 1, 0
    for k in range(min(lost, won) + 1):
        total += term
        term = term * (count - k) // (k + 1)
    return min(1.0, 2 * total / (1 << count))


def share_of_hits(hits: Array) -> Estimate:
    """Return the accuracy of one network from which samples it has right."""
    count = len(hits)
    low, high = wilson(int(hits.sum()), count)
    return Estimate(float(hits.mean()), count, low, high, "Wilson")


def change_of_hits(before: Array, after: Array) -> Estimate:
    """Return how the accuracy changed between two networks on the same samples.

    The interval is that of a percentile bootstrap over pairs. Resampling pairs is drawing how many
    are lost, kept and won, so all draws are one call.

    Args:
        before: Which samples the first network has right, shape (N,), bool.
        after: The same of the second.

    Source:
        Efron, Bootstrap methods: another look at the jackknife (1979); McNemar, Note on the
        sampling error of the difference between correlated proportions or percentages (1947).
    """
    count = len(before)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    shares = np.array([lost, count - lost - won, won]) / count
    drawn = np.random.default_rng(0).multinomial(count, shares, size=10 * RESAMPLES)
    low, high = _ends((drawn[:, 2] - drawn[:, 0]) / count)
    method = f"paired bootstrap, {10 * RESAMPLES:,} resamples"
    return Estimate((won - lost) / count, count, low, high, method, mcnemar(lost, won))


def bootstrap(
    metric: Callable[[int, Array | None], float], networks: int, samples: int
) -> tuple[list[Estimate], list[Estimate]]:
    """Return any metric of several networks with intervals, and its change from the first on.

    Each draw takes the same samples for all networks.

    Args:
        metric: ``metric(network, index)`` gives it for some samples, or for all with None.
        networks: How many there are.
        samples: Of the split.
    """
    values = [metric(i, None) for i in range(networks)]
    generator, began = np.random.default_rng(0), time.perf_counter()
    drawn: list[list[float]] = []
    reason = ""
    while len(drawn) < RESAMPLES and time.perf_counter() - began < MAX_SECONDS:
        index = generator.integers(samples, size=samples)
        try:
            drawn.append([metric(i, index) for i in range(networks)])
        except Exception as err:  # the metric has no value on some draws
            reason = f"no interval: on a resample the metric raised {type(err).__name__}: {err}"
            break
    if not reason and len(drawn) < FEWEST:
        reason = f"no interval: the metric took too long for {FEWEST} resamples"
    if reason:
        return [Estimate(v, samples, None, None, reason) for v in values], [
            Estimate(v - values[0], samples, None, None, reason) for v in values[1:]
        ]
    table = np.array(drawn)
    method = f"bootstrap, {len(drawn):,} resamples"
    return _estimates(values, table, samples, method), _estimates(
        [v - values[0] for v in values[1:]],
        table[:, 1:] - table[:, :1],
        samples,
        f"paired {method}",
    )


def _estimates(values: Sequence[float], table: Array, samples: int, method: str) -> list[Estimate]:
    ends = [_ends(column) for column in table.T]
    return [Estimate(v, samples, *end, method) for v, end in zip(values, ends, strict=True)]


def _ends(drawn: Array) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
