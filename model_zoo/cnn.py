"""Plain convolutional networks for images and for series."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from model_zoo.layers import conv_bn, he_init_
from model_zoo.registry import register_model

__all__ = ["cnn1d", "small_cnn"]


@register_model
def small_cnn(
    in_channels: int = 1,
    widths: Sequence[int] = (32, 64, 128),
    num_classes: int = 10,
    *,
    first_stride: int = 1,
) -> nn.Sequential:
    """Build a small image classifier from 3x3 convolutions, BatchNorm and ReLU.

    Every block but the first halves height and width by its stride, and a global average pool
    ends the features, so any image of a few pixels or more will do; 28x28 and 32x32 suit the
    default widths.

    Args:
        in_channels: Channels of the images.
        widths: Channels of each block, at least one.
        num_classes: Number of outputs.
        first_stride: Stride of the first block; 2 needs a quarter of the work.

    Returns:
        Network from ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``; 94,186 parameters
        with the defaults.

    Raises:
        ValueError: ``widths`` is empty.

    Example:
        >>> import torch
        >>> small_cnn(in_channels=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    _check_widths(widths)
    strides = [first_stride] + [2] * (len(widths) - 1)
    blocks = [
        conv_bn(width_in, width_out, 3, stride=stride, activation=nn.ReLU())
        for stride, (width_in, width_out) in zip(
            strides, pairwise((in_channels, *widths)), strict=True
        )
    ]
    return _classifier(blocks, nn.AdaptiveAvgPool2d(1), nn.Linear(widths[-1], num_classes))


@register_model
def cnn1d(
    in_channels: int = 6,
    widths: Sequence[int] = (32, 64, 128),
    num_classes: int = 7,
    *,
    kernel_size: int = 5,
) -> nn.Sequential:
    """Build a classifier of series from 1-d convolutions, BatchNorm and ReLU.

    Every block but the first halves the length by its stride; a global average pool makes the
    network fit series of any length.

    Args:
        in_channels: Values measured at each time step.
        widths: Channels of each block, at least one.
        num_classes: Number of outputs.
        kernel_size: Time steps that a kernel covers, odd.

    Returns:
        Network from ``(N, in_channels, L)`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: ``widths`` is empty, or ``kernel_size`` is not odd and positive.

    Example:
        >>> import torch
        >>> model = cnn1d()
        >>> [tuple(model(torch.zeros(2, 6, length)).shape) for length in (50, 100)]
        [(2, 7), (2, 7)]
    """
    _check_widths(widths)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    blocks = [
        _conv1d_block(width_in, width_out, kernel_size, stride=1 if place == 0 else 2)
        for place, (width_in, width_out) in enumerate(pairwise((in_channels, *widths)))
    ]
    return _classifier(blocks, nn.AdaptiveAvgPool1d(1), nn.Linear(widths[-1], num_classes))


def _check_widths(widths: Sequence[int]) -> None:
    if not widths:
        raise ValueError("widths must name at least one block, got none")


def _conv1d_block(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int
) -> nn.Sequential:
    conv = nn.Conv1d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm1d(out_channels), act=nn.ReLU()))


def _classifier(blocks: list[nn.Sequential], pool: nn.Module, head: nn.Linear) -> nn.Sequential:
    layers = OrderedDict(
        features=nn.Sequential(*blocks), pool=pool, flatten=nn.Flatten(), head=head
    )
    model = nn.Sequential(layers)
    he_init_(model)
    return model
