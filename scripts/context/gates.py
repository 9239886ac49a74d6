"""Context dendrites: a layer's output is multiplied by what the mean of its input says.

``z * (1 + U tanh(V mean(x) + b))``, where ``z`` is the output with its BatchNorm, so that the norm
still folds away where the network ships. ``U`` is zero at first: the network is bit for bit the one
without gates. Its rank is a quarter of the narrower side, at most 4.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["Gated", "gate_params", "gated", "places"]

MOST = 4  # rank
CONVS = (nn.Conv1d, nn.Conv2d)


class Gated(nn.Module):
    """A layer, with its BatchNorm if it has one, and its context dendrite.

    Args:
        layer: Reads (N, C, ...) if ``dims`` is 1 or 2, and (N, L, C) if it is 0.
        widths: Channels that the layer reads, and that it writes.
        dims: Spatial axes.
    """

    def __init__(self, layer: nn.Module, widths: tuple[int, int], dims: int) -> None:
        super().__init__()
        read, written = widths
        rank = max(1, min(*widths, 4 * MOST) // 4)
        self.layer, self.dims = layer, dims
        self.down = nn.Linear(read, rank)
        self.up = nn.Parameter(torch.zeros(written, rank))
        self.register_buffer("one", torch.ones(written))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer returns, scaled."""
        positions = tuple(range(2, 2 + self.dims)) or (1,)
        scale = linear(torch.tanh(self.down(x.mean(positions))), self.up, self.one)
        axes = (..., *[None] * self.dims) if self.dims else (slice(None), None)
        out: Tensor = self.layer(x) * scale[axes]
        return out


def places(network: nn.Module, example: Tensor, part: float) -> list[str]:
    """Return the last ``part`` of the layers that can have a gate, in the order of their names.

    These are all convolutions, and every Linear that reads a sequence.
    """
    found = []

    def note(name: str, inputs: Any) -> None:
        if inputs[0].dim() > 2:
            found.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    with torch.no_grad():
        copy.deepcopy(network).eval()(example)
    for hook in hooks:
        hook.remove()
    names = [name for name, _ in network.named_modules() if name in found]
    return names[len(names) - round(part * len(names)) :]


def gated(network: nn.Module, names: list[str], seed: int = 0) -> nn.Module:
    """Return a copy of a network with gates on the layers ``names``."""
    network = copy.deepcopy(network)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for name in names:
            parent = network.get_submodule(name.rpartition(".")[0])
            child = name.rpartition(".")[2]
            layer, norm = getattr(parent, child), _norm_behind(parent, child)
            whole = layer if norm is None else nn.Sequential(layer, getattr(parent, norm))
            setattr(parent, child, Gated(whole, _widths(layer), _dims(layer)))
            if norm is not None:
                setattr(parent, norm, nn.Identity())
    return network


def gate_params(network: nn.Module) -> int:
    """Return the parameters of all gates."""
    gates = [module for module in network.modules() if isinstance(module, Gated)]
    return sum(gate.up.numel() + sum(p.numel() for p in gate.down.parameters()) for gate in gates)


def _norm_behind(parent: nn.Module, child: str) -> str | None:
    names = list(parent._modules)
    behind = names[names.index(child) + 1 :][:1]
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return next((name for name in behind if isinstance(getattr(parent, name), kinds)), None)


def _widths(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _dims(layer: Any) -> int:
    return len(layer.kernel_size) if isinstance(layer, CONVS) else 0
