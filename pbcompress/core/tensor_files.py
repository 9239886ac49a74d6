"""Tensors and JSON in one file, written whole or not at all. The only module on safetensors."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pbcompress.core.drafts import draft_file, told_where
from pbcompress.errors import StateMismatchError

__all__ = ["read_tensors", "tensor_bytes", "write_bytes", "write_tensors"]


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
    content: bytes = save(plain, metadata={"state": json.dumps(state)})
    return content


def read_tensors(
    path: Path, device: str = "cpu", *, any_kind: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, or with ``any_kind`` any safetensors file.

    Nothing is ever unpickled.

    Raises:
        StateMismatchError: The file is missing, truncated, or of another kind.
    """
    if not path.is_file():
        raise StateMismatchError(
            f"{path} was to be read and there is no such file. Check the path, or write it first."
        )
    try:
        with safe_open(path, framework="pt", device=device) as file:
            state = json.loads((file.metadata() or {}).get("state", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError, RecursionError) as err:
        raise StateMismatchError(
            f"{path} is not a whole safetensors file: {err}. It is truncated or of another kind; "
            "restore it from a copy, or delete it and run again."
        ) from err
    if not isinstance(state, dict):
        if any_kind:
            return tensors, {}
        raise StateMismatchError(
            f"{path} is a safetensors file that pbcompress did not write: it has no state in its "
            "header. Give a file that save or compress(run_dir=...) made."
        )
    return tensors, state
