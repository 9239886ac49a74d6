"""The ways to write a file in fewer bits, each a value with its own choices."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pbcompress.core.config_values import Choices
from pbcompress.core.field_types import NonNegative, WholeNumber

__all__ = ["Fp16", "Int8", "Precision", "Quantize"]

Precision = Literal["int8", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Int8(Choices):
    """Write a file in 8 bits if that is smaller, as good, and not slower on this machine.

    Args:
        max_drop: How much worse the validation metric may be, absolute. None: by 0.005 if it is
            `accuracy`; another metric by 0.5 % of what it is better than for outputs that are
            given to other samples.
        recover_epochs: Where 8 bits do not pass, a copy is trained for this many epochs on
            ``data.train`` with rounded weights and values, and tried again; 0: it is not.

    Example:
        >>> Int8(recover_epochs=4)
        Int8(max_drop=None, recover_epochs=4)
    """

    kind: ClassVar[Precision] = "int8"
    least_speedup: ClassVar[float] = 1.0

    max_drop: NonNegative | None = None
    recover_epochs: WholeNumber = 0


@dataclass(frozen=True, kw_only=True)
class Fp16(Choices):
    """Write a file in 16 bits if that is smaller, as good, and at least half as fast.

    CPUs compute it in float32: it is for the size.

    Args:
        max_drop: See `Int8`.

    Example:
        >>> Fp16()
        Fp16(max_drop=None)
    """

    kind: ClassVar[Precision] = "fp16"
    least_speedup: ClassVar[float] = 0.5

    max_drop: NonNegative | None = None


# A name stands for the way with its defaults; None is float32.
Quantize = Int8 | Fp16 | Precision | None
