"""Outputs and targets of batches that were padded to lengths of their own, as those of one split.

The metric decides how they can be joined. One that looks at each position (a pixel, a token) gets
all positions as one long sample; one that leaves padding out gets batches padded to the longest.
Which holds is tried on the batches: both must give the very number that the metric has without.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pbcompress.errors import CompressionError
from pbcompress.training.class_targets import IGNORED
from pbcompress.training.joining import Batch, LengthError, joined

__all__ = ["joined_at_any_length"]

FILLS = (IGNORED, 0, -1)  # of padded targets; outputs are padded with zeros
TRIED = 8  # batches on which a way is tried
Metric = Callable[[Any, Any], Any]
Leaves = list[Any]


def joined_at_any_length(batches: Sequence[Batch], metric: Metric) -> tuple[Any, Any, int]:
    """Return outputs and targets of a split and its number of samples.

    Args:
        batches: Output, target and samples of each.
        metric: Is called on some of them, where their lengths differ.

    Raises:
        CompressionError: Something in them cannot be joined.
    """
    try:
        return joined(batches)
    except LengthError as err:
        split = _Split.of(batches)
        samples = [count for *_, count in batches if count is not None]
        if split is None or len(samples) < len(batches):
            raise
        for way in (_AsOne(split), *(_Padded(split, fill) for fill in FILLS)):
            if _keeps(way, split, metric):
                return *split.put(way.joined(split.parts)), sum(samples)
        raise CompressionError(
            f"{err} Batches of different lengths were also tried as one long sample, and padded to "
            f"the longest with targets of {', '.join(map(str, FILLS))}, and Task.metric then gave "
            "other numbers: let it leave out one of these targets."
        ) from err


class _Split:
    """The tensors of every batch, and which of their axes differ in length.

    Attributes:
        parts: By batch, the leaves of its output and target.
        outputs: How many leaves are of the output.
        axes: By leaf, the axes that differ.
        sizes: By leaf, the largest shape.
    """

    def __init__(self, parts: list[Leaves], spec: TreeSpec, outputs: int) -> None:
        self.parts, self._spec, self.outputs = parts, spec, outputs
        self.axes: list[tuple[int, ...]] = []
        self.sizes: list[tuple[int, ...]] = []
        for leaves in zip(*parts, strict=True):
            shapes = [tuple(t.shape) if isinstance(t, Tensor) else () for t in leaves]
            sizes = list(zip(*shapes, strict=True))
            self.axes.append(tuple(a for a, s in enumerate(sizes) if a and len(set(s)) > 1))
            self.sizes.append(tuple(map(max, sizes)))

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "_Split | None":
        """Return a split; None where batches do not have the same tensors of the same ranks."""
        flat = [tree_flatten((output, target)) for output, target, _ in batches]
        parts, spec = [leaves for leaves, _ in flat], flat[0][1]
        plain = (Tensor, str, int, float, type(None))
        if any(own != spec for _, own in flat):
            return None
        if not all(isinstance(leaf, plain) for own in parts for leaf in own):
            return None
        kinds = {tuple(t.dim() if isinstance(t, Tensor) else t for t in own) for own in parts}
        if len(kinds) > 1:
            return None
        return cls(parts, spec, len(tree_flatten(batches[0][0])[0]))

    def put(self, leaves: Leaves) -> tuple[Any, Any]:
        """Return the output and the target that leaves belong to."""
        output, target = tree_unflatten(leaves, self._spec)
        return output, target

    def pairs(self) -> Iterator[list[Leaves]]:
        """Yield two batches at a time, cut to the same lengths."""
        for both in pairwise(self.parts):
            cut = []
            for i, own in enumerate(zip(*both, strict=True)):
                sizes = [min(t.shape[a] for t in own) for a in self.axes[i]]
                cut.append([_cut(t, self.axes[i], sizes) for t in own])
            yield [list(own) for own in zip(*cut, strict=True)]


def _cut(leaf: Any, axes: Sequence[int], sizes: Sequence[int]) -> Any:
    for axis, size in zip(axes, sizes, strict=True):
        leaf = leaf.narrow(axis, 0, size)
    return leaf


class _Plain:
    """How batches of one length are joined: along the first axis."""

    def __init__(self, split: _Split) -> None:
        self.split = split

    def changed(self, index: int, leaf: Tensor) -> Tensor:
        """Return a tensor of a batch as it is joined."""
        return leaf

    def axis(self, index: int) -> int:
        """Return the axis along which it is joined."""
        return 0

    def joined(self, parts: Sequence[Leaves]) -> Leaves:
        """Return the leaves of several batches as those of one."""
        return [self._leaf(i, own) for i, own in enumerate(zip(*parts, strict=True))]

    def _leaf(self, index: int, own: Sequence[Any]) -> Any:
        if not isinstance(own[0], Tensor):
            return own[0]
        if own[0].dim() == 0:
            return torch.stack(list(own))
        return torch.cat([self.changed(index, t) for t in own], self.axis(index))


class _AsOne(_Plain):
    """All positions of all batches as one long sample, along the first axis that differs."""

    def changed(self, index: int, leaf: Tensor) -> Tensor:
        axes = self.split.axes[index]
        if not axes:
            return leaf
        flat = leaf.movedim(axes, tuple(range(1, len(axes) + 1))).flatten(0, len(axes))
        long = flat.movedim(0, axes[0] - 1)
        for axis in (0, *axes[1:]):
            long = long.unsqueeze(axis)
        return long

    def axis(self, index: int) -> int:
        return self.split.axes[index][0] if self.split.axes[index] else 0


class _Padded(_Plain):
    """Every batch padded to the longest."""

    def __init__(self, split: _Split, fill: int) -> None:
        super().__init__(split)
        self._fill = fill

    def changed(self, index: int, leaf: Tensor) -> Tensor:
        if not self.split.axes[index]:
            return leaf
        is_plain = index < self.split.outputs or leaf.dtype == torch.bool
        whole = leaf.new_full(
            (len(leaf), *self.split.sizes[index][1:]), 0 if is_plain else self._fill
        )
        whole[tuple(slice(n) for n in leaf.shape)] = leaf
        return whole


def _keeps(way: _Plain, split: _Split, metric: Metric) -> bool:
    """Tell whether the metric has the same number on batches that are joined this way."""
    step = max(len(split.parts) // TRIED, 1)
    groups = [[leaves] for leaves in split.parts[::step]] + list(split.pairs())[::step]
    plain, seen = _Plain(split), 0
    for group in groups:
        expected = _value(metric, split.put(plain.joined(group)))
        if expected is None:
            continue
        found = _value(metric, split.put(way.joined(group)))
        if found is None or abs(found - expected) > 1e-5 * abs(expected) + 1e-9:
            return False
        seen += 1
    return seen > 0


def _value(metric: Metric, both: tuple[Any, Any]) -> float | None:
    """Return the metric of some samples; None where it is not defined on them."""
    try:
        value = float(metric(*both))
    except Exception:
        return None
    return value if math.isfinite(value) else None
