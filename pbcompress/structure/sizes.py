"""Integers that remember where they come from, so that a size can be computed anew after a cut.

While a network is traced, the sizes of its tensors and the integer attributes of its modules are
such integers. What the forward pass computes from them (``channels // self.num_heads``) is one
too. A size whose origin was lost is a plain int, and counts as a constant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Attribute", "Count", "Reader", "Size", "evaluate", "leaves_of", "values_of"]


@dataclass(frozen=True)
class Attribute:
    """An integer that a module holds, or one item of a tuple or list that it holds.

    Attributes:
        module: Dotted name.
        name: Attribute name.
        index: Place in the tuple or list, None for a plain attribute.
    """

    module: str
    name: str
    index: int | None = None


Leaf = Tensor | Attribute  # the labels of a dimension, or an attribute
Count = Callable[[Leaf, int], int]  # what a leaf is after a cut, given what it was


class Reader(Protocol):
    """Learns what the code does with sizes, apart from shaping tensors."""

    def number_matters(self, size: "Size") -> None:
        """The number itself is used, not only the shape that it describes."""

    def were_equal(self, size: "Size", other: int) -> None:
        """A comparison found a size to be equal to another number."""


class Size(int):
    """An int with its origin: a leaf, or an operation on others.

    Example:
        >>> heads = Size(4, Attribute("attention", "num_heads"))
        >>> width = 32 // heads
        >>> width, evaluate(width, lambda leaf, was: was // 2)
        (8, 16)
    """

    origin: Any  # a leaf, or an operation and its two operands
    reader: Reader | None

    def __new__(cls, value: int, origin: Any, reader: Reader | None = None) -> "Size":
        """Make an int that remembers ``origin`` and tells ``reader`` what happens to it."""
        size = super().__new__(cls, value)
        size.origin = origin
        size.reader = reader
        return size

    def _derive(self, operation: str, left: Any, right: Any) -> Any:
        if type(right) is int and right == 1 and operation in ("__mul__", "__floordiv__"):
            return self
        value = getattr(int, operation)(int(left), int(right))
        return Size(value, (operation, left, right), self.reader)

    def _seen(self) -> int:
        if self.reader is not None:
            self.reader.number_matters(self)
        return int.__int__(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int):
            return bool(int.__int__(self) == other)
        is_same = int.__eq__(self, other)
        if is_same and self.reader is not None:
            self.reader.were_equal(self, other)
        return is_same

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __neg__(self) -> Any:
        return self._derive("__sub__", 0, self)

    def __float__(self) -> float:
        return float(self._seen())

    def __truediv__(self, other: Any) -> Any:
        return self._seen() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._seen()

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return self._seen() ** other

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __deepcopy__(self, memo: object) -> int:
        return int.__int__(self)

    def __reduce__(self) -> Any:
        return (int, (int.__int__(self),))


def _binary(operation: str) -> None:
    def forward(self: Size, other: Any) -> Any:
        if type(other) not in (int, Size):
            return getattr(self._seen(), operation)(other)
        return self._derive(operation, self, other)

    def reverse(self: Size, other: Any) -> Any:
        if type(other) not in (int, Size):
            return getattr(self._seen(), f"__r{operation[2:]}")(other)
        return self._derive(operation, other, self)

    setattr(Size, operation, forward)
    setattr(Size, f"__r{operation[2:]}", reverse)


for _operation in ("__add__", "__sub__", "__mul__", "__floordiv__", "__mod__"):
    _binary(_operation)


def evaluate(size: int, count: Count) -> int:
    """Return what ``size`` would be if its leaves were what ``count`` says."""
    if not isinstance(size, Size):
        return size
    if not isinstance(size.origin, tuple):
        return count(size.origin, int.__int__(size))
    operation, left, right = size.origin
    a, b = evaluate(left, count), evaluate(right, count)
    if b == 0 and operation in ("__floordiv__", "__mod__"):
        return 0  # nothing is left to divide
    return int(getattr(int, operation)(a, b))


def values_of(size: int) -> list[tuple[Leaf, int]]:
    """Return the leaves that ``size`` was computed from, with what they were."""
    if not isinstance(size, Size):
        return []
    if not isinstance(size.origin, tuple):
        return [(size.origin, int(size))]
    return [found for part in size.origin[1:] for found in values_of(part)]


def leaves_of(size: int) -> list[Leaf]:
    """Return the leaves that ``size`` was computed from."""
    return [leaf for leaf, _ in values_of(size)]
