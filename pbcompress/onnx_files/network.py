"""An ONNX file as a torch module, so that the metric of a task is that of the file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pbcompress.core.inputs import tensors_of
from pbcompress.errors import CompressionError, first_line
from pbcompress.onnx_files.session import Session

__all__ = ["Feeds", "OnnxNetwork"]

Feeds = dict[str, np.ndarray[Any, Any]]


class OnnxNetwork(nn.Module):
    """An ONNX file as a network, so that the metric of a task is that of the file.

    Args:
        path: The file, or a session of it.
        like: An output of the network that was exported; gives the structure.

    Attributes:
        like: That output.
        seen: The inputs of every call, where they are wanted.

    Example:
        >>> import tempfile
        >>> from pbcompress import export_onnx
        >>> net, x = nn.Linear(3, 2), torch.ones(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_onnx(net, f"{folder}/a.onnx", x)
        ...     torch.allclose(OnnxNetwork(f"{folder}/a.onnx", net(x))(x), net(x), atol=1e-6)
        True
    """

    def __init__(self, path: str | Path | Session, like: object) -> None:
        super().__init__()
        self.session = path if isinstance(path, Session) else Session(path)
        self.like = like
        leaves, self._structure = tree_flatten(like)
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self._others = leaves
        if sum(self._is_tensor) != len(self.session.output_names):
            raise CompressionError(
                f"The network returns a {type(like).__name__} in which {sum(self._is_tensor)} "
                f"tensors were found, and its file has {len(self.session.output_names)} outputs. "
                "Return tensors, tuples or dicts from forward."
            )
        self.seen: list[Feeds] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file."""
        feeds = self.session.feeds(tensors_of((args, kwargs)))
        self.session.check(feeds)
        if self.seen is not None:
            self.seen.append(feeds)
        try:
            outputs = self.session.run(feeds)
        except Exception as err:
            raise CompressionError(
                f"ONNX Runtime could not run the file on a batch: {first_line(err)}. Give batches "
                "of the shapes and types that it was exported for."
            ) from err
        found = iter(map(torch.from_numpy, outputs))
        leaves = [
            next(found) if is_tensor else other
            for is_tensor, other in zip(self._is_tensor, self._others, strict=True)
        ]
        return tree_unflatten(leaves, self._structure)
