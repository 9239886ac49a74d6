"""Multiply-adds of the products that fvcore does not know or counts wrong, from their shapes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["PRODUCTS"]

Values = Sequence[Any]  # of the traced graph
Count = Callable[[Values, Values], int]


def _shape(value: Any) -> list[int]:
    """Return the sizes of a traced tensor, none for anything else."""
    return list(value.type().sizes() or []) if value.isCompleteTensor() else []


def _recurrent(inputs: Values, _: Values) -> int:
    """Every weight of a recurrent layer once for every step of every sample."""
    held = [
        v for i in inputs if i.node().kind() == "prim::ListConstruct" for v in i.node().inputs()
    ]
    weights = [shape for shape in map(_shape, held) if len(shape) == 2]
    return math.prod(_shape(inputs[0])[:-1]) * sum(map(math.prod, weights))


def _matmul(inputs: Values, outputs: Values) -> int:
    """As many as the output has elements, times the contracted size; vectors, too."""
    inner = _shape(inputs[0])[-1:]
    return math.prod(_shape(outputs[0])) * math.prod(inner)


def _added(inputs: Values, _: Values) -> int:
    """What is added to a product is the first operand."""
    left, right = _shape(inputs[1]), _shape(inputs[2])
    return math.prod(left) * math.prod(right[2:] if len(left) == 3 else right[1:])


def _contracted(inputs: Values, outputs: Values) -> int:
    """Any contraction of two tensors: a * b = out * inner * inner."""
    a, b, out = (math.prod(_shape(v)) for v in (inputs[0], inputs[1], outputs[0]))
    return math.isqrt(a * b * out)


def _bilinear(inputs: Values, _: Values) -> int:
    """Every weight once for every row."""
    return math.prod(_shape(inputs[0])[:-1]) * math.prod(_shape(inputs[2]))


def _attention(inputs: Values, _: Values) -> int:
    """Queries by keys, and scores by values; those that a mask hides are computed."""
    query, key, value = (_shape(v) for v in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


PRODUCTS: dict[str, Count] = {
    **{f"aten::{kind}": _recurrent for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten::{kind}": _matmul for kind in ("matmul", "mv", "dot", "vdot")},
    **{f"aten::{kind}": _added for kind in ("baddbmm", "addbmm", "addmv")},
    **{f"aten::{kind}": _contracted for kind in ("tensordot", "inner")},
    "aten::bilinear": _bilinear,
    "aten::scaled_dot_product_attention": _attention,
}
