"""Weights that a forward pass computes: which tensors come from parameters and buffers alone.

A product of such a tensor with itself, or with constants, is a sum over weights, as their length
is. What is computed from it would change with every channel that goes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pbcompress.structure.labels import Coupling, Labels

__all__ = ["ComputedWeights", "computed_from_all"]

Sums = tuple[tuple[Tensor, str], ...]


@dataclass(frozen=True)
class _History:
    """What a tensor of weights alone was made of.

    Attributes:
        sources: Parameters and buffers, by ``id``; None where a product joined several.
        sums: Labels that were summed over on the way, with the reason to keep them.
    """

    sources: frozenset[int] | None
    sums: Sums = ()


class ComputedWeights:
    """Follows the tensors that are computed from no input.

    Args:
        names: Names of parameters and buffers, by their ``id``.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._histories: Any = WeakTensorKeyDictionary()
        self._new: Sums = ()  # what the operation that runs sums over
        self._joins = False  # whether it is a product of several
        self._read: list[tuple[tuple[Labels, ...], Sums]] = []

    def __contains__(self, value: Any) -> bool:
        """Tell whether tensors are parameters and buffers, or computed from these alone."""
        if isinstance(value, Tensor):
            return id(value) in self._names or value in self._histories
        return not isinstance(value, list | tuple) or all(one in self for one in value)

    def _history(self, tensor: Tensor) -> _History:
        found: _History | None = self._histories.get(tensor)
        return found or _History(frozenset({id(tensor)}))

    def product(
        self, operands: tuple[Tensor, Tensor], axes: tuple[Any, Any], inner: Labels, where: str
    ) -> None:
        """Note a product over ``inner``, of operands whose axes have the given labels."""
        are = [one in self for one in operands]
        if all(are):
            left, right = (self._history(one).sources for one in operands)
            if left is None or right is None or (left and right and not left & right):
                self._joins = True  # as a stream of activations does, which starts at weights
            elif inner is not None:
                self._new = ((inner, computed_from_all(where, "a product")),)
        elif any(are):
            place = are.index(True)
            sums = self._history(operands[place]).sums
            if sums:
                self._read.append((tuple(axes[place]), sums))

    def follow(self, args: Any, result: Any, *, are_weights: bool) -> None:
        """Note of the results of an operation what they were made of."""
        new, joins = self._new, self._joins
        self._new, self._joins = (), False
        history = None
        if are_weights:
            given = [self._history(one) for one in tree_leaves(args) if isinstance(one, Tensor)]
            own = [one.sources for one in given]
            sources = None if joins else _union(own)
            sums = {id(labels): (labels, why) for one in given for labels, why in one.sums}
            history = _History(sources, (*sums.values(), *new))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if history is not None and isinstance(tensor, Tensor):
                self._histories[tensor] = history
            elif isinstance(tensor, Tensor):
                self._histories.pop(tensor, None)

    def kept(self, coupling: Coupling) -> Iterator[tuple[Tensor, str]]:
        """Yield what stays, and why: axes of weights that were summed over to compute them."""
        for axes, sums in self._read:
            own = {n for labels in axes if labels is not None for n in _free(coupling, labels)}
            for summed, reason in sums:
                if own.intersection(_free(coupling, summed)):
                    yield summed, reason


def _union(sources: list[frozenset[int] | None]) -> frozenset[int] | None:
    found: frozenset[int] = frozenset()
    for one in sources:
        if one is None:
            return None
        found |= one
    return found


def _free(coupling: Coupling, labels: Tensor) -> list[int]:
    return [n for part in coupling.parts(labels) for n in part.tolist() if n]


def computed_from_all(where: str, operation: str) -> str:
    """Return why a layer keeps the inputs that its weight is computed from."""
    return (
        f"the code of {where!r} computes a weight from all of its channels ({operation}); "
        "torch.nn.utils.parametrizations.weight_norm is followed"
    )
