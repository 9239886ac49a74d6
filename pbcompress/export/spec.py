"""Writes a network as weights and a list of operations, so that it needs no source code."""

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils._pytree import tree_unflatten

from pbcompress.core.drafts import draft_folder
from pbcompress.core.inputs import Call, tensors_of
from pbcompress.core.modules import shared_parameter_names
from pbcompress.core.tensor_files import tensor_bytes, write_bytes
from pbcompress.errors import (
    CompressionError,
    StateMismatchError,
    UnsupportedLayerError,
    first_line,
)
from pbcompress.export.pt2 import ProgramReport, ship
from pbcompress.export.spec_network import KIND, VERSION, WORDS, described, load_spec
from pbcompress.export.spec_operations import name_of, operation

__all__ = ["save_spec"]

# a view fits the memory that the kernels of one device leave behind; its copy fits any
STRIDE_FREE = dict.fromkeys(
    ("aten.view.default", "aten._unsafe_view.default"), "aten.reshape.default"
)
WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def save_spec(
    model: nn.Module,
    path: str | Path,
    example_inputs: object,
    *,
    dynamic_batch: bool = True,
    samples: Sequence[object] = (),
) -> ProgramReport:
    """Write one safetensors file from which `load_spec` builds the network without its source.

    It holds the weights under their names, and in its header the operations of the forward pass as
    plain data: any reader of safetensors gets the state dict, and nothing is unpickled.

    Args:
        model: Usually from `fuse`; written as a copy in eval mode on the CPU.
        path: The file to write; its name ends in .safetensors.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch.
        dynamic_batch: Whether the network should take any batch size.
        samples: Further inputs to compare on, e.g. real batches.

    Returns:
        The facts of the file and of the proof; see `export_pt2`.

    Raises:
        UnsupportedLayerError: A layer calls an operation that `load_spec` does not allow.
        ExportMismatchError: The outputs differ; no file is kept.
        CompressionError: The network cannot be exported, or the path cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_spec(nn.Linear(3, 2), f"{folder}/a.safetensors", torch.zeros(1, 3))
        >>> report.operations, report.max_difference
        ({'aten.linear.default': 1}, 0.0)
    """
    if Path(path).suffix != ".safetensors":
        raise CompressionError(
            f"A network was to be written to {path}; its name must end in .safetensors."
        )
    return ship(model, Path(path), (example_inputs, *samples), dynamic_batch, _write, _read)


def _read(content: bytes) -> nn.Module:
    with draft_folder() as folder:
        file = folder / "draft.safetensors"
        write_bytes(file, content)
        try:
            return load_spec(file, most_bytes=2**62)
        except StateMismatchError as err:
            raise CompressionError(
                "A network without source code was to be written, and load_spec would not take it: "
                f"{first_line(err)}. Export it with export_onnx or export_pt2."
            ) from err


def _write(program: ExportedProgram, network: nn.Module, call: Call) -> bytes:
    program = program.run_decompositions({})  # no operation writes into its arguments any more
    with torch.no_grad():
        outputs = network(*call.args, **call.kwargs)
    values, weights, kinds = _placeholders(program, shared_parameter_names(network))
    spec = {
        "kind": KIND,
        "version": VERSION,
        "arguments": _arguments(network, call),
        **_steps(program, values),
        "weights": kinds,
        "example": {"inputs": described(call), "outputs": described(outputs)},
    }
    return tensor_bytes(weights, spec)


def _arguments(network: nn.Module, call: Call) -> dict[str, Any]:
    """Return the inputs by the names that forward gives them, the tensors numbered."""
    inputs = {tensor: {"input": i} for i, tensor in enumerate(tensors_of(call))}
    signature = inspect.signature(network.forward)
    arguments: dict[str, Any] = {}
    for name, value in signature.bind(*call.args, **call.kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            arguments |= {f"{name}{i}": leaf for i, leaf in enumerate(value)}
        else:
            arguments[name] = value
    return {name: _encoded(value, inputs) for name, value in arguments.items()}


def _placeholders(
    program: ExportedProgram, aliases: Mapping[str, str]
) -> tuple[dict[fx.Node, Any], dict[str, Tensor], dict[str, tuple[str, list[int]]]]:
    """Return what stands for each input of the graph, the weights, and how they are kept."""
    values: dict[fx.Node, Any] = {}
    weights: dict[str, Tensor] = {}
    kinds: dict[str, tuple[str, list[int]]] = {}
    inputs = itertools.count()
    held = {**program.constants, **program.state_dict}
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, entry in zip(nodes, program.graph_signature.input_specs, strict=True):
        if entry.kind is InputKind.USER_INPUT:
            is_tensor = isinstance(entry.arg, TensorArgument)
            values[node] = {"input": next(inputs)} if is_tensor else _constant(entry.arg)
        elif entry.kind in WEIGHTS and node.users:
            name = aliases.get(str(entry.target), str(entry.target))
            values[node], weights[name] = {"weight": name}, held[str(entry.target)]
            kind = "parameter" if entry.kind is InputKind.PARAMETER else "buffer"
            kinds[name] = (kind, _order(weights[name]))
    return values, weights, kinds


def _order(tensor: Tensor) -> list[int]:
    """Return the axes of a tensor in the order of memory, the outermost first."""
    return sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)


def _constant(argument: Any) -> Any:
    return _encoded(getattr(argument, "value", None), {})


def _steps(program: ExportedProgram, values: dict[fx.Node, Any]) -> dict[str, Any]:
    """Return the operations that decide the outputs, and the outputs."""
    specs = program.graph_signature.output_specs
    changed = [entry for entry in specs if entry.kind is not OutputKind.USER_OUTPUT]
    if changed:
        raise CompressionError(
            f"The network changes its own buffers or inputs in inference ({changed[0].target}); a "
            "network without source code is a pure function. Return the value instead."
        )
    output = next(node for node in program.graph.nodes if node.op == "output")
    needed, waiting = {output}, [output]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - needed
        needed |= new
        waiting += new
    steps: list[Any] = []
    for node in program.graph.nodes:
        if node not in needed or node.op in ("placeholder", "output"):
            continue
        name, layer = name_of(node.target), _layer(node)
        name = STRIDE_FREE.get(name, name)
        _check_allowed(name, layer)
        args, kwargs = _encoded(list(node.args), values), _encoded(dict(node.kwargs), values)
        values[node] = {"step": len(steps)}
        steps.append([name, args, kwargs["dict"], layer])
    structure = tree_unflatten(list(output.args[0]), program.call_spec.out_spec)
    return {"steps": steps, "outputs": _encoded(structure, values)}


def _layer(node: fx.Node) -> str:
    """Return the name of the module that an operation came from, "" for the network itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(stack[-1][0]) if stack else ""
    return "" if name.startswith("_empty_nn_module_stack") else name  # torch's word for none


def _check_allowed(name: str, layer: str) -> None:
    try:
        operation(name)
    except CompressionError as err:
        raise UnsupportedLayerError(
            f"A network without source code was to be written, and its layer {layer or '(root)'} "
            f"calls {name}, which is not among the operations that load_spec allows. Export it "
            "with export_onnx or export_pt2.",
            layer,
            f"it calls {name}",
        ) from err


def _encoded(value: Any, values: Mapping[Any, Any]) -> Any:
    """Return an argument as plain data; see `spec_network`."""
    if isinstance(value, fx.Node | Tensor):
        return values[value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device):
        return {"device": ""}
    for tag, words in WORDS.items():
        if type(value) in map(type, words.values()) and value in words.values():
            return {tag: str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"dict": {str(name): _encoded(leaf, values) for name, leaf in value.items()}}
    if isinstance(value, list | tuple):
        leaves = [_encoded(leaf, values) for leaf in value]
        return {"tuple": leaves} if isinstance(value, tuple) else leaves
    raise CompressionError(
        f"A network without source code was to be written, and it takes, computes with or returns "
        f"a {type(value).__name__}. Use tensors, numbers, lists, tuples and dicts alone."
    )
