"""Plain convolutional networks for images and for series."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from model_zoo.layers import conv_bn, he_init_
from model_zoo.registry import register_model

__all__ = ["cnn1d", "lenet", "lenet5", "small_cnn"]


@register_model
def small_cnn(
    in_channels: int = 1,
    widths: Sequence[int] = (32, 64, 128),
    num_classes: int = 10,
    *,
    first_stride: int = 1,
    pool: bool = False,
) -> nn.Sequential:
    """Build a small image classifier from 3x3 convolutions, BatchNorm and ReLU.

    Every block but the first halves height and width by its stride, or every block by a maximum
    over 2x2, which needs more work and learns more from few images. A global average pool
    ends the features, so any image of a few pixels or more will do; 28x28 and 32x32 suit the
    default widths.

    Args:
        in_channels: Channels of the images.
        widths: Channels of each block, at least one.
        num_classes: Number of outputs.
        first_stride: Stride of the first block; 2 needs a quarter of the work.
        pool: Take the maximum over 2x2 after every block, in place of the strides.

    Returns:
        Network from ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``; 94,186 parameters
        with the defaults.

    Raises:
        ValueError: ``widths`` is empty, or ``first_stride`` and ``pool`` are both given.

    Example:
        >>> import torch
        >>> small_cnn(in_channels=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    _check_widths(widths)
    if pool and first_stride != 1:
        raise ValueError(f"pool takes the place of strides, and first_stride is {first_stride}")
    strides = [first_stride] + [1 if pool else 2] * (len(widths) - 1)
    blocks = [
        conv_bn(width_in, width_out, 3, stride=stride, activation=nn.ReLU())
        for stride, (width_in, width_out) in zip(
            strides, pairwise((in_channels, *widths)), strict=True
        )
    ]
    if pool:
        _add_pools_(blocks)
    return _classifier(blocks, nn.AdaptiveAvgPool2d(1), nn.Linear(widths[-1], num_classes))


@register_model
def lenet(
    image_shape: Sequence[int] = (1, 28, 28),
    widths: Sequence[int] = (8, 16),
    hidden: int = 32,
    num_classes: int = 10,
) -> nn.Sequential:
    """Build a classifier in the manner of LeNet: convolutions that are pooled, then Linears.

    Blocks are a 3x3 convolution, BatchNorm, ReLU and a maximum over 2x2. The first Linear reads
    every position of every channel and holds most of the parameters.

    Args:
        image_shape: Channels, height and width of the images.
        widths: Channels of each block, at least one.
        hidden: Width of the Linear before the last one.
        num_classes: Number of outputs.

    Returns:
        Network from ``(N, *image_shape)`` to logits ``(N, num_classes)``; 26,722 parameters with
        the defaults.

    Raises:
        ValueError: ``widths`` is empty, or the images are too small for this many blocks.

    Source:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.

    Example:
        >>> import torch
        >>> lenet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    _check_widths(widths)
    channels, *size = image_shape
    positions = math.prod(side // 2 ** len(widths) for side in size)
    if not positions:
        raise ValueError(f"images of {size} are too small for {len(widths)} blocks that halve them")
    blocks = [
        conv_bn(width_in, width_out, 3, activation=nn.ReLU())
        for width_in, width_out in pairwise((channels, *widths))
    ]
    _add_pools_(blocks)
    head = nn.Sequential(
        nn.Linear(widths[-1] * positions, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )
    return _classifier(blocks, nn.Identity(), head)


@register_model
def lenet5(num_classes: int = 10) -> nn.Sequential:
    """Build the LeNet-5 that results on pruning are told of: 20, 50 and 500 units, 5x5 kernels.

    It has no BatchNorm, a ReLU behind every layer but the last, and pads nothing.

    Args:
        num_classes: Number of outputs.

    Returns:
        Network from ``(N, 1, 28, 28)`` to logits ``(N, num_classes)``; 431,080 parameters with the
        default.

    Source:
        The LeNet of the examples of Caffe, after LeCun et al., 1998.

    Example:
        >>> import torch
        >>> lenet5()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    blocks = [
        nn.Sequential(OrderedDict(conv=nn.Conv2d(width_in, width_out, 5), act=nn.ReLU()))
        for width_in, width_out in ((1, 20), (20, 50))
    ]
    _add_pools_(blocks)
    head = nn.Sequential(nn.Linear(50 * 4 * 4, 500), nn.ReLU(), nn.Linear(500, num_classes))
    return _classifier(blocks, nn.Identity(), head)


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


def _add_pools_(blocks: Sequence[nn.Sequential]) -> None:
    for block in blocks:
        block.add_module("pool", nn.MaxPool2d(2))


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


def _classifier(blocks: list[nn.Sequential], pool: nn.Module, head: nn.Module) -> nn.Sequential:
    layers = OrderedDict(
        features=nn.Sequential(*blocks), pool=pool, flatten=nn.Flatten(), head=head
    )
    model = nn.Sequential(layers)
    he_init_(model)
    return model
