"""Latency as a closed form in the widths, fitted from measured kernels; times as plain numbers.

A runtime works on blocks of channels: a width that is no multiple of the block costs as much as
the next one, and some kernels have a slower way for it. So the time of a layer is

    overhead + a * multiply-adds + b * output channels

in padded widths, and the three numbers are fitted, layer by layer, from networks of several widths.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import nn

from pbcompress.costs.closed_form import CostModel, Widths
from pbcompress.structure.channel_groups import Axis, ChannelGroup, Grouping, Work
from pbcompress.structure.layer_geometry import is_depthwise

__all__ = [
    "PROBE_WIDTHS",
    "LatencyModel",
    "LayerFit",
    "LayerKind",
    "LayerWork",
    "Measured",
    "Rounding",
    "Shipped",
    "features",
    "fit_layer",
    "kind_of",
    "layer_works",
]

LayerKind = Literal["convolution", "depthwise", "product"]
# For each multiple a width that is none of the larger ones: narrow enough for padding to the next
# one to cost more than NEARLY, wide enough for the size itself to make no difference.
PROBE_WIDTHS = {1: 65, 4: 68, 8: 72, 16: 80, 32: 64}
BELIEF = 0.1
NEARLY = 1.06  # a multiple within this factor of the fastest is as good
NANOSECONDS = 1e6  # in a millisecond
Point = tuple[float, float, float]  # padded multiply-adds and output channels, milliseconds


@dataclass(frozen=True)
class Rounding:
    """How the runtime slows down at widths that are no multiple, for one kind of layer.

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
                slower[m] = max(1.0, cost[m] / cost[multiple] / growth**2)  # of both widths
        return Rounding(multiple, slower)

    def padded(self, size: int) -> int:
        """Return the width that the runtime works with; far below a block it has other ways."""
        return min(math.ceil(size / self.multiple) * self.multiple, 2 * size)

    def factor(self, sizes: Sequence[int]) -> float:
        """Return how many times slower a layer of these widths is than one of padded widths."""
        if not self.slower or not sizes:
            return 1.0
        known = [m for m in self.slower if all(size % m == 0 for size in sizes)]
        if not known or all(size % self.multiple == 0 for size in sizes):
            return 1.0  # fractions of a channel have no way of their own
        return self.slower[max(known)]


@dataclass(frozen=True)
class LayerFit:
    """Milliseconds of a layer: overhead + by_work * multiply-adds + by_size * output channels."""

    overhead: float
    by_work: float
    by_size: float


def fit_layer(points: Sequence[Point]) -> LayerFit:
    """Return the fit with the least relative squares whose three numbers are not negative.

    Fewer than three points leave it open, and a small layer is then believed to be fast: an
    eighth of the time at a sixteenth of the work, with little weight.
    """
    rows = np.array(points, dtype=np.float64)
    time = np.maximum(rows[:, 2], 1e-6)
    scale = np.maximum(np.abs(rows[:, :2]).max(axis=0), 1e-12)
    columns = np.column_stack([np.ones(len(rows)), rows[:, :2] / scale]) / time[:, None]
    wanted = np.ones(len(rows))
    if len(rows) < 3:
        belief = np.array([1.0, 1 / 16, 1 / 16]) / time.max()
        columns = np.vstack([columns, BELIEF * belief])
        wanted = np.append(wanted, BELIEF / 8)
    best, chosen = math.inf, np.zeros(3)
    for count in (1, 2, 3):
        for terms in itertools.combinations(range(3), count):
            part, *_ = np.linalg.lstsq(columns[:, terms], wanted, rcond=None)
            residual = float(((columns[:, terms] @ part - wanted) ** 2).sum())
            if (part >= 0).all() and residual < best * (1 - 1e-9) - 1e-12:
                best, chosen = residual, np.zeros(3)
                chosen[list(terms)] = part
    return LayerFit(float(chosen[0]), *(float(v) for v in chosen[1:] / scale))


@dataclass(frozen=True)
class LayerWork:
    """What a layer does, in closed form.

    Attributes:
        works: Its counted operations.
        outputs: The dimensions of what it hands on.
    """

    works: tuple[Work, ...]
    outputs: tuple[Axis, ...]


def layer_works(model: nn.Module, grouping: Grouping) -> dict[str, LayerWork]:
    """Return the work of every module that has some."""
    works: dict[str, list[Work]] = defaultdict(list)
    for work in grouping.works:
        works[work.module].append(work)
    found = {}
    for name, own in works.items():
        layer, weight = model.get_submodule(name), grouping.shapes.get(f"{name}.weight")
        outputs = tuple(axis for work in own for axis in work.axes)
        if weight is not None and isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            outputs = (weight[1 if is_transposed else 0],)
        found[name] = LayerWork(tuple(own), outputs)
    return found


def kind_of(module: nn.Module) -> LayerKind:
    """Return the kind of kernel that a module runs."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "depthwise" if is_depthwise(module) else "convolution"
    return "product"


def features(
    layer: LayerWork, numbers: CostModel, widths: Widths, rounding: Rounding
) -> tuple[float, float]:
    """Return the padded multiply-adds and output channels of a layer, slower ones as more."""
    done = channels = 0.0
    for work in layer.works:
        moving = [axis for axis in work.axes if axis.groups]
        sizes = [numbers.size(axis, widths) for axis in moving]
        fixed = math.prod(axis.size for axis in work.axes if not axis.groups)
        padded = math.prod(rounding.padded(size) for size in sizes)
        done += rounding.factor(sizes) * work.coefficient * fixed * padded
    for axis in layer.outputs:
        size = numbers.size(axis, widths)
        channels += rounding.factor([size]) * rounding.padded(size) if axis.groups else size
    return done, channels


class LatencyModel:
    """Predicted latency in nanoseconds, as a cost that widths can be searched on.

    Args:
        groups: The groups.
        layers: The work of every layer that has some.
        fits: Their fits.
        roundings: What the runtime makes of their widths.
        constant: Milliseconds of everything else.
        scale: Factor on the whole.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        layers: Mapping[str, LayerWork],
        fits: Mapping[str, LayerFit],
        roundings: Mapping[str, Rounding],
        constant: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.fits, self.roundings, self.constant, self.scale = fits, roundings, constant, scale
        self.numbers, self.layers = CostModel(groups, []), layers

    @cached_property
    def _touched(self) -> list[list[str]]:
        reached = {
            name: {
                group
                for axes in (*(work.axes for work in layer.works), layer.outputs)
                for axis in axes
                for group, _ in axis.groups
            }
            for name, layer in self.layers.items()
        }
        return [[name for name in reached if g.name in reached[name]] for g in self.numbers.groups]

    def layer(self, name: str, widths: Widths) -> float:
        """Return the milliseconds of one layer."""
        fit = self.fits[name]
        done, channels = features(self.layers[name], self.numbers, widths, self.roundings[name])
        return self.scale * (fit.overhead + fit.by_work * done + fit.by_size * channels)

    def total(self, widths: Widths) -> int:
        """Return the nanoseconds of the whole network."""
        layers = sum(self.layer(name, widths) for name in self.layers)
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
