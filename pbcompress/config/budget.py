"""What the compressed network may cost."""

from dataclasses import dataclass

from pbcompress.core.config_values import Choices

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
