"""How widths are chosen."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pbcompress.core.config_values import Choices
from pbcompress.core.field_types import Count, Positive, PositiveShare, ProperShare

__all__ = ["Hardware", "Importance", "WidthConfig"]

Hardware = Literal["cpu", "gpu float16", "gpu int8"]
Importance = Literal["magnitude", "bn_scale", "taylor", "variance", "fisher"]
Pins = Annotated[
    tuple[tuple[str, Count | PositiveShare], ...],
    "pairs of a layer and a count from 1, or a share in (0, 1]",
]


@dataclass(frozen=True, kw_only=True)
class WidthConfig(Choices):
    """How widths are chosen.

    Args:
        allocation: "uniform" narrows every channel group alike; "balanced" narrows those less whose
            layers are small: the share that a group keeps goes by one over the root of the mean
            size of the layers that write and read it, in parameters or what else is bounded.
            "global" ranks the channels of all groups in one list, each group's importance scaled to
            mean 1; "isomorphic" does so among the groups of the same structure.
        importance: Decides which channels go. "magnitude" is the squared weights; "bn_scale" the
            absolute scale of the norm layers, magnitude where a group has none. The others need
            data: "taylor" is the squared first-order change of a batch's loss, "fisher" the squared
            weights times their diagonal Fisher information, "variance" the variance of what the
            next layers read, magnitude where that could not be observed.
        importance_batches: Train batches that a criterion with data looks at, at most.
        round_to: Widths are multiples of this wherever a group's original width allows.
            "measured": the multiple that ONNX Runtime is fast with (1 to 32) is measured, once on a
            machine; the exported network is timed against one without rounding, and single groups
            leave the multiples where the target would be missed by more than 2 % otherwise. A
            latency bound rounds in this way too where this is 1.
        min_width: Fewest channels that a group keeps, at least 1.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        keep: Layers (names or ``fnmatch`` patterns) whose width stays.
        pin: Widths that are given, as pairs of a layer (name or pattern) and its output channels:
            a count, or a share in (0, 1] of the original. The rest is narrowed around them, and
            floors and rounding do not hold for them. Of several pairs that name a layer the last
            counts. A mapping is taken too.
        attention: What attention with several heads loses: whole "heads", or the same "dimensions"
            of every head where the code does not scale by their number.
        max_seconds: Bound on the time of planning; None: no bound.
    """

    allocation: Literal["accurate", "balanced", "fast", "uniform", "global", "isomorphic"] = (
        "balanced"
    )
    importance: Importance = "magnitude"
    importance_batches: Count = 16
    round_to: Count | Literal["auto", "measured"] = "auto"
    hardware: Hardware = "cpu"
    min_width: Count = 1
    max_ratio: ProperShare = 0.99
    keep: tuple[str, ...] = ()
    pin: Pins = ()
    attention: Literal["heads", "dimensions"] = "heads"
    max_seconds: Positive | None = 600.0
