"""What candidate dendrites read at some places of a layer's output, and compute of it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.config.dendrites import Tied
from pbcompress.dendrites.forms import (
    ChannelAffine,
    FeatureNorm,
    GroupedLinear,
    UncentredNorm,
)
from pbcompress.dendrites.layer import DendriteLayer
from pbcompress.dendrites.nodes import BatchNorm, groups_of

__all__ = [
    "draw_places",
    "fan_in",
    "is_observable",
    "map_rows",
    "outputs_at",
    "patches",
    "read_at",
    "row_size",
]

_NORM_DIMS: dict[type, int] = {
    FeatureNorm: 0,
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
}


def is_observable(layer: DendriteLayer) -> bool:
    """Tell whether the newest set of a layer reads patches of its input, or its neuron's sum."""
    is_transposed = isinstance(layer.base_layer, nn.modules.conv._ConvTransposeNd)
    return isinstance(layer.config.form, Tied) or not is_transposed


def patches(conv: Any, x: Tensor, places: Tensor) -> Tensor:
    """Return what a convolution reads for some of its outputs.

    Args:
        conv: A Conv1d, Conv2d or Conv3d.
        x: Its input, shape (N, in_channels, *size).
        places: Shape (n, 1 + dims): sample and output position.

    Returns:
        Shape (n, in_channels, *kernel_size).
    """
    dims = len(conv.kernel_size)
    is_zeros = conv.padding_mode == "zeros"
    mode = "constant" if is_zeros else conv.padding_mode
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    places = places.reshape(*places.shape, *[1] * dims)
    index = places[:, 0]  # of a position of all samples together, for each tap
    for d in range(dims):
        taps = torch.arange(conv.kernel_size[d], device=x.device) * conv.dilation[d]
        taps = taps.reshape([-1 if axis == d else 1 for axis in range(dims)])
        index = index * x.shape[2 + d] + places[:, 1 + d] * conv.stride[d] + taps
    channels = x.movedim(1, -1).flatten(0, -2)
    read: Tensor = channels.index_select(0, index.flatten()).unflatten(0, index.shape)
    return read.movedim(-1, 1)


def read_at(layer: DendriteLayer, read: Tensor, places: Tensor) -> Tensor:
    """Return what the newest set of a layer reads, shape (groups, n, fan-in of a group).

    Args:
        layer: One for which `is_observable` is true.
        read: What dendrites read, with a batch axis.
        places: See `draw_places`.
    """
    if isinstance(layer.config.form, Tied):
        return outputs_at(layer, read, places).T[:, :, None]
    base: Any = layer.base_layer
    groups = groups_of(layer.dendrites[-1])
    if layer.dims == 0:
        rows = read.reshape(-1, read.shape[-1])[places[:, 0]]
    else:
        rows = patches(base, read, places)
    grouped: Tensor = rows.flatten(1).unflatten(1, (groups, -1)).transpose(0, 1)
    return grouped


def map_rows(branch: nn.Module, inputs: Tensor) -> Tensor:
    """Return the sums of a dendrite set's nodes for rows, shape (n, nodes).

    Args:
        branch: The input map of a set that has all of its nodes; no transposed convolution.
        inputs: Shape (groups, n, fan-in of a group); see `read_at`.
    """
    modules: list[Any] = [m for m in branch.modules() if not isinstance(m, nn.Sequential)]
    first, *others = modules
    z: Tensor
    if isinstance(first, BatchNorm | ChannelAffine):  # a tied map
        z, others = inputs[..., 0].T.to(first.weight.dtype), modules
    else:
        z = _first_sums(first, inputs.to(first.weight.dtype))
    for module in others:
        if isinstance(module, BatchNorm | ChannelAffine):
            z = module(z.reshape(*z.shape, *[1] * _dims(module))).flatten(1)
        else:
            z = functional.linear(z, module.weight.flatten(1), module.bias)
    return z


def _dims(channelwise: nn.Module) -> int:
    """Return how many spatial axes a norm or affine map expects."""
    if isinstance(channelwise, ChannelAffine | UncentredNorm):
        return channelwise.dims
    return _NORM_DIMS[type(channelwise)]


def _first_sums(module: Any, inputs: Tensor) -> Tensor:
    if isinstance(module, GroupedLinear):
        weight = module.weight
    elif len(inputs) == 1:
        return functional.linear(inputs[0], module.weight.flatten(1), module.bias)
    else:
        weight = module.weight.flatten(1).unflatten(0, (len(inputs), -1)).mT
    z = (inputs @ weight).transpose(0, 1).flatten(1)
    return z if module.bias is None else z + module.bias


def outputs_at(layer: DendriteLayer, output: Tensor, places: Tensor) -> Tensor:
    """Return the channels of an output at ``places``, shape (n, channels)."""
    channels = output.movedim(-1 - layer.dims, -1)
    if layer.dims == 0:
        channels = channels.reshape(-1, output.shape[-1])
    return channels[tuple(places.T)]


def draw_places(layer: DendriteLayer, output: Tensor, count: int) -> Tensor:
    """Draw ``count`` outputs of a layer without repeats, or take all of them.

    Returns:
        Shape (n, 1 + dims): sample and position; for a Linear (n, 1): the row.
    """
    shape = output.movedim(-1 - layer.dims, -1).shape[:-1]
    shape = shape if layer.dims else torch.Size([math.prod(shape)])
    total = math.prod(shape)
    flat = torch.randperm(total)[:count].sort().values if total > count else torch.arange(total)
    return torch.stack(torch.unravel_index(flat, shape), 1).to(output.device)


def fan_in(layer: DendriteLayer) -> int:
    """Return how many numbers a node of the newest set reads at one place."""
    if isinstance(layer.config.form, Tied):
        return 1
    return row_size(layer) // groups_of(layer.dendrites[-1])


def row_size(layer: DendriteLayer) -> int:
    """Return how many numbers `read_at` gives for one place."""
    if isinstance(layer.config.form, Tied):
        return layer.channels
    base: Any = layer.base_layer
    return int(base.weight[0].numel()) * max(getattr(base, "groups", 1), 1)
