"""The labels of new constants: a size that was read from channels gives them these channels."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pbcompress.structure.rule_table import Axes, RuleTable
from pbcompress.structure.tracer import Tracer

__all__ = ["RULES"]

RULES = RuleTable()
rule = RULES.entry


@rule("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full")
def factory(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A new constant; a size that was read from channels gives it these channels."""
    call = t.call
    if t.trusts:  # zeros that a layer of torch attends to, for as many heads as there are
        return [t.coupling.fresh(size) for size in out.shape]
    if call is None:
        return [None] * out.dim()
    if call.name == "_pad_packed_sequence" and out.dim() > 1:  # steps are written into it
        return [None, None, *t.labels(call.args[0])[1:]]
    if call.name == "pad" and len(call.args) > 1:  # circular: the image is written into it
        kept = out.dim() - len(call.args[1]) // 2
        return [*t.labels(call.args[0])[:kept], *[None] * (out.dim() - kept)]
    given = call.args[int(call.name.startswith("new_")) :]
    sizes = [s for s in tree_leaves((given, dict(call.kwargs))) if _is_size(s)]
    labels: Axes = [None] * out.dim()
    for dim, size in enumerate(sizes[: out.dim()]):
        labels[dim] = t.labels_of_size(size)
    return labels


def _is_size(value: Any) -> bool:
    """Tell whether a value may be a size: also a tensor of one number, as packed sequences have."""
    return isinstance(value, int) or (isinstance(value, Tensor) and not value.dim())


@rule("eye")
def identity(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A new identity matrix; a size that was read from channels gives it these on both sides."""
    if t.call is None or t.call.name != "eye":
        return [None, None]
    sizes = [*t.call.args, *(t.call.kwargs[k] for k in ("n", "m") if k in t.call.kwargs)]
    return [t.labels_of_size(sizes[0]), t.labels_of_size(sizes[-1])]


@rule("arange", "linspace", "scalar_tensor", "rand", "randn", "empty_strided", "randint")
def constant(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    return [None] * out.dim()
