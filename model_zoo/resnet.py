"""Residual networks for 32x32 images."""

from collections import OrderedDict

from torch import Tensor, nn

from model_zoo.layers import conv_bn, he_init_, scaled
from model_zoo.registry import register_model

__all__ = ["BasicBlock", "resnet20", "resnet56"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``relu(body(x) + shortcut(x))``.

    Where the shape changes, the shortcut is a 1x1 convolution with BatchNorm (option B of the
    paper) and otherwise the identity. The zero-padding of option A would tie the channels of
    input and output to their positions, so that they could not be pruned.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        """Build the layers; the class says what the arguments mean."""
        super().__init__()
        self.conv1 = conv_bn(in_channels, out_channels, 3, stride=stride, activation=nn.ReLU())
        self.conv2 = conv_bn(out_channels, out_channels, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv_bn(in_channels, out_channels, 1, stride=stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, ceil(H / stride), ceil(W / stride))``."""
        out: Tensor = self.act(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


@register_model
def resnet20(in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0) -> nn.Sequential:
    """Build ResNet-20 for 32x32 images; 272,474 parameters with the defaults.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        width: Multiplies the channels 16, 32 and 64 of the three stages, above 0.

    Returns:
        Network from ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: ``width`` is not positive.

    Example:
        >>> import torch
        >>> resnet20(width=0.5)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        He et al., Deep Residual Learning for Image Recognition, 2016,
        https://arxiv.org/abs/1512.03385, section 4.2, with projection shortcuts (option B).
    """
    return _resnet(3, in_channels, num_classes, width)


@register_model
def resnet56(in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0) -> nn.Sequential:
    """Build ResNet-56 for 32x32 images; 855,770 parameters with the defaults.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        width: Multiplies the channels 16, 32 and 64 of the three stages, above 0.

    Returns:
        Network from ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: ``width`` is not positive.

    Source:
        As for :func:`resnet20`.
    """
    return _resnet(9, in_channels, num_classes, width)


def _resnet(
    blocks_per_stage: int, in_channels: int, num_classes: int, width: float
) -> nn.Sequential:
    channels = scaled(16, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=conv_bn(in_channels, channels, 3, activation=nn.ReLU())
    )
    for number, base_channels in enumerate((16, 32, 64), start=1):
        stage = nn.Sequential()
        for block in range(blocks_per_stage):
            stride = 2 if number > 1 and block == 0 else 1
            out_channels = scaled(base_channels, width)
            stage.append(BasicBlock(channels, out_channels, stride=stride))
            channels = out_channels
        layers[f"stage{number}"] = stage
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, num_classes)
    model = nn.Sequential(layers)
    he_init_(model)
    return model
