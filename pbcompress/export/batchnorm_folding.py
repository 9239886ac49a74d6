"""BatchNorm with fixed statistics folded into the layer before it."""

from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.config.dendrites import Tied
from pbcompress.dendrites.forms import ChannelAffine, UncentredNorm, scale_and_offset
from pbcompress.dendrites.layer import DendriteLayer
from pbcompress.dendrites.nodes import Picked, node_weight, set_node_weight_

__all__ = ["BatchNorm", "fold", "fold_into_dendrites_", "folded"]

BatchNorm = nn.modules.batchnorm._BatchNorm


def folded(module: nn.Module) -> nn.Module:
    """Return a map with its BatchNorm folded in, or two maps of a low-rank pair."""
    if isinstance(module, BatchNorm):  # of a tied dendrite
        return _as_affine(module)
    if isinstance(module, Picked):
        return Picked(folded(module.layer), module.channels, module.axis)
    if isinstance(module, nn.Sequential) and isinstance(module[-1], BatchNorm):
        inner = module[0]
        if isinstance(inner, Picked):
            return Picked(fold(inner.layer, module[-1]), inner.channels, inner.axis)
        if isinstance(inner, nn.Sequential):
            return nn.Sequential(inner[0], fold(inner[1], module[-1]))
        return folded(fold(inner, module[-1]))
    return module


@torch.no_grad()
def _as_affine(norm: Any) -> nn.Module:
    kinds = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
    dims = norm.dims if isinstance(norm, UncentredNorm) else kinds.get(type(norm), 0)
    affine = ChannelAffine(norm.num_features, dims)
    affine.weight, affine.bias = map(nn.Parameter, scale_and_offset(norm))
    return affine


@torch.no_grad()
def fold(layer: Any, norm: Any) -> nn.Module:
    """Return a Linear or convolution, grouped and transposed ones too, with a norm folded in."""
    scale, offset = scale_and_offset(norm)
    weight = node_weight(layer)
    scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    set_node_weight_(layer, scaled, int(getattr(layer, "groups", 1)))
    bias = offset if layer.bias is None else offset + layer.bias.detach() * scale
    layer.bias = nn.Parameter(bias)
    return layer  # type: ignore[no-any-return]


@torch.no_grad()
def fold_into_dendrites_(layer: DendriteLayer, norm: Any) -> None:
    """Scale base and U alike: norm(base + sum U a) = folded base + sum (scale U) a."""
    scale, offset = scale_and_offset(norm)
    if isinstance(layer.config.form, Tied):
        _read_folded_(layer, scale, offset)
    layer.base_layer = fold(layer.base_layer, norm)
    for gain, slots in zip(layer.gains, layer.slots, strict=True):
        gain.data.mul_(scale if gain.dim() == 2 else slots.take(scale, 0))  # type: ignore[operator]


def _read_folded_(layer: DendriteLayer, scale: Tensor, offset: Tensor) -> None:
    """Let tied dendrites undo the fold of the sum that they read; channels of scale 0 read 0."""
    alive = scale != 0
    inverse = torch.where(alive, 1 / torch.where(alive, scale, 1), 0)
    for index, branch in enumerate(layer.dendrites):
        slots: Any = layer.slots[index]
        own: Any = folded(branch)
        affine = own.layer if isinstance(own, Picked) else own
        if isinstance(affine, ChannelAffine):
            undone = affine.weight.detach() * slots.take(inverse, 0)
            affine.bias.data.sub_(undone * slots.take(offset, 0))
            affine.weight.data.copy_(undone)
            layer.dendrites[index] = own
