"""Networks whose weights exist only while an operation reads them.

In place of a weight stands one of the same shape, dtype and device on memory that is never touched.
While the network runs in `StreamedWeights`, an operation that reads it is given the weight itself,
which is made for it and freed after it. So a network runs in the memory of its largest weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pbcompress.core.operation_mode import OperationMode

__all__ = ["StreamedWeights"]


class StreamedWeights(OperationMode):
    """Gives operations the weights in whose place a stand-in is.

    Args:
        make: By the ``id`` of a stand-in what makes its weight.

    Example:
        >>> import torch
        >>> stands_in = torch.zeros(2)
        >>> with StreamedWeights({id(stands_in): lambda: torch.ones(2)}):
        ...     stands_in + 1
        tensor([2., 2.])
    """

    def __init__(self, make: Mapping[int, Callable[[], Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.make = make

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        if any(id(leaf) in self.make for leaf in tree_leaves(given)):
            given = tree_map_only(Tensor, self._weight, given)
        return func(*given[0], **given[1])

    def _weight(self, tensor: Tensor) -> Tensor:
        make = self.make.get(id(tensor))
        return tensor if make is None else make()
