"""What a linear dendrite does, as one map of its layer's input: weights and offsets.

All maps have the form of the base layer: outputs first, and the inputs of one of its groups. So
sums, scales and links of dendrites are those of their weights, and gradients pass through.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.dendrites.forms import GROWABLE, ChannelAffine, UncentredNorm, scale_and_offset
from pbcompress.dendrites.nodes import BatchNorm, Picked, Slots, groups_of, node_weight_of

__all__ = ["LinearMap", "is_plain_map", "merged_map", "with_map"]

_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

DendriteSet = tuple[nn.Module, Slots, Tensor, Tensor]  # input map, nodes, U and V


class LinearMap(NamedTuple):
    """A linear map and what it adds.

    Attributes:
        weight: Shape (outputs, inputs of a group of the base layer, *kernel).
        bias: Shape (outputs,); None: nothing is added.
    """

    weight: Tensor
    bias: Tensor | None

    def scaled(self, scale: Tensor) -> "LinearMap":
        """Return the map with each output multiplied."""
        weight = self.weight * _as_rows(scale, self.weight)
        return LinearMap(weight, None if self.bias is None else self.bias * scale)

    def plus(self, other: "LinearMap") -> "LinearMap":
        """Return the sum of two maps."""
        return LinearMap(self.weight + other.weight, _sum(self.bias, other.bias))

    def mixed(self, matrix: Tensor) -> "LinearMap":
        """Return the map whose outputs are ``matrix`` times those of this one."""
        weight = torch.tensordot(matrix, self.weight, 1)
        return LinearMap(weight, None if self.bias is None else matrix @ self.bias)

    def taken(self, slots: Slots) -> "LinearMap":
        """Return the map to the slots of a set's nodes alone."""
        bias = None if self.bias is None else slots.take(self.bias, 0)
        return LinearMap(slots.take(self.weight, 0), bias)

    def spread(self, slots: Slots) -> "LinearMap":
        """Return the map with the outputs of a set's nodes in their slots, and zeros elsewhere."""
        bias = None if self.bias is None else slots.spread(self.bias, 0)
        return LinearMap(slots.spread(self.weight, 0), bias)


def merged_map(base: nn.Module, sets: Iterable[DendriteSet]) -> LinearMap:
    """Return the map of a layer and its linear dendrites together, their norms at rest.

    For output channel c and the map D_d of a set, all of them maps of the input::

        A_d = D_d + sum_{e<d} V[d,e,c] * A_e
        map = base + sum_d U[d,c] * A_d

    Args:
        base: A Linear or a convolution.
        sets: In the order in which they grew.
    """
    groups, own = int(getattr(base, "groups", 1)), _layer_map(base)
    total = own
    earlier: list[LinearMap | None] = []
    for branch, slots, gain, links in sets:
        if slots.count == 0:
            earlier.append(None)
            continue
        a = _set_map(branch, slots, own, groups)
        for link, heard in zip(links, earlier, strict=False):
            if heard is not None:
                a = a.plus(heard.taken(slots).scaled(link))
        total = total.plus(a.mixed(gain.T) if gain.dim() == 2 else a.scaled(gain).spread(slots))
        earlier.append(a.spread(slots))
    return total


def is_plain_map(layer: nn.Module) -> bool:
    """Tell whether a layer computes its class's map with a weight of its own, and nothing else."""
    is_own = layer._parameters.get("weight") is not None and type(layer) in GROWABLE
    return is_own and not (layer._forward_hooks or layer._forward_pre_hooks)


def with_map(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a Linear or a convolution with another weight and bias, and leave the layer alone."""
    out: Tensor
    if isinstance(layer, nn.Linear):
        out = functional.linear(x, weight, bias)
    elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
        run: Any = _TRANSPOSED[len(layer.kernel_size)]
        sizes = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        out = run(x, weight, bias, *sizes)
    else:
        out = layer._conv_forward(x, weight, bias)
    return out


def _layer_map(layer: Any) -> LinearMap:
    """Return the map of a base layer."""
    return LinearMap(node_weight_of(layer, layer.weight), layer.bias)


def _set_map(branch: nn.Module, slots: Slots, base: LinearMap, groups: int) -> LinearMap:
    """Return the map from a layer's input to the nodes of one dendrite set, in eval mode.

    Args:
        branch: Input map of the set.
        slots: Its nodes.
        base: The base layer's map, which tied dendrites read.
        groups: Of the base layer.
    """
    if isinstance(branch, Picked):
        if isinstance(branch.layer, BatchNorm | ChannelAffine):
            own = LinearMap(*(None if t is None else t[slots.kept] for t in base))  # type: ignore[arg-type]
            return _affine(own, branch.layer)
        return _regrouped(_layer_map(branch.layer), slots, slots.total, groups)
    if isinstance(branch, BatchNorm | ChannelAffine):
        return _affine(base, branch)
    if not isinstance(branch, nn.Sequential):
        return _regrouped(_layer_map(branch), slots, groups_of(branch), groups)
    *before, last = branch
    if isinstance(last, BatchNorm):
        inner = before[0] if len(before) == 1 else nn.Sequential(*before)
        return _affine(_set_map(inner, slots, base, groups), last)
    first, second = _layer_map(before[0]), _layer_map(last)  # through few channels
    return LinearMap(first.mixed(second.weight.flatten(1)).weight, second.bias)


def _affine(read: LinearMap, channelwise: Any) -> LinearMap:
    """Return a map behind which a norm at rest or a `ChannelAffine` stands."""
    if isinstance(channelwise, ChannelAffine):
        scale: Tensor = channelwise.weight
        offset: Tensor = channelwise.bias
    else:
        scale, offset = scale_and_offset(channelwise)
    own = read.scaled(scale)
    if isinstance(channelwise, UncentredNorm):
        return own
    return own._replace(bias=_sum(own.bias, offset))


def _regrouped(own: LinearMap, slots: Slots, own_groups: int, groups: int) -> LinearMap:
    """Return a map in more groups than the base layer as one in the base layer's."""
    parts = own_groups // groups  # of a group of the base layer
    if parts <= 1:
        return own
    per_group = slots.total // own_groups
    part = (slots.kept // per_group) % parts
    place = nn.functional.one_hot(part, parts).to(own.weight)
    weight = own.weight[:, None] * place.reshape(*place.shape, *[1] * (own.weight.dim() - 1))
    return LinearMap(weight.flatten(1, 2), own.bias)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _as_rows(vector: Tensor, weight: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (weight.dim() - 1))
