"""A network as an ONNX graph, by torch's exporter: its names, its free axes, and its refusals.

torch.export is asked for nothing that it may refuse: every free axis is left to it to fix, the
ranges that it found show which it did, and runs at other sizes decide. So a refusal can name the
line of the user's code that fixes an axis.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbcompress.core.inputs import Call, tensors_of
from pbcompress.core.modules import check_names, plain_attention
from pbcompress.core.randomness import seeded
from pbcompress.core.source_lines import line_of, watched
from pbcompress.errors import CompressionError, a_few, first_line
from pbcompress.export.free_axes import FreeAxis, Inputs, leaf_names, resized
from pbcompress.onnx_files.store import ONE_FILE, load, relabel, save

__all__ = ["fixed_line", "output_of", "translate"]

TRACE = "pkg.torch.onnx.stack_trace"  # lines of code, with paths of this machine
HINTS = {
    "GuardOnDataDependentSymNode": "It depends on values of a tensor, which a graph does not know: "
    "use torch.where or torch.cond, or decide it outside of forward.",
    "DispatchError": "That operation has no ONNX counterpart: write it with others.",
    "UnsupportedOperatorException": "That operation has no ONNX counterpart: write it with others.",
}


def output_of(network: nn.Module, call: Call) -> Any:
    """Return what a network returns, without gradient."""
    with torch.no_grad(), plain_attention():
        return network(*call.args, **call.kwargs)


def translate(
    network: nn.Module,
    inputs: Inputs,
    path: Path,
    free: Sequence[FreeAxis],
    *,
    opset: int,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    one_file: int = ONE_FILE,
    is_measured: bool = False,
) -> list[FreeAxis]:
    """Write the graph of a network.

    Args:
        network: In eval mode on the CPU.
        inputs: Of one forward pass.
        path: The file; weights of more than ``one_file`` bytes go into a second one beside it.
        free: Axes that should be free; the batch first if it is one of them.
        opset: ONNX operator set.
        input_names: None: those of `Inputs`.
        output_names: None: by the keys and indices of what the network returns.
        one_file: See ``path``.
        is_measured: The file is only measured, so its outputs are numbered, whatever they are.

    Returns:
        The axes that are free in the file; those that the network ties together are one.

    Raises:
        CompressionError: The network does not run or cannot be translated, there are other
            numbers of inputs and outputs than names, or two of them have one name.
    """
    batch = {axis: 2 for axis in free[:1] if axis.is_batch}
    call = resized(inputs.call, batch)
    try:
        output = output_of(network, call)
    except Exception as err:
        at = "".join(f" at {axis.name} size {size}" for axis, size in batch.items())
        asked = f"The model was to be exported, and it does not run{at}"
        raise _refusal(asked, err, is_batch_free=bool(batch)) from err
    names = (
        list(input_names or inputs.names),
        list(output_names or _output_names(output, is_measured=is_measured)),
    )
    _check_names(names, input_names, output_names, len(tensors_of(output)), inputs)
    hook = network.register_forward_hook(lambda _, __, result: tuple(tensors_of(result)))
    check_names(network)
    try:
        program = _exported(network, inputs, call, free, opset)
    except Exception as err:
        asked = f"The model was to be exported to ONNX (opset {opset}), and torch refused"
        raise _refusal(asked, err, is_batch_free=bool(batch)) from err
    finally:
        hook.remove()
    weights = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(TRACE, None)
    program.save(str(path), external_data=weights > one_file)
    proto = load(path)
    found, sizes = _free_in(proto, program, free)
    relabel(proto, inputs=names[0], outputs=names[1], sizes=sizes)
    save(proto, path)
    return found


def _refusal(asked: str, err: Exception, *, is_batch_free: bool) -> CompressionError:
    cause: BaseException = err
    while cause.__cause__ is not None:
        cause = cause.__cause__
    line, hint = line_of(err), HINTS.get(type(cause).__name__)
    parts = [f"{asked}{f' at {line}' if line else ''}: {first_line(err)}."]
    parts += [hint] if hint else []
    parts += ["Change that line."] if line and not hint else []
    if is_batch_free and not hint:
        parts += ["Pass dynamic=None if its batch size is fixed."]
    return CompressionError(" ".join(parts))


def _check_names(
    names: tuple[list[str], list[str]],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    outputs: int,
    inputs: Inputs,
) -> None:
    for option, given, count in (
        ("input_names", input_names, len(inputs.tensors)),
        ("output_names", output_names, outputs),
    ):
        if given is not None and (len(given) != count or len(set(given)) != count):
            raise CompressionError(
                f"{option}={list(given)} was asked for, and the network has {count}. Give one "
                "name for each, all different."
            )
    both = sorted({name for name in names[1] if name in names[0] or names[1].count(name) > 1})
    if both:  # values of a graph have one name each
        others = [f"{name}_{i}" if name in both else name for i, name in enumerate(names[1])]
        raise CompressionError(
            f"The outputs were to be named {names[1]}, and {a_few(both)} is the name of an input, "
            f"or of two outputs; the inputs are {names[0]}. Pass export_onnx(..., output_names="
            f"{others}), or other input_names."
        )


def _output_names(output: Any, *, is_measured: bool) -> list[str]:
    count = len(tensors_of(output))
    if is_measured:
        return [f"measured_{i}" for i in range(count)]
    if isinstance(output, torch.Tensor):
        return ["output"]
    return leaf_names(output, "output_") or [f"output_{i}" for i in range(count)]


def _exported(
    network: nn.Module, inputs: Inputs, call: Call, free: Sequence[FreeAxis], opset: int
) -> Any:
    args, kwargs = call
    for recurrent in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        recurrent._dispatch_cache.clear()  # else a second export unrolls the steps of the example
    with _quiet(), torch.no_grad(), seeded("export"), plain_attention():
        return torch.onnx.export(
            network,
            (*args, {}) if args and isinstance(args[-1], dict) and not kwargs else args,
            kwargs=kwargs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=inputs.torch_shapes(free) if free else None,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's deprecations, its remarks that torchvision is absent, and prints."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)


def _free_in(
    proto: Any, program: Any, free: Sequence[FreeAxis]
) -> tuple[list[FreeAxis], dict[str, str | int]]:
    """Return the axes that are free in a graph, and what its symbols stand for."""
    ranges = program.exported_program.range_constraints
    sizes: dict[str, str | int] = {
        str(symbol): int(bounds.lower)
        for symbol, bounds in ranges.items()
        if bounds.lower == bounds.upper
    }
    shapes = [[d.dim_param for d in v.type.tensor_type.shape.dim] for v in proto.graph.input]
    found: list[FreeAxis] = []
    of: dict[FreeAxis, set[str]] = {}
    for axis in free:
        places = [(i, place) for i, place in axis.places if shapes[i][place]]
        places = [p for p in places if not isinstance(sizes.get(shapes[p[0]][p[1]]), int)]
        if not places:
            continue
        symbols = {shapes[i][place] for i, place in places}
        tied = [other for other in found if of[other] & symbols]
        first = tied[0] if tied else axis
        whole = replace(first, places=tuple(p for a in tied for p in a.places) + tuple(places))
        of[whole] = symbols.union(*(of[other] for other in tied))
        found = [other for other in found if other not in tied] + [whole]
    for axis in found:
        sizes.update(dict.fromkeys(of[axis], axis.name))
    return found, sizes


def fixed_line(network: nn.Module, inputs: Inputs, free: Sequence[FreeAxis], axis: FreeAxis) -> str:
    """Return, for an axis that torch.export fixed, the line of the user's code that did it."""
    args, kwargs = inputs.call
    with watched() as lines, _quiet(), torch.no_grad(), seeded("export"):
        try:
            torch.export.export(
                network, args, kwargs, dynamic_shapes=inputs.torch_shapes(free), strict=False
            )
        except Exception as err:
            return line_of(err) or "a line that torch.export does not tell"
    return lines.get(axis.size, "a line that torch.export does not tell")
