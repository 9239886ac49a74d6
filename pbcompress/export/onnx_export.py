"""Export to ONNX; `parity` proves that the file computes what the network computes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbcompress.core.inputs import Call, as_call, to_device
from pbcompress.core.modules import copy_model, device_of
from pbcompress.core.text_tables import figure
from pbcompress.core.turns import in_turn
from pbcompress.errors import CompressionError, first_line
from pbcompress.export.free_axes import Dynamic, Inputs, check_samples, name_arguments_
from pbcompress.export.onnx_writer import FileWriter
from pbcompress.export.parity import Parity
from pbcompress.export.translation import output_of, translate
from pbcompress.onnx_files.contents import FileFacts, facts_of
from pbcompress.onnx_files.network import OnnxNetwork
from pbcompress.onnx_files.session import CPU, check_providers
from pbcompress.onnx_files.store import drafting, install, size_of
from pbcompress.quantization.guards import Quantization, quantize_file, requested
from pbcompress.quantization.precisions import Quantize
from pbcompress.training.loop import evaluate
from pbcompress.training.task import Data, Task, inputs_of

__all__ = ["ExportReport", "export_onnx", "write_onnx"]

OPSETS = range(18, 26)


@dataclass(frozen=True)
class ExportReport:
    """What was exported and how it was proven.

    What is known of the file and of the proof is there by name too: ``report.max_difference``.

    Attributes:
        file: The outside of the file.
        parity: How far it is from the network, over all runs.
        path: The ONNX file.
        file_bytes: Size of the file.
        metric_name: Of the task, where data was given.
        metric_torch: Validation metric of the network.
        metric_file: The same through ONNX Runtime.
        quantization: What int8 brought, where it was asked for; the other attributes are those of
            the file that was written, the differences those of its float32 form.
    """

    file: FileFacts
    parity: Parity
    path: str
    file_bytes: int
    metric_name: str = ""
    metric_torch: float | None = None
    metric_file: float | None = None
    quantization: Quantization | None = None

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        score = ""
        if self.metric_torch is not None:
            torch_, file = figure(self.metric_torch), figure(self.metric_file or 0.0)
            score = f"; {self.metric_name} {torch_}, of the file {file}"
        int8 = f"; {self.quantization}" if self.quantization else ""
        return (
            f"{self.path}: opset {self.opset}, {self.file_bytes:,} bytes, "
            f"{sum(self.operations.values())} nodes; torch and ONNX Runtime differ by at most "
            f"{self.max_difference:.2e} over {self.checks} runs at batch sizes {sizes}{score}{int8}"
        )

    @property
    def opset(self) -> int:
        """Operator set of the file."""
        return self.file.opset

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the file."""
        return self.file.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs of the file."""
        return self.file.output_names

    @property
    def operations(self) -> Mapping[str, int]:
        """Number of nodes by operation."""
        return self.file.operations

    @property
    def max_difference(self) -> float:
        """Largest absolute difference of an output from torch in float32."""
        return self.parity.max_difference

    @property
    def max_relative(self) -> float:
        """The same, relative to the largest output magnitude of its run."""
        return self.parity.max_relative

    @property
    def file_error(self) -> float | None:
        """Largest relative difference from torch in float64, where that runs."""
        return self.parity.file_error

    @property
    def torch_error(self) -> float | None:
        """The same of torch in float32."""
        return self.parity.torch_error

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same highest output, where there are classes."""
        return self.parity.agreement

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that were run."""
        return self.parity.batch_sizes

    @property
    def axis_sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Sizes of every other free axis that were run."""
        return self.parity.axis_sizes

    @property
    def checks(self) -> int:
        """Forward passes compared."""
        return self.parity.checks

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data, in which what is known of file and proof has its own names."""
        data = asdict(self)
        return {**data.pop("parity"), **data.pop("file"), **data}


@in_turn
def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: object,
    *,
    quantize: Quantize = None,
    data: Data | None = None,
    task: Task | None = None,
    opset: int = 20,
    dynamic: Dynamic = "batch",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    samples: Sequence[object] = (),
    metadata: Mapping[str, str] | None = None,
    providers: Sequence[str] = CPU,
) -> ExportReport:
    """Write one ONNX file, and keep it only if it computes what the model computes.

    The file is checked in full, then run in ONNX Runtime beside torch in float32 and in float64:
    at batch sizes 1, 2, 5 and up to 64, at other sizes of every free axis, on the example inputs,
    on ``samples``, on a batch of ``data.val``, and on random values. The proof happens before the
    file takes its place, so on an error a former file of that name is as it was.

    Args:
        model: Usually from `fuse`; exported as a copy in eval mode on the CPU.
        path: The file to write; weights of more than 2 GB go into ``path.data`` beside it.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch;
            or an `Example`, which says what is.
        quantize: `Int8` or `Fp16`: write fewer bits if the file is then smaller, as good and fast
            enough; "int8" and "fp16" are these with their defaults. Else the file is float32, and
            ``report.quantization`` says which of these failed.
        data: ``val`` is scored by torch and by the file. For fewer bits, ``train`` calibrates.
        task: The metric; None is classification.
        opset: ONNX operator set, 18 to 25.
        dynamic: Which axes may have any size. "batch": the batch; "auto": all that the network
            allows; None: none. A dict names further axes than the batch by forward's arguments:
            ``{"x": {2: "height", 3: "width"}}``; one name at two places is one size, and None in
            place of a name fixes the axis, the batch's too.
        input_names: Names in the file; None: those of forward's arguments.
        output_names: The same; None: the keys of a dict, "output" or "output_0" and so on.
        samples: Further inputs to compare on, e.g. real batches.
        metadata: Texts that the file carries, beside the version of pbcompress; read them with
            `onnx_files.contents.metadata_of`.
        providers: Execution providers of ONNX Runtime for the proof.

    Returns:
        The facts of the file and of the proof.

    Raises:
        ExportMismatchError: The outputs differ by more than rounding; the worst output is named,
            and the first layer that differs where it can be found.
        CompressionError: The network cannot be exported (the line that torch refuses is named), an
            axis that was asked for is fixed, an output has an input's name, ``data`` does not fit,
            or the path cannot be written.
        DivergedError: The loss of a recovery was not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(nn.Linear(3, 2), f"{folder}/a.onnx", torch.zeros(1, 3))
        >>> report.operations["Gemm"], report.batch_sizes
        (1, (1, 2, 5, 64))
    """
    request = requested(quantize, data, task)
    _check_choices(opset, dynamic)
    check_providers(providers)
    target = Path(path)
    said = (task or Task()).said
    network, inputs = _prepared(model, said(as_call(example_inputs)))
    others = [_inputs(network, said(as_call(sample))) for sample in samples]
    free = inputs.free(dynamic)
    check_samples(inputs, others, free)
    if data is not None:
        others.append(_validation_inputs(network, data, task or Task()))
    names = (input_names, output_names)
    writer = FileWriter(inputs, others, names, opset, metadata or {}, providers)
    with drafting(target) as draft:
        free, facts, parity = writer.write(network, draft, free, is_auto=dynamic == "auto")
        scores = _scores(network, inputs.call, draft, data, task or Task())
        quantization = None
        if request:
            write = partial(writer.write, free=free)
            quantization = quantize_file(
                draft, network, inputs.call, request, write, device_of(model)
            )
            facts = facts_of(draft)
        install(draft, target)
    return ExportReport(
        file=facts,
        parity=parity,
        path=str(target),
        file_bytes=size_of(target),
        **scores,
        quantization=quantization,
    )


def _check_choices(opset: int, dynamic: Dynamic) -> None:
    if opset not in OPSETS:
        raise CompressionError(
            f"opset={opset} was asked for; this version writes {OPSETS[0]} to {OPSETS[-1]}."
        )
    if dynamic not in ("batch", "auto", None) and not isinstance(dynamic, Mapping):
        raise CompressionError(
            f'dynamic={dynamic!r} was asked for; it is "batch", "auto", None, or a dict by '
            'forward\'s arguments such as {"x": {2: "height"}}.'
        )


def _prepared(model: nn.Module, example_inputs: object) -> tuple[nn.Module, Inputs]:
    """Return a copy that is to be exported, and its inputs."""
    if any(p.dtype == torch.bfloat16 for p in model.parameters()):
        raise CompressionError(
            "An ONNX file was asked for, and the model is bfloat16, which ONNX Runtime cannot run "
            "on a CPU. Export a copy in float32: copy.deepcopy(model).float()."
        )
    network = copy_model(model).cpu().eval()
    name_arguments_(network, as_call(example_inputs))
    return network, _inputs(network, example_inputs)


def _inputs(network: nn.Module, values: object) -> Inputs:
    return Inputs(network, to_device(as_call(values), "cpu"))


def _validation_inputs(network: nn.Module, data: Data, task: Task) -> Inputs:
    """Return what the first batch of validation gives to the network."""
    found = inputs_of(data.val, task, network, torch.device("cpu"))
    return Inputs(network, found)


def _scores(
    network: nn.Module, call: Call, draft: Path, data: Data | None, task: Task
) -> dict[str, Any]:
    """Return the metric on validation of torch and of the file."""
    if data is None:
        return {}
    return {
        "metric_name": task.metric_name,
        "metric_torch": evaluate(network, data.val, task)[0],
        "metric_file": _score_of(OnnxNetwork(draft, output_of(network, call)), data, task),
    }


def _score_of(network: OnnxNetwork, data: Data, task: Task) -> float:
    try:
        return evaluate(network, data.val, task)[0]
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            "The task was to be scored with the exported file in place of the network, and failed: "
            f"{first_line(err)}. Let Task.forward call the model and nothing else of it."
        ) from err


def write_onnx(
    model: nn.Module, path: Path, example_inputs: object, *, free_batch: bool = True
) -> None:
    """Write the file that `export_onnx` writes by default, without its proof: for measuring.

    Args:
        model: The network.
        path: The file.
        example_inputs: Of one forward pass.
        free_batch: Whether the batch size is free, where the network allows; a fixed one is that
            of the example, and takes about half of the time.

    Raises:
        CompressionError: The network cannot be exported.
    """
    network, inputs = _prepared(model, example_inputs)
    try:
        free = inputs.free("batch") if free_batch else []
        is_free = bool(free and translate(network, inputs, path, free, opset=20, is_measured=True))
    except CompressionError:
        is_free = False
    if not is_free:
        translate(network, inputs, path, [], opset=20, is_measured=True)
