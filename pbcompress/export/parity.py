"""Whether an exported file computes what its network computes.

A run in float64 is the judge. A file passes if it is near to that, or not much further from it than
torch in float32 is. So a network that cancels large sums is not blamed on its file, and a wrong
layer of a nearly exact one is found. Without float64 a fixed bound between file and torch remains.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pbcompress.core.inputs import Call, map_tensors, tensors_of
from pbcompress.core.modules import copy_model, dtype_like, plain_attention
from pbcompress.core.randomness import seeded
from pbcompress.core.source_lines import line_of
from pbcompress.errors import CompressionError, ExportMismatchError, first_line
from pbcompress.export.first_difference import first_difference
from pbcompress.export.free_axes import FreeAxis, Inputs, other_sizes, resized
from pbcompress.export.translation import output_of
from pbcompress.onnx_files.session import CPU, Session

__all__ = ["Parity", "prove"]

BATCH_SIZES = (1, 2, 5)
LARGE = 64
LARGE_SECONDS = 4.0  # a larger batch is taken while one pass is shorter
RANDOM_SEEDS = (0, 1, 2)
# Of the largest output: without a float64 run, float32 sums in another order; with one, what such
# sums come to in a file whose network is nearly exact.
TOLERANCE = 1e-4
FLOOR = 1e-5
# How many times the network's own float32 error a file's may be.
SLACK = 8.0
# A network whose own float32 error is above this share of its outputs proves nothing.
NOISE = 1e-2


@dataclass(frozen=True)
class Parity:
    """How far a file is from its network, over all runs.

    Attributes:
        max_difference: Largest absolute difference of an output from torch in float32.
        max_relative: The same, relative to the largest output magnitude of its run.
        file_error: Largest difference of the file from torch in float64, relative in the same way;
            None where the network does not run in float64.
        torch_error: The same of torch in float32: what float32 costs the network itself.
        agreement: Share of samples with the same highest output; None where there are no classes.
        batch_sizes: Batch sizes that were run.
        axis_sizes: Sizes of every other free axis that were run.
        checks: Forward passes compared.
    """

    max_difference: float
    max_relative: float
    file_error: float | None
    torch_error: float | None
    agreement: float | None
    batch_sizes: tuple[int, ...]
    axis_sizes: Mapping[str, tuple[int, ...]]
    checks: int


@dataclass(frozen=True)
class _Gap:
    """One output of one run; ``excess`` above 1 is no rounding."""

    output: str
    at: str
    call: Call
    difference: float
    scale: float
    file_error: float | None
    torch_error: float | None
    excess: float
    problem: str
    agreed: int
    rows: int


def prove(
    network: nn.Module,
    draft: Path,
    calls: Sequence[Inputs],
    free: Sequence[FreeAxis],
    providers: Sequence[str] = CPU,
) -> Parity:
    """Run a file beside its network in float32, and both beside the network in float64.

    Args:
        network: What was exported.
        draft: The file; its folder takes what is needed to name a layer.
        calls: Inputs, the example first.
        free: Axes that are free in the file.
        providers: Of ONNX Runtime.

    Raises:
        ExportMismatchError: The outputs differ by more than rounding.
        CompressionError: One of the two does not run.
    """
    session = Session(draft, providers=providers)
    exact = _exact(network, calls[0])
    batch = next((axis for axis in free if axis.is_batch), None)
    others = [axis for axis in free if axis is not batch]
    sizes = _sizes(network, session, calls[0].call, batch, others)
    gaps: list[_Gap] = []
    checks = 0
    for at, inputs, is_drawn in _runs(calls, sizes):
        if is_drawn and not _takes(network, inputs):
            continue
        checks += 1
        gaps += _gaps(network, exact, session, inputs, at)
    worst = max(gaps, key=lambda gap: gap.excess)
    if worst.excess > 1:
        raise _mismatch(network, session, draft, worst)
    rows = sum(gap.rows for gap in gaps)
    return Parity(
        max_difference=max(gap.difference for gap in gaps),
        max_relative=max(gap.difference / gap.scale for gap in gaps),
        file_error=_most([gap.file_error for gap in gaps]),
        torch_error=_most([gap.torch_error for gap in gaps]),
        agreement=sum(gap.agreed for gap in gaps) / rows if rows else None,
        batch_sizes=tuple(dict.fromkeys(at[batch] for at in sizes if batch))
        or (calls[0].batch().size,),
        axis_sizes={a.name: tuple(dict.fromkeys(at[a] for at in sizes if a in at)) for a in others},
        checks=checks,
    )


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _exact(network: nn.Module, inputs: Inputs) -> nn.Module | None:
    """Return the network in float64, None where it does not run so."""
    exact = copy_model(network)._apply(_in_double)
    try:
        outputs = _outputs(exact, _double(inputs.call))
    except Exception:  # dtypes that are written into the code
        return None
    return exact if all(t.dtype != torch.float32 for t in outputs) else None


def _outputs(network: nn.Module, call: Call) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(network(*call.args, **call.kwargs))


def _double(call: Call) -> Call:
    return map_tensors(call, _in_double)


def _in_double(tensor: Tensor) -> Tensor:
    return tensor.to(dtype_like(tensor, torch.float64))


def _sizes(
    network: nn.Module,
    session: Session,
    call: Call,
    batch: FreeAxis | None,
    others: Sequence[FreeAxis],
) -> list[dict[FreeAxis, int]]:
    """Return sizes of the free axes that are run together."""
    if batch is None:
        sizes: list[dict[FreeAxis, int]] = [{}]
    else:
        sizes = [{batch: size} for size in BATCH_SIZES]
        single = resized(call, {batch: 1})
        began = time.perf_counter()
        _run(network, session, single, f"{batch.name} size 1")
        seconds = time.perf_counter() - began
        large = [n for n in (LARGE, LARGE // 2, LARGE // 4) if n * seconds < LARGE_SECONDS]
        sizes += [{batch: size} for size in large[:1]]
    varied = {axis: other_sizes(lambda c: _outputs(network, c), call, axis)[0] for axis in others}
    for number in range(max(map(len, varied.values()), default=0)):
        own = {axis: found[number % len(found)] for axis, found in varied.items() if found}
        sizes.append(({batch: BATCH_SIZES[number]} if batch else {}) | own)
    return sizes


def _runs(
    calls: Sequence[Inputs], sizes: Sequence[dict[FreeAxis, int]]
) -> Iterator[tuple[str, Call, bool]]:
    """Yield the inputs of all runs: real ones and random ones, with whether they are random."""
    for at in sizes:
        is_small = len(at) <= 1 and max(at.values(), default=1) < LARGE // 4
        text = ", ".join(f"{axis.name} size {size}" for axis, size in at.items()) or "its size"
        for inputs in calls if is_small else calls[:1]:
            yield text, resized(inputs.call, at), False
        for seed in RANDOM_SEEDS if is_small else RANDOM_SEEDS[:1]:
            with seeded("parity", seed, *sorted(at.values())):
                yield text, map_tensors(resized(calls[0].call, at), _random), True


def _random(t: Tensor) -> Tensor:
    return torch.randn_like(t) if t.is_floating_point() else t


def _takes(network: nn.Module, call: Call) -> bool:
    """Tell whether a network runs on random values: masks of numbers may mean nothing."""
    try:
        _outputs(network, call)
    except Exception:
        return False
    return True


def _run(
    network: nn.Module, session: Session, call: Call, at: str
) -> tuple[list[Tensor], list[Any]]:
    try:
        return _outputs(network, call), session.run(session.feeds(tensors_of(call)))
    except CompressionError:
        raise
    except Exception as err:
        line = line_of(err)
        raise CompressionError(
            f"The exported file and the model were to be run at {at}, and one of them "
            f"failed{f' at {line}' if line else ''}: {first_line(err)}. Pass dynamic=None if "
            "the batch size is fixed; leave other axes that are fixed out of dynamic."
        ) from err


def _gaps(
    network: nn.Module, exact: nn.Module | None, session: Session, call: Call, at: str
) -> list[_Gap]:
    expected, found = _run(network, session, call, at)
    exacts: list[Tensor] | list[None] = [None] * len(expected)
    if exact is not None:
        exacts = _outputs(exact, _double(call))
    return [
        _gap(name, at, call, wanted.numpy(), got, None if best is None else best.numpy())
        for name, wanted, got, best in zip(
            session.output_names, expected, found, exacts, strict=True
        )
    ]


def _gap(name: str, at: str, call: Call, wanted: Any, got: Any, best: Any) -> _Gap:
    """Compare one output: the file's with torch's, and both with float64's."""
    problem, difference, excess, scale = "", math.inf, math.inf, 1.0
    file_error = torch_error = None
    agreed = rows = 0
    if wanted.shape != got.shape:
        problem = f"has shape {got.shape} instead of {wanted.shape}"
    elif not np.array_equal(np.isfinite(wanted), np.isfinite(got)):
        problem = "has NaN or infinity in other places"
    else:
        places = np.isfinite(wanted)
        if best is not None and best.shape == wanted.shape:
            places &= np.isfinite(best)
        a, b = wanted[places].astype(np.float64), got[places].astype(np.float64)
        difference = float(np.abs(a - b).max(initial=0.0))
        scale = max(float(np.abs(a).max(initial=0.0)), 1e-6)
        excess = difference / (TOLERANCE * scale)
        problem = f"differs by {difference:.3e} where values reach {scale:.3e}"
        if not np.issubdtype(wanted.dtype, np.floating):
            excess = math.inf if difference else 0.0
        elif best is not None and best.shape == wanted.shape:
            c = best[places]
            file_error = float(np.abs(b - c).max(initial=0.0)) / scale
            torch_error = float(np.abs(a - c).max(initial=0.0)) / scale
            excess = file_error / max(FLOOR, SLACK * min(torch_error, NOISE))
            problem += (
                f"; from float64 torch is off by {torch_error:.1e} of that, the file by "
                f"{file_error:.1e}"
            )
        if wanted.ndim == 2 and wanted.shape[1] > 1 and np.issubdtype(wanted.dtype, np.floating):
            agreed, rows = int((wanted.argmax(1) == got.argmax(1)).sum()), len(wanted)
    return _Gap(
        name, at, call, difference, scale, file_error, torch_error, excess, problem, agreed, rows
    )


def _mismatch(
    network: nn.Module, session: Session, draft: Path, worst: _Gap
) -> ExportMismatchError:
    """Return the error, with the name of the first layer that differs where it can be found."""
    advice, place = "report the layers of this network as a bug.", None
    if _is_fast_path(network, session, worst):
        advice = (
            "the file computes what the layers do, and torch in eval mode takes a fast path that "
            "leaves padded positions zero. Make nn.TransformerEncoder with "
            "enable_nested_tensor=False, or set its use_nested_tensor to False."
        )
    elif _differs_from_itself(network, worst.call):
        advice = (
            "the network itself returns other values each time it runs: it draws random numbers "
            "in eval mode, or writes to its buffers. Let it do so in training alone."
        )
    else:
        with suppress(Exception):  # whatever it meets: the difference is what has to be said
            search = draft.with_name("traced.onnx")
            place = first_difference(network, draft, worst.call, TOLERANCE, search)
    return ExportMismatchError(
        f"The exported file was compared with torch at {worst.at}, and its output "
        f"{worst.output!r} {worst.problem}. No file was kept; {advice}"
        f"{f' The first layer that differs is {place}.' if place else ''}",
        max_difference=worst.difference,
    )


def _differs_from_itself(network: nn.Module, call: Call) -> bool:
    """Tell whether two runs of a network on the same inputs differ by more than rounding."""
    found = []
    for run in range(2):
        with seeded("parity", "again", run):
            found.append([t.clone() for t in tensors_of(output_of(network, call))])
    return not all(
        a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        for a, b in zip(*found, strict=True)
    )


def _is_fast_path(network: nn.Module, session: Session, worst: _Gap) -> bool:
    """Tell whether a file is right by torch's attention without the path that eval mode takes."""
    with plain_attention():
        return all(gap.excess <= 1 for gap in _gaps(network, None, session, worst.call, worst.at))
