"""What a rule is: what an operation does to the labels of its operands.

A rule returns the labels of every dimension of the result (or of every result), and couples what
must go together. An operation without a rule pins everything that it touches.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pbcompress.structure.labels import Labels
from pbcompress.structure.tracer import Tracer

__all__ = ["Axes", "Rule", "RuleTable", "broadcast", "unknown"]

Axes = list[Labels]
Rule = Callable[[Tracer, str, tuple[Any, ...], Mapping[str, Any], Any], Any]


class RuleTable(dict[str, Rule]):
    """Rules by the names of the operations that they follow."""

    def entry(self, *names: str) -> Callable[[Rule], Rule]:
        """Enter a rule for the operations of the given names; to be used as a decorator."""

        def add(follow: Rule) -> Rule:
            self.update(dict.fromkeys(names, follow))
            return follow

        return add


def unknown(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """Pin every channel that meets an operation of which nothing is known."""
    for tensor in (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
        t.pin(tensor, f"its channels meet the operation {name} in {t.where!r}")
    if isinstance(out, Tensor):
        return [None] * out.dim()
    if isinstance(out, tuple | list):
        return [[None] * o.dim() if isinstance(o, Tensor) else [] for o in out]
    return None


def broadcast(t: Tracer, operands: Sequence[Tensor], shape: Sequence[int]) -> Axes:
    """Couple the dimensions of operands that fall on each other, and return the result's."""
    labels: Axes = [None] * len(shape)
    seen = [False] * len(shape)
    for operand in operands:
        offset = len(shape) - operand.dim()
        if offset < 0:
            continue
        for dim, own in enumerate(t.labels(operand)):
            place = dim + offset
            if operand.shape[dim] == 1 and shape[place] != 1:
                continue
            labels[place] = t.couple(labels[place], own) if seen[place] else own
            seen[place] = True
    return labels
