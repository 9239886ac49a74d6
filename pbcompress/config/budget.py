"""What the compressed network may cost."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

from pbcompress.core.config_values import Choices
from pbcompress.errors import TargetUnreachableError

__all__ = ["Budget"]


@dataclass(frozen=True, kw_only=True)
class Budget(Choices):
    """What the compressed network may cost; every bound that is set holds at once.

    Args:
        params: Parameters (elements, shared ones once): an int is a count, a float in (0, 1) a
            share of the original.
        flops: Multiply-adds of one sample in eval mode: a count, or a share of the original.
        latency_ms: Milliseconds of the exported network in ONNX Runtime on this machine (CPU, one
            thread, batch 1, dendrites included), measured in time of the processor: a number from
            1, or a share in (0, 1) of the original's.
        file_bytes: Size of the exported ONNX file (float32, BatchNorm folded where it can be): a
            count, or a share of the original's.

    Example:
        >>> Budget(params=0.25).params
        0.25
    """

    params: int | float | None = None
    flops: int | float | None = None
    latency_ms: float | None = None
    file_bytes: int | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = (self.params, self.flops, self.latency_ms, self.file_bytes)
        if all(bound is None for bound in bounds):
            raise ValueError(
                "Budget() has no bound; set params, flops, latency_ms, file_bytes or several."
            )

    @classmethod
    def of(cls, target: object) -> "Budget":
        """Return a target as a budget: a number bounds the parameters.

        Args:
            target: A budget, which is returned, a count or a share.

        Raises:
            TargetUnreachableError: It is something else.

        Example:
            >>> Budget.of(0.25) == Budget(params=0.25)
            True
        """
        if isinstance(target, Budget):
            return target
        if isinstance(target, bool) or not isinstance(target, Real) or not math.isfinite(target):
            raise TargetUnreachableError(
                f"A target of {target!r} was asked for. A target is a number of parameters: ask "
                "for a whole number below that, or a share between 0 and 1, or give a Budget.",
                smallest=None,
            )
        return cls(params=int(target) if isinstance(target, Integral) else float(target))
