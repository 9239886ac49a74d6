"""Whether a file in fewer bits is worth shipping: smaller, as good within a guard, fast enough."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pbcompress.core.drafts import draft_folder
from pbcompress.core.inputs import Call, to_device
from pbcompress.core.modules import copy_model
from pbcompress.core.text_tables import figure
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.network import OnnxNetwork
from pbcompress.onnx_files.session import version
from pbcompress.quantization.converter import Method, Scope, weight_bits, write_fp16
from pbcompress.quantization.int8_search import (
    CALIBRATION_SAMPLES,
    Int8Search,
    calibration_feeds,
    speedups,
)
from pbcompress.quantization.precisions import Fp16, Int8, Precision, Quantize
from pbcompress.quantization.rounding_aware import train_quantized
from pbcompress.training.joining import is_by_sample, taken
from pbcompress.training.loop import evaluate, predict
from pbcompress.training.task import Data, Task, accuracy, to_number

__all__ = ["Quantization", "Request", "quantize_file", "requested", "way_named"]

DROP = 0.005  # of an accuracy; of the range of another metric
DRAWS = 3
WAYS: dict[str, type[Int8 | Fp16]] = {way.kind: way for way in (Int8, Fp16)}
REFUSED = {"bf16": f"ONNX Runtime {version()} has no bfloat16 products on a CPU; fp16 is as small"}


@dataclass(frozen=True)
class Quantization:
    """What fewer bits brought, and whether they were taken.

    Attributes:
        precision: "int8" or "fp16".
        accepted: Whether the file has it.
        failures: Which guards it did not pass: "size", "accuracy", "speed".
        metric_name: Of the task.
        metric_before: Validation metric of the float32 file, through ONNX Runtime.
        metric_after: Of the file in fewer bits.
        guard: How much worse the metric may be, absolute.
        bytes_before: Size of the float32 file.
        bytes_after: Of the file in fewer bits.
        speedup: Median of ratios of interleaved runs at batch 1, one thread: above 1 is faster.
        least_speedup: The speed guard: 1 for int8, 0.5 for fp16.
        scope: "products": convolutions and matrix products alone are int8; "all": every operation
            that can be. None for fp16, like the next one.
        method: How ranges were calibrated.
        excluded: Nodes that stayed float32, most sensitive first.
        samples: Calibration samples.
        metric_untrained: Metric of the best int8 file before recovery, where it was tried.
        recovered: Whether the file has the weights of the recovery.
    """

    precision: Precision
    accepted: bool
    failures: tuple[str, ...]
    metric_name: str
    metric_before: float
    metric_after: float
    guard: float
    bytes_before: int
    bytes_after: int
    speedup: float
    least_speedup: float
    scope: Scope | None = None
    method: Method | None = None
    excluded: tuple[str, ...] = ()
    samples: int = 0
    metric_untrained: float | None = None
    recovered: bool = False

    def __str__(self) -> str:
        verdict = "taken" if self.accepted else f"not taken ({', '.join(self.failures)})"
        text = (
            f"{self.precision} {verdict}: {self.metric_name} {figure(self.metric_before)} -> "
            f"{figure(self.metric_after)} (guard {self.guard:.3g}), {self.bytes_before:,} -> "
            f"{self.bytes_after:,} bytes, {self.speedup:.2f} times as fast (guard "
            f"{self.least_speedup:g})"
        )
        if self.method:
            text += f", {self.method} ranges, {len(self.excluded)} nodes left in float32"
        if self.metric_untrained is not None:
            helped = "recovered from" if self.recovered else "recovery did not better"
            text += f", {helped} {figure(self.metric_untrained)}"
        return text


@dataclass(frozen=True)
class Request:
    """What was asked for; see `requested`.

    Attributes:
        way: In which bits, and within which guard.
        data: ``train`` calibrates, and trains a recovery; ``val`` is scored.
        task: Metric, and how a batch calls the network.
    """

    way: Int8 | Fp16
    data: Data
    task: Task


def requested(quantize: Quantize, data: Data | None, task: Task | None) -> Request | None:
    """Check what was asked for; None for float32.

    Args:
        quantize: The way, its name, or None.
        data: See `Request`.
        task: See `Request`; None is classification.

    Raises:
        CompressionError: There are no data, no such way, or no kernels of it in ONNX Runtime.
    """
    if quantize is None:
        return None
    way = quantize if isinstance(quantize, Int8 | Fp16) else way_named(quantize)
    if data is None:
        raise CompressionError(
            f"quantize={quantize!r} needs data=Data(train, val) to calibrate and to score; found "
            "None."
        )
    return Request(way, data, task or Task())


def way_named(name: str, choices: Mapping[str, Any] | None = None) -> Int8 | Fp16:
    """Return a way of quantising by its name, as a command line or a recipe has it.

    Args:
        name: "int8" or "fp16".
        choices: Its own ones.

    Raises:
        CompressionError: There is no such way, no such choice, or a choice is out of range.

    Example:
        >>> way_named("int8", {"max_drop": 0.01})
        Int8(max_drop=0.01, recover_epochs=0)
    """
    way = WAYS.get(str(name))
    if way is None:
        reason = REFUSED.get(str(name), 'it is "int8", "fp16", Int8(...), Fp16(...) or None')
        raise CompressionError(f"quantize={name!r} was asked for; {reason}.")
    try:
        return way.from_dict(choices or {})
    except ValueError as err:
        raise CompressionError(f"quantize={name!r} was asked for. {err}") from err


def quantize_file(
    path: Path,
    network: nn.Module,
    call: Call,
    request: Request,
    write: Callable[[nn.Module, Path], Any],
    device: torch.device,
) -> Quantization:
    """Put a file of fewer bits in the place of a float32 one, if it passes all guards.

    Where int8 does not pass for its accuracy, or passes only with nodes in float32 that cost the
    other guards, and a recovery was asked for, a copy of the network is trained under the rounding
    (`train_quantized`), written, and quantised anew. It is taken if it passes, or has the better
    metric.

    Args:
        path: The float32 file.
        network: What was exported, on the CPU.
        call: Inputs of one forward pass.
        request: What is asked for.
        write: Exports a network to a float32 file, proven.
        device: Where a recovery trains.

    Raises:
        CompressionError: A batch does not fit the file, or the library could not convert it.
    """
    args, kwargs = call
    with torch.no_grad():
        like = network(*args, **kwargs)
    judge = _Judge(path, like, request)
    with draft_folder() as folder:
        way = request.way
        if isinstance(way, Fp16):
            file, found = judge.fp16(path, folder)
        else:
            file, found = judge.int8(path, folder)
            is_inexact = "accuracy" in found.failures or found.excluded
            if way.recover_epochs and found.failures and is_inexact:
                recovered = folder / "recovered"
                recovered.mkdir()
                source = recovered / "float32.onnx"
                write(_recovered(network, call, request, way.recover_epochs, device), source)
                file, found = judge.better((file, found), judge.int8(source, recovered))
        if found.accepted:
            path.write_bytes(file.read_bytes())
    return found


def _recovered(
    network: nn.Module, call: Call, request: Request, epochs: int, device: torch.device
) -> nn.Module:
    return train_quantized(
        copy_model(network).to(device),
        to_device(call, device),
        request.data,
        request.task,
        epochs=epochs,
        bits=weight_bits(),
        samples=CALIBRATION_SAMPLES,
    ).cpu()


def _drop(task: Task, output: Any, target: Any, samples: int) -> float:
    """Return by how much a metric may be worse: of its range, so that its unit does not matter.

    The range is from what it is to what it is by chance.
    """
    if task.metric is accuracy:
        return DROP
    reason = "outputs and targets are not one for each sample"
    score, chance = math.nan, math.nan
    if task.reduce is not None:
        reason = "Task.reduce leaves of the outputs too little to tell what chance would give"
    elif samples > 1 and is_by_sample((output, target), samples):
        try:
            chance = _by_chance(task, output, target, samples)
            score = task.score(float(task.metric(output, target)))
            reason = "by chance it is not finite"
        except Exception as err:
            reason = f"on outputs of other samples it raised {type(err).__name__}"
    if not math.isfinite(score) or not math.isfinite(chance):
        raise CompressionError(
            f"Fewer bits may cost 0.5 % of the range of {task.metric_name}, and the range is not "
            f"known: {reason}. Say how much worse it may be: Int8(max_drop=...) or "
            "Fp16(max_drop=...)."
        )
    return DROP * max(score - chance, 0.0)


def _by_chance(task: Task, output: Any, target: Any, samples: int) -> float:
    """Return the score of outputs that know nothing: each given to another sample, or their mean.

    The better of the two: a perplexity of outputs that are sure and wrong has no bound.
    """
    generator, scores = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        index = torch.randperm(samples, generator=generator)
        scores.append(task.score(float(task.metric(output, taken(target, samples, index)))))
    shuffled = sum(scores) / DRAWS
    try:
        mean = task.score(float(task.metric(tree_map_only(Tensor, _mean, output), target)))
    except Exception:  # such as a correlation, which is not defined where nothing varies
        return shuffled
    return max(shuffled, mean) if math.isfinite(mean) else shuffled


def _mean(output: Tensor) -> Tensor:
    """Return as many samples, each the mean of all."""
    is_number = output.is_floating_point() and output.dim()
    return output.mean(0, keepdim=True).expand_as(output) if is_number else output


class _Judge:
    """Makes files of fewer bits, and holds them against the float32 one."""

    def __init__(self, path: Path, like: object, request: Request) -> None:
        self.path, self.like, self.request = path, like, request
        network, task = OnnxNetwork(path, like), request.task
        output, target, samples = predict(network, request.data.val, task)
        self.metric = to_number(task.metric(output, target), "Task.metric")
        given = request.way.max_drop
        self.guard = _drop(task, output, target, samples) if given is None else given

    def _metric(self, path: Path) -> float:
        network = OnnxNetwork(path, self.like)
        return evaluate(network, self.request.data.val, self.request.task)[0]

    def _is_good(self, metric: float) -> bool:
        score = self.request.task.score
        return score(self.metric) - score(metric) <= self.guard

    def fp16(self, source: Path, folder: Path) -> tuple[Path, Quantization]:
        """Return the fp16 form of a file, and what it brings."""
        file, network = folder / "fp16.onnx", OnnxNetwork(source, self.like)
        write_fp16(source, file)
        feeds = calibration_feeds(network, self.request.data, self.request.task)
        (speed,) = speedups(network, [file], feeds[0])
        return file, self._judged(file, self._metric(file), speed)

    def int8(self, source: Path, folder: Path) -> tuple[Path, Quantization]:
        """Return the best int8 form of a file, and what it brings."""
        network, request = OnnxNetwork(source, self.like), self.request
        task, is_good = request.task, self._is_good
        file, speed = Int8Search(network, source, folder, request.data, task, is_good).best()
        return file.path, self._judged(
            file.path,
            file.metric,
            speed,
            scope=file.scope,
            method=file.method,
            excluded=file.excluded,
            samples=file.samples,
        )

    def _judged(self, file: Path, metric: float, speed: float, **facts: Any) -> Quantization:
        request, before = self.request, self.path.stat().st_size
        after, way = file.stat().st_size, request.way
        failed = {
            "size": after >= before,
            "accuracy": not self._is_good(metric),
            "speed": speed < way.least_speedup,
        }
        return Quantization(
            precision=way.kind,
            accepted=not any(failed.values()),
            failures=tuple(guard for guard, is_failed in failed.items() if is_failed),
            metric_name=request.task.metric_name,
            metric_before=self.metric,
            metric_after=metric,
            guard=self.guard,
            bytes_before=before,
            bytes_after=after,
            speedup=speed,
            least_speedup=way.least_speedup,
            **facts,
        )

    def better(
        self, plain: tuple[Path, Quantization], recovered: tuple[Path, Quantization]
    ) -> tuple[Path, Quantization]:
        """Return the file without a recovery or the one with it, and what is known of both."""
        score = self.request.task.score
        file, found = max(
            (plain, recovered), key=lambda pair: (pair[1].accepted, score(pair[1].metric_after))
        )
        return file, replace(
            found,
            metric_untrained=plain[1].metric_after,
            recovered=found is recovered[1],
        )
