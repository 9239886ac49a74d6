"""Parts that several networks of the zoo share."""

from collections import OrderedDict

from torch import nn

__all__ = ["conv_bn", "he_init_", "scaled"]


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Build a 2-d convolution, BatchNorm and, if given, an activation.

    The convolution has no bias, because BatchNorm follows and has its own. It pads with
    ``kernel_size // 2``, so an odd kernel with stride 1 keeps height and width.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, odd.
        stride: Step in both directions.
        groups: Number of groups; ``in_channels`` makes it depthwise.
        activation: Last layer; none if left out.

    Returns:
        Layers ``conv``, ``bn`` and perhaps ``act``: ``(N, in, H, W)`` to
        ``(N, out, ceil(H / stride), ceil(W / stride))``.
    """
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels))
    if activation is not None:
        layers["act"] = activation
    return nn.Sequential(layers)


def he_init_(model: nn.Module) -> None:
    """Draw the weights of all convolutions in ``model`` anew, in place.

    Normal with standard deviation ``sqrt(2 / fan_out)``; other layers stay as they are.

    Args:
        model: Network to change.

    Source:
        He et al., Delving Deep into Rectifiers, 2015, https://arxiv.org/abs/1502.01852,
        section 2.2.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def scaled(channels: int, width: float) -> int:
    """Multiply a number of channels by ``width``, rounded, and at least 1.

    Raises:
        ValueError: ``width`` is not positive.

    Example:
        >>> scaled(16, 0.5), scaled(16, 0.01)
        (8, 1)
    """
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    return max(1, round(channels * width))
