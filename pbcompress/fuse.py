"""The inference form: BatchNorm folded, base and dendrites of a layer as one wide operation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pbcompress.dendrite import ACTIVATIONS, DendriteLayer, add_set, dendrite_layers, hear
from pbcompress.forms import ChannelAffine
from pbcompress.nodes import Picked, node_weight, set_node_weight_
from pbcompress.surgery import copy_model, replace_module

__all__ = ["FusedDendriteLayer", "fuse"]

BatchNorm = nn.modules.batchnorm._BatchNorm
Conv = nn.modules.conv._ConvNd
_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride")


class FusedDendriteLayer(nn.Module):
    """A frozen `DendriteLayer`: maps of equal geometry run as one wide operation.

    Base and dendrites read the same input, so their weights are stacked along the output: one
    Linear or convolution with (D + 1) times the channels, then the cheap formula per channel.
    Dendrites of another geometry (other groups, low rank) run beside it.

    Args:
        layer: In eval mode; its tensors are copied.
    """

    def __init__(self, layer: DendriteLayer) -> None:
        super().__init__()
        self.function = layer.config.activation
        self.dims, self.axis = layer.dims, -1 - layer.dims
        self.is_tied = layer.config.form == "tied"
        maps = [_folded(module) for module in [layer.base_layer, *layer.dendrites]]
        self.slots = layer.slots
        speaking = [i for i, slots in enumerate(layer.slots, 1) if slots.count]
        alike = [0] + [i for i in speaking if _stackable(maps[0], maps[i])]
        self.wide = _stack([maps[i] for i in alike])
        self.groups = int(getattr(maps[0], "groups", 1))
        self.sizes = [_out_width(maps[i]) // self.groups for i in alike]
        self.alike = alike
        self.others = nn.ModuleDict({str(i): maps[i] for i in speaking if i not in alike})
        for name in _SIZES:
            if hasattr(layer.base_layer, name):
                setattr(self, name, getattr(layer.base_layer, name))
        self.gains = nn.ParameterList([nn.Parameter(u.detach().clone()) for u in layer.gains])
        self.links = nn.ParameterList([nn.Parameter(v.detach().clone()) for v in layer.links])

    @property
    def weight(self) -> Tensor:
        """Weight of the base layer, for code that reads it."""
        weight: Tensor = self.wide.weight  # type: ignore[assignment]
        if isinstance(self.wide, nn.modules.conv._ConvTransposeNd):
            return weight[:, : self.sizes[0]]
        return self._base_rows(weight)

    @property
    def bias(self) -> Tensor | None:
        """Bias of the base layer, or of what its norm was folded into."""
        bias: Tensor | None = self.wide.bias  # type: ignore[assignment]
        return bias if bias is None else self._base_rows(bias)

    def _base_rows(self, rows: Tensor) -> Tensor:
        base: Tensor = rows.unflatten(0, (self.groups, -1))[:, : self.sizes[0]].flatten(0, 1)
        return base

    def forward(self, input: Tensor) -> Tensor:
        """Map the layer's input to its output."""
        parts = dict(zip(self.alike, self._split(self.wide(input)), strict=True))
        y = parts[0]
        for key, module in self.others.items():
            parts[int(key)] = module(parts[0] if self.is_tied else input)
        heard: list[Tensor | None] = []
        for index, (gain, links) in enumerate(zip(self.gains, self.links, strict=True)):
            slots: Any = self.slots[index]
            if slots.count == 0:
                heard.append(None)
                continue
            z = hear(parts[index + 1], links, heard, slots, self.dims)
            a = ACTIVATIONS[self.function](z)
            y = add_set(y, a, gain, slots, self.dims)
            heard.append(slots.spread(a, self.axis) if index + 1 < len(self.gains) else None)
        return y

    def _split(self, wide: Tensor) -> Sequence[Tensor]:
        """Undo the stacking: each group of the wide map holds that group of every part."""
        if len(self.sizes) == 1:
            return [wide]
        if self.groups == 1:
            return torch.split(wide, self.sizes, dim=self.axis)
        grouped = wide.unflatten(self.axis, (self.groups, sum(self.sizes)))
        parts = torch.split(grouped, self.sizes, dim=self.axis)
        return [part.flatten(self.axis - 1, self.axis) for part in parts]


def _folded(module: nn.Module) -> nn.Module:
    """Return a map with its BatchNorm folded in, or two maps of a low-rank pair."""
    if isinstance(module, BatchNorm):  # of a tied dendrite
        return _as_affine(module)
    if isinstance(module, Picked):
        return Picked(_folded(module.layer), module.channels, module.axis)
    if isinstance(module, nn.Sequential) and isinstance(module[-1], BatchNorm):
        inner = module[0]
        if isinstance(inner, Picked):
            return Picked(_fold(inner.layer, module[-1]), inner.channels, inner.axis)
        if isinstance(inner, nn.Sequential):
            return nn.Sequential(inner[0], _fold(inner[1], module[-1]))
        return _fold(inner, module[-1])
    return module


def _scale_and_offset(norm: Any) -> tuple[Tensor, Tensor]:
    """Return what a BatchNorm with fixed statistics does to each channel."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    offset = -norm.running_mean * scale
    return scale, offset if norm.bias is None else offset + norm.bias.detach()


def _as_affine(norm: Any) -> nn.Module:
    dims = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(norm), 0)
    affine = ChannelAffine(norm.num_features, dims)
    affine.weight, affine.bias = map(nn.Parameter, _scale_and_offset(norm))
    return affine


def _fold(layer: Any, norm: Any) -> nn.Module:
    """Return a Linear or convolution, grouped and transposed ones too, with a norm folded in."""
    scale, offset = _scale_and_offset(norm)
    weight = node_weight(layer)
    scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    set_node_weight_(layer, scaled, int(getattr(layer, "groups", 1)))
    bias = offset if layer.bias is None else offset + layer.bias.detach() * scale
    layer.bias = nn.Parameter(bias)
    return layer  # type: ignore[no-any-return]


def _out_width(module: nn.Module) -> int:
    return int(getattr(module, "out_channels", 0) or module.out_features)  # type: ignore[arg-type]


def _stackable(base: nn.Module, other: nn.Module) -> bool:
    if type(base) is not type(other):
        return False
    if isinstance(base, nn.Linear):
        return True
    if not isinstance(base, Conv) or _out_width(other) % base.groups:
        return False
    names = (
        "kernel_size",
        "stride",
        "padding",
        "output_padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    return all(getattr(base, name) == getattr(other, name) for name in names)


def _stack(maps: Sequence[nn.Module]) -> nn.Module:
    """Return one map whose outputs are, group by group, the outputs of all ``maps``."""
    if len(maps) == 1:
        return maps[0]
    groups = int(getattr(maps[0], "groups", 1))
    weights = [node_weight(m) for m in maps]
    biases = [
        w.new_zeros(len(w)) if m.bias is None else _tensor(m.bias)
        for m, w in zip(maps, weights, strict=True)
    ]
    wide = copy_model(maps[0])
    set_node_weight_(wide, _by_group(weights, groups), groups)
    wide.bias = nn.Parameter(_by_group(biases, groups))
    return wide


def _tensor(parameter: Any) -> Tensor:
    tensor: Tensor = parameter.detach()
    return tensor


def _by_group(tensors: Sequence[Tensor], groups: int) -> Tensor:
    blocks = [t.reshape(groups, -1, *t.shape[1:]) for t in tensors]
    return torch.cat(blocks, dim=1).flatten(0, 1)


class _Tracer(fx.Tracer):
    """Traces a network down to its layers; a layer with dendrites is one of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DendriteLayer) or super().is_leaf_module(m, module_qualified_name)


def _norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return (layer, BatchNorm) names where the norm is the only reader of the layer's output."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # control flow that cannot be traced: nothing is folded, nothing is wrong
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    modules = dict(model.named_modules())
    pairs = []
    for node in calls:
        source: Any = node.args[0] if node.args else None
        if not isinstance(modules[str(node.target)], BatchNorm) or source not in calls:
            continue
        names = (str(source.target), str(node.target))
        is_layer = isinstance(modules[names[0]], nn.Linear | Conv | DendriteLayer)
        is_only_reader = len(source.users) == 1 and all(targets.count(n) == 1 for n in names)
        if is_layer and is_only_reader and _can_fold(modules[names[0]], modules[names[1]]):
            pairs.append(names)
    return pairs


def _can_fold(layer: nn.Module, norm: Any) -> bool:
    if isinstance(layer, DendriteLayer):
        return _can_fold(layer.base_layer, norm)
    has_statistics = norm.running_mean is not None and norm.running_var is not None
    return has_statistics and type(layer).__module__.startswith("torch.nn.modules")


def _fold_into_dendrites(layer: DendriteLayer, norm: Any) -> None:
    """Scale base and U alike: norm(base + sum U a) = folded base + sum (scale U) a."""
    scale, offset = _scale_and_offset(norm)
    if layer.config.form == "tied":
        _read_folded_(layer, scale, offset)
    layer.base_layer = _fold(layer.base_layer, norm)
    for gain, slots in zip(layer.gains, layer.slots, strict=True):
        gain.data.mul_(scale if gain.dim() == 2 else slots.take(scale, 0))  # type: ignore[operator]


def _read_folded_(layer: DendriteLayer, scale: Tensor, offset: Tensor) -> None:
    """Let tied dendrites undo the fold of the sum that they read; dead channels are silent."""
    alive = scale != 0
    inverse = torch.where(alive, 1 / torch.where(alive, scale, 1), 0)
    for index, branch in enumerate(layer.dendrites):
        slots: Any = layer.slots[index]
        own: Any = _folded(branch)
        affine = own.layer if isinstance(own, Picked) else own
        if isinstance(affine, ChannelAffine):
            undone = affine.weight.detach() * slots.take(inverse, 0)
            affine.bias.data.sub_(undone * slots.take(offset, 0))
            affine.weight.data.copy_(undone)
            layer.dendrites[index] = own


def fuse(model: nn.Module) -> nn.Module:
    """Return the inference form of a network: a plain module in eval mode, ``model`` untouched.

    A BatchNorm that is the only reader of a Linear, a convolution or a layer with dendrites is
    folded into it, and each layer with dendrites becomes one wide operation followed by the
    formula. Where the forward cannot be traced symbolically, BatchNorm stays as it is.

    Args:
        model: A network with or without dendrites.

    Returns:
        A deep copy whose outputs agree to rounding.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> type(fuse(net)[1]).__name__
        'Identity'
    """
    frozen = copy_model(model).eval().requires_grad_(False)
    for name, norm_name in _norm_pairs(frozen):
        layer, norm = frozen.get_submodule(name), frozen.get_submodule(norm_name)
        if isinstance(layer, DendriteLayer):
            _fold_into_dendrites(layer, norm)
        else:
            replace_module(frozen, name, _fold(layer, norm))
        replace_module(frozen, norm_name, nn.Identity())
    for name, layer in dendrite_layers(frozen).items():
        replace_module(frozen, name, FusedDendriteLayer(layer))
    return frozen.eval().requires_grad_(False)
