"""What the nodes and layers of an ONNX graph cost, from shapes alone. Does not import onnx."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbcompress.costs.flop_counters import LayerCost

__all__ = ["layer_costs", "node_flops"]

Shape = Sequence[int]
RECURRENT = ("LSTM", "GRU", "RNN")
# where the weight stands among the inputs
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul")


def node_flops(node: Any, shapes: Mapping[str, Shape]) -> int | None:
    """Return the multiply-adds of a node at batch size 1.

    Args:
        node: A node of the graph.
        shapes: Shape of every value; an unknown axis is 0.

    Returns:
        The count; None for an operation that is no convolution or matrix product, or of which a
        shape is not known.
    """
    try:
        inputs = [shapes[name] for name in node.input if name]
        return _work(node, inputs, shapes[node.output[0]]) or None
    except (LookupError, ValueError):  # a shape is missing
        return None


def _work(node: Any, inputs: Sequence[Shape], output: Shape) -> int | None:
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    if kind in CONVOLUTIONS:
        return math.prod(output) * math.prod(inputs[CONVOLUTIONS[kind]][1:])
    if kind == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if kind == "Gemm":
        return math.prod(output) * inputs[0][0 if _attribute(node, "transA") else -1]
    if kind in PRODUCTS:
        return math.prod(output) * inputs[0][-1]
    if kind in RECURRENT:
        steps = math.prod(inputs[0][:2])
        return steps * (math.prod(inputs[1]) + math.prod(inputs[2]))
    if kind == "Einsum":
        return _einsum(_attribute(node, "equation").decode(), inputs)
    if kind == "Attention":
        return _attention(node, inputs)
    return None


def _attribute(node: Any, name: str) -> Any:
    """Return an integer or a text of a node, 0 where it has none of the name."""
    return next((a.s or a.i for a in node.attribute if a.name == name), 0)


def _einsum(equation: str, inputs: Sequence[Shape]) -> int | None:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2 or "." in equation:
        return None
    sizes = {
        letter: size
        for term, shape in zip(terms, inputs, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


def _attention(node: Any, inputs: Sequence[Shape]) -> int:
    """Scores of every query and key, and as many sums of values."""
    query, key, value = inputs[:3]
    if len(query) == 4:  # (batch, heads, steps, width)
        return math.prod(query[:3]) * key[2] * (query[3] + value[3])
    heads = _attribute(node, "q_num_heads"), _attribute(node, "kv_num_heads")
    widths: int = query[2] + value[2] // heads[1] * heads[0]
    return query[0] * query[1] * key[1] * widths


def _taken(names: Sequence[str], behind: dict[str, list[str]]) -> list[str]:
    """Return values with all that they were computed from, each one once and for all."""
    found, waiting = dict[str, None](), list(reversed(names))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            waiting += reversed(behind.pop(name, []))
    return list(found)


@dataclass
class _Layer:
    """A layer while its nodes are gone through."""

    kind: str = ""
    params: int = 0
    flops: int = 0
    width: int | None = None
    most: int = -1

    def add(self, node: Any, params: int, flops: int, width: int | None) -> None:
        if params + flops > self.most:
            self.kind, self.most = node.op_type, params + flops
        self.params += params
        self.flops += flops
        self.width = self.width if width is None else width


def layer_costs(
    graph: Any,
    shapes: Mapping[str, Shape],
    weights: Mapping[str, int],
    module_of: Callable[[Any], str | None],
) -> dict[str, LayerCost]:
    """Return the cost of each layer of a graph; the parameters add up to the weights.

    A layer is what the exporter noted as one module, else what its weight is called, else a node.

    Args:
        graph: The graph, its functions inlined.
        shapes: Shape of every value at batch size 1; an unknown axis is 0.
        weights: Elements of every weight, by name.
        module_of: The module that a node came from, None where it is not known.
    """
    behind: dict[str, list[str]] = {}  # what a constant was computed from
    constant = {tensor.name for tensor in graph.initializer}
    waiting, layers = dict(weights), defaultdict[str, _Layer](_Layer)
    layer, axis = "", -1
    for index, node in enumerate(graph.node):
        read = [name for name in node.input if name]
        if node.op_type == "Constant" or (read and all(name in constant for name in read)):
            constant.update(node.output)
            behind.update(dict.fromkeys(node.output, read))
            continue
        own = [w for w in _taken(read, behind) if w in waiting]
        flops = node_flops(node, shapes) or 0
        if flops:
            axis = 1 if "Conv" in node.op_type else -1
        module = module_of(node)
        if module is not None:
            layer = module
        elif own or flops:
            layer = (own[0].rpartition(".")[0] if own else "") or node.name or f"node {index}"
        shape = shapes.get(node.output[0], [])
        is_known = len(shape) > 1 and (module is not None or flops)
        width = (shape[axis] or None) if is_known else None
        layers[layer].add(node, sum(waiting.pop(w, 0) for w in own), flops, width)
    layers[layer].params += sum(waiting.values())  # read within branches and loops alone
    costly = [name for name, found in layers.items() if found.params or found.flops]
    above = {name[:i] for name in costly for i, letter in enumerate(name) if letter == "."}
    return {
        name: LayerCost(found.kind, found.params, found.flops, found.width)
        for name, found in layers.items()
        if found.params or found.flops or (name and name in above)
    }
