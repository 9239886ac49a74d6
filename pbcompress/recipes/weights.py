"""The weights that a recipe names: safetensors, or a state dict that torch.save wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.bounded_files import is_file
from pbcompress.core.tensor_files import read_tensors
from pbcompress.errors import CompressionError, StateMismatchError, brief, first_line

__all__ = ["load_weights_"]

OF_TORCH = (".pt", ".pth", ".bin")
INNER = ("state_dict", "model_state_dict", "model")  # where training scripts put them


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load weights into a network.

    Raises:
        CompressionError: The file is not there, or holds something else.
        StateMismatchError: It holds the weights of another network.
    """
    if not is_file(path):
        raise CompressionError(
            f"The weights {brief(path, 300)} are not there. Check [model] weights."
        )
    of_torch = path.suffix in OF_TORCH
    tensors = _of_torch(path) if of_torch else read_tensors(path, any_kind=True)[0]
    try:
        model.load_state_dict(tensors)
    except RuntimeError as err:
        raise StateMismatchError(
            f"{path} holds the weights of another model: {brief(err, 800)}"
        ) from err


def _of_torch(path: Path) -> dict[str, Tensor]:
    """Read a state dict with ``weights_only=True``: nothing in the file can run."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch has errors of many kinds for files of others
        raise CompressionError(
            f"{path} cannot be read as weights alone: {first_line(err)}. Write it with "
            "torch.save(model.state_dict(), path)."
        ) from err
    for name in INNER:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise CompressionError(
            f"{path} holds {type(found).__name__} and no state dict. Write it with "
            "torch.save(model.state_dict(), path)."
        )
    return dict(found)
