"""What a layer's parameters number, as a closed form in its widths."""

import math
from dataclasses import dataclass

from torch import nn

__all__ = ["LayerGeometry", "has_own_groups", "is_depthwise"]

Conv = nn.modules.conv._ConvNd
ConvTranspose = nn.modules.conv._ConvTransposeNd


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether every channel of a convolution has its own filter and no other."""
    return (
        isinstance(layer, Conv)
        and not isinstance(layer, ConvTranspose)
        and layer.groups == layer.out_channels == layer.in_channels
        and layer.groups > 1
    )


def has_own_groups(layer: nn.Module) -> bool:
    """Tell whether each input of a convolution has a group of its own, which goes with it."""
    return isinstance(layer, Conv) and 1 < layer.groups == layer.in_channels


@dataclass(frozen=True)
class LayerGeometry:
    """Widths and fixed sizes of a layer.

    Attributes:
        out_width: Output channels.
        in_width: Input channels; equal to ``out_width`` where a layer works channel by channel.
        taps: Weights per pair of one output and one connected input channel (kernel elements).
        groups: Groups of a convolution; 0 for a layer that works channel by channel.
        per_channel: Further parameters of each output channel (bias, affine weights).

    Example:
        >>> LayerGeometry.of(nn.Conv2d(4, 8, 3)).params(8, 4) == 8 * 4 * 9 + 8
        True
    """

    out_width: int
    in_width: int
    taps: int
    groups: int
    per_channel: int

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerGeometry":
        """Read the geometry of a Linear, a convolution or a layer that works by channel."""
        if isinstance(layer, nn.Linear):
            return cls(layer.out_features, layer.in_features, 1, 1, int(layer.bias is not None))
        if isinstance(layer, Conv):
            groups = 0 if is_depthwise(layer) else layer.groups
            taps, bias = math.prod(layer.kernel_size), int(layer.bias is not None)
            return cls(layer.out_channels, layer.in_channels, taps, groups, bias)
        sizes = [p.numel() for p in layer.parameters(recurse=False)]
        width = max(sizes, default=0) or getattr(layer, "num_features", 0)
        affine = sum(sizes) // max(width, 1)
        return cls(width, width, 0, 0, affine)

    @property
    def has_group_of_each_input(self) -> bool:
        """Whether each input has a group of its own, with several outputs; it goes with them."""
        return 1 < self.groups == self.in_width

    def groups_at(self, in_width: int) -> int:
        """Return the groups of a convolution at another number of inputs."""
        return in_width if self.has_group_of_each_input else self.groups

    def weights(self, out_width: int, in_width: int) -> int:
        """Return the weight elements at other widths, bias and affine apart."""
        if self.groups == 0:
            return out_width * self.taps
        return out_width * in_width * self.taps // self.groups_at(in_width)

    def params(self, out_width: int, in_width: int) -> int:
        """Return all parameter elements at other widths."""
        return self.weights(out_width, in_width) + out_width * self.per_channel
