"""Bounds on what an ONNX file may ask for, told from its graph alone. Does not import onnx.

A file of a few kilobytes can name functions that double, loops without end and constants of many
gigabytes. So every reader asks here first, before anything follows what the file says.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["MOST_VALUE_BYTES", "check_extent", "check_values", "graphs_within", "tensors_within"]

MOST_NODES = 50_000
MOST_CALLED = 4_000  # nodes within functions, counted as often as they are called
MOST_ENTRIES = 200_000  # of weights, descriptions of values, or texts
MOST_DEPTH = 16  # of graphs within nodes
MOST_VALUE_BYTES = 2**32  # of one value at batch size 1


def check_extent(proto: Any) -> None:
    """Raise if a file has more in it than any network needs.

    Args:
        proto: The model.

    Raises:
        ValueError: It has too many nodes, weights or texts, graphs or functions too deep in each
            other, functions that call themselves, sparse weights, or graphs for training, which
            nothing here follows.
    """
    if len(proto.training_info):
        raise ValueError("it has graphs for training, which are not read")
    count = _Count()
    count.add(len(proto.metadata_props) + len(proto.functions) + len(proto.opset_import))
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    for body in (proto.graph, *proto.functions):
        _size_of(body, bodies, sizes, (), count)


class _Count:
    """Entries so far."""

    def __init__(self) -> None:
        self.entries = 0

    def add(self, count: int) -> None:
        self.entries += count
        if self.entries > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES:,} weights or attributes")


def _size_of(
    body: Any,
    bodies: Mapping[tuple[str, str], Any],
    sizes: dict[tuple[str, str], int],
    within: tuple[Any, ...],
    count: _Count,
) -> int:
    """Return the nodes of a graph or function, with those of what it calls."""
    if len(within) > MOST_DEPTH:
        raise ValueError(f"it has graphs or functions more than {MOST_DEPTH} deep in each other")
    if len(body.node) > MOST_NODES:
        raise ValueError(f"it has {len(body.node):,} nodes; at most {MOST_NODES:,} are read")
    if hasattr(body, "initializer"):
        count.add(len(body.initializer) + len(body.value_info))
        if len(body.sparse_initializer):
            raise ValueError("it has sparse weights, which are not read")
    total, called = len(body.node), 0
    for node in body.node:
        count.add(len(node.attribute) + len(node.input) + len(node.output))
        key = (node.domain, node.op_type)
        if key in bodies:
            if key in within:
                raise ValueError(f"its function {node.op_type!r:.80} calls itself")
            if key not in sizes:
                sizes[key] = _size_of(bodies[key], bodies, sizes, (*within, key), _Count())
            called += sizes[key]
        for graph in _inner(node):
            total += _size_of(graph, bodies, sizes, (*within, None), count)
        if total > MOST_NODES or called > MOST_CALLED:
            raise ValueError(
                f"it comes to more than {MOST_NODES:,} nodes, or {MOST_CALLED:,} in functions"
            )
    return total + called


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
            raise ValueError("it has sparse weights, which are not read")
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_within(proto: Any) -> Iterator[Any]:
    """Yield the graph of a file, its functions, and the graphs within all of these."""
    waiting = [proto.graph, *proto.functions]
    while waiting:
        body = waiting.pop()
        yield body
        waiting += [graph for node in body.node for graph in _inner(node)]


def tensors_within(proto: Any) -> Iterator[Any]:
    """Yield every tensor of a file, wherever it stands."""
    for body in graphs_within(proto):
        yield from getattr(body, "initializer", ())
        for node in body.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else []
                yield from attribute.tensors


def check_values(values: Mapping[str, tuple[Sequence[int], float]]) -> None:
    """Raise if a value of a graph would take more memory than any network needs.

    Args:
        values: Shape and bytes of an element by name, where they are known.

    Raises:
        ValueError: One is too large.
    """
    for name, (shape, size) in values.items():
        if math.prod(max(n, 1) for n in shape) * size > MOST_VALUE_BYTES:
            raise ValueError(f"its value {name!r:.80} has the shape {list(shape)[:16]}")
