"""The nodes of a dendrite set: which of them stay, and the input map that is left of it.

A unit of selection is a node, or in grouped maps one node of each group, because a grouped
convolution has groups of one size. What is left is a smaller map, not a masked one, so inference
pays for the nodes that stay.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.modules import copy_model
from pbcompress.dendrites.forms import ChannelAffine, GroupedLinear

__all__ = [
    "Picked",
    "Slots",
    "adopt_nodes_",
    "groups_of",
    "narrowed",
    "node_weight",
    "node_weight_of",
    "own_weight_of",
    "set_node_weight_",
]

BatchNorm = nn.modules.batchnorm._BatchNorm
Transposed = nn.modules.conv._ConvTransposeNd


class Slots(nn.Module):
    """Which of a layer's nodes a set has: one slot for each channel, or each shared node.

    Args:
        total: Slots of the layer.
        kept: Slots that have a node, ascending, shape (nodes,); None: all.

    Example:
        >>> Slots(3, torch.tensor([2])).spread(torch.ones(1, 1), -1)
        tensor([[0., 0., 1.]])
    """

    kept: Tensor
    _source: Tensor

    def __init__(self, total: int, kept: Tensor | None = None) -> None:
        super().__init__()
        self.total = total
        self.is_whole = kept is None or len(kept) == total
        kept = torch.arange(total) if kept is None else kept.cpu()
        source = torch.full((total,), len(kept))
        source[kept] = torch.arange(len(kept))
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("_source", source, persistent=False)

    @property
    def count(self) -> int:
        """Number of nodes."""
        return len(self.kept)

    def spread(self, values: Tensor, axis: int) -> Tensor:
        """Return the values of the nodes in their slots, zeros elsewhere."""
        if self.is_whole:
            return values
        shape = [*values.shape]
        shape[axis] = 1
        return torch.cat([values, values.new_zeros(shape)], axis).index_select(axis, self._source)

    def places(self, slots: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return where the nodes of some slots are among this set's, and which slots have one.

        The place of a slot without a node is 0; None: every slot's node is at its own place.
        """
        source = self._source[slots]
        has_node = source < self.count
        places = torch.where(has_node, source, 0)
        is_itself = len(slots) == self.count and bool(
            (source.cpu() == torch.arange(len(slots))).all()
        )
        return None if is_itself else places, has_node

    def take(self, values: Tensor, axis: int) -> Tensor:
        """Return the values of the slots that have a node."""
        return values if self.is_whole else values.index_select(axis, self.kept)


class Picked(nn.Module):
    """A map of a few channels of its input.

    Args:
        layer: What reads them.
        channels: Their numbers, shape (channels,).
        axis: Channel axis, counted from the end.
    """

    channels: Tensor

    def __init__(self, layer: nn.Module, channels: Tensor, axis: int) -> None:
        super().__init__()
        self.layer, self.axis = layer, axis
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map the channels of x that were picked."""
        y: Tensor = self.layer(x.index_select(self.axis, self.channels))
        return y


def node_weight(layer: Any) -> Tensor:
    """Return the weight of a map with its outputs first: (nodes, inputs of a group, *kernel)."""
    return node_weight_of(layer, layer.weight.detach())


def node_weight_of(layer: Any, weight: Tensor) -> Tensor:
    """Return a weight of the shape of a map's own with its outputs first; see `node_weight`."""
    if isinstance(layer, GroupedLinear):
        return weight.mT.flatten(0, 1)
    if isinstance(layer, Transposed):
        weight = _outputs_first(weight, layer.groups)
    return weight


def own_weight_of(layer: Any, weight: Tensor) -> Tensor:
    """Undo `node_weight_of` for a Linear or a convolution."""
    return _outputs_first(weight, layer.groups) if isinstance(layer, Transposed) else weight


def _outputs_first(weight: Tensor, groups: int) -> Tensor:
    """Swap inputs and outputs of every group of a transposed convolution's weight, both ways."""
    by_group: Tensor = weight.unflatten(0, (groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def set_node_weight_(layer: Any, weight: Tensor, groups: int) -> None:
    """Give a map another weight of the form of `node_weight`, and the sizes that go with it."""
    nodes, inputs = weight.shape[0], weight.shape[1] * groups
    if isinstance(layer, GroupedLinear):
        layer.groups = groups
        weight = weight.unflatten(0, (groups, -1)).mT.contiguous()
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, nodes
    else:
        layer.in_channels, layer.out_channels, layer.groups = inputs, nodes, groups
        weight = own_weight_of(layer, weight)
    layer.weight = nn.Parameter(weight.contiguous(), layer.weight.requires_grad)


def groups_of(branch: nn.Module) -> int:
    """Return the number of groups of the map that makes the nodes of a branch."""
    if isinstance(branch, nn.Sequential):
        makers = [m for m in branch if not isinstance(m, BatchNorm)]
        return groups_of(makers[-1])
    if isinstance(branch, Picked):
        return groups_of(branch.layer)
    return int(getattr(branch, "groups", 1))


def narrowed(branch: nn.Module, kept: Tensor, axis: int) -> nn.Module:
    """Return the map that makes only some of the nodes of ``branch``.

    Args:
        branch: What `forms.make_branch` returned.
        kept: Nodes that stay, ascending. A map in groups of several nodes keeps the same
            number in each group; where every node has its own group, the inputs of the others go
            as well.
        axis: Channel axis of the layer.
    """
    if isinstance(branch, nn.Sequential):
        *before, last = branch
        if isinstance(last, BatchNorm):
            inner = narrowed(nn.Sequential(*before) if len(before) > 1 else before[0], kept, axis)
            return nn.Sequential(inner, _narrowed_vectors(last, kept))
        return nn.Sequential(*before, narrowed(last, kept, axis))
    if isinstance(branch, BatchNorm | ChannelAffine):
        return Picked(_narrowed_vectors(branch, kept), kept.clone(), axis)
    own: Any = copy_model(branch)
    groups, weight = groups_of(own), node_weight(own)
    is_by_group = groups > 1 and len(weight) == groups
    set_node_weight_(own, weight[kept], len(kept) if is_by_group else groups)
    if own.bias is not None:
        own.bias = nn.Parameter(own.bias.detach()[kept], own.bias.requires_grad)
    if not is_by_group:
        return own  # type: ignore[no-any-return]
    inputs = weight.shape[1]
    channels = kept[:, None] * inputs + torch.arange(inputs, device=kept.device)
    return Picked(own, channels.flatten(), axis)


def _narrowed_vectors(module: nn.Module, kept: Tensor) -> nn.Module:
    own: Any = copy_model(module)
    for name, parameter in list(own.named_parameters(recurse=False)):
        setattr(own, name, nn.Parameter(parameter.detach()[kept], parameter.requires_grad))
    for name, buffer in list(own.named_buffers(recurse=False)):
        if buffer.dim():
            setattr(own, name, buffer[kept])
    if isinstance(own, BatchNorm):
        own.num_features = len(kept)
    return own  # type: ignore[no-any-return]


def adopt_nodes_(branch: nn.Module, other: nn.Module, nodes: Tensor) -> None:
    """Give some nodes of ``branch`` the weights that the same nodes of ``other`` have.

    Args:
        branch: Changed in place.
        other: Another candidate of the same form, whose nodes do not share weights.
        nodes: Shape (nodes,), bool.
    """
    for mine, yours in zip(branch.modules(), other.modules(), strict=True):
        if isinstance(mine, nn.Sequential):
            continue
        if not isinstance(mine, BatchNorm | ChannelAffine):
            weight = node_weight(mine)
            mixed = torch.where(
                nodes.reshape(-1, *[1] * (weight.dim() - 1)), node_weight(yours), weight
            )
            set_node_weight_(mine, mixed, groups_of(mine))
        for name, tensor in [
            *mine.named_parameters(recurse=False),
            *mine.named_buffers(recurse=False),
        ]:
            if tensor.dim() == 1:
                source: Tensor = getattr(yours, name)
                tensor.data.copy_(torch.where(nodes, source.detach(), tensor.detach()))
