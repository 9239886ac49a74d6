"""The inference form: BatchNorm folded, base and dendrites of a layer as one wide operation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pbcompress.dendrite import DendriteLayer, dendrite_layers
from pbcompress.forms import ChannelAffine, GroupedLinear
from pbcompress.nodes import Picked, node_weight, set_node_weight_
from pbcompress.signals import ACTIVATIONS, CONVOLUTIONS
from pbcompress.surgery import copy_model, replace_module

__all__ = ["FusedDendriteLayer", "fuse"]

BatchNorm = nn.modules.batchnorm._BatchNorm
Conv = nn.modules.conv._ConvNd


class FusedDendriteLayer(nn.Module):
    """A frozen `DendriteLayer`: maps of equal geometry run as one wide operation.

    Base and dendrites read the same input, so their weights are stacked along the output: one
    Linear or convolution with (D + 1) times the channels, then the cheap formula per channel.
    Maps of another geometry (other groups) run beside it; of a low-rank pair the first is stacked.

    Args:
        layer: In eval mode; its tensors are copied.
    """

    def __init__(self, layer: DendriteLayer) -> None:
        super().__init__()
        self.axis = -1 - layer.dims
        maps = [_folded(module) for module in [layer.base_layer, *layer.dendrites]]
        slots: Any = layer.slots
        speaking = [index for index, own in enumerate(slots, 1) if own.count]
        self.is_tied = layer.config.form == "tied"
        reading = [0] if self.is_tied else [0, *speaking]
        pairs = [maps[i] if type(maps[i]) is nn.Sequential else (maps[i],) for i in reading]
        heads = dict(zip(reading, (pair[0] for pair in pairs), strict=True))  # type: ignore[index]
        self.classes = _classes(heads)
        self.wide = nn.ModuleList(_stack([heads[i] for i in alike]) for alike in self.classes)
        self.sizes = [
            [_out_width(heads[i]) for i in alike] if len(alike) > 1 else []
            for alike in self.classes
        ]
        self.groups = int(getattr(maps[0], "groups", 1)) if len(self.classes[0]) > 1 else 1
        is_whole = all(slots[i - 1].is_whole for i in speaking)
        self.inner = self.groups if is_whole and len(self.classes) == 1 else 1
        self.sets = nn.ModuleDict()
        for position, index in enumerate(speaking):
            tail = maps[index] if self.is_tied else _tail(maps[index])
            earlier = [i - 1 for i in speaking[:position]]
            self.sets[str(index)] = _FusedSet(layer, index - 1, earlier, tail, self.inner)

    def forward(self, x: Tensor) -> Tensor:
        """Map the layer's input to its output."""
        parts: dict[int, Tensor] = {}
        for wide, alike, sizes in zip(self.wide, self.classes, self.sizes, strict=True):
            pieces = self._split(wide(x), sizes)
            parts |= {index: pieces[place] for place, index in enumerate(alike)}
        own = y = parts[0]
        heard: list[Tensor] = []
        for key, one in self.sets.items():
            y, a = one(y, own if self.is_tied else parts[int(key)], heard)
            heard.append(a)
        return y.flatten(self.axis - 1, self.axis) if self.inner > 1 else y

    def _split(self, wide: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        """Undo the stacking: each group of the wide map holds that group of every part.

        Where every channel has a node, the formula runs on (groups, channels of a group).
        """
        if not sizes:
            return [wide]
        if self.groups == 1:
            return torch.split(wide, sizes, dim=self.axis)
        own = [size // self.groups for size in sizes]
        parts = torch.split(wide.unflatten(self.axis, (self.groups, sum(own))), own, self.axis)
        if self.inner > 1:
            return parts
        return [parts[i].flatten(self.axis - 1, self.axis) for i in range(len(own))]


class _FusedSet(nn.Module):
    """One set behind the map of its input: what it hears, its activation, and what it adds.

    Args:
        layer: The layer.
        index: Number of the set.
        earlier: The sets before it that have nodes.
        tail: Second map of a low-rank pair, or scale and offset of a tied set; None otherwise.
        groups: The channel axis is two: groups, and the channels of a group.
    """

    def __init__(
        self,
        layer: DendriteLayer,
        index: int,
        earlier: Sequence[int],
        tail: nn.Module | None,
        groups: int,
    ) -> None:
        super().__init__()
        self.tail, self.axis, self.dims = tail, -1 - layer.dims, layer.dims
        self.function = layer.config.activation
        slots: Any = layer.slots
        shape = ((groups, -1) if groups > 1 else (-1,)) + (1,) * layer.dims
        self.links = nn.ParameterList()
        for e in earlier if len(layer.links[index]) else ():
            places, has_node = slots[e].places(slots[index].kept)
            self.register_buffer(f"heard_{len(self.links)}", places, persistent=False)
            self.links.append((layer.links[index][e].detach() * has_node).reshape(shape))
        gain = layer.gains[index].detach()
        self.is_dense = gain.dim() == 2
        places, has_node = slots[index].places(torch.arange(slots[index].total))
        if self.is_dense:
            places, gain = None, gain.T.reshape(*gain.T.shape, *[1] * layer.dims)
        else:
            gain = (slots[index].spread(gain, 0) * has_node).reshape(shape)
        self.register_buffer("places", places, persistent=False)
        self.gain = nn.Parameter(gain.clone())

    def forward(self, y: Tensor, z: Tensor, heard: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum with this set's part, and the activations of its nodes."""
        z = z if self.tail is None else self.tail(z)
        for number, (link, a) in enumerate(zip(self.links, heard, strict=False)):
            own = _picked(a, getattr(self, f"heard_{number}"), self.axis)
            z = torch.addcmul(z, own, link)
        a = ACTIVATIONS[self.function](z)
        if not self.is_dense:
            return torch.addcmul(y, _picked(a, self.places, self.axis), self.gain), a
        if self.dims:
            return y + CONVOLUTIONS[self.dims](a, self.gain), a
        return _plus_product(y, a, self.gain), a


def _picked(a: Tensor, places: Any, axis: int) -> Tensor:
    return a if places is None else a.index_select(axis, places)


@fx.wrap
def _plus_product(y: Tensor, a: Tensor, gain: Tensor) -> Tensor:
    return torch.addmm(y, a, gain.T) if y.dim() == 2 else y + a @ gain.T


def _tail(branch: nn.Module) -> nn.Module | None:
    return branch[1] if type(branch) is nn.Sequential else None


def _classes(heads: Mapping[int, nn.Module]) -> list[list[int]]:
    """Return the maps that can run as one, the base first; without groups, or with the base's."""
    classes: list[list[int]] = []
    for index, head in heads.items():
        for alike in classes:
            first = heads[alike[0]]
            is_base = alike[0] == 0 or getattr(first, "groups", 1) == 1
            if is_base and _stackable(first, head):
                alike.append(index)
                break
        else:
            classes.append([index])
    return classes


class _GroupedMap(nn.Module):
    """A `GroupedLinear` as one product for each group, over all rows at once."""

    def __init__(self, layer: GroupedLinear) -> None:
        super().__init__()
        self.groups = layer.groups
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if x.dim() == 1:
            return self.forward(x[None])[0]
        rows = x.unflatten(-1, (self.groups, -1)).transpose(-3, -2)
        y: Tensor = (rows @ self.weight).transpose(-3, -2).flatten(-2)
        return y if self.bias is None else y + self.bias


def _folded(module: nn.Module) -> nn.Module:
    """Return a map with its BatchNorm folded in, or two maps of a low-rank pair."""
    if isinstance(module, GroupedLinear):
        return _GroupedMap(module)
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
        return _folded(_fold(inner, module[-1]))
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
    wide = copy_model(maps[0])
    set_node_weight_(wide, _by_group(weights, groups), groups)
    if any(m.bias is not None for m in maps):
        biases = [
            w.new_zeros(len(w)) if m.bias is None else _tensor(m.bias)
            for m, w in zip(maps, weights, strict=True)
        ]
        wide.bias = nn.Parameter(_by_group(biases, groups))
    return wide


def _tensor(parameter: Any) -> Tensor:
    tensor: Tensor = parameter.detach()
    return tensor


def _by_group(tensors: Sequence[Tensor], groups: int) -> Tensor:
    blocks = [t.reshape(groups, -1, *t.shape[1:]) for t in tensors]
    return torch.cat(blocks, dim=1).flatten(0, 1)


class _Writer(fx.Tracer):
    """Traces a fused layer down to its maps."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, FusedDendriteLayer | _FusedSet)


def _written_out(layer: FusedDendriteLayer) -> nn.Module:
    """Return a fused layer as straight code: on small inputs its loops would cost half the time."""
    return fx.GraphModule(layer, _Writer().trace(layer), type(layer).__name__)


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
        replace_module(frozen, name, _written_out(FusedDendriteLayer(layer)))
    return frozen.eval().requires_grad_(False)
