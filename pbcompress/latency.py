"""Latency as a closed form in the widths, fitted from measured kernels; times as plain numbers.

A runtime works on blocks of channels: a width that is no multiple of the block costs as much as
the next one, and some kernels have a slower way for it. So the time of a layer is

    overhead + a * multiply-adds + b * channels

in padded widths, and the three numbers are fitted, layer by layer, from networks of several widths.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import nn

from pbcompress.costs import CostModel, Widths
from pbcompress.geometry import is_depthwise
from pbcompress.grouping import Grouping, Work

__all__ = [
    "PROBE_WIDTHS",
    "LatencyModel",
    "LayerFit",
    "LayerKind",
    "Measured",
    "Rounding",
    "Shipped",
    "features",
    "fit_layer",
    "kind_of",
    "layer_works",
]

LayerKind = Literal["convolution", "depthwise", "product"]
# For each multiple a width that is none of the larger ones; for 1, 4 and 8 padding to the next
# multiple costs more than NEARLY, and between them the size itself makes no difference.
PROBE_WIDTHS = {1: 105, 4: 108, 8: 104, 16: 112, 32: 96}
NEARLY = 1.06  # a multiple within this factor of the fastest is as good
NANOSECONDS = 1e6  # in a millisecond
Point = tuple[float, float, float]  # padded multiply-adds, padded channels, milliseconds


@dataclass(frozen=True)
class Rounding:
    """What the runtime makes of widths that are no multiple, for one kind of layer.

    Attributes:
        multiple: The width of its blocks.
        slower: For each smaller multiple, how many times slower than with padded widths.
    """

    multiple: int = 1
    slower: Mapping[int, float] | None = None

    @staticmethod
    def of(times: Mapping[int, float], works: Mapping[int, int]) -> "Rounding":
        """Read the block off measured times.

        Args:
            times: Time of a network of ``PROBE_WIDTHS[multiple]`` channels, by multiple.
            works: Its multiply-adds, by multiple.
        """
        cost = {m: times[m] / works[m] for m in times}
        best = min(cost.values())
        multiple = next(m for m in sorted(cost) if cost[m] <= NEARLY * best)
        slower = {}
        for m in cost:
            if m < multiple:
                width = PROBE_WIDTHS[m]
                growth = math.ceil(width / multiple) * multiple / width
                slower[m] = max(1.0, cost[m] / cost[multiple] / growth)
        return Rounding(multiple, slower)

    def padded(self, size: int) -> int:
        """Return the width that the runtime works with."""
        return math.ceil(size / self.multiple) * self.multiple

    def factor(self, sizes: Sequence[int]) -> float:
        """Return how many times slower a layer of these widths is than one of padded widths."""
        if not self.slower or not sizes:
            return 1.0
        known = [m for m in self.slower if all(size % m == 0 for size in sizes)]
        whole = all(size % self.multiple == 0 for size in sizes)
        return 1.0 if whole else self.slower[max(known)]


@dataclass(frozen=True)
class LayerFit:
    """Milliseconds of a layer: overhead + by_work * multiply-adds + by_size * channels."""

    overhead: float
    by_work: float
    by_size: float


def fit_layer(points: Sequence[Point]) -> LayerFit:
    """Return the fit with the least relative squares whose three numbers are not negative.

    The number of terms is at most that of the points, and a term must earn its place.
    """
    rows = np.array(points, dtype=np.float64)
    time = np.maximum(rows[:, 2], 1e-6)
    scale = np.maximum(np.abs(rows[:, :2]).max(axis=0), 1e-12)
    columns = np.column_stack([np.ones(len(rows)), rows[:, :2] / scale]) / time[:, None]
    best, chosen = math.inf, np.array([float(np.median(time)), 0.0, 0.0])
    for count in (1, 2, 3):
        for terms in itertools.combinations((1, 0, 2), count):
            if count > len(rows):
                continue
            part, *_ = np.linalg.lstsq(columns[:, terms], np.ones(len(rows)), rcond=None)
            residual = float(((columns[:, terms] @ part - 1) ** 2).sum()) + 1e-4 * count
            if (part >= 0).all() and residual < best:
                best, chosen = residual, np.zeros(3)
                chosen[list(terms)] = part
    return LayerFit(float(chosen[0]), *(float(v) for v in chosen[1:] / scale))


def layer_works(grouping: Grouping) -> dict[str, list[Work]]:
    """Return the counted operations of every module that has some."""
    works: dict[str, list[Work]] = {}
    for work in grouping.works:
        works.setdefault(work.module, []).append(work)
    return works


def kind_of(module: nn.Module) -> LayerKind:
    """Return the kind of kernel that a module runs."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "depthwise" if is_depthwise(module) else "convolution"
    return "product"


def features(
    works: Sequence[Work], numbers: CostModel, widths: Widths, rounding: Rounding
) -> tuple[float, float]:
    """Return the padded multiply-adds and channels of a layer, slower ones counted as more."""
    done = channels = 0.0
    for work in works:
        moving = [axis for axis in work.axes if axis.groups]
        sizes = [numbers.size(axis, widths) for axis in moving]
        fixed = math.prod(axis.size for axis in work.axes if not axis.groups)
        factor = rounding.factor(sizes)
        padded = [rounding.padded(size) for size in sizes]
        done += factor * work.coefficient * fixed * math.prod(padded)
        channels += factor * sum(padded)
    return done, channels


class LatencyModel:
    """Predicted latency in nanoseconds, as a cost that widths can be searched on.

    Args:
        grouping: The groups, and the counted operations.
        fits: The fit of every module that has some.
        roundings: What the runtime makes of widths, for every such module.
        constant: Milliseconds of everything else.
        scale: Factor on the whole.
    """

    def __init__(
        self,
        grouping: Grouping,
        fits: Mapping[str, LayerFit],
        roundings: Mapping[str, Rounding],
        constant: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.fits, self.roundings, self.constant, self.scale = fits, roundings, constant, scale
        self.numbers = CostModel(grouping.groups, [])
        self.works = {name: own for name, own in layer_works(grouping).items() if name in fits}
        self._names = [group.name for group in grouping.groups]

    @cached_property
    def _touched(self) -> list[list[str]]:
        reached = {
            layer: {name for work in own for axis in work.axes for name, _ in axis.groups}
            for layer, own in self.works.items()
        }
        return [[layer for layer in reached if n in reached[layer]] for n in self._names]

    def layer(self, name: str, widths: Widths) -> float:
        """Return the milliseconds of one layer."""
        fit = self.fits[name]
        done, channels = features(self.works[name], self.numbers, widths, self.roundings[name])
        return self.scale * (fit.overhead + fit.by_work * done + fit.by_size * channels)

    def total(self, widths: Widths) -> int:
        """Return the nanoseconds of the whole network."""
        layers = sum(self.layer(name, widths) for name in self.works)
        return round((layers + self.scale * self.constant) * NANOSECONDS)

    def change(self, index: int, width: int, widths: Widths) -> int:
        """Return how `total` changes when one group takes another width."""
        other = [*widths[:index], width, *widths[index + 1 :]]
        own = self._touched[index]
        change = sum(self.layer(n, other) - self.layer(n, widths) for n in own)
        return round(change * NANOSECONDS)


@dataclass(frozen=True)
class Measured:
    """One exported network.

    Attributes:
        file_bytes: Size of its file.
        milliseconds: Time of one run.
        by_layer: The part of each layer, with what follows it.
        other: The rest of the time.
    """

    file_bytes: int
    milliseconds: float
    by_layer: Mapping[str, float]
    other: float


@dataclass(frozen=True)
class Shipped:
    """Exported networks in ONNX Runtime on this machine: the original and the plan's.

    Attributes:
        latency_before: Milliseconds of the original: median, batch 1, on the CPU.
        latency_after: The same of the plan's network with its dendrites: the original's times
            the median ratio over interleaved runs.
        latency_predicted: What the model of latency said of it before it was exported; None where
            no latency was asked for.
        bytes_before: File size of the original.
        bytes_after: File size of the plan's network.
        bytes_predicted: What was predicted of it; None where no size was asked for.
        round_to: The multiple that widths were rounded to.
        threads: Threads of the runtime.
    """

    latency_before: float
    latency_after: float
    latency_predicted: float | None
    bytes_before: int
    bytes_after: int
    bytes_predicted: int | None
    round_to: int
    threads: int = 1

    @property
    def slower(self) -> bool:
        """Whether the plan's network takes longer than the original."""
        return self.latency_after > self.latency_before

    def __str__(self) -> str:
        ratio = self.latency_before / self.latency_after
        verdict = "SLOWER than the original" if self.slower else "as fast"
        guess = (
            "" if self.latency_predicted is None else f", predicted {self.latency_predicted:.3f}"
        )
        size = "" if self.bytes_predicted is None else f", predicted {self.bytes_predicted:,}"
        return (
            f"exported: {self.latency_before:.3f} -> {self.latency_after:.3f} ms{guess} "
            f"({ratio:.2f}x {verdict}; ONNX Runtime, {self.threads} thread, batch 1, widths in "
            f"multiples of {self.round_to}), {self.bytes_before:,} -> {self.bytes_after:,} bytes"
            f"{size}"
        )
