"""A smaller network with some layers of every kind, where a network repeats them."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pbcompress.core.modules import copy_sharing

__all__ = ["Replica", "replica_of"]

KEPT = 2  # of layers that are alike: the first, which others come after, and one that comes after


@dataclass(frozen=True)
class Replica:
    """Some layers of a network, with their names.

    Attributes:
        network: On the weights of the original.
        kept: For each list of layers that are alike, by its name, how many it had.
    """

    network: nn.Module
    kept: Mapping[str, int]

    def __str__(self) -> str:
        parts = [f"{KEPT} of {n} layers in {name!r}" for name, n in self.kept.items()]
        return f"on {' and '.join(parts)}, of which the others are alike" if parts else ""

    def has(self, layer: str) -> bool:
        """Tell whether a layer of the original, by its dotted name, is there."""
        try:
            self.network.get_submodule(layer)
        except AttributeError:
            return False
        return True


def replica_of(model: nn.Module) -> Replica:
    """Return a network in which lists of layers that are alike have two of them.

    Layers are alike where their modules have the same classes, sizes and names.

    Args:
        model: Left as it is.

    Example:
        >>> net = nn.Sequential(nn.ModuleList(nn.Linear(4, 4) for _ in range(9)))
        >>> len(replica_of(net).network[0]), str(replica_of(net))
        (2, "on 2 of 9 layers in '0', of which the others are alike")
    """
    network, kept = copy_sharing(model), {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ModuleList) and len(module) > KEPT:
            first, *others = map(_signature, module)
            if all(other == first for other in others):
                kept[name] = len(module)
                del module[KEPT:]
    return Replica(network, kept)


def _signature(layer: nn.Module) -> list[object]:
    modules = [(name, type(module)) for name, module in layer.named_modules()]
    tensors = [(name, tuple(t.shape)) for name, t in layer.state_dict().items()]
    return [*modules, *tensors]
