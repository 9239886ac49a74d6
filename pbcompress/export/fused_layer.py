"""A layer with dendrites in its inference form: one wide operation, then the formula.

At batch 1 a layer costs its Python and its number of nodes. So torch.fx traces the formula once and
keeps it as generated code, maps of the same geometry are stacked, grouped layers keep their groups
as an axis until the sum is whole, and a set with few nodes adds through one Gather, or one Gemm
where U is a matrix. `tests/export/test_fused_layer.py` counts the nodes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pbcompress.config.dendrites import Tied
from pbcompress.core.modules import copy_model
from pbcompress.dendrites.layer import DendriteLayer
from pbcompress.dendrites.nodes import node_weight, set_node_weight_
from pbcompress.dendrites.signals import ACTIVATIONS, CONVOLUTIONS
from pbcompress.export.batchnorm_folding import folded

__all__ = ["FusedDendriteLayer"]

Conv = nn.modules.conv._ConvNd
_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride")


class FusedDendriteLayer(nn.Module):
    """A frozen `DendriteLayer`, its base and dendrites as one wide operation where they are alike.

    The formula is kept as straight code, since on small inputs its loops would cost half the time.
    Other code finds the base layer's sizes and weight here, as it does in a `DendriteLayer`.

    Args:
        layer: In eval mode; its tensors are copied.
    """

    def __init__(self, layer: DendriteLayer) -> None:
        super().__init__()
        formula, base = _Formula(layer), layer.base_layer
        self.formula = fx.GraphModule(formula, _Writer().trace(formula), "Formula")
        for name in _SIZES:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        self.groups = int(getattr(base, "groups", 1))
        self._rows = out_width(base) // self.groups

    def forward(self, input: Tensor) -> Tensor:
        """Map the layer's input to its output."""
        return self.formula(input)  # type: ignore[no-any-return]

    @property
    def _wide(self) -> Any:
        return self.formula.get_submodule("wide.0")

    @property
    def weight(self) -> Tensor:
        """Weight of the base layer, for code that reads it."""
        stacked: Tensor = self._wide.weight
        is_transposed = isinstance(self._wide, nn.modules.conv._ConvTransposeNd)
        return stacked[:, : self._rows] if is_transposed else self._of_base(stacked)

    @property
    def bias(self) -> Tensor | None:
        """Bias of the base layer, or what takes its place in the wide operation."""
        return None if self._wide.bias is None else self._of_base(self._wide.bias)

    def _of_base(self, stacked: Tensor) -> Tensor:
        base: Tensor = stacked.unflatten(0, (self.groups, -1))[:, : self._rows].flatten(0, 1)
        return base


class _Formula(nn.Module):
    """What a frozen `DendriteLayer` computes: maps of equal geometry run as one wide operation.

    Base and dendrites read the same input, so their weights are stacked along the output: one
    Linear or convolution with (D + 1) times the channels, then the cheap formula per channel.
    Maps of another geometry (other groups) run beside it; of a low-rank pair the first is stacked.

    Args:
        layer: In eval mode; its tensors are copied.
    """

    def __init__(self, layer: DendriteLayer) -> None:
        super().__init__()
        self.axis = -1 - layer.dims
        maps = [folded(module) for module in [layer.base_layer, *layer.dendrites]]
        slots: Any = layer.slots
        with_nodes = [index for index, own in enumerate(slots, 1) if own.count]
        self.is_tied = isinstance(layer.config.form, Tied)
        reading = [0] if self.is_tied else [0, *with_nodes]
        pairs = [maps[i] if type(maps[i]) is nn.Sequential else (maps[i],) for i in reading]
        heads = dict(zip(reading, (pair[0] for pair in pairs), strict=True))  # type: ignore[index]
        self.classes = _classes(heads)
        self.wide = nn.ModuleList(_stack([heads[i] for i in alike]) for alike in self.classes)
        self.sizes = [
            [out_width(heads[i]) for i in alike] if len(alike) > 1 else [] for alike in self.classes
        ]
        self.groups = int(getattr(maps[0], "groups", 1)) if len(self.classes[0]) > 1 else 1
        is_whole = all(slots[i - 1].is_whole for i in with_nodes)
        self.inner = self.groups if is_whole and len(self.classes) == 1 else 1
        self.sets = nn.ModuleDict()
        for position, index in enumerate(with_nodes):
            tail = maps[index] if self.is_tied else _tail(maps[index])
            earlier = [i - 1 for i in with_nodes[:position]]
            self.sets[str(index)] = _FusedSet(layer, index - 1, earlier, tail, self.inner)

    def forward(self, x: Tensor) -> Tensor:
        """Map the layer's input to its output."""
        parts: dict[int, Tensor] = {}
        for wide, alike, sizes in zip(self.wide, self.classes, self.sizes, strict=True):
            pieces = self._split(wide(x), sizes)
            parts |= {index: pieces[place] for place, index in enumerate(alike)}
        own = y = parts[0]
        activations: list[Tensor] = []
        for key, one in self.sets.items():
            y, a = one(y, own if self.is_tied else parts[int(key)], activations)
            activations.append(a)
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
    """One set behind the map of its input: what it reads, its activation, and what it adds.

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
        steps: Any = layer.annealing
        self.linearity = float(steps[index].linearity) if len(steps) else 0.0
        slots: Any = layer.slots
        shape = ((groups, -1) if groups > 1 else (-1,)) + (1,) * layer.dims
        self.links = nn.ParameterList()
        for e in earlier if len(layer.links[index]) else ():
            places, has_node = slots[e].places(slots[index].kept)
            # exported files hold this name
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

    def forward(self, y: Tensor, z: Tensor, earlier: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum with this set's part, and the activations of its nodes."""
        z = z if self.tail is None else self.tail(z)
        for number, (link, a) in enumerate(zip(self.links, earlier, strict=False)):
            own = _picked(a, getattr(self, f"heard_{number}"), self.axis)
            z = torch.addcmul(z, own, link)
        a = ACTIVATIONS[self.function](z)
        if self.linearity:
            a = torch.lerp(a, z, self.linearity)
        if not self.is_dense:
            return torch.addcmul(y, _picked(a, self.places, self.axis), self.gain), a
        if self.dims:
            return y + CONVOLUTIONS[self.dims](a, self.gain), a
        return _plus_product(y, a, self.gain), a


class _Writer(fx.Tracer):
    """Traces the formula down to its maps."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, _Formula | _FusedSet)


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


def out_width(module: nn.Module) -> int:
    return int(getattr(module, "out_channels", 0) or module.out_features)  # type: ignore[arg-type]


def _stackable(base: nn.Module, other: nn.Module) -> bool:
    if type(base) is not type(other):
        return False
    if isinstance(base, nn.Linear):
        return True
    if not isinstance(base, Conv) or out_width(other) % base.groups:
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
