"""Which layers read channels that a plan has narrowed, and which of them can be compensated."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pbcompress.compensation.products import product_axis
from pbcompress.structure.dimensions import Kept
from pbcompress.structure.layer_geometry import has_own_groups

__all__ = ["Reader", "find_readers"]

_Conv = nn.modules.conv._ConvNd
_Transposed = nn.modules.conv._ConvTransposeNd
_OWN_STATES = "it reads its own states, which are not seen"
_IN_GROUPS = "each of its groups reads some of its inputs, which is not fitted"
_STATES_BELOW = "it reads the states of the layer below, which are not seen"


@dataclass(frozen=True)
class Reader:
    """A layer that reads narrowed channels.

    Attributes:
        name: Dotted name of the module.
        weight: Name of its parameter that maps what it reads.
        axis: The axis of that parameter that lies along what it reads.
        kept: By axis of that parameter, the indices that are left.
    """

    name: str
    weight: str
    axis: int
    kept: Kept


def find_readers(
    network: nn.Module, kept: Mapping[nn.Parameter, Kept]
) -> tuple[dict[str, Reader], dict[str, str]]:
    """Return the layers that can be compensated by name, and for the others why not.

    Args:
        network: The network before the cuts.
        kept: What is left of its parameters, as `pbcompress.pruning.cuts.kept_of` gives it.
    """
    readers: dict[str, Reader] = {}
    left: dict[str, str] = {}
    owners = Counter(id(p) for m in network.modules() for p in m._parameters.values())
    for name, module in network.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is None or parameter not in kept or parameter.dim() < 2:
                continue
            axis = _input_axis(module, own)
            if isinstance(axis, int) and axis not in kept[parameter]:
                continue  # it only writes fewer channels, or works channel by channel
            place = name if own == "weight" else f"{name}.{own}".lstrip(".")
            if isinstance(axis, str):
                if axis:
                    left[place] = axis
            elif owners[id(parameter)] > 1:
                left[place] = "another layer has the same weight"
            else:
                readers[place] = Reader(name, own, axis, kept[parameter])
    return readers, left


def _input_axis(module: nn.Module, own: str) -> int | str:
    """Return the axis along which a weight reads, or why that is not known; "" if it reads none."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return ""
    if own == "weight" and isinstance(module, nn.Linear | _Conv):
        if not isinstance(module, _Transposed):
            return 1
        if has_own_groups(module):
            return ""
        return _IN_GROUPS if module.groups > 1 else 0
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        if own in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
            return 1
        return _OWN_STATES if own.startswith(("weight_hh", "weight_hr")) else _STATES_BELOW
    axis = product_axis(module) if own == "weight" else None
    if axis is not None:
        return axis
    return f"{type(module).__name__}.{own} is the weight of no layer whose sum is known"
