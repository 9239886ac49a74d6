"""Multiply-adds of the products that fvcore does not know or counts wrong, from their shapes."""

import math
from collections.abc import Callable, Sequence
from functools import cache
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


def _padded(inputs: Values, outputs: Values) -> int:
    """A convolution whose padding is a word: the weights of one output, for each output."""
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _power(inputs: Values, _: Values) -> int:
    """Squares, and a product for every further bit of the exponent."""
    shape, exponent = _shape(inputs[0]), abs(int(inputs[1].toIValue()))
    products = max(exponent.bit_length() + exponent.bit_count() - 2, 0)
    return products * math.prod(shape) * shape[-1]


def _chain(inputs: Values, _: Values) -> int:
    """Several products, in the order that costs least."""
    shapes = [_shape(v) for v in inputs[0].node().inputs()]
    first, *_, last = shapes
    rows = first[:1] if len(first) > 1 else [1]
    sizes = [*rows, *(shape[0] for shape in shapes[1:]), last[-1] if len(last) > 1 else 1]

    @cache
    def least(start: int, end: int) -> int:
        if end - start < 2:
            return 0
        ends = sizes[start] * sizes[end]
        cuts = range(start + 1, end)
        return min(least(start, k) + least(k, end) + ends * sizes[k] for k in cuts)

    return least(0, len(sizes) - 1)


def _einsum(inputs: Values, _: Values) -> int:
    """Contractions of two operands at a time; where nothing is summed, it is element by element."""
    shapes = [_shape(v) for v in inputs[1].node().inputs()]
    terms, result = _letters(inputs[0].toIValue(), shapes)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    left = [set(term) for term in terms]
    given = inputs[2].toIValue() if len(inputs) > 2 else None
    path, total = given or [0, 1] * (len(left) - 1), 0
    for i, j in zip(path[::2], path[1::2], strict=True):
        a, b = left[i], left[j]
        left = [own for place, own in enumerate(left) if place not in (i, j)]
        kept = set(result).union(*left)
        both = (a & b) | (a & kept) | (b & kept)  # what one has alone is summed before
        if both - kept:
            total += math.prod(sizes[letter] for letter in both)
        left.insert(len(left) if given else 0, both & kept)
    return total


def _letters(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str]:
    """Return a letter for every axis of every operand, and those of the result."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    more = [len(s) - len(t.replace("...", "")) for t, s in zip(terms, shapes, strict=True)]
    dots = "".join(chr(0xE000 + n) for n in range(max(more)))  # letters that no equation has
    if not arrow:
        once = sorted(c for c in set(given) - {",", "."} if given.count(c) == 1)
        result = "..." + "".join(once)
    terms = [t.replace("...", dots[len(dots) - n :]) for t, n in zip(terms, more, strict=True)]
    return terms, result.replace("...", dots)


PRODUCTS: dict[str, Count] = {
    **{f"aten::{kind}": _recurrent for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten::{kind}": _matmul for kind in ("matmul", "mv", "dot", "vdot")},
    **{f"aten::{kind}": _added for kind in ("baddbmm", "addbmm", "addmv")},
    **{f"aten::{kind}": _contracted for kind in ("tensordot", "inner")},
    "aten::bilinear": _bilinear,
    "aten::_convolution_mode": _padded,
    "aten::linalg_matrix_power": _power,
    **{f"aten::{kind}": _chain for kind in ("linalg_multi_dot", "chain_matmul")},
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
}
