"""Networks on the same split: their metric with intervals, and how far their outputs are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pbcompress.comparison.intervals import Estimate, bootstrap, change_of_hits, share_of_hits
from pbcompress.core.inputs import tensors_of
from pbcompress.errors import CompressionError, first_line
from pbcompress.onnx_files.network import OnnxNetwork
from pbcompress.onnx_files.session import Session
from pbcompress.training.class_targets import IGNORED
from pbcompress.training.joining import is_by_sample, taken
from pbcompress.training.loop import predict
from pbcompress.training.task import Batches, Task, accuracy, check_split, to_number

__all__ = [
    "Parity",
    "Predictions",
    "estimates",
    "file_network",
    "paired_change",
    "parity",
    "predictions",
    "split_of",
]


@dataclass(frozen=True)
class Predictions:
    """What networks put out for the same samples.

    Attributes:
        outputs: Of every network.
        target: The targets.
        samples: How many there are.
    """

    outputs: Sequence[Any]
    target: Any
    samples: int


@dataclass(frozen=True)
class Parity:
    """How far the outputs of two networks are apart.

    Attributes:
        compared: Samples.
        max_difference: Largest absolute difference; None where ``problem`` says why there is none.
        agreement: Share of samples with the same highest output; None where there are no classes.
        problem: Why the outputs cannot be compared, else "".
    """

    compared: int
    max_difference: float | None
    agreement: float | None
    problem: str = ""


def file_network(path: Path) -> OnnxNetwork:
    """Return an ONNX file, which runs apart, as a network that gives one tensor or a tuple."""
    session = Session(path, apart=True)
    count = len(session.output_names)
    return OnnxNetwork(session, torch.zeros(1) if count == 1 else (torch.zeros(1),) * count)


def split_of(data: Any) -> Batches:
    """Return what a metric is reported on: the test split, else validation, else ``data`` itself.

    Raises:
        CompressionError: It cannot be read more than once.
    """
    test = getattr(data, "test", None)
    split: Batches = getattr(data, "val", data) if test is None else test
    check_split(split, "test")
    return split


def predictions(
    networks: Sequence[nn.Module], names: Sequence[str], batches: Batches, task: Task
) -> Predictions:
    """Run every network on a split.

    Raises:
        CompressionError: A network does not take a batch; it is named, with what it said.
    """
    found = []
    for network, name in zip(networks, names, strict=True):
        try:
            found.append(predict(network, batches, task))
        except Exception as err:
            raise CompressionError(
                f"{name} was to be run on the data, and failed ({type(err).__name__}: "
                f"{first_line(err)}). Give batches of the shapes that both networks take, or "
                "Task(forward=...)."
            ) from err
    counts = {samples for _, _, samples in found}
    if len(counts) > 1:
        raise CompressionError(
            f"The data gave {' and '.join(map(str, sorted(counts)))} samples in two passes. Give a "
            "split that is the same each time."
        )
    return Predictions([output for output, _, _ in found], found[0][1], found[0][2])


def estimates(found: Predictions, task: Task) -> tuple[list[Estimate], list[Estimate]]:
    """Return the metric of every network, and its change from the first to each of the others.

    Accuracy has Wilson's interval, any other metric one by bootstrap; changes are paired.

    Raises:
        CompressionError: The metric raised, or gave no number; what it said is in the message.
    """
    try:
        values = [to_number(task.metric(out, found.target), "Task.metric") for out in found.outputs]
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            f"Task.metric ({task.metric_name}) was called on {found.samples:,} samples and raised "
            f"{type(err).__name__}: {first_line(err)}. It gets outputs and targets of the whole "
            "split, joined along the first axis."
        ) from err
    hits = _hits(found, task)
    if hits is not None:
        changes = [change_of_hits(hits[0], other) for other in hits[1:]]
        return [share_of_hits(own) for own in hits], changes
    if not is_by_sample((*found.outputs, found.target), found.samples):
        reason = "no interval: outputs and targets are not one for each sample"
        rest = (found.samples, None, None, reason)
        return [Estimate(v, *rest) for v in values], [
            Estimate(v - values[0], *rest) for v in values[1:]
        ]

    def metric(network: int, index: Any) -> float:
        if index is None:
            return values[network]
        chosen = torch.from_numpy(index)
        both = (found.outputs[network], found.target)
        output, target = taken(both, found.samples, chosen)
        return float(task.metric(output, target))

    return bootstrap(metric, len(values), found.samples)


def paired_change(
    networks: Sequence[nn.Module],
    names: Sequence[str],
    batches: Batches,
    task: Task,
    scores: Sequence[float],
) -> Estimate:
    """Return how the metric changed from one network to another, sample by sample.

    Both are finished and scored, so what goes wrong here only costs the interval.

    Args:
        networks: The two.
        names: Of them, for messages.
        batches: The split.
        task: The metric.
        scores: What each had on this split before.
    """
    samples = 0
    try:
        found = predictions(networks, names, batches, task)
        samples = found.samples
        again, (change,) = estimates(found, task)
    except CompressionError as err:
        reason = f"no interval: {first_line(err)}"
    else:
        if np.allclose([estimate.value for estimate in again], scores, rtol=1e-6, atol=1e-9):
            return change
        reason = "no interval: the split is not the same each time"
    return Estimate(scores[1] - scores[0], samples, None, None, reason)


def _hits(found: Predictions, task: Task) -> list[Any] | None:
    """Return which samples each network has right, if the metric is the accuracy of one class."""
    target = found.target
    if task.metric is not accuracy or not isinstance(target, Tensor) or target.dim() != 1:
        return None
    if bool((target == IGNORED).any()):
        return None
    return [(output.argmax(1) == target).numpy() for output in found.outputs]


def parity(first: Any, second: Any) -> Parity:
    """Return how far the outputs of two networks are apart on the same samples."""
    a, b = ([t.detach().cpu() for t in tensors_of(outputs)] for outputs in (first, second))
    samples = len(a[0]) if a and a[0].dim() else 1
    shapes = [tuple(tuple(t.shape) for t in outputs) for outputs in (a, b)]
    if shapes[0] != shapes[1] or not a:
        return Parity(samples, None, None, f"outputs have shapes {shapes[0]} and {shapes[1]}")
    pairs = [(x.double().numpy(), y.double().numpy()) for x, y in zip(a, b, strict=True)]
    if any((np.isfinite(x) != np.isfinite(y)).any() for x, y in pairs):
        return Parity(samples, None, None, "outputs have NaN or infinity in other places")
    gaps = [np.abs(x[np.isfinite(x)] - y[np.isfinite(y)]) for x, y in pairs]
    has_classes = a[0].dim() == 2 and a[0].shape[1] > 1
    same = float((a[0].argmax(1) == b[0].argmax(1)).double().mean()) if has_classes else None
    return Parity(samples, max(float(gap.max(initial=0)) for gap in gaps), same)
