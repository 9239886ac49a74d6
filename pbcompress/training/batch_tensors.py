"""The tensors of a batch: moved to a device, and looked through for what is not finite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress.errors import CompressionError

__all__ = ["check_finite", "finite_parts", "moved", "moved_and_checked", "not_finite"]


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor on ``device``."""

    def move(leaf: Any) -> Any:
        is_own = isinstance(leaf, Mapping) and hasattr(leaf, "to")  # a batch of a tokenizer
        return leaf.to(device) if isinstance(leaf, Tensor) or is_own else leaf

    return tree_map(move, batch)


def moved_and_checked(batch: Any, device: torch.device, where: str) -> Any:
    """Return a batch with every tensor on ``device``; raise if one has a NaN or infinity."""
    check_finite(batch, where)
    return moved(batch, device)


def check_finite(batch: Any, where: str) -> None:
    """Raise if a tensor at any depth has a NaN or infinity."""
    if not all(map(bool, finite_parts(batch))):
        raise not_finite(where)


def finite_parts(batch: Any) -> Iterator[Tensor]:
    """Yield, for each tensor at any depth, whether it is finite; nothing waits for a device."""
    for tensor in tree_leaves(batch):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            yield from (part.isfinite().all() for part in _dense_parts(tensor))


def not_finite(where: str) -> CompressionError:
    """Return the error of data that have a NaN or infinity."""
    return CompressionError(f"There is a NaN or infinity in {where}. Clean the data first.")


def _dense_parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the numbers of a tensor of any layout."""
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout is torch.sparse_coo:
        return [tensor.coalesce().values()]
    return [tensor.values() if tensor.layout is not torch.strided else tensor]
