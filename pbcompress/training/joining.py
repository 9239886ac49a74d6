"""The outputs and targets of a split, from those of its batches.

Tensors are joined along their first axis, and everything that has named parts by part. A list or a
tuple with an item for each sample of its batch grows with the samples; another one has parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pbcompress.errors import CompressionError

__all__ = ["LengthError", "is_by_sample", "joined", "sample_count", "samples_of", "taken"]

REASON = "Task.metric gets the outputs and targets of a whole split"
Batch = tuple[Any, Any, int | None]  # output, target, samples
IMAGE = 3  # axes of an image


class LengthError(CompressionError):
    """Tensors of two batches differ in another axis than the first."""


class _Place(NamedTuple):
    """Where a value stands, for messages, and how many samples each batch has, if it is known."""

    name: str
    samples: Sequence[int | None]


def sample_count(batch: Any) -> int:
    """Return how many samples a batch has: items on the first axis of its first tensor or list.

    Example:
        >>> sample_count((torch.zeros(4, 3), torch.zeros(4)))
        4
        >>> sample_count(([torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)], [{}, {}]))
        2
    """
    first = batch
    if isinstance(batch, tuple | list) and len(batch) == 2:  # inputs and targets
        inputs, first = batch
        if isinstance(first, list | tuple) and isinstance(inputs, Tensor):
            first = inputs
    elif isinstance(batch, tuple | list) and _has_parts(batch):
        first = batch[0]
    elif not isinstance(batch, Tensor | Mapping | tuple | list):
        first = getattr(batch, "__dict__", batch)
    if isinstance(first, Mapping) and first:
        first = next(iter(first.values()))
    elif isinstance(first, tuple) and not _is_row(first) and first:
        first = first if isinstance(first, PackedSequence) else first[0]
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    if isinstance(first, list | tuple) and not _are_parts(first, batch):
        return len(first)
    tensor = next((t for t in tree_leaves((first, batch)) if _has_axis(t)), None)
    return tensor.size(0) if tensor is not None else 1


def _are_parts(row: Sequence[Any], batch: Any) -> bool:
    """Tell whether a row holds whole tensors of a batch: all that it has, and all of one length."""
    lengths = {len(leaf) for leaf in tree_leaves(batch) if _has_axis(leaf)}
    if not all(map(_has_axis, row)) or len(lengths) > 1:
        return False
    inputs = tree_leaves(next(iter(batch))) if _is_row(batch) else []
    return not any(all(t.dim() == IMAGE for t in own) for own in (row, inputs) if own)


def _has_parts(batch: Sequence[Any]) -> bool:
    """Tell whether the items of a batch are parts of it (inputs, targets, weights) and not samples.

    A loader makes a list of the parts. Samples are all of one kind; parts that are have one length,
    as images have one number of channels.
    """
    if isinstance(batch, tuple) or len(batch) == 1:
        return bool(batch)
    if len({_kind(item) for item in batch}) > 1:
        return True
    tensors = [item for item in batch if _has_axis(item)]
    return len({len(t) for t in tensors}) == 1 and tensors[0].dim() != IMAGE


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    return float if isinstance(value, int | float) else type(value)


def samples_of(output: Any, target: Any, batch: Any) -> int | None:
    """Return how many samples a batch has, as far as a tensor outside of lists says it."""
    is_pair = isinstance(batch, tuple | list) and bool(batch)
    inputs = batch[0] if is_pair else None  # where targets are lists
    found = map(_length, (target, output, batch, inputs))
    return next((length for length in found if length is not None), None)


def _length(value: Any) -> int | None:
    """Return the length of the first tensor outside of lists, or how many sequences are packed."""
    for leaf in _flat(value)[0]:
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0])
        if _has_axis(leaf):
            return int(leaf.size(0))
    return None


def joined(batches: Sequence[Batch]) -> tuple[Any, Any, int]:
    """Return outputs and targets of a split and its number of samples.

    Raises:
        CompressionError: Something in them cannot be joined.
    """
    outputs, targets, counts = zip(*batches, strict=True)
    target = _join(targets, _Place("target", counts))
    output = _join(outputs, _Place("output", counts))
    known = [count for count in counts if count is not None]
    if len(known) == len(counts):
        return output, target, sum(known)
    for value, parts, name in ((target, targets, "target"), (output, outputs, "output")):
        if _is_row(value) and _is_by_sample(parts, _Place(name, counts)):
            return output, target, len(value)
    tensor = next((t for t in tree_leaves((target, output)) if _has_axis(t)), None)
    return output, target, len(batches) if tensor is None else tensor.size(0)


def is_by_sample(value: Any, samples: int) -> bool:
    """Tell whether all tensors, lists and tuples of a joined value have an item for each sample."""
    leaves = tree_leaves(value, is_leaf=lambda part: _is_row(part) and len(part) == samples)
    return all(
        len(leaf) == samples
        if _is_row(leaf) or (_has_axis(leaf) and not leaf.is_nested)
        else not isinstance(leaf, Tensor)
        for leaf in leaves
    )


def taken(value: Any, samples: int, index: Tensor) -> Any:
    """Return some samples of a joined value, for which `is_by_sample` holds."""

    def take(leaf: Any) -> Any:
        if _is_row(leaf):
            return type(leaf)(leaf[i] for i in index.tolist())
        return leaf[index] if isinstance(leaf, Tensor) else leaf

    return tree_map(take, value, is_leaf=lambda part: _is_row(part) and len(part) == samples)


def _has_axis(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _is_row(value: Any) -> bool:
    """Tell whether a value is a plain list or tuple; named tuples have parts."""
    return type(value) in (list, tuple)


def _flat(value: Any) -> tuple[list[Any], Any]:
    """Return the leaves of a value and how they hang together; lists and tuples are leaves."""
    return tree_flatten(value, is_leaf=lambda v: _is_row(v) or isinstance(v, PackedSequence))


def _join(parts: Sequence[Any], place: _Place) -> Any:
    leaves, specs = zip(*(_flat(part) for part in parts), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise _refused(place, "has other parts in one batch than in another")
    return tree_unflatten([_joined_leaf(own, place) for own in zip(*leaves, strict=True)], specs[0])


def _joined_leaf(leaves: Sequence[Any], place: _Place) -> Any:
    first = leaves[0]
    if any(type(leaf) is not type(first) for leaf in leaves):
        kinds = " and ".join(sorted({type(leaf).__name__ for leaf in leaves}))
        raise _refused(place, f"is {kinds} in turn")
    if isinstance(first, Tensor):
        return _joined_tensor(leaves, place)
    if _is_row(first):
        return _joined_row(leaves, place)
    if isinstance(first, PackedSequence):
        whole = [sequence for leaf in leaves for sequence in unpack_sequence(leaf)]
        return pack_sequence(whole, enforce_sorted=False)
    is_constant = isinstance(first, str | int | float | None) and len(set(leaves)) == 1
    if len(leaves) == 1 or is_constant:
        return first
    raise _refused(place, f"has a {type(first).__name__}, which cannot be joined")


def _joined_tensor(tensors: Sequence[Tensor], place: _Place) -> Tensor:
    first = tensors[0]
    if first.dim() == 0:
        return torch.stack(list(tensors))
    if first.is_nested:
        samples = [sample for tensor in tensors for sample in tensor.unbind()]
        return torch.nested.as_nested_tensor(samples, layout=first.layout)
    shapes = {tuple(t.shape[1:]): tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        one, other, *_ = shapes.values()
        kind = LengthError if len(one) == len(other) else CompressionError
        raise _refused(place, f"has the shape {one} in one batch and {other} in another", kind)
    return torch.cat(list(tensors))


def _joined_row(rows: Sequence[Any], place: _Place) -> Any:
    """Join lists or tuples: by sample if they have an item for each, by part otherwise."""
    if _is_by_sample(rows, place):
        return type(rows[0])(item for row in rows for item in row)
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise _refused(
            place,
            f"has a {type(rows[0]).__name__} of {' and '.join(map(str, sorted(lengths)))} items, "
            "which are not the samples of its batches",
        )
    return type(rows[0])(_join(part, place) for part in zip(*rows, strict=True))


def _is_by_sample(rows: Sequence[Any], place: _Place) -> bool:
    """Tell whether rows have an item for each sample, and not one for each part.

    Where both could be, items that differ in kind, each at its place, are parts, and so are the
    tensors of an output. Targets that leave it open are refused.
    """
    items, counts = [item for row in rows for item in row], place.samples
    fits, whole = _agree(rows, counts)
    if items and all(isinstance(item, Mapping) for item in items):
        return fits or not whole
    if None not in counts:
        if not fits or _differ_by_place(rows) or (whole and place.name == "output"):
            return False
        if whole and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            raise _refused(
                place,
                f"has a {type(rows[0]).__name__} of {len(rows[0])} tensors of as many rows, which "
                "may be samples or parts: name the parts in a dict",
            )
        return True
    firsts = [{len(item) if _has_axis(item) else None for item in row} for row in rows]
    are_parts = len({len(row) for row in rows}) == 1 and all(
        len(first) == 1 and None not in first for first in firsts
    )
    return not are_parts


def _differ_by_place(rows: Sequence[Any]) -> bool:
    """Tell whether the items of a row differ in kind, and those at one place of rows do not."""
    kinds = {tuple(map(_kind, row)) for row in rows}
    return len(kinds) == 1 and len(set(kinds.pop())) > 1


def _agree(rows: Sequence[Any], counts: Sequence[int | None]) -> tuple[bool, bool]:
    """Tell whether rows have as many items as there are samples, and whether their tensors do."""
    pairs = list(zip(rows, counts, strict=True))
    tensors = [(t, count) for row, count in pairs for t in tree_leaves(row) if _has_axis(t)]
    fits = all(len(row) == count for row, count in pairs)
    return fits, bool(tensors) and all(t.size(0) == count for t, count in tensors)


def _refused(
    place: _Place, found: str, kind: type[CompressionError] = CompressionError
) -> CompressionError:
    return kind(
        f"{REASON}, joined along the first axis, and the {place.name} {found}. Return from "
        "Task.forward tensors of one shape (padded), or a list with one item for each sample."
    )
