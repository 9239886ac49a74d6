"""Latency as a closed form in the widths: a table of operators, fitted to measured kernels.

The table knows how a runtime's blocks and its slow ways look; how fast a layer is in its place, and
what follows it, is read off profiles of whole networks. So the time of a layer is

    overhead + factor * its time by the table

and both numbers are fitted, layer by layer, from networks of different widths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import nn

from pbcompress.costs.closed_form import CostModel, Widths
from pbcompress.costs.operator_table import Machine, operator_time
from pbcompress.costs.operators import Operator
from pbcompress.structure.channel_groups import ChannelGroup
from pbcompress.structure.layer_geometry import is_depthwise

__all__ = [
    "PROBE_WIDTHS",
    "LatencyModel",
    "LayerFit",
    "LayerKind",
    "Measured",
    "Shipped",
    "fit_layer",
    "kind_of",
    "multiple_of",
]

LayerKind = Literal["convolution", "depthwise", "product"]
# For each multiple a width that is none of the larger ones: narrow enough for padding to the next
# one to cost more than NEARLY, wide enough for the size itself to make no difference.
PROBE_WIDTHS = {1: 65, 4: 68, 8: 72, 16: 80, 32: 64}
NEARLY = 1.06  # a multiple within this factor of the fastest is as good
BLOCK = 8  # channels, for widths that are not whole yet
BELIEF = 0.1  # in the table, beside a measured network; a tenth of that beside three
NANOSECONDS = 1e6  # in a millisecond
Point = tuple[float, float]  # milliseconds by the table, and as measured


def multiple_of(costs: Mapping[int, float]) -> int:
    """Return the least multiple that is about as fast as any.

    Args:
        costs: Time for each multiply-add of a network of ``PROBE_WIDTHS[multiple]`` channels, by
            multiple.
    """
    best = min(costs.values())
    return next(m for m in sorted(costs) if costs[m] <= NEARLY * best)


@dataclass(frozen=True)
class LayerFit:
    """Milliseconds of a layer: overhead + factor * what the table says."""

    overhead: float
    factor: float


def fit_layer(points: Sequence[Point]) -> LayerFit:
    """Return the fit with the least relative squares whose two numbers are not negative.

    Points that lie close together leave it open, and then the table is believed: time goes in
    proportion to it.
    """
    told, measured = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    told, measured = np.maximum(told, 1e-9), np.maximum(measured, 1e-9)
    scale = told.max()
    rows = np.column_stack([np.ones(len(told)), told / scale]) / measured[:, None]
    largest = measured[told.argmax()]
    weight = BELIEF if len(told) < 3 else BELIEF / 10
    belief = weight * np.array([1.0, 1 / 16]) * 16 / largest
    columns, wanted = np.vstack([rows, belief]), np.append(np.ones(len(told)), weight)
    best, chosen = math.inf, np.zeros(2)
    for terms in ([0], [1], [0, 1]):
        part, *_ = np.linalg.lstsq(columns[:, terms], wanted, rcond=None)
        residual = float(((columns[:, terms] @ part - wanted) ** 2).sum())
        if (part >= 0).all() and residual < best:
            best, chosen = residual, np.zeros(2)
            chosen[terms] = part
    return LayerFit(float(chosen[0]), float(chosen[1] / scale))


def kind_of(module: nn.Module) -> LayerKind:
    """Return the kind of kernel that a module runs."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "depthwise" if is_depthwise(module) else "convolution"
    return "product"


class LatencyModel:
    """Predicted latency in nanoseconds, as a cost that widths can be searched on.

    Args:
        groups: The groups.
        operators: What is executed, by layer.
        fits: Of every layer.
        machine: The table.
        constant: Milliseconds of everything else.
        scale: Factor on the whole.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        operators: Mapping[str, Operator],
        fits: Mapping[str, LayerFit],
        machine: Machine,
        constant: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.operators, self.fits, self.machine = operators, fits, machine
        self.constant, self.scale = constant, scale
        self.numbers = CostModel(groups, [])

    @cached_property
    def _touched(self) -> list[list[str]]:
        reached = {name: operator.groups for name, operator in self.operators.items()}
        return [[name for name in reached if g.name in reached[name]] for g in self.numbers.groups]

    def told(self, name: str, widths: Widths) -> float:
        """Return the milliseconds of one layer by the table."""
        size = self.operators[name].size(self.numbers, widths)
        return operator_time(size, self.machine) / NANOSECONDS

    def layer(self, name: str, widths: Widths) -> float:
        """Return the milliseconds of one layer."""
        fit = self.fits[name]
        return self.scale * (fit.overhead + fit.factor * self.told(name, widths))

    def total(self, widths: Widths) -> int:
        """Return the nanoseconds of the whole network.

        Fractions of a channel stand for the end of the block that they lie in.
        """
        if not all(isinstance(width, int) for width in widths):
            pairs = zip(widths, self.numbers.groups, strict=True)
            widths = [min(math.ceil(w / BLOCK) * BLOCK, g.width) for w, g in pairs]
        layers = sum(self.layer(name, widths) for name in self.operators)
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
        latency_before: Milliseconds of the original: median, batch 1, on the CPU; with one thread
            in time of the processor, which leaves out what other programs take.
        latency_after: The same of the plan's network with its dendrites: the original's times
            the median ratio over interleaved runs.
        latency_predicted: What the model of latency said of it before it was exported; None where
            no latency was asked for.
        bytes_before: File size of the original; with a fixed batch size, which makes it a little
            smaller, unless a size was asked for.
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
