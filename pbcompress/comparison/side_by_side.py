"""Measures networks side by side, each number from the shipped file where one is given."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pbcompress.comparison.intervals import Estimate
from pbcompress.comparison.scoring import estimates, file_network, parity, predictions, split_of
from pbcompress.comparison.table import GRAPH, Comparison, Side
from pbcompress.core.drafts import draft_folder
from pbcompress.core.inputs import Call, as_call, single_sample, tensors_of, to_device
from pbcompress.core.modules import copy_model, device_of
from pbcompress.core.turns import in_turn
from pbcompress.costs.measured import ModelCost, measure
from pbcompress.errors import CompressionError, ExportMismatchError, first_line
from pbcompress.export.fusion import fuse
from pbcompress.export.onnx_export import export_onnx
from pbcompress.onnx_files.apart import peak_memory
from pbcompress.onnx_files.contents import measure_onnx, peak_activation_bytes
from pbcompress.onnx_files.session import Latency, Session, interleaved_latency
from pbcompress.training.task import Batches, Task

__all__ = ["compare"]

Given = nn.Module | str | Path


class _Contender(NamedTuple):
    """A network as a file; ``cost`` is that of a module itself."""

    name: str
    file: Path
    session: Session
    network: nn.Module
    cost: ModelCost | None


@in_turn
def compare(
    before: Given,
    after: Given,
    example_inputs: object,
    *,
    data: Any = None,
    task: Task | None = None,
    control: Given | None = None,
) -> Comparison:
    """Measure two networks on the same inputs, from the shipped file where one is given.

    Args:
        before: A module or the path of an ONNX file.
        after: The same.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch;
            or an `Example`, which says what is.
        data: For the metric and its 95 % interval: `Data`, of which the test split is scored (else
            val), or batches. A file runs in ONNX Runtime, a module in torch.
        task: The metric; None is classification.
        control: Another network of the size of ``after``, to stand beside it.

    Returns:
        Size, work, speed (interleaved runs), memory, metric and the distance of the outputs.

    Raises:
        StateMismatchError: A file is missing, damaged, or cannot be run.
        CompressionError: A module cannot be exported, the two take different inputs, or the metric
            raises; nothing is left behind.

    Example:
        >>> table = compare(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), torch.zeros(4, 8))
        >>> table.before.params, table.after.params
        (72, 64)
    """
    given = [before, after] if control is None else [before, after, control]
    task, call = task or Task(), as_call(example_inputs)
    batches = None if data is None else split_of(data)
    for model in given:
        _check(model)
    with draft_folder() as folder:
        drafts = [folder / f"{index}.onnx" for index in range(len(given))]
        contenders = [
            _contender(model, draft, example_inputs)
            for model, draft in zip(given, drafts, strict=True)
        ]
        outputs = [_run(contender, call) for contender in contenders]
        scores: list[Estimate] = []
        changes: dict[str, Any] = {}
        if batches is not None:
            outputs, scores, changes = _scored(contenders, batches, task)
        is_free = all(contender.session.takes_any_batch for contender in contenders)
        timed = tensors_of(single_sample(call, contenders[0].network) if is_free else call)
        sides = _sides(contenders, timed)
    scored = [
        replace(side, score=score) for side, score in zip(sides, scores, strict=False)
    ] or sides
    return Comparison(
        before=scored[0],
        after=scored[1],
        control=scored[2] if control is not None else None,
        batch=next((len(t) for t in timed if t.dim()), 1),
        **vars(parity(outputs[0], outputs[1])),
        metric_name=task.metric_name,
        **changes,
    )


def _check(model: Given) -> None:
    if isinstance(model, str | Path):
        measure_onnx(model)  # raises where it is damaged
    elif not isinstance(model, nn.Module):
        raise CompressionError(
            f"compare takes modules and paths of ONNX files; found {type(model).__name__}."
        )


def _contender(model: Given, draft: Path, example_inputs: object) -> _Contender:
    if isinstance(model, str | Path):
        file = Path(model)
        network = file_network(file)
        return _Contender(file.name, file, network.session, network, None)
    frozen = fuse(model)
    try:
        export_onnx(frozen, draft, example_inputs)
    except ExportMismatchError:
        raise
    except CompressionError:  # its batch size may be fixed
        export_onnx(frozen, draft, example_inputs, dynamic=None)
    cost = measure(model, example_inputs)
    session = Session(draft, apart=True)  # timed as a file is
    return _Contender(type(model).__name__, draft, session, copy_model(model).eval(), cost)


def _run(contender: _Contender, call: Call) -> Any:
    args, kwargs = to_device(call, device_of(contender.network))
    try:
        with torch.no_grad():
            return contender.network(*args, **kwargs)
    except Exception as err:
        shapes = [tuple(tensor.shape) for tensor in tensors_of(call)]
        raise CompressionError(
            f"{contender.name} was to be run on the example inputs, shapes {shapes}, and does not "
            f"take them: {first_line(err)}. Both networks must take the same inputs."
        ) from err


def _scored(
    contenders: Sequence[_Contender], batches: Batches, task: Task
) -> tuple[list[Any], list[Estimate], dict[str, Any]]:
    """Return outputs and metric of each on the data, and the changes between them."""
    names = [contender.name for contender in contenders]
    found = predictions([c.network for c in contenders], names, batches, task)
    scores, (change, *_) = estimates(found, task)
    changes, outputs = {"change": change}, list(found.outputs)
    if len(outputs) > 2:
        pair = replace(found, outputs=[outputs[2], outputs[1]])
        changes["over_control"] = estimates(pair, task)[1][0]
    return outputs, scores, changes


def _sides(contenders: Sequence[_Contender], tensors: Sequence[Tensor]) -> list[Side]:
    sessions = [contender.session for contender in contenders]
    feeds = [session.feeds(tensors) for session in sessions]
    try:
        latencies = interleaved_latency(sessions, feeds)
    except Exception as err:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise CompressionError(
            f"The networks run on the example inputs, and one of them not on a single sample, "
            f"shapes {shapes}: {first_line(err)}. Give example inputs of one sample, or export it "
            "with dynamic=None."
        ) from err
    memories = [peak_memory(c.file, feed) for c, feed in zip(contenders, feeds, strict=True)]
    return [_side(*parts) for parts in zip(contenders, latencies, memories, strict=True)]


def _side(contender: _Contender, latency: Latency, memory: int | None) -> Side:
    graph, own = measure_onnx(contender.file), contender.cost
    cost = own or graph
    counts = {GRAPH: graph.flops}
    if own is not None:
        second = {} if own.dispatched is None else {"FlopCounterMode": sum(own.dispatched.values())}
        counts = {"fvcore": own.flops, **second, **counts}
    return Side(
        name=contender.name,
        is_file=own is None,
        params=cost.params,
        flops=cost.flops,
        flops_by=counts,
        explanation=own.explanation if own else "",
        file_bytes=graph.file_bytes,
        uncounted_ops=cost.uncounted_ops,
        latency=latency,
        peak_activations=peak_activation_bytes(contender.file),
        peak_memory=memory,
        layers=cost.by_layer,
    )
