"""Which operations a network's outputs depend on: work whose result nobody uses is not counted.

The counter of `pbcompress.costs.measured` leaves it out, and so do exported files.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["UsedWork"]


class UsedWork:
    """Follows values from operation to operation: a view, and what is written into, is one value.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(2), torch.zeros(2)
        >>> add, followed = torch.ops.aten.add.Tensor, UsedWork()
        >>> for work, (left, right) in enumerate([(a, b), (b, b)]):
        ...     total = add(left, right)
        ...     followed.follow(add, (left, right), {}, total, range(work, work + 1))
        >>> followed.used([total])
        {1}
    """

    def __init__(self) -> None:
        self._values: Any = WeakTensorKeyDictionary()  # number of the value of each tensor
        self._count = 0
        self._steps: list[tuple[set[int], set[int], range]] = []  # read, made, work
        self._shares: dict[Any, bool] = {}  # by operation: whether results are what it was given

    def follow(
        self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any, work: range
    ) -> None:
        """Take note of an operation.

        Args:
            func: The overload that ran.
            args: What it was given.
            kwargs: The same, by name.
            result: What it returned.
            work: The numbers of what was counted for it.
        """
        given = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
        read = {self._value(t) for t in given}
        results = result if isinstance(result, list | tuple) else (result,)
        own = self._value(given[0]) if given and self._is_shared(func) else None
        made = {self._value(t, own) for t in results if isinstance(t, Tensor)}
        if func._schema.is_mutable:
            made |= read
        self._steps.append((read, made, work))

    def used(self, tensors: Iterable[Tensor]) -> set[int]:
        """Return the numbers of the work that given tensors depend on."""
        needed = {self._value(tensor) for tensor in tensors}
        found: set[int] = set()
        for read, made, work in reversed(self._steps):
            if not made.isdisjoint(needed):
                needed |= read
                found.update(work)
        return found

    def _is_shared(self, func: Any) -> bool:
        if func not in self._shares:
            self._shares[func] = any(r.alias_info is not None for r in func._schema.returns)
        return self._shares[func]

    def _value(self, tensor: Tensor, own: int | None = None) -> int:
        number: int | None = self._values.get(tensor)
        if number is None:
            self._count += own is None
            number = self._values[tensor] = self._count if own is None else own
        return number
