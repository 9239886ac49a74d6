"""Which widths hardware is fast with: a table by kind of machine and of layer, nothing is timed.

A runtime computes blocks of channels: a width that is no multiple of the block costs as much as
the next one, or takes a slow way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pbcompress.config.widths import Hardware
from pbcompress.costs.latency_model import LayerKind, kind_of
from pbcompress.structure.channel_groups import ChannelGroup

__all__ = ["BLOCKS", "Block", "multiples_for"]

SHARE = 64  # above the least block, a step is at most one part in this many of the width


@dataclass(frozen=True)
class Block:
    """Multiples of channels that a kind of layer is fast with.

    Attributes:
        least: The smallest that counts, in narrow layers too.
        most: What wide layers gain from.
    """

    least: int
    most: int

    def multiple(self, width: int) -> int:
        """Return the multiple for a layer of this many channels."""
        step = self.least
        while 2 * step <= min(self.most, width // SHARE):
            step *= 2
        return step


# ONNX Runtime on CPUs: convolutions lie in memory in blocks of 8 channels (AVX2) or 16 (AVX-512,
# where 8 was measured to be as fast); depthwise ones that fill no block take a slow way, and
# products have tails that are nearly free. GPUs: NVIDIA's guide on matrix products asks for 16
# bytes at least, 8 values of float16 and 16 of int8, and for 128 bytes where layers are wide.
BLOCKS: Mapping[Hardware, Mapping[LayerKind, Block]] = {
    "cpu": {"convolution": Block(8, 8), "depthwise": Block(8, 8), "product": Block(1, 8)},
    "gpu float16": dict.fromkeys(("convolution", "depthwise", "product"), Block(8, 64)),
    "gpu int8": dict.fromkeys(("convolution", "depthwise", "product"), Block(16, 128)),
}


def multiples_for(
    model: nn.Module, groups: Sequence[ChannelGroup], hardware: Hardware
) -> list[int]:
    """Return what the channels of every group should be a multiple of.

    Args:
        model: The network of the groups.
        groups: The channel groups.
        hardware: A row of `BLOCKS`.
    """
    table, modules = BLOCKS[hardware], dict(model.named_modules(remove_duplicate=False))
    multiples = []
    for group in groups:
        layers = (modules[member.layer] for member in group.members)
        blocks = [table[kind_of(layer)] for layer in layers if _computes(layer)]
        width = group.width * group.channels_per_unit
        multiples.append(max((block.multiple(width) for block in blocks), default=1))
    return multiples


def _computes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
