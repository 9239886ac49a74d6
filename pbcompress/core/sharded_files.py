"""Folders of safetensors files, read and written one tensor at a time.

The format: eight bytes with the length of a JSON header, the header with the type, shape and place
of every tensor, and their bytes. A library that maps whole files into memory is not used: what it
has read of a large one counts as this process's memory.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pbcompress.core.bounded_files import read_bounded
from pbcompress.core.drafts import draft_file, told_where
from pbcompress.errors import StateMismatchError, a_few

__all__ = ["INDEX", "WHOLE", "Folder", "Shard", "StoredTensor", "shard_writer"]

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST = 100_000_000  # bytes of a header
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
BYTES |= {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        name: Its name.
        dtype: As the format calls it.
        shape: Its shape.
        start: Its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * BYTES[self.dtype]

    @property
    def numbers(self) -> torch.dtype | None:
        """The type of its numbers; None where they are no floats."""
        return DTYPES.get(self.dtype)


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        path: Where it is.
        tensors: What it holds, in the order of its bytes.
        metadata: The texts of its header.
    """

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]

    @classmethod
    def at(cls, path: Path) -> "Shard":
        """Read the header of a file.

        Raises:
            StateMismatchError: It is missing, cut off, damaged, or of another kind.
        """
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(LONGEST, size - 8):
                    raise ValueError("it has no header")
                header = json.loads(file.read(length))
            metadata = header.pop(METADATA, {})
            tensors = [_stored(name, own, 8 + length) for name, own in header.items()]
        except FileNotFoundError:
            raise StateMismatchError(
                f"The shard {path} was to be read and there is no such file. Fetch it again."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise _damaged(path, str(err)) from err
        tensors.sort(key=lambda tensor: tensor.start)
        end = 8 + length
        for tensor in tensors:
            if tensor.start != end:
                raise _damaged(path, f"{tensor.name!r} is not where its header says")
            end += tensor.length
        if end != size:
            raise _damaged(path, f"it has {size:,} bytes and its header says {end:,}")
        return cls(path, tuple(tensors), metadata)

    @contextmanager
    def reading(self) -> Iterator["_Reading"]:
        """Open it to read tensors."""
        with self.path.open("rb", buffering=0) as file:
            yield _Reading(self.path, file)


class _Reading:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file

    def bytes_of(self, tensor: StoredTensor) -> Tensor:
        """Return a tensor's bytes, shape (*shape, bytes of a number)."""
        content = bytearray(tensor.length)
        view, filled = memoryview(content), 0
        self.file.seek(tensor.start)
        while filled < len(view):
            count = self.file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise _damaged(self.path, f"it ends within {tensor.name!r}")
            filled += count
        if not content:
            return torch.empty((*tensor.shape, BYTES[tensor.dtype]), dtype=torch.uint8)
        flat = torch.frombuffer(content, dtype=torch.uint8)
        return flat.view(*tensor.shape, BYTES[tensor.dtype])


@dataclass(frozen=True)
class Folder:
    """A checkpoint: one file, or shards and their index.

    Attributes:
        path: Where it is.
        shards: Its files, in the order of their names.
        index: The JSON of its index, None where it is one file.
    """

    path: Path
    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """Read the headers of a checkpoint's files.

        Raises:
            StateMismatchError: A file is missing or damaged, or lacks what the index says.
        """
        if (path / WHOLE).is_file() and not (path / INDEX).exists():
            return cls(path, (Shard.at(path / WHOLE),), None)
        if not (path / INDEX).exists():
            raise StateMismatchError(
                f"A checkpoint was to be read from {path}, and there is neither {WHOLE} nor "
                f"{INDEX}. Give a folder that save_pretrained wrote."
            )
        try:
            index = json.loads(read_bounded(path / INDEX))
            places = {str(name): str(file) for name, file in index["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise _damaged(path / INDEX, str(err)) from err
        files = sorted(set(places.values()))
        outside = [file for file in files if Path(file).name != file]
        if outside:
            raise _damaged(path / INDEX, f"it names {a_few(outside)} outside of its folder")
        shards = tuple(Shard.at(path / file) for file in files)
        for shard in shards:
            said = {name for name, file in places.items() if file == shard.path.name}
            found = {tensor.name for tensor in shard.tensors}
            if said != found:
                raise _damaged(shard.path, f"it lacks or adds {a_few(sorted(said ^ found))}")
        return cls(path, shards, index)

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor, by name."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.tensors}


@contextmanager
def shard_writer(
    path: Path, tensors: list[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Iterator[BinaryIO]:
    """Give a file for the bytes of tensors in order; it is whole at the end, or not there.

    Args:
        path: The file.
        tensors: Name, type and shape of each.
        metadata: Texts of the header.

    Raises:
        UnwritableError: The disk is full or read-only; a former file of that name is as it was.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with told_where(path, also=True), draft_file(path) as (draft, file):
        file.write(len(text).to_bytes(8, "little") + text)
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        draft.replace(path)


def _stored(name: str, own: Mapping[str, Any], offset: int) -> StoredTensor:
    start, end = own["data_offsets"]
    tensor = StoredTensor(name, own["dtype"], tuple(own["shape"]), offset + start)
    if tensor.dtype not in BYTES or any(type(n) is not int or n < 0 for n in tensor.shape):
        raise ValueError(f"{name!r} has an unknown type or shape")
    if end - start != tensor.length:
        raise ValueError(f"{name!r} has another size than its shape")
    return tensor


def _damaged(path: Path, found: str) -> StateMismatchError:
    return StateMismatchError(f"{path} is not a whole file: {found}. Fetch it again.")
