"""A network as a program of torch.export: the graph, its proof, and the .pt2 file.

torch.export writes the example inputs, and paths and lines of the source, into its file: both are
taken out. The proof is of the program that was read again, so a file that torch cannot read back is
not kept.
"""

import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pbcompress.core.drafts import check_writable
from pbcompress.core.inputs import Call, as_call, map_tensors, tensors_of, to_device
from pbcompress.core.modules import check_names, copy_model
from pbcompress.core.randomness import seeded
from pbcompress.core.tensor_files import write_bytes
from pbcompress.core.turns import in_turn
from pbcompress.errors import CompressionError, ExportMismatchError, first_line
from pbcompress.export.free_axes import FreeAxis, Inputs, resized
from pbcompress.export.spec_operations import name_of

__all__ = ["ProgramReport", "export_program", "export_pt2", "ship"]

BATCH_SIZES = (1, 2, 5)
RANDOM_SEEDS = (0, 1, 2)
# the same kernels on the same numbers; torch's fused inference paths sum in another order
TOLERANCE = 1e-6


@dataclass(frozen=True)
class ProgramReport:
    """What was written for torch, and how it was proven.

    Attributes:
        path: The file.
        file_bytes: Its size.
        max_difference: Largest absolute difference of any output from that of the network, over all
            checks; 0 is bit-equal.
        batch_sizes: Batch sizes that were run.
        checks: Forward passes compared.
        operations: Number of calls by operation of torch.
    """

    path: str
    file_bytes: int
    max_difference: float
    batch_sizes: tuple[int, ...]
    checks: int
    operations: Mapping[str, int]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        gap = f"differ by at most {self.max_difference:.2e}" if self.max_difference else "are equal"
        return (
            f"{self.path}: {self.file_bytes:,} bytes, {sum(self.operations.values())} operations; "
            f"its outputs and the network's {gap} over {self.checks} runs at batch sizes {sizes}"
        )


@in_turn
def export_pt2(
    model: nn.Module,
    path: str | Path,
    example_inputs: object,
    *,
    dynamic_batch: bool = True,
    samples: Sequence[object] = (),
) -> ProgramReport:
    """Write one .pt2 file for `torch.export.load`, and keep it only if it computes the same.

    Loading it needs torch, and neither pbcompress nor the source of the network. The file
    holds no inputs and no paths of this machine. Loading a .pt2 may unpickle, so it is for
    people who trust you; `save_spec` writes a file that needs no trust.

    Args:
        model: Usually from `fuse`; exported as a copy in eval mode on the CPU.
        path: The file to write; its name ends in .pt2.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch;
            or an `Example`, which says what is.
        dynamic_batch: Whether the file takes any batch size.
        samples: Further inputs to compare on, e.g. real batches.

    Returns:
        The facts of the file and of the proof: run beside the network at batch sizes 1, 2 and 5 on
        the example inputs, on ``samples`` and on random values.

    Raises:
        ExportMismatchError: The outputs differ; no file is kept.
        CompressionError: The network cannot be exported, or the path cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_pt2(nn.Linear(3, 2), f"{folder}/a.pt2", torch.zeros(1, 3))
        ...     again = torch.export.load(report.path).module()
        >>> report.max_difference, tuple(again(torch.ones(7, 3)).shape)
        (0.0, (7, 2))
    """
    if Path(path).suffix != ".pt2":
        raise CompressionError(f"A program was to be written to {path}; its name must end in .pt2.")

    def write(program: ExportedProgram, _: nn.Module, __: Call) -> bytes:
        program.graph.eliminate_dead_code()  # torch cannot read back an unbind of nothing
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths and lines of this machine
        program.example_inputs = tuple(map_tensors(Call(*program.example_inputs), torch.zeros_like))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()

    def read(content: bytes) -> Callable[..., Any]:
        return torch.export.load(io.BytesIO(content)).module()

    return ship(model, Path(path), (example_inputs, *samples), dynamic_batch, write, read)


@in_turn
def ship(
    model: nn.Module,
    path: Path,
    inputs: Sequence[object],
    dynamic_batch: bool,
    write: Callable[[ExportedProgram, nn.Module, Call], bytes],
    read: Callable[[bytes], Callable[..., Any]],
) -> ProgramReport:
    """Export a network, write it, read it again, prove what was read, and only then keep the file.

    Args:
        model: The network; a copy of it in eval mode on the CPU is exported.
        path: The file.
        inputs: Of one forward pass each; the first are exported with.
        dynamic_batch: Whether the batch size is free.
        write: Makes the content of the file from the program, the network and the call.
        read: Makes a network from the content.
    """
    network = copy_model(model).cpu().eval()
    calls = [Inputs(network, to_device(as_call(value), "cpu")) for value in inputs]
    batch = calls[0].batch()
    check_writable(path)  # fail before the work
    is_free = dynamic_batch and bool(batch.places)
    program = export_program(network, calls[0], batch if is_free else None)
    operations = Counter(name_of(n.target) for n in program.graph.nodes if n.op == "call_function")
    sizes = BATCH_SIZES if is_free else (batch.size,)
    try:
        with _quiet():
            content = write(program, network, calls[0].call)
            other = read(content)
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            f"The network was to be written to {path} and torch.export could not save it and load "
            f"it again: {first_line(err)}. Export it to ONNX instead, with export_onnx."
        ) from err
    difference, checks = _prove(network, other, [own.call for own in calls], batch, sizes)
    write_bytes(path, content)
    return ProgramReport(
        path=str(path),
        file_bytes=len(content),
        max_difference=difference,
        batch_sizes=tuple(sizes),
        checks=checks,
        operations=dict(operations.most_common()),
    )


def export_program(network: nn.Module, inputs: Inputs, batch: FreeAxis | None) -> ExportedProgram:
    """Return the graph of a network, of torch's own operations.

    Args:
        network: In eval mode.
        inputs: Of one forward pass.
        batch: The batch, if its size should be free.

    Raises:
        CompressionError: torch.export does not take the network.
    """
    check_names(network)
    args, kwargs = resized(inputs.call, {batch: 2}) if batch else inputs.call
    dim = torch.export.Dim("batch", min=1)
    shapes = inputs.torch_shapes([batch], dim) if batch else None
    try:
        with _quiet(), torch.no_grad(), seeded("export"):
            return torch.export.export(network, args, kwargs, dynamic_shapes=shapes)
    except Exception as err:
        hint = " Pass dynamic_batch=False if its batch size is fixed." if batch else ""
        raise CompressionError(
            f"The network was to become a program and torch.export could not make it one: "
            f"{first_line(err)}.{hint}"
        ) from err


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the remarks of torch on its own formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _prove(
    network: nn.Module,
    other: Callable[..., Any],
    calls: Sequence[Call],
    batch: FreeAxis,
    sizes: Sequence[int],
) -> tuple[float, int]:
    """Return the largest absolute difference, and the number of forward passes compared."""
    worst, checks = 0.0, 0
    for size in sizes:
        for args, kwargs in _inputs(calls, batch, size):
            try:
                with torch.no_grad():
                    wanted = tensors_of(network(*args, **kwargs))
                    found = tensors_of(other(*args, **kwargs))
            except Exception as err:
                raise CompressionError(
                    f"The network and the file were to be run at batch size {size}, and one of "
                    f"them failed: {first_line(err)}. Pass dynamic_batch=False if the batch size "
                    "is fixed."
                ) from err
            worst = max(worst, _difference(wanted, found, size))
            checks += 1
    return worst, checks


def _inputs(calls: Sequence[Call], batch: FreeAxis, size: int) -> Iterator[Call]:
    yield from (resized(call, {batch: size}) for call in calls)
    for seed in RANDOM_SEEDS:
        with seeded("parity", seed, size):
            call = map_tensors(
                resized(calls[0], {batch: size}),
                lambda t: torch.randn_like(t) if t.is_floating_point() else t,
            )
        yield call


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor], size: int) -> float:
    """Return the largest absolute difference of any output; raise if it is no rounding."""
    shapes = [[(tuple(t.shape), t.dtype) for t in outputs] for outputs in (wanted, found)]
    problem, worst = "", math.inf
    if shapes[0] != shapes[1]:
        problem = f"are {shapes[1]} instead of {shapes[0]}"
    elif any(not torch.equal(a.isnan(), b.isnan()) for a, b in zip(wanted, found, strict=True)):
        problem = "have NaN in other places"
    else:
        worst = 0.0
        for a, b in zip(wanted, found, strict=True):
            same = (a == b) | a.isnan()  # infinity less infinity is NaN
            gap = torch.where(same, 0, a.double() - b.double()).abs().amax().item() if len(b) else 0
            worst = max(worst, gap)
            finite = a[a.isfinite()].double().abs()
            scale = finite.amax().item() if finite.numel() else 0.0
            if gap > TOLERANCE * max(scale, 1e-6):
                problem = f"differ by {gap:.3e} where values reach {scale:.3e}"
    if problem:
        raise ExportMismatchError(
            f"The file was compared with the network at batch size {size}, and its outputs "
            f"{problem}. No file was kept; report the layers of this network as a bug.",
            max_difference=worst,
        )
    return worst
