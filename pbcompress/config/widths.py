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
        allocation: How wide layers are beside each other. "accurate" narrows those less that are
            small, in parameters or what else is bounded: the share that a group of channels keeps
            goes by one over the root of the mean size of the layers that write and read it. That
            keeps early layers of convolutional networks wide, which costs multiply-adds. "balanced"
            does the same with no more of them than equal shares would leave, and "fast" with a
            little fewer, as pruners have that round every layer down to a multiple of 8. Where
            multiply-adds or the latency have a bound of their own, all three are the same:
            widths use up every bound. "uniform" keeps equal shares. "global" ranks the channels of
            all groups in one list, each group's importance scaled to mean 1; "isomorphic" does so
            among the groups of the same structure.
        importance: Decides which channels go. "magnitude" is the squared weights; "bn_scale" the
            absolute scale of the norm layers, magnitude where a group has none. The others need
            data: "taylor" is the squared first-order change of a batch's loss, "fisher" the squared
            weights times their diagonal Fisher information, "variance" the variance of what the
            next layers read, magnitude where that could not be observed.
        importance_batches: Train batches that a criterion with data looks at, at most.
        round_to: Widths are multiples of this. "auto": of the blocks of channels that the hardware
            computes at once, by a table; nothing is timed. "measured": of the multiple that ONNX
            Runtime is fast with, measured once on a machine; the exported network is timed beside
            one without rounding. With both, groups leave the multiples where the target would be
            missed otherwise. A number holds wherever a group's original width allows it; 1 rounds
            nothing.
        hardware: The row of the table for "auto": "cpu" (ONNX Runtime; blocks of 8 channels in
            convolutions), "gpu float16" (8 to 64, as layers are wide) or "gpu int8" (16 to 128).
        min_width: Fewest channels that a group keeps, at least 1.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        keep: Layers (names or ``fnmatch`` patterns) whose width stays.
        pin: Widths that are given, as pairs of a layer (name or pattern) and its output channels:
            a count, or a share in (0, 1] of the original. The rest is narrowed around them, and
            floors and rounding do not hold for them. Of several pairs that name a layer the last
            counts. A mapping is taken too.
        attention: What attention with several heads loses: whole "heads", or the same "dimensions"
            of every head where the code does not scale by their number.
        same_width: One width for each role in all blocks: the stream, inner layers, heads with
            their groups of key heads, in multiples of 64 channels (of less where layers are small)
            as far as the target allows. A number in place of True: all widths, and the numbers of
            heads, are multiples of it, as tensor parallelism wants. Roles are the numbers of the
            config that the model carries (``model.config`` of Hugging Face). It states the new
            widths in the shrunk network, so that ``save_pretrained`` and ``from_pretrained`` give
            it back; what no config can state keeps its width, with the reason. Without a config,
            groups of the same structure have one width. "auto": True for models that carry a
            config, if the target is reached so. False: every group has its own width.
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
    same_width: Literal["auto"] | bool | Count = "auto"
    max_seconds: Positive | None = 600.0
