"""The ways to write a file in fewer bits, each a value with its own choices."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from pbcompress.errors import CompressionError

__all__ = ["Fp16", "Int8", "Precision", "Quantize"]

Precision = Literal["int8", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Write a file in 8 bits if that is smaller, as good, and not slower on this machine.

    Args:
        max_drop: How much worse the validation metric may be, absolute, at least 0.
        recover_epochs: Where 8 bits do not pass, a copy is trained for this many epochs on
            ``data.train`` with rounded weights and values, and tried again; 0: it is not.

    Raises:
        CompressionError: A value is out of range.

    Example:
        >>> Int8(recover_epochs=4)
        Int8(max_drop=0.005, recover_epochs=4)
    """

    max_drop: float = 0.005
    recover_epochs: int = 0

    kind: ClassVar[Precision] = "int8"
    least_speedup: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_drop(self)
        if not _is_from_zero(self.recover_epochs, Integral):
            raise CompressionError(
                f"{self} was asked for; recover_epochs is a number of epochs from 0."
            )


@dataclass(frozen=True, kw_only=True)
class Fp16:
    """Write a file in 16 bits if that is smaller, as good, and at least half as fast.

    CPUs compute it in float32: it is for the size.

    Args:
        max_drop: How much worse the validation metric may be, absolute, at least 0.

    Raises:
        CompressionError: A value is out of range.

    Example:
        >>> Fp16()
        Fp16(max_drop=0.005)
    """

    max_drop: float = 0.005

    kind: ClassVar[Precision] = "fp16"
    least_speedup: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        _check_drop(self)


def _is_from_zero(value: object, kind: type[Any]) -> bool:
    return isinstance(value, kind) and bool(value >= 0)  # NaN is not


def _check_drop(way: Int8 | Fp16) -> None:
    if not _is_from_zero(way.max_drop, Real):
        raise CompressionError(
            f"{way} was asked for; max_drop says how much worse the metric may be, and is a "
            "number of at least 0."
        )


# A name stands for the way with its defaults; None is float32.
Quantize = Int8 | Fp16 | Precision | None
