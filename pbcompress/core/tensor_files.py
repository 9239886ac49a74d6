"""Tensors and JSON in one file, written whole or not at all. The only module on safetensors.

The header of such a file has a SHA-256 of all that it holds, which every reader checks.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pbcompress.core.bounded_files import is_file
from pbcompress.core.drafts import draft_file, told_where
from pbcompress.core.json_documents import DIGEST, decoded, with_digest, without_digest
from pbcompress.errors import StateMismatchError, first_line

__all__ = ["read_tensors", "tensor_bytes", "write_bytes", "write_tensors"]

STATE = "state"  # the one text of a header: the library writes several in any order


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one rename; on any error the former file stays and nothing else does.

    Raises:
        UnwritableError: The folder cannot be written to, or the disk is full.
    """
    with told_where(path, also=True), draft_file(path) as (draft, file):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if sys.platform == "win32":  # what is open cannot be renamed there
            file.close()
        draft.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors, with JSON data in the file's header."""
    write_bytes(path, tensor_bytes(tensors, state))


def tensor_bytes(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    """Return the content of the file that `write_tensors` writes."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content: bytes = save(plain, metadata={STATE: json.dumps(with_digest(state, _bytes_of(plain)))})
    return content


def _bytes_of(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """Yield names, types, shapes and bytes of tensors."""
    for name, tensor in sorted(tensors.items()):
        yield f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def read_tensors(
    path: Path, device: str = "cpu", *, any_kind: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, or with ``any_kind`` any safetensors file.

    Nothing is ever unpickled.

    Raises:
        StateMismatchError: The file is missing, truncated, changed since it was written, or of
            another kind.
    """
    if not is_file(path):
        raise StateMismatchError(
            f"{path} was to be read and there is no such file. Check the path, or write it first."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = decoded(texts.get(STATE, "null"), f"The state of {path}")
    except StateMismatchError:
        raise
    except Exception as err:  # the library has errors of many kinds for files of others
        raise StateMismatchError(
            f"{path} is not a whole safetensors file: {first_line(err)}. It is truncated or of "
            "another kind; restore it from a copy, or move it away and run again."
        ) from err
    if isinstance(state, dict) and (DIGEST in state or not any_kind):
        state = without_digest(state, str(path), _bytes_of(tensors))
    elif not any_kind:
        raise StateMismatchError(
            f"{path} is a safetensors file that pbcompress did not write: it has no state in its "
            "header. Give a file that save or compress(run_dir=...) made."
        )
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    return placed, state if isinstance(state, dict) else {}
