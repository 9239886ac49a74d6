"""How much each unit of a channel group matters."""

import torch
from torch import Tensor, nn

from pbcompress.geometry import is_depthwise
from pbcompress.grouping import ChannelGroup, Member

__all__ = ["unit_scores"]


def unit_scores(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the magnitude importance of every unit, scaled to mean 1 over the group.

    The squared weights that produce or read a unit are summed layer by layer, each layer scaled to
    mean 1 first, so that a wide reader does not drown the producer.

    Returns:
        Shape (units,), float64.

    Source:
        Group magnitude: Fang et al., DepGraph, section 3.3, https://arxiv.org/abs/2301.12900.
    """
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        by_channel = _energy(model.get_submodule(member.layer), member)
        if by_channel is None:
            continue
        energy = by_channel[member.positions].sum(1)
        mean = energy.mean()
        if mean > 0:
            total += energy / mean
    return total / total.mean() if total.mean() > 0 else torch.ones_like(total)


def _energy(layer: nn.Module, member: Member) -> Tensor | None:
    """Return the sum of squared weights at every position of a dimension."""
    name, _, axis = member.dim.partition(":")
    if member.dim in ("out", "in"):
        name, axis = "weight", "0" if member.dim == "out" else "1"
    weight = layer._parameters.get(name)
    if weight is None:
        return None  # a buffer, or an attribute
    squares = weight.detach().cpu().float().square()
    groups = int(getattr(layer, "groups", 1)) if member.dim == "in" else 1
    if groups > 1 and not is_depthwise(layer):  # an input of a grouped convolution has one block
        return torch.cat(
            [b.flatten(2).sum((0, 2), dtype=torch.float64) for b in squares.chunk(groups)]
        )
    others = [dim for dim in range(squares.dim()) if dim != int(axis)]
    return squares.sum(others, dtype=torch.float64) if others else squares.double()
