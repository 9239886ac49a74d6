"""Export to ONNX; `parity` proves that the file computes what the network computes."""

import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress.errors import CompressionError, first_line
from pbcompress.int8 import Quantization, try_int8
from pbcompress.onnxfile import facts_of, write_metadata
from pbcompress.parity import batch_size, is_batched, prove, resized
from pbcompress.surgery import (
    Call,
    as_call,
    copy_model,
    seeded,
    tensors_of,
    to_device,
)
from pbcompress.task import Data, Task
from pbcompress.tensorfile import write_bytes
from pbcompress.versions import version_of

__all__ = ["ExportReport", "export_onnx", "write_onnx"]

BATCH_SIZES = (1, 2, 5)
OPSETS = range(18, 26)


@dataclass(frozen=True)
class ExportReport:
    """What was exported and how it was proven.

    Attributes:
        path: The ONNX file.
        opset: Operator set of the file.
        file_bytes: Size of the file.
        max_difference: Largest absolute difference from torch over all checks.
        max_relative: The same, relative to the largest output magnitude of its check.
        batch_sizes: Batch sizes that were run.
        checks: Forward passes compared.
        input_names: Inputs of the file.
        output_names: Outputs of the file.
        operations: Number of nodes by operation.
        quantization: What int8 brought, where it was asked for; the other attributes are those of
            the file that was written, the differences those of its float32 form.
    """

    path: str
    opset: int
    file_bytes: int
    max_difference: float
    max_relative: float
    batch_sizes: tuple[int, ...]
    checks: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    operations: Mapping[str, int]
    quantization: Quantization | None = None

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        int8 = f"; {self.quantization}" if self.quantization else ""
        return (
            f"{self.path}: opset {self.opset}, {self.file_bytes:,} bytes, "
            f"{sum(self.operations.values())} nodes; torch and ONNX Runtime differ by at most "
            f"{self.max_difference:.2e} over {self.checks} runs at batch sizes {sizes}{int8}"
        )


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: object,
    *,
    quantize: Literal["int8"] | None = None,
    data: Data | None = None,
    task: Task | None = None,
    max_drop: float = 0.005,
    opset: int = 20,
    dynamic_batch: bool = True,
    samples: Sequence[object] = (),
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Write one ONNX file, and keep it only if it computes what the model computes.

    The file is checked in full, then run in ONNX Runtime beside torch at batch sizes 1, 2 and 5, on
    the example inputs, on ``samples`` and on random values. The proof happens before the file
    takes its place, so on an error a former file of that name is as it was.

    Args:
        model: Usually from `fuse`; exported as a copy in eval mode on the CPU.
        path: The file to write.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch.
        quantize: "int8": write the file in 8 bits if that is smaller, within ``max_drop`` and not
            slower on this machine; ``report.quantization`` says which. Else it is float32.
        data: For int8: ``train`` calibrates, ``val`` is scored.
        task: For int8: the metric; None is classification.
        max_drop: For int8: how much worse the validation metric may be, absolute, at least 0.
        opset: ONNX operator set, 18 to 25.
        dynamic_batch: Whether the file takes any batch size.
        samples: Further inputs to compare on, e.g. real batches.
        metadata: Texts that the file carries, beside the version of pbcompress; read them with
            `pbcompress.onnxfile.metadata_of`.

    Returns:
        The facts of the file and of the proof.

    Raises:
        ExportMismatchError: The outputs differ by more than rounding; the first layer that does is
            named where it can be told.
        CompressionError: The network cannot be exported, or the path cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(nn.Linear(3, 2), f"{folder}/a.onnx", torch.zeros(1, 3))
        >>> report.operations["Gemm"], report.batch_sizes
        (1, (1, 2, 5))
    """
    if quantize not in (None, "int8"):
        raise CompressionError(f'quantize={quantize!r} was asked for; it is "int8" or None.')
    if quantize and (data is None or not max_drop >= 0):
        raise CompressionError(
            f'quantize="int8" needs data=Data(train, val) to calibrate and to score, and max_drop '
            f"of at least 0; found {type(data).__name__} and {max_drop}."
        )
    if opset not in OPSETS:
        raise CompressionError(
            f"opset={opset} was asked for; this version writes {OPSETS[0]} to {OPSETS[-1]}."
        )
    target = Path(path)
    network = copy_model(model).cpu().eval()
    calls = [to_device(as_call(inputs), "cpu") for inputs in (example_inputs, *samples)]
    network.register_forward_hook(lambda _, __, output: _known(output))
    write_bytes(target.with_name(f".{target.name}.writable"), b"")  # fail before the work
    target.with_name(f".{target.name}.writable").unlink()
    with tempfile.TemporaryDirectory(prefix="pbcompress-") as folder:
        draft = Path(folder) / "draft.onnx"
        _export(network, calls[0], draft, opset, dynamic_batch)
        write_metadata(draft, {"pbcompress": version_of("pbcompress"), **(metadata or {})})
        facts = facts_of(draft)
        sizes = BATCH_SIZES if dynamic_batch else (batch_size(calls[0]),)
        difference, relative, checks = prove(network, draft, calls, sizes)
        quantization = None
        if quantize and data is not None:
            like = _output(network, resized(calls[0], sizes[-1]))
            quantization = try_int8(draft, draft, like, data, task or Task(), max_drop)
            facts = facts_of(draft)
        content = draft.read_bytes()
    write_bytes(target, content)
    return ExportReport(
        path=str(target),
        opset=facts.opset,
        file_bytes=len(content),
        max_difference=difference,
        max_relative=relative,
        batch_sizes=tuple(sizes),
        checks=checks,
        input_names=facts.input_names,
        output_names=facts.output_names,
        operations=facts.operations,
        quantization=quantization,
    )


def _output(network: nn.Module, call: Call) -> Any:
    args, kwargs = call
    with torch.no_grad():
        return network(*args, **kwargs)


def write_onnx(model: nn.Module, path: Path, example_inputs: object) -> None:
    """Write the file that `export_onnx` writes by default, without its proof: for measuring.

    A network whose batch size is fixed is written with that one.

    Raises:
        CompressionError: The network cannot be exported.
    """
    network = copy_model(model).cpu().eval()
    call = to_device(as_call(example_inputs), "cpu")
    try:
        _export(network, call, path, 20, dynamic_batch=True)
    except CompressionError:
        _export(network, call, path, 20, dynamic_batch=False)


def _export(network: nn.Module, call: Call, path: Path, opset: int, dynamic_batch: bool) -> None:
    args, kwargs = resized(call, 2) if dynamic_batch else call
    shapes: dict[str, Any] | None = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        bound = inspect.signature(network.forward).bind(*args, **kwargs)
        shapes = {
            name: tree_map(lambda leaf: {0: batch} if is_batched(leaf) else None, value)
            for name, value in bound.arguments.items()
        }
    try:
        with _quiet(), torch.no_grad(), seeded("export"):
            torch.onnx.export(
                network,
                args,
                str(path),
                kwargs=kwargs,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as err:
        hint = " Pass dynamic_batch=False if its batch size is fixed." if dynamic_batch else ""
        raise CompressionError(
            f"The model was to be exported to ONNX (opset {opset}) and torch.export could not: "
            f"{first_line(err)}.{hint}"
        ) from err


def _known(output: Any) -> Any:
    """Return an output; its tensors alone where it holds objects that a graph cannot (a cache)."""
    is_known = all(
        leaf is None or isinstance(leaf, Tensor | bool | int | float | str)
        for leaf in tree_leaves(output)
    )
    return output if is_known else tuple(tensors_of(output))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own deprecations, and its remarks that torchvision is absent."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)
