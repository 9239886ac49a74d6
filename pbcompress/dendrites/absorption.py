"""Linear dendrites and their neurons are one linear map: while they train, and for good."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.modules import replace_module
from pbcompress.core.turns import in_turn
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.linear_maps import is_plain_map
from pbcompress.errors import CompressionError

__all__ = ["absorb_dendrites_", "anneal_"]


def anneal_(model: nn.Module, linearity: float) -> None:
    """Set how far the newest set of every layer is linear, in [0, 1]; older ones are wholly.

    Example:
        >>> from pbcompress import DendriteConfig, attach_dendrites_
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> _ = attach_dendrites_(net, DendriteConfig(annealing=0.5))
        >>> anneal_(net, 1.0)
        >>> net[0].is_linear
        True
    """
    for layer in dendrite_layers(model).values():
        steps: Any = layer.annealing
        for index, step in enumerate(steps, 1):
            step.linearity.fill_(linearity if index == len(steps) else 1)


@in_turn
@torch.no_grad()
def absorb_dendrites_(model: nn.Module, layers: Collection[str] | None = None) -> tuple[str, ...]:
    """Fold all dendrites into their neurons, in place: the network is a plain one again.

    A dendrite without a nonlinearity is a sum of linear maps of what its neuron reads, and so a
    change of the neuron's own weights. The network computes the same in eval mode, to rounding,
    with the layers, parameters and FLOPs that it had before it grew. Parameters keep their
    identity, so an optimizer that holds them still does; frozen ones change as well.

    Args:
        model: Network whose dendrites are linear: ``DendriteConfig(activation="linear")``, or an
            ``annealing`` that is over.
        layers: Names of the layers with dendrites; None: all of them.

    Returns:
        The names of the layers that had dendrites.

    Raises:
        CompressionError: A dendrite is not linear, or there is no such layer; nothing was changed.

    Example:
        >>> import pbcompress as pb
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pb.attach_dendrites_(net, pb.DendriteConfig(activation="linear"))
        ('0', '2')
        >>> pb.absorb_dendrites_(net)
        ('0', '2')
        >>> net
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=2, bias=True)
        )

    Source:
        Ding et al., Diverse Branch Block, 2021, https://arxiv.org/abs/2103.13425, for branches of a
        convolution; of a pruned network: LOP, 2022, https://arxiv.org/abs/2204.11444.
    """
    found = dendrite_layers(model)
    chosen = found if layers is None else {name: found.get(name) for name in layers}
    merged: dict[str, tuple[DendriteLayer, Tensor, Tensor | None]] = {}
    for name, layer in chosen.items():
        if layer is None:
            raise CompressionError(
                f"absorb_dendrites_ was asked for {name!r}, which has no dendrites. Layers that "
                f"have some: {', '.join(found) or 'none'}."
            )
        _check(name, layer)
        merged[name] = (layer, *layer.merged())
    for name, (layer, weight, bias) in merged.items():
        base = layer.base_layer
        base.weight.copy_(weight)  # type: ignore[operator]
        if bias is not None:
            base.bias.copy_(bias)  # type: ignore[operator]
        replace_module(model, name, base)
    return tuple(merged)


def _check(name: str, layer: DendriteLayer) -> None:
    if layer.pool is not None:
        raise CompressionError(
            f"absorb_dendrites_ was called in a dendrite phase, in which {name!r} has a candidate. "
            "Call it after the last phase, or detach_dendrites_ first."
        )
    if layer._forward_hooks or layer._forward_pre_hooks or not is_plain_map(layer.base_layer):
        raise CompressionError(
            f"absorb_dendrites_ was called, and {name!r} has hooks or a weight that is computed. "
            "Dendrites cannot fold into it. Remove the hooks or the parametrization first."
        )
    if not layer.is_linear:
        raise CompressionError(
            f"absorb_dendrites_ was called, and the dendrites of {name!r} are not linear: their "
            f"activation is {layer.config.activation!r}. Grow them with "
            'DendriteConfig(activation="linear"), or with annealing=0.7 and let its phase end.'
        )
