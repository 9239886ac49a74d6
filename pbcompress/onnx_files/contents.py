"""What is in an ONNX file, read from the file alone. The only module that imports onnx."""

import ast
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from pbcompress.core.bounded_files import is_file
from pbcompress.costs.flop_counters import LayerCost
from pbcompress.errors import StateMismatchError, first_line
from pbcompress.onnx_files.graph_costs import layer_costs, node_flops
from pbcompress.onnx_files.store import DIGEST, load, relabel, save, size_of, values_of

__all__ = [
    "FileCost",
    "FileFacts",
    "facts_of",
    "measure_onnx",
    "metadata_of",
    "node_names",
    "node_owners",
    "peak_activation_bytes",
    "write_metadata",
    "write_probe",
    "write_with_outputs",
]

ProbeKind = Literal["convolution", "depthwise", "product"]
LONG = 10_000  # characters of a note
PROBE_SIDE = 14  # of the image; a product has as many rows as the image has pixels


@dataclass(frozen=True)
class FileFacts:
    """The outside of an ONNX file.

    Attributes:
        opset: Operator set.
        input_names: Inputs.
        output_names: Outputs.
        operations: Number of nodes by operation.
    """

    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    operations: Mapping[str, int]


def facts_of(path: Path) -> FileFacts:
    """Return the outside of a file, after a check of the whole of it.

    Raises:
        StateMismatchError: The file is missing, or is not a valid ONNX file.
    """
    proto = load(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as err:
        raise StateMismatchError(f"{path} is not a valid ONNX file: {first_line(err)}.") from err
    return FileFacts(
        opset=max(
            (e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), default=0
        ),
        input_names=tuple(value.name for value in proto.graph.input),
        output_names=tuple(value.name for value in proto.graph.output),
        operations=dict(Counter(node.op_type for node in proto.graph.node).most_common()),
    )


def write_metadata(path: Path, notes: Mapping[str, str]) -> None:
    """Add texts to a file, under their names."""
    proto = load(path)
    relabel(proto, notes=notes)
    save(proto, path)


def metadata_of(path: str | Path) -> dict[str, str]:
    """Return the texts that a file carries, by name, without the SHA-256 that `load` checks.

    Raises:
        StateMismatchError: The file is missing or no ONNX file.
    """
    return {name: text for name, text in _texts(load(path)).items() if name != DIGEST}


def _texts(noted: Any) -> dict[str, str]:
    """Return the texts of a file or a node, by name."""
    return {entry.key: entry.value for entry in noted.metadata_props}


def _scopes(node: Any) -> list[str]:
    """Return the modules around a node, the root first, as the exporter notes them."""
    try:
        text = _texts(node).get("pkg.torch.onnx.name_scopes", "[]")
        noted = ast.literal_eval(text) if len(text) < LONG else []
        return [str(scope) for scope in noted[:-1]]  # the last one is the operation
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        return []  # somebody else's note


def _module_of(node: Any) -> str | None:
    """Return the module that a node came from, if the exporter has noted it."""
    return next(reversed(_scopes(node)), None)


@dataclass(frozen=True)
class FileCost:
    """What an ONNX file costs, read from the file alone.

    Attributes:
        params: Elements of its floating-point weights (BatchNorm is folded in most files).
        flops: Multiply-adds of its convolutions, matrix products and attention at batch size 1, or
            at the file's own where that is fixed.
        file_bytes: Size on disk, with the files that hold its weights if it has such.
        uncounted_ops: Other operations, with their number.
        by_layer: Cost of each layer, by the module that the exporter noted, else by the name of
            its weight or node.
    """

    params: int
    flops: int
    file_bytes: int
    uncounted_ops: Mapping[str, int]
    by_layer: Mapping[str, LayerCost]

    def __str__(self) -> str:
        skipped = ", ".join(f"{name} x{count}" for name, count in self.uncounted_ops.items())
        text = f"{self.params:,} weights, {self.flops:,} FLOPs, {self.file_bytes:,} bytes"
        return f"{text}; not counted: {skipped}" if skipped else text


def measure_onnx(path: str | Path) -> FileCost:
    """Count weights and multiply-adds of an ONNX file at batch size 1.

    Raises:
        StateMismatchError: The file is missing, no ONNX file, or reads files outside of its folder.
    """
    file = Path(path)
    if not is_file(file):
        raise StateMismatchError(f"{file} was to be measured and is not there.")
    proto = load(file)
    try:
        onnx.checker.check_model(str(file))
        return _cost(file, onnx.inliner.inline_local_functions(proto))
    except Exception as err:
        raise StateMismatchError(f"{file} is no whole ONNX file: {first_line(err)}.") from err


def _cost(file: Path, proto: Any) -> FileCost:
    graph = proto.graph
    _constants_as_weights(graph)
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    shapes |= {name: shape for name, (shape, _) in values_of(proto).items()}
    work = [(node.op_type, node_flops(node, shapes)) for node in graph.node]
    return FileCost(
        params=sum(_weights(graph).values()),
        flops=sum(flops or 0 for _, flops in work),
        file_bytes=size_of(file),
        uncounted_ops=dict(Counter(kind for kind, flops in work if flops is None)),
        by_layer=layer_costs(graph, shapes, _weights(graph), _module_of),
    )


def _constants_as_weights(graph: Any) -> None:
    """Move the tensors of Constant nodes to the weights, where other exporters leave them."""
    kept = []
    for node in graph.node:
        held = [a.t for a in node.attribute if a.name == "value" and math.prod(a.t.dims) > 1]
        if node.op_type != "Constant" or not held:
            kept.append(node)
            continue
        graph.initializer.add().CopyFrom(held[0])
        graph.initializer[-1].name = node.output[0]
    if len(kept) < len(graph.node):
        others = type(graph)()
        others.node.extend(kept)
        del graph.node[:]
        graph.node.extend(others.node)


def _weights(graph: Any) -> dict[str, int]:
    """Return the elements of every weight: floats, and what 8-bit files hold in their place."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    coders = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    coded = {n.input[0] for n in coders}
    scales = {name for n in coders for name in n.input[1:]}
    return {
        t.name: math.prod(t.dims)
        for t in graph.initializer
        if t.name in coded or (t.data_type in floats and t.name not in scales)
    }


VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DequantizeLinear")


def peak_activation_bytes(path: str | Path) -> int:
    """Return the most bytes of activations that are alive at once at batch size 1.

    Nodes run in the order of the file; a value lives from the node that makes it to the last that
    reads it, and no result takes the place of an input. Views and what is read back from 8 bits
    take no place, weights are not counted.
    """
    proto = load(path)
    try:
        return _peak(proto.graph, values_of(proto))
    except Exception as err:
        raise StateMismatchError(
            f"The memory of the activations of {path} cannot be told: {first_line(err)}."
        ) from err


def _peak(graph: Any, values: Mapping[str, tuple[list[int], int]]) -> int:
    weights = {t.name for t in graph.initializer}
    owner = {name: name for name in values}
    for node in graph.node:
        if weights.issuperset(name for name in node.input if name):
            weights.update(node.output)  # it is folded
        elif node.op_type in VIEWS:
            owner.update(dict.fromkeys(node.output, owner.get(node.input[0], node.input[0])))
    steps = [node for node in graph.node if not weights.issuperset(node.output)]
    last = {owner.get(name, name): i for i, node in enumerate(steps) for name in node.input}
    last |= {owner.get(value.name, value.name): len(steps) for value in graph.output}
    alive = {value.name for value in graph.input} - weights
    sizes = {name: _bytes_of(*value) for name, value in values.items()}
    held = most = sum(sizes.get(name, 0) for name in alive)
    for index, node in enumerate(steps):
        made = {owner.get(name, name) for name in node.output if name} - alive
        alive |= made
        held += sum(sizes.get(name, 0) for name in made)
        most = max(most, held)
        read = {owner.get(name, name) for name in [*node.input, *node.output]} & alive
        read |= set() if index else alive  # inputs that nothing reads
        gone = {name for name in read if last.get(name, -1) <= index}
        alive -= gone
        held -= sum(sizes.get(name, 0) for name in gone)
    return most


def _bytes_of(shape: list[int], kind: int) -> int:
    if kind == onnx.TensorProto.UNDEFINED:
        raise ValueError("a value is no tensor but a sequence or the like, of unknown size")
    return math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize


def node_owners(path: Path, modules: Collection[str]) -> dict[str, str]:
    """Return which of some modules each node of an exported file belongs to.

    The exporter notes the module that an operation came from. A node of another module (a ReLU
    between two convolutions) belongs to whom the node before it belongs to.

    Args:
        path: A file of `write_onnx`.
        modules: Dotted names.

    Returns:
        The module by the name of the node and of its outputs: a runtime names fused nodes by
        either. Nodes that follow none of the modules are left out.
    """
    owners: dict[str, str] = {}
    for node in load(path).graph.node:
        scopes = _scopes(node)
        own = [scope for scope in reversed(scopes) if scope and scope in modules]
        if "" in modules and scopes == [""]:
            own.append("")
        before = [owners[name] for name in node.input if name in owners]
        for owner in (own or before)[:1]:
            owners.update(dict.fromkeys([node.name, *node.output], owner))
    return owners


def node_names(path: Path, operations: Collection[str]) -> list[str]:
    """Return the names of the nodes of some operations, in the order of the graph."""
    graph = load(path).graph
    return [node.name for node in graph.node if node.op_type in operations]


def write_with_outputs(path: Path, target: Path, modules: Collection[str]) -> dict[str, str]:
    """Write a copy of an exported file that also returns what some modules put out.

    Args:
        path: The file.
        target: The copy.
        modules: Dotted names.

    Returns:
        The name of the value by module, in the order of the graph: of the last node that the
        exporter noted for it. Modules without a node are left out.
    """
    proto = load(path)
    kinds = values_of(proto)
    values: dict[str, str] = {}
    for node in proto.graph.node:
        owner = next(reversed(_scopes(node)), "")
        if owner in modules and node.output[0] in kinds:
            values.pop(owner, None)
            values[owner] = node.output[0]
    returned = {value.name for value in proto.graph.output}
    for value in dict.fromkeys(values.values()):
        if value not in returned:
            info = helper.make_tensor_value_info(value, kinds[value][1], None)
            proto.graph.output.append(info)
    save(proto, target)
    return values


def write_probe(path: Path, kind: ProbeKind, width: int) -> tuple[tuple[int, ...], int]:
    """Write a small network of one kind of layer at a width.

    Returns:
        The shape of its input "x", and its multiply-adds.
    """
    generator = np.random.default_rng(0)
    pixels = PROBE_SIDE**2
    shape = (1, width, PROBE_SIDE, PROBE_SIDE) if kind != "product" else (1, pixels, width)
    kernels = {"convolution": (3, 1, 3), "depthwise": (1, 3, 1, 3), "product": (0, 0, 0)}[kind]
    nodes, weights, value, work = [], [], "x", 0
    for index, kernel in enumerate(kernels):
        by_channel = kind == "depthwise" and kernel == 3
        size = (width, 1 if by_channel else width, *[kernel] * 2)[: 4 if kernel else 2]
        array = generator.standard_normal(size).astype(np.float32) / width
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        inputs, outputs = [value, f"w{index}"], [f"y{index}"]
        if kernel:
            padding = [kernel // 2] * 4
            groups = width if by_channel else 1
            node = helper.make_node("Conv", inputs, outputs, pads=padding, group=groups)
        else:
            node = helper.make_node("MatMul", inputs, outputs)
        value = f"z{index}"
        nodes += [node, helper.make_node("Relu", outputs, [value])]
        work += math.prod(size) * pixels
    ends = [helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, shape) for v in ("x", value)]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path))
    return shape, work
