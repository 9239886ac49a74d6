"""Weights that a forward pass computes from all of their channels: lengths and norms."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm as OldWeightNorm

from pbcompress.structure.computed_weights import computed_from_all
from pbcompress.structure.rule_table import Axes, RuleTable
from pbcompress.structure.tracer import Tracer

__all__ = ["RULES", "keeps_lengths", "length_of_weights"]

RULES = RuleTable()
rule = RULES.entry


def length_of_weights(t: Tracer, name: str, image: Tensor, out: Tensor, dims: list[int]) -> Axes:
    """A sum over weights, such as their length: what is summed stays.

    What is computed from it would grow with every channel that goes. A row that goes has a length
    in the proof, so that it can be divided by it.
    """
    x = t.labels(image)
    for dim in dims:
        t.coupling.pin(x[dim], computed_from_all(t.where, name))
    rows = [d for d in range(image.dim()) if d not in dims]
    keeps = out.dim() == image.dim()
    places = {d: d if keeps else place for place, d in enumerate(rows)}
    selects = [(0, d, x[d]) for d in rows]
    t.event(name, selects, [(0, places[d], x[d]) for d in rows], fill=1.0)
    return [None if d in dims else v for d, v in enumerate(x) if keeps or d not in dims]


def keeps_lengths(module: nn.Module) -> bool:
    """Tell whether a module is a weight norm of torch, of which the cut sets the lengths."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _WeightNorm) or any(isinstance(own, OldWeightNorm) for own in hooks)


@rule("_weight_norm_interface")
def weight_norm(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """Weights of a given length; without some inputs, what is left has that length."""
    x, dim = t.labels(args[0]), args[2] if len(args) > 2 else 0
    x[dim] = t.couple(x[dim], t.labels(args[1])[dim])
    for axis in range(len(x)) if not keeps_lengths(t.module) else ():
        if axis != dim:
            t.coupling.pin(x[axis], computed_from_all(t.where, name))
    every, own = [(0, d, v) for d, v in enumerate(x)], (1, dim, x[dim])
    t.event(name, [*every, own], [*every, own])
    return [x, [v if d == dim else None for d, v in enumerate(x)]]
