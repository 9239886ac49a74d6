"""A MobileNetV2 for 32x32 images."""

from collections import OrderedDict

from torch import Tensor, nn

from model_zoo.layers import conv_bn, he_init_, scaled
from model_zoo.registry import register_model

__all__ = ["InvertedResidual", "mobilenet_small"]


class InvertedResidual(nn.Module):
    """Widen, filter each channel on its own, narrow; added to the input where shapes allow.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the depthwise convolution.
        expansion: Channels inside, as a multiple of ``in_channels``; 1 leaves the widening out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, expansion: int = 4
    ) -> None:
        """Build the layers; the class says what the arguments mean."""
        super().__init__()
        inner = in_channels * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            layers["expand"] = conv_bn(in_channels, inner, 1, activation=nn.ReLU6())
        layers["depthwise"] = conv_bn(
            inner, inner, 3, stride=stride, groups=inner, activation=nn.ReLU6()
        )
        layers["project"] = conv_bn(inner, out_channels, 1)
        self.body = nn.Sequential(layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, ceil(H / stride), ceil(W / stride))``."""
        out: Tensor = self.body(x)
        return x + out if self.has_shortcut else out


@register_model
def mobilenet_small(
    in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0
) -> nn.Sequential:
    """Build a small MobileNetV2 for 28x28 or 32x32 images; 274,378 parameters by default.

    Against the paper, the stem keeps the resolution, three of five stages halve it, and inner
    layers are four times as wide as outer ones instead of six.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        width: Multiplies the channels of all layers between input and logits, above 0.

    Returns:
        Network from ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: ``width`` is not positive.

    Example:
        >>> import torch
        >>> mobilenet_small(in_channels=1, width=0.5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018,
        https://arxiv.org/abs/1801.04381, sections 3 and 4.
    """
    # (channels, blocks, stride of the first block, expansion) of each stage
    stages = ((16, 1, 1, 1), (24, 2, 2, 4), (32, 3, 2, 4), (64, 3, 2, 4), (96, 2, 1, 4))
    channels = scaled(16, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=conv_bn(in_channels, channels, 3, activation=nn.ReLU6())
    )
    for number, (base_channels, blocks, first_stride, expansion) in enumerate(stages, start=1):
        stage = nn.Sequential()
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            out_channels = scaled(base_channels, width)
            stage.append(
                InvertedResidual(channels, out_channels, stride=stride, expansion=expansion)
            )
            channels = out_channels
        layers[f"stage{number}"] = stage
    last_channels = scaled(256, width)
    layers["last"] = conv_bn(channels, last_channels, 1, activation=nn.ReLU6())
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(last_channels, num_classes)
    model = nn.Sequential(layers)
    he_init_(model)
    return model
