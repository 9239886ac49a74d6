"""Two networks side by side, torch modules or ONNX files, on the same inputs."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pbcompress.errors import CompressionError
from pbcompress.export import export_onnx
from pbcompress.fuse import fuse
from pbcompress.measure import measure
from pbcompress.onnxfile import measure_onnx
from pbcompress.runtime import Latency, Session, interleaved_latency
from pbcompress.surgery import (
    as_call,
    single_sample,
    tensors_of,
)
from pbcompress.tables import render_markdown, render_text, speed_up

__all__ = ["Comparison", "Side", "compare"]


@dataclass(frozen=True)
class Side:
    """One of the two networks.

    Attributes:
        name: Class of the module, or name of the file.
        params: Parameters of a module (shared ones once), or weights in a file.
        flops: Multiply-adds at batch 1: as fvcore counts a module; of the convolutions and matrix
            products in a file.
        file_bytes: Size of the ONNX file; a module is exported in its inference form.
        uncounted_ops: Operations that are not in ``flops``.
        latency: ONNX Runtime, one thread, batch 1.
    """

    name: str
    params: int
    flops: int
    file_bytes: int
    uncounted_ops: Mapping[str, int]
    latency: Latency


@dataclass(frozen=True)
class Comparison:
    """Two networks and how far their outputs are apart on the example inputs.

    Attributes:
        before: The first network.
        after: The second.
        max_difference: Largest absolute difference of any output, None where shapes differ.
        agreement: Share of samples with the same highest output, None where there are no classes.
    """

    before: Side
    after: Side
    max_difference: float | None
    agreement: float | None

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table, header first."""
        a, b = self.before, self.after
        table: list[tuple[str, ...]] = [("", a.name, b.name, "ratio")]
        for label, x, y in (
            ("parameters", a.params, b.params),
            ("FLOPs (multiply-adds)", a.flops, b.flops),
            ("ONNX file, bytes", a.file_bytes, b.file_bytes),
        ):
            table.append((label, f"{x:,}", f"{y:,}", f"{y / x:.1%}" if x else ""))
        old, new = a.latency, b.latency
        speed = speed_up(new.ratio)
        table.append(("ONNX Runtime, median ms", f"{old.median:.3f}", f"{new.median:.3f}", speed))
        if self.max_difference is not None:
            table.append(("largest output difference", "", f"{self.max_difference:.2e}", ""))
        if self.agreement is not None:
            table.append(("same highest output", "", f"{self.agreement:.1%}", ""))
        return table

    def __str__(self) -> str:
        return render_text(self.rows())

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return render_markdown(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def compare(
    before: nn.Module | str | Path, after: nn.Module | str | Path, example_inputs: object
) -> Comparison:
    """Measure two networks on the same inputs, from the shipped file where one is given.

    Args:
        before: A module or the path of an ONNX file.
        after: The same.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch.

    Returns:
        Size, work, speed (interleaved runs) and the distance of the outputs.

    Raises:
        StateMismatchError: A file is missing or no ONNX file.
        CompressionError: A module cannot be exported, or the two take different inputs.

    Example:
        >>> import torch
        >>> table = compare(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), torch.zeros(4, 8))
        >>> table.before.params, table.after.params
        (72, 64)
    """
    with tempfile.TemporaryDirectory(prefix="pbcompress-") as folder:
        files = [
            _file(model, Path(folder) / f"{index}.onnx", example_inputs)
            for index, model in enumerate((before, after))
        ]
        sessions = [Session(file) for file in files]
        call = as_call(example_inputs)
        single = tensors_of(single_sample(call))
        latencies = interleaved_latency(sessions, [s.feeds(single) for s in sessions])
        outputs = [s.run(s.feeds(tensors_of(call))) for s in sessions]
        sides = [
            _side(model, file, latency, example_inputs)
            for model, file, latency in zip((before, after), files, latencies, strict=True)
        ]
    return Comparison(sides[0], sides[1], *_distance(outputs[0], outputs[1]))


def _file(model: nn.Module | str | Path, draft: Path, example_inputs: object) -> Path:
    if isinstance(model, str | Path):
        return Path(model)
    if not isinstance(model, nn.Module):
        raise CompressionError(
            f"compare takes modules and paths of ONNX files; found {type(model).__name__}."
        )
    export_onnx(fuse(model), draft, example_inputs)
    return draft


def _side(
    model: nn.Module | str | Path, file: Path, latency: Latency, example_inputs: object
) -> Side:
    cost = measure_onnx(file)
    if isinstance(model, nn.Module):
        own = measure(model, example_inputs)
        name, bytes_ = type(model).__name__, cost.file_bytes
        return Side(name, own.params, own.flops, bytes_, own.uncounted_ops, latency)
    return Side(file.name, cost.params, cost.flops, cost.file_bytes, cost.uncounted_ops, latency)


def _distance(a: list[Any], b: list[Any]) -> tuple[float | None, float | None]:
    if [x.shape for x in a] != [y.shape for y in b]:
        return None, None
    pairs = [(x.astype(float), y.astype(float)) for x, y in zip(a, b, strict=True)]
    gaps = [np.abs(x - y).max(initial=0) for x, y in pairs]
    has_classes = a[0].ndim == 2 and a[0].shape[1] > 1
    same = float((a[0].argmax(1) == b[0].argmax(1)).mean()) if has_classes else None
    return float(max(gaps)), same
