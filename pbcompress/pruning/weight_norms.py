"""Weights of a given length: a cut shortens their directions, and the lengths follow.

A weight norm computes ``length * direction / |direction|``. Without some inputs the direction is
shorter, so what is left of the weight would grow; its length is lowered by as much instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm

from pbcompress.structure.dimensions import Kept, keep

__all__ = ["NormedWeight", "computed_weights", "is_computed", "normed_weights", "refresh_"]


@dataclass(frozen=True)
class NormedWeight:
    """One weight that has a norm, by either implementation of torch.

    Attributes:
        owner: Has the two parameters.
        length_name: Name of the lengths there.
        direction_name: Name of the directions.
        axis: The axis with a length for each position; -1: the whole weight has one.
    """

    owner: nn.Module
    length_name: str
    direction_name: str
    axis: int

    @property
    def direction(self) -> nn.Parameter:
        """The parameter that gives the direction."""
        return self.owner.get_parameter(self.direction_name)

    def norms(self, kept: Kept | None = None) -> Tensor:
        """Return the norms of the directions; of those that stay, with all of their parts."""
        with torch.no_grad():
            norms = torch.norm_except_dim(self.direction, 2, self.axis)
            own = {axis: index for axis, index in (kept or {}).items() if axis == self.axis}
            return keep(norms, own)

    def keep_weight_(self, before: Tensor) -> None:
        """Set the lengths so that the weight is what it was when the directions had those norms.

        A direction that nothing is left of gives zeros, as its weight was.
        """
        after = self.norms()
        if torch.equal(before, after):
            return
        length = self.owner.get_parameter(self.length_name)
        share = torch.where(before > 0, after / before, 1)
        length.data = length.data * share  # a new tensor: copies may share the old one
        self.direction.data = torch.where((after == 0) & (before > 0), 1, self.direction.data)


def normed_weights(model: nn.Module) -> list[NormedWeight]:
    """Return every weight of a model that has a norm; one whose lengths are shared, once."""
    found: dict[int, NormedWeight] = {}
    for module in model.modules():
        for weight in _own(module):
            found.setdefault(id(weight.owner.get_parameter(weight.length_name)), weight)
    return list(found.values())


def _own(module: nn.Module) -> list[NormedWeight]:
    own = [_normed(module, f"{hook.name}_g", f"{hook.name}_v", hook.dim) for hook in _old(module)]
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        first: Any = module[0]
        if isinstance(first, _WeightNorm):
            own.append(_normed(module, "original0", "original1", first.dim))
    return own


def _normed(owner: nn.Module, length: str, direction: str, dim: int) -> NormedWeight:
    rank = owner.get_parameter(direction).dim()
    return NormedWeight(owner, length, direction, dim if dim == -1 else dim % rank)


def _old(module: nn.Module) -> list[OldWeightNorm]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, OldWeightNorm)]


def is_computed(module: nn.Module) -> bool:
    """Tell whether a module computes a weight from other parameters."""
    return bool(_old(module)) or "parametrizations" in module._modules


def refresh_(module: nn.Module) -> None:
    """Compute the weights anew that a module holds and computes from other parameters."""
    for hook in _old(module):
        with torch.no_grad():
            setattr(module, hook.name, hook.compute_weight(module))


def computed_weights(
    model: nn.Module, kept: Mapping[nn.Parameter, Kept] | None = None
) -> dict[str, Tensor]:
    """Return weights that are computed from a parameter of their shape, by that one's name.

    Args:
        model: The network.
        kept: What stays of each parameter; of its weight the same is returned.
    """
    found = {}
    for name, module in model.named_modules():
        for own, weight, source in _computed(module) if is_computed(module) else ():
            found[f"{name}.{own}".lstrip(".")] = keep(weight, (kept or {}).get(source, {}))
    return found


def _computed(module: nn.Module) -> list[tuple[str, Tensor, nn.Parameter]]:
    pairs: list[tuple[str, nn.Parameter]] = []
    for hook in _old(module):
        pairs.append((hook.name, module.get_parameter(f"{hook.name}_v")))
    lists: Any = module._modules.get("parametrizations") or {}
    for name, parametrization in lists.items():
        pairs += [(name, p) for p in parametrization.parameters(recurse=False)]
    refresh_(module)
    with torch.no_grad():
        weights = [(name, getattr(module, name), source) for name, source in pairs]
    return [(n, w.detach(), s) for n, w, s in weights if w.shape == s.shape]
