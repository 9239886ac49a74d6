"""Runs of a network in which what follows from its weights has a shape and no numbers.

Masks, positions and whatever else the code computes without weights are real, so that the code may
read them. Everything else has the shape, dtype and device that it should have, on memory that is
never touched.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from pbcompress.core.blanks import Blanks
from pbcompress.core.operation_mode import OperationMode
from pbcompress.errors import CompressionError

__all__ = ["ShapesOnly"]

_ONLY_BFLOAT16 = ("_grouped_mm",)  # on the meta device
_READ = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim")


class ShapesOnly(OperationMode):
    """Computes no numbers from parameters.

    Args:
        network: Its parameters are stand-ins.
        blanks: What these are made of.
    """

    def __init__(self, network: nn.Module, blanks: Blanks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blanks = blanks
        self._known: Any = WeakTensorKeyDictionary()
        for parameter in network.parameters():
            self._known[parameter] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        first = next((tensor for tensor in tensors if tensor in self._known), None)
        if first is None:
            return func(*given[0], **given[1])
        name = func._schema.name.removeprefix("aten::")
        if name in _READ:
            raise CompressionError(
                f"the forward pass reads a value that depends on weights ({name}), and these have "
                "no data. Load the weights first"
            )
        dtype = torch.bfloat16 if name in _ONLY_BFLOAT16 else None
        own = tree_map(partial(_on_meta, dtype), given)
        result = func(*own[0], **own[1])
        if dtype is not None:
            result = result.to(first.dtype)
        written = self._written(func, given)
        if written:
            return written[0] if isinstance(result, Tensor) else tuple(written)
        return tree_map_only(Tensor, lambda t: self._blank(t, first.device), result)

    def _written(self, func: Any, given: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
        """Return the operands that an operation in place writes to, and know them from now on."""
        written = []
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                is_named = place >= len(given[0])
                tensor = given[1].get(argument.name) if is_named else given[0][place]
                if isinstance(tensor, Tensor):
                    self._known[tensor] = True
                    written.append(tensor)
        return written

    def _blank(self, result: Tensor, device: torch.device) -> Tensor:
        blank = self.blanks.strided(result.shape, result.stride(), device, result.dtype)
        self._known[blank] = True
        return blank


def _on_meta(dtype: torch.dtype | None, leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        own = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=own, device="meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf
