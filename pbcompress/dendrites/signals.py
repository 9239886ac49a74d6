"""What becomes of a dendrite's sum: earlier dendrites add to it, and it adds to its neuron."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.dendrites.nodes import Slots

__all__ = ["ACTIVATIONS", "CONVOLUTIONS", "Annealing", "activate", "add_links", "add_set"]


def _itself(z: Tensor) -> Tensor:
    return z


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "linear": _itself,
}
_IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_}
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def add_set(y: Tensor, activation: Tensor, gain: Tensor, slots: Slots, dims: int) -> Tensor:
    """Return y with the contribution of one set: U * a per channel, or a dense map of shared nodes.

    Args:
        y: Output so far.
        activation: Nodes on the channel axis.
        gain: Shape (nodes,), or (nodes, channels) for shared nodes.
        slots: The channels of the nodes, where they have one each.
        dims: Spatial axes of the layer.
    """
    a, gain = activation.to(y.dtype), gain.to(y.dtype)  # they differ under autocast
    if gain.dim() == 1:
        if slots.is_whole:
            # not addcmul, whose gradient takes a product more
            return (a * gain.reshape(-1, *[1] * dims)).add_(y)
        return y + slots.spread(a * gain.reshape(-1, *[1] * dims), -1 - dims)
    if dims == 0:
        return y + functional.linear(a, gain.T)
    return y + CONVOLUTIONS[dims](a, gain.T.reshape(*gain.T.shape, *[1] * dims))


def activate(z: Tensor, name: str) -> Tensor:
    """Return the activations of sums, which the caller must not need afterwards.

    They are overwritten where they need no gradient: in frozen sets, and where nothing trains.
    """
    function = None if z.requires_grad else _IN_PLACE.get(name)
    return (function or ACTIVATIONS[name])(z)


class Annealing(nn.Module):
    """How far a set's activation has become linear: ``(1 - linearity) f(z) + linearity z``.

    Attributes:
        linearity: A number in [0, 1], shape (); it goes with the weights.
    """

    linearity: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("linearity", torch.zeros(()))

    def forward(self, z: Tensor, name: str) -> Tensor:
        """Return the activations of sums."""
        return torch.lerp(ACTIVATIONS[name](z), z, self.linearity.to(z.dtype))


def add_links(z: Tensor, links: Tensor, earlier: Sequence[Tensor | None], dims: int) -> Tensor:
    """Return the sums of a set's nodes, with what its links add of the earlier sets.

    Args:
        z: Nodes on the channel axis; overwritten where it needs no gradient.
        links: V of the set, shape (earlier sets, nodes).
        earlier: Activations of the earlier sets in the slots of its nodes; None: the set has no
            node.
        dims: Spatial axes of the layer: 0 for Linear, 1 to 3 otherwise.
    """
    for link, a in zip(links, earlier, strict=False):
        if a is not None:
            a, link = a.to(z.dtype), link.to(z.dtype).reshape(-1, *[1] * dims)
            z = torch.addcmul(z, a, link) if z.requires_grad else z.addcmul_(a, link)
    return z
