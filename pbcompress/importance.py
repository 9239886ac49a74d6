"""How much each unit of a channel group matters."""

from collections.abc import Sequence

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
        layer = model.get_submodule(member.layer)
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        by_channel = _energy(layer, weight.detach().cpu().double(), member)
        energy = torch.stack([by_channel[list(p)].sum() for p in member.positions])
        mean = energy.mean()
        if mean > 0:
            total += energy / mean
    return total / total.mean() if total.mean() > 0 else torch.ones_like(total)


def _energy(layer: nn.Module, weight: Tensor, member: Member) -> Tensor:
    squares = (
        weight.square().reshape(*weight.shape[:2], -1) if weight.dim() > 1 else weight.square()
    )
    if member.dim == "out" or is_depthwise(layer):
        return squares.flatten(1).sum(1) if squares.dim() > 1 else squares
    groups = getattr(layer, "groups", 1)
    by_group: Sequence[Tensor] = squares.flatten(2).sum(2).chunk(groups, dim=0)
    return torch.cat([block.sum(0) for block in by_group])
