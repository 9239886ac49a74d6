"""Cuts carried out on files: which tensor loses what, and each read, cut and written by itself."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pbcompress.core.sharded_files import Folder, Shard, StoredTensor, shard_writer
from pbcompress.errors import StateMismatchError, UnwritableError, a_few
from pbcompress.pruning.cuts import LayerCut
from pbcompress.pruning.unit_choice import UnitChoice
from pbcompress.structure.dimensions import Kept, keep, what_stays

__all__ = ["check_layers", "energies_of", "kept_in_files", "written"]

MARK = "pbcompress"  # in the header of a written shard: what it was made from
BY_CHANNEL = ("weight", "bias", "running_mean", "running_var")
BLOCK = 2**20  # numbers that are squared at once
WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Names = Mapping[str, Sequence[str]]  # every name of a parameter, by the first
ANOTHER = "Apply a plan to the checkpoint of the architecture that it was made for."


def check_layers(folder: Folder, layers: Sequence[str], names: Names) -> None:
    """Raise unless every tensor of a checkpoint belongs to a layer that was planned.

    Raises:
        StateMismatchError: There are others.
    """
    known = {*layers, *(alias.rpartition(".")[0] for own in names.values() for alias in own)}
    others = [name for name in folder.tensors if name.rpartition(".")[0] not in known]
    if others:
        raise StateMismatchError(
            f"{folder.path} holds {a_few(others)}, which the plan knows nothing of. {ANOTHER}"
        )


def kept_in_files(folder: Folder, steps: Sequence[LayerCut], names: Names) -> dict[str, Kept]:
    """Return what stays along the axes of every tensor that cuts change.

    Args:
        folder: The checkpoint.
        steps: The cuts.
        names: Every name of a parameter that has several, by the first.

    Raises:
        StateMismatchError: A tensor is missing or has another size.
    """
    kept: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for step in steps:
        for tensor, axis in _cut_axes(folder, step.layer, step.dim, step.width, names):
            size = tensor.shape[axis]
            removed = torch.tensor(step.removed, dtype=torch.long) % size
            kept[tensor.name][axis] = what_stays(size, removed)
    return dict(kept)


def _cut_axes(
    folder: Folder, layer: str, dim: str, width: int, names: Names
) -> Iterator[tuple[StoredTensor, int]]:
    """Yield the tensors, with the axis, that a named dimension is of; see `LayerCut`."""
    if dim.startswith("@"):
        return
    prefix, own, axis = f"{layer}.".lstrip("."), "weight", 0
    if dim == "in":
        axis = 1
    elif dim != "out":
        own, _, place = dim.partition(":")
        axis = int(place)
    tensors = folder.tensors
    others = BY_CHANNEL[1:] if dim == "out" else ()
    wanted = [n for n in names.get(f"{prefix}{own}", (f"{prefix}{own}",)) if n in tensors]
    if not wanted:
        raise StateMismatchError(
            f"The plan cuts {prefix}{own}, and {folder.path} has no such tensor. {ANOTHER}"
        )
    for name in [*wanted, *(f"{prefix}{o}" for o in others if f"{prefix}{o}" in tensors)]:
        shape = tensors[name].shape
        is_right = axis < len(shape) and (
            shape[axis] == width or (dim == "in" and width % shape[axis] == 0)
        )
        if not is_right:
            raise StateMismatchError(
                f"The plan cuts axis {axis} of {name}, of size {width}; {folder.path} has it with "
                f"shape {shape}. {ANOTHER}"
            )
        yield tensors[name], axis


def energies_of(
    folder: Folder, choices: Sequence[UnitChoice], names: Names
) -> dict[tuple[str, str], Tensor]:
    """Return the squared weights along every dimension that open groups reach.

    Args:
        folder: The checkpoint, read one tensor at a time.
        choices: The groups.
        names: Every name of a parameter that has several, by the first.
    """
    asked: dict[str, list[tuple[tuple[str, str], int, int]]] = defaultdict(list)
    for place in {(m.layer, m.dim): m for c in choices for m in c.members}.values():
        for tensor, axis in _cut_axes(folder, place.layer, place.dim, place.size, names):
            own = tensor.name.rpartition(".")[2]
            is_weight = own == "weight" or own == place.dim.partition(":")[0]
            if is_weight and own not in BY_CHANNEL[2:] and tensor.numbers is not None:
                key, parts = (place.layer, place.dim), place.size // tensor.shape[axis]
                asked[tensor.name].append((key, axis, parts))
    found: dict[tuple[str, str], Tensor] = {}
    for shard in folder.shards:
        with shard.reading() as file:
            for tensor in (t for t in shard.tensors if t.name in asked):
                content = file.bytes_of(tensor).view(-1)
                numbers = content.view(tensor.numbers or torch.uint8).view(tensor.shape)
                for key, axis, parts in asked[tensor.name]:
                    if key not in found:  # a shared tensor counts once
                        found[key] = _energy(numbers, axis, parts)
    return found


def _energy(weight: Tensor, axis: int, parts: int) -> Tensor:
    """Return the sums of squares along an axis; with parts, of each part of the outputs."""
    of_parts = []
    for part in weight.chunk(parts):
        rows = max(1, BLOCK // max(math.prod(part.shape[1:]), 1))
        sums = []
        for block in part.split(rows):
            real = block.abs() if block.is_complex() else block
            squares = real.float().square().movedim(axis, 0)
            sums.append(squares.reshape(len(squares), -1).sum(1).double())
        of_parts.append(torch.cat(sums) if axis == 0 else torch.stack(sums).sum(0))
    return torch.cat(of_parts)


def written(folder: Folder, out: Path, kept: Mapping[str, Kept], mark: str) -> None:
    """Write the shards of a checkpoint without what goes; those that are there already stay.

    Args:
        folder: The checkpoint.
        out: Another folder.
        kept: What stays of each tensor that is cut.
        mark: What the shards are made from.

    Raises:
        UnwritableError: The disk is full: what was written whole stays, and the same call goes on.
            Or there are shards of something else.
    """
    for shard in folder.shards:
        path = out / shard.path.name
        if path.exists():
            if _is_done(path, mark):
                continue
            raise UnwritableError(
                f"{path} was to be written and is there, made from something else. Choose an "
                "empty folder."
            )
        _write(shard, path, kept, mark)


def _is_done(path: Path, mark: str) -> bool:
    try:
        return Shard.at(path).metadata.get(MARK) == mark
    except StateMismatchError:
        return False


def _write(shard: Shard, path: Path, kept: Mapping[str, Kept], mark: str) -> None:
    shapes = []
    for tensor in shard.tensors:
        own = kept.get(tensor.name, {})
        shape = tuple(len(own[a]) if a in own else size for a, size in enumerate(tensor.shape))
        shapes.append((tensor.name, tensor.dtype, shape))
    metadata = {**shard.metadata, MARK: mark}
    with shard.reading() as source, shard_writer(path, shapes, metadata) as file:
        for tensor in shard.tensors:
            content = source.bytes_of(tensor)
            numbers = content.view(-1).view(WHOLE_NUMBERS[content.shape[-1]]).view(tensor.shape)
            left = keep(numbers, kept.get(tensor.name, {})).contiguous()
            file.write(left.view(-1).view(torch.uint8).numpy().data)
