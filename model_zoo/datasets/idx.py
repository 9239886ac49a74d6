"""Read and make IDX files, the format in which MNIST is published.

Four bytes (0, 0, element type, number of dimensions), then each size as a big-endian 32-bit
number, then the elements in C order. Here the elements are always unsigned bytes, type 8.
"""

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["idx_bytes", "read_idx"]

_MAGIC_START = b"\x00\x00\x08"


def read_idx(path: Path, *, ndim: int) -> Tensor:
    """Read a file of unsigned bytes.

    Args:
        path: Uncompressed IDX file.
        ndim: Number of dimensions that the file must have, at least 1.

    Returns:
        uint8 tensor of the shape that the file states, in memory of its own.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file starts otherwise, or is shorter or longer than its header says.
    """
    content = bytearray(path.read_bytes())
    expected = _MAGIC_START + bytes([ndim])
    if content[:4] != expected:
        raise ValueError(
            f"{path}: not an IDX file of unsigned bytes in {ndim} dimensions: "
            f"it starts with {content[:4].hex(' ') or 'nothing'}, not {expected.hex(' ')}"
        )
    header_size = 4 + 4 * ndim
    if len(content) < header_size:
        raise ValueError(
            f"{path}: truncated: the header has {header_size} bytes, the file {len(content)}"
        )
    shape = struct.unpack_from(f">{ndim}I", content, offset=4)
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        problem = "truncated" if len(content) < expected_size else "too long"
        raise ValueError(
            f"{path}: {problem}: shape {shape} makes {expected_size} bytes, "
            f"the file has {len(content)}"
        )
    if 0 in shape:  # frombuffer refuses an empty rest
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8, offset=header_size).reshape(shape)


def idx_bytes(content: bytes, item_shape: tuple[int, ...] = ()) -> bytes:
    """Return the IDX file of items of one shape, given their elements.

    Example:
        >>> idx_bytes(bytes([7, 8, 9, 10]), item_shape=(2,)).hex(" ", 4)
        '00000802 00000002 00000002 0708090a'
    """
    shape = (len(content) // math.prod(item_shape), *item_shape)
    header = _MAGIC_START + bytes([len(shape)])
    return header + struct.pack(f">{len(shape)}I", *shape) + content
