"""What an operation that finds positions by their number does to labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pbcompress.structure.labels import Labels
from pbcompress.structure.rule_table import Axes, RuleTable, unknown
from pbcompress.structure.tracer import Tracer

__all__ = ["RULES"]

RULES = RuleTable()
rule = RULES.entry


@rule("index", "index_put", "index_put_")
def index(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Indexing with tensors, and writing so: an indexed dimension keeps its positions."""
    image, indices = args[0], list(args[1])
    x = t.labels(image)
    indices += [None] * (len(x) - len(indices))
    if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
        return _masked(t, name, args, out)
    used = [d for d, i in enumerate(indices) if i is not None]
    for dim in used:
        t.coupling.pin(x[dim], f"its channels are picked by an index in {t.where!r}")
    rank = max(indices[d].dim() for d in used)
    rest = [d for d in range(len(x)) if d not in used]
    is_block = used == list(range(used[0], used[-1] + 1))
    place = used[0] if is_block else 0
    picked = [*rest[:place], *[None] * rank, *rest[place:]]
    if name == "index":
        return [None if d is None else x[d] for d in picked]
    values = args[2]
    places = picked[len(picked) - values.dim() :]
    for size, labels, axis in zip(values.shape, t.labels(values), places, strict=True):
        if axis is None:
            t.coupling.pin(labels, f"its channels are picked by an index in {t.where!r}")
        elif size != 1 or image.shape[axis] == 1:  # else it is copied along the axis
            x[axis] = t.couple(x[axis], labels)
    return [None if d in used else v for d, v in enumerate(x)]


def _masked(t: Tracer, name: str, args: Any, out: Tensor) -> Axes:
    """Indexing with one mask of the leading dimensions: a number may be written to any of them."""
    image, (mask, *others) = args[0], args[1]
    x = t.labels(image)
    if name != "index" and mask is not None and not others and args[2].dim() == 0:
        own = t.labels(mask)
        return [*map(t.couple, x[: len(own)], own), *x[len(own) :]]
    t.result.decisions.add(t.where)
    if name != "index" or mask is None or others:
        return unknown(t, name, args, {}, out)  # type: ignore[no-any-return]
    for labels in (*x[: mask.dim()], *t.labels(mask)):
        t.coupling.pin(labels, f"its channels are picked by a mask in {t.where!r}")
    return [None, *x[mask.dim() :]]


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def index_add(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Sums at places of one dimension, which stays: messages along the edges of a graph."""
    image, dim, _, source = args[:4]
    return _apart(t, dim % max(image.dim(), 1), [t.labels(image), t.labels(source)])


@rule(
    *("gather", "scatter", "scatter_", "scatter_add", "scatter_add_"),
    *("scatter_reduce", "scatter_reduce_"),
)
def gather(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Reading or writing at places of one dimension that differ by the others; these go on."""
    image, dim = args[:2]
    tensors = [x for x in args if isinstance(x, Tensor)]
    every = [t.labels(tensor) for tensor in tensors]
    dim %= max(image.dim(), 1)
    for d in range(image.dim()):
        if d != dim and any(x.shape[d] != image.shape[d] for x in tensors):
            for own in every:  # a part of it is read
                t.coupling.pin(own[d], f"its channels are picked by an index in {t.where!r}")
                own[d] = None
    return _apart(t, dim, every)


def _apart(t: Tracer, dim: int, operands: Sequence[Axes]) -> Axes:
    """Couple all dimensions of some operands but one, whose positions stay."""
    labels: list[Labels] = []
    for d, (first, *others) in enumerate(zip(*operands, strict=True)):
        for own in (first, *others) if d == dim else ():
            t.coupling.pin(own, f"its channels are picked by an index in {t.where!r}")
        for own in others if d != dim else ():
            first = t.couple(first, own)
        labels.append(None if d == dim else first)
    return labels


@rule("nonzero", "masked_select")
def places(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Any:
    """A size that depends on values."""
    t.result.decisions.add(t.where)
    return unknown(t, name, args, kwargs, out)
