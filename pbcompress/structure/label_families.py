"""Labels by what they reach, once every size that the code computes has been made to follow."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pbcompress.structure.sizes import Attribute, Leaf, Size, evaluate, leaves_of
from pbcompress.structure.tracer import Check, Trace

__all__ = ["Families", "settle"]

_SQUARE = "the rows and the columns of a matrix of outputs are the same channels, which stay"


class Families:
    """Free labels by what they reach: labels of the same dimensions are units of one group.

    Attributes:
        parts: For the labels of every dimension, by their ``id``, the free labels of each position.
        of: The family of every label, -1 if it has none.
        labels: The labels of every family.
    """

    def __init__(self, traced: Trace) -> None:
        coupling = traced.coupling
        dims = {id(labels): labels for labels in _dimensions(traced)}
        self.parts = dict(zip(dims, coupling.parts_of(list(dims.values())), strict=True))
        self._positions: dict[bytes, list[tuple[int, Tensor]]] = {}
        self._found: dict[int, list[tuple[int, Tensor]]] = {}  # the same, by whole dimensions
        own = [
            self.parts[id(labels)]
            for axes in (*traced.tensors.values(), [*traced.bindings.values()])
            for labels in axes
            if len(labels)
        ]
        generator = torch.Generator().manual_seed(0)
        signature = torch.zeros(coupling.size, dtype=torch.long)
        if own:
            codes = torch.randint(2**62, (len(own),), generator=generator)
            counts = torch.tensor([sum(map(len, parts)) for parts in own])
            flat = torch.cat([part for parts in own for part in parts])
            signature.index_add_(0, flat, codes.repeat_interleave(counts))
        signature[0] = 0
        labels = signature.nonzero().squeeze(1)
        _, family, sizes = signature[labels].unique(return_inverse=True, return_counts=True)
        self.of = torch.full((coupling.size,), -1)
        self.of[labels] = family
        self.labels = labels[family.argsort(stable=True)].split(sizes.tolist())

    def positions(self, labels: Tensor) -> list[tuple[int, Tensor]]:
        """Return each family on a dimension with the positions of its units, (units, positions)."""
        key = id(labels)
        if key not in self._found:
            self._found[key] = [one for part in self.parts[key] for one in self.of_part(part)]
        return self._found[key]

    def of_part(self, part: Tensor) -> list[tuple[int, Tensor]]:
        """Return the same for the free labels of each position."""
        key = part.numpy().tobytes()  # most dimensions repeat others
        if key not in self._positions:
            family = self.of[part]
            found = []
            first = int(family[0]) if len(family) else -1
            if first >= 0 and bool((family == first).all()):
                by_unit = part.argsort(stable=True)
                self._positions[key] = [(first, by_unit.view(len(self.labels[first]), -1))]
                return self._positions[key]
            for index in family[family >= 0].unique().tolist():
                positions = (family == index).nonzero().squeeze(1)
                by_unit = positions[part[positions].argsort(stable=True)]
                found.append((index, by_unit.view(len(self.labels[index]), -1)))
            self._positions[key] = found
        return self._positions[key]


def _dimensions(traced: Trace) -> Iterator[Tensor]:
    """Yield the labels of every dimension that a trace mentions."""
    for axes in traced.tensors.values():
        yield from axes
    for work in traced.works:
        yield from work.dims
    yield from traced.bindings.values()
    for check in traced.checks:
        yield from _axes_of(check, traced)


def settle(traced: Trace, attention: str) -> Families:
    """Make every size that the code computes follow, and choose a side of every pair.

    Where the size of one dimension is that of another (heads are flattened to the width of the
    stream that they read), both lose the same places. Where it is anything else, channels stay.
    """
    merged: dict[int, Tensor] = {}
    while True:
        families = Families(traced)
        failed = [
            (c, found) for c in traced.checks if (found := list(_failures(c, traced, families)))
        ]
        joint = [(c, pair) for c, _ in failed if (pair := _counterparts(c, traced, merged))]
        for check, (own, other) in joint:
            traced.coupling.couple(own, other, _does_not_follow(check))
        for check, found in failed if not joint else []:
            for labels in found:
                traced.coupling.pin(labels, _does_not_follow(check))
        if not failed and not _choose_sides(traced, families, attention):
            return families


def _counterparts(
    check: Check, traced: Trace, merged: dict[int, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Return two dimensions that can lose the same places, so that a size goes on to follow.

    Either the size is that of another dimension, or the code divides one by the number of parts
    that it gets: by heads.

    Args:
        check: What fails.
        traced: The pass.
        merged: Labels of parts times their size, by the ``id`` of their check.
    """
    own, origin = check.labels, check.size.origin if isinstance(check.size, Size) else None
    if own is None:
        return None
    whole = _counted(origin, traced)
    if isinstance(origin, tuple) and origin[0] == "__floordiv__":
        whole, parts = (_counted(getattr(one, "origin", None), traced) for one in origin[1:])
        if parts is None:
            return None
        if id(check) not in merged:
            pairs = traced.coupling.merge(parts, len(parts), own, len(own))
            merged[id(check)] = torch.zeros(0) if pairs is None else pairs
        own = merged[id(check)]
    if whole is None or len(whole) != len(own):
        return None
    same = traced.coupling.resolve(whole) == traced.coupling.resolve(own)
    return None if same.all() else (own, whole)


def _counted(origin: Any, traced: Trace) -> Tensor | None:
    """Return the labels of what a leaf is the size of."""
    labels = traced.bindings.get(origin) if isinstance(origin, Attribute) else origin
    return labels if isinstance(labels, Tensor) else None


def _does_not_follow(check: Check) -> str:
    size = "" if isinstance(check.size, Size) else f": the plain number {check.size}"
    where = check.where or "the model itself"
    if check.labels is None:
        return f"the code of {where!r} computes a value from its size"
    return f"the code of {where!r} needs a size that does not follow{size}"


def _failures(check: Check, traced: Trace, families: Families) -> Iterator[Tensor]:
    """Yield the families without which the size and the dimension of a check would differ."""
    described = check.labels
    parts = {id(labels): families.parts[id(labels)] for labels in _axes_of(check, traced)}
    if not parts:  # a number of the code's own, and nothing that may change
        return
    reached = torch.cat([families.of[part] for own in parts.values() for part in own]).unique()
    for family in reached[reached >= 0].tolist():
        units = families.labels[family]
        for count in {1, (len(units) + 1) // 2}:
            gone = torch.zeros(len(families.of), dtype=torch.bool)
            gone[units[:count]] = True
            left = {
                key: len(own[0]) - int(torch.stack([gone[part] for part in own]).any(0).sum())
                for key, own in parts.items()
            }

            def count_of(leaf: Leaf, was: int, left: Mapping[int, int] = left) -> int:
                labels = traced.bindings.get(leaf) if isinstance(leaf, Attribute) else leaf
                return was if labels is None else left[id(labels)]

            wanted = int(check.size) if described is None else left[id(described)]
            if evaluate(check.size, count_of) != wanted:
                yield units
                break


def _axes_of(check: Check, traced: Trace) -> Iterator[Tensor]:
    if check.labels is not None:
        yield check.labels
    for leaf in leaves_of(check.size):
        labels = traced.bindings.get(leaf) if isinstance(leaf, Attribute) else leaf
        if labels is not None:
            yield labels


def _choose_sides(traced: Trace, families: Families, attention: str) -> bool:
    """Where a dimension is heads times channels, let one of them go; tell if there was one."""
    found = False
    for labels in (v for axes in traced.tensors.values() for v in axes):
        if len(families.parts[id(labels)]) < 2:
            continue
        parts = traced.coupling.parts(labels)  # after what was chosen for others
        pairs = (parts[0] > 0) & (sum(parts[1:], torch.zeros_like(labels)) > 0)
        if pairs.any():
            heads, inner = parts[0][pairs], torch.cat([part[pairs] for part in parts[1:]])
            both = heads[torch.isin(heads, inner)]
            if len(both):
                traced.coupling.pin(both, _SQUARE)
            elif attention == "dimensions" or len(heads.unique()) < 2:
                traced.coupling.pin(heads, "channels of its heads go, and the heads stay")
            else:
                traced.coupling.pin(inner, "whole heads go, and their channels stay")
            found = True
    return found
