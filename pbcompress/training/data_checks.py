"""One look at every split before anything starts: what can be known then is said then."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from pbcompress.core.inputs import few_samples
from pbcompress.core.modules import copy_model
from pbcompress.core.processes import Processes
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.training.batch_tensors import check_finite, moved
from pbcompress.training.first_mistakes import (
    ONE_VALUE,
    called,
    described,
    refuse_broadcast,
    refuse_classes,
    single_sample_error,
)
from pbcompress.training.forward_mistakes import forward_error
from pbcompress.training.joining import sample_count
from pbcompress.training.loop import predict
from pbcompress.training.score_forms import refuse_probabilities
from pbcompress.training.task import (
    Batches,
    CheckedData,
    Data,
    Task,
    first_batch,
    seeded_generators,
    to_number,
)

__all__ = ["check_calibration", "check_data", "check_loss", "scored"]

COUNTED = 1000  # batches of a split whose passes are compared


def check_data(
    data: Data,
    task: Task,
    model: nn.Module,
    device: torch.device,
    *,
    samples: int | None = None,
) -> CheckedData:
    """Try one batch of every split on a copy of ``model``, so that errors come before training.

    A metric may be undefined on one batch (of one class, say): then the whole split decides.

    Args:
        data: The splits.
        task: Loss, metric and forward.
        model: Left as it is.
        device: Where it will train.
        samples: Of each batch, for a quick check before a training that begins at once; where they
            fail, the whole batch decides. None: the whole batch.

    Returns:
        The same splits.

    Raises:
        CompressionError: A split is empty, yields something unexpected or NaN, or can be gone
            through only once; the network does not take a batch; the loss is not a differentiable
            finite scalar; the metric is not a finite number.
    """
    network, first = copy_model(model).to(device).eval(), None
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        if split is None and name == "test":
            continue
        where = f"the first batch of Data.{name}"
        if task.forward is None:
            _refuse_one_batch(split, name)
        batch = first_batch(split, name)
        check_finite(batch, where)
        _check_passes(split, name, batch)
        batch = moved(batch, device)
        first = batch if name == "train" else first
        few = batch if samples is None else few_samples(batch, samples)
        tried = _try_loss if name == "train" else _try_metric
        if few is not batch and _passes(lambda: tried(task, network, few, where)):  # noqa: B023
            continue
        undefined = tried(task, network, batch, where)
        if undefined is not None:
            _try_whole(task, network, split, name, undefined)
    _try_one_sample(task, network, data.train, first)
    return CheckedData(data.train, data.val, data.test, first)


def _refuse_one_batch(split: Any, name: str) -> None:
    """Raise where a split is inputs and targets, and not batches of them."""
    is_pair = isinstance(split, tuple | list) and len(split) == 2
    if is_pair and all(isinstance(one, Tensor) and one.dim() for one in split):
        raise CompressionError(
            f"Data.{name} must be batches of (inputs, target); found {described(split)}, which is "
            "one batch. Write DataLoader(TensorDataset(inputs, target), batch_size=64), or "
            "[(inputs, target)]."
        )


def check_calibration(batches: Batches, task: Task, model: nn.Module, device: torch.device) -> None:
    """Try one batch of inputs without labels on a copy of ``model``.

    Raises:
        CompressionError: There is none, it has a NaN, or the network does not take it.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | dict):
        raise CompressionError(
            "compress takes data=pb.Data(train=..., val=...), or batches of inputs to fit the "
            f"narrowed network on without labels; found a {type(batches).__name__}. Give a list of "
            "batches, or a DataLoader."
        )
    batch = first_batch(batches, "train")
    check_finite(batch, "the first batch of inputs")
    network = copy_model(model).to(device).eval()
    try:
        with torch.no_grad(), seeded("check"):
            task.outputs(network, moved(batch, device))
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            f"The network does not take the first batch of inputs: {type(err).__name__}: {err}. "
            "A batch is a tensor, a dict of named inputs, or (inputs, anything); "
            "Task(forward=...) says otherwise."
        ) from err


def _passes(tried: Callable[[], CompressionError | None]) -> bool:
    """Tell whether few samples pass; a metric may be undefined on them, or warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return tried() is None
        except Exception:
            return False


def _try_loss(task: Task, network: nn.Module, batch: Any, where: str) -> None:
    with seeded("check"), torch.enable_grad():
        with forward_error(network, batch, where):
            output, target = task.run(network, batch)
        refuse_classes(task.loss, output, target, where)
        refuse_probabilities(task, network, batch, (output, target), where)
        loss = called(task.loss, "Task.loss", output, target, where)
        check_loss(loss, where)
    refuse_broadcast(task.loss, "Task.loss", (output, target), where, float)


def _try_one_sample(task: Task, network: nn.Module, split: Any, batch: Any) -> None:
    """Raise where a batch of one sample will come, and a norm of the network cannot train on it."""
    number = _place_of_one(split)
    one = few_samples(batch, 1)
    if number is None or (sample_count(one) > 1):
        return
    try:
        with seeded("check"), torch.no_grad():
            task.run(copy_model(network).train(), one)
    except Exception as err:
        if ONE_VALUE in str(err):
            raise single_sample_error(f"batch {number} of Data.train") from err


def _place_of_one(split: Any) -> int | None:
    """Return which batch of a split has one sample, as far as it can be known without a pass."""
    if isinstance(split, list | tuple):
        counts = enumerate(map(sample_count, split[:COUNTED]))
        return next((number for number, count in counts if count == 1), None)
    size = getattr(split, "batch_size", None)
    if not isinstance(split, DataLoader) or not isinstance(size, int) or split.drop_last:
        return None
    if isinstance(split.dataset, IterableDataset) or not isinstance(split.sampler, Sized):
        return None
    return len(split.sampler) // size if len(split.sampler) % size == 1 or size == 1 else None


def _try_metric(task: Task, network: nn.Module, batch: Any, where: str) -> CompressionError | None:
    """Raise where a metric cannot be taken; return an error where more samples may help."""
    with seeded("check"), torch.no_grad():
        with forward_error(network, batch, where):
            output, target = task.scored(network, batch)
        undefined = _metric_error(task, output, target, where)
    if undefined is None:
        value = _number
        refuse_broadcast(task.metric, "Task.metric", (output, target), where, value)
    return undefined


def _number(value: Any) -> float:
    return to_number(value, "Task.metric")


def _metric_error(task: Task, output: Any, target: Any, where: str) -> CompressionError | None:
    """Return what is wrong with the metric of some samples; raise where it is no number at all."""
    try:
        found = called(task.metric, "Task.metric", output, target, where)
    except CompressionError as err:
        if isinstance(err.__cause__, CompressionError):
            raise
        return err
    value = to_number(found, "Task.metric")
    if math.isfinite(value):
        return None
    return _undefined(task, value, output, target, where)


def _undefined(task: Task, value: float, output: Any, target: Any, where: str) -> CompressionError:
    """Return the error of a metric that is not finite."""
    leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    if not all(bool(t.isfinite().all()) for t in leaves):
        return DivergedError(
            f"Task.metric ({task.metric_name}) returned {value} on {where}: the network's outputs "
            f"({described(output)}) have a NaN or infinity. If it was good before this training, "
            "lower OptimizerConfig.lr; otherwise check its weights."
        )
    return CompressionError(
        f"Task.metric ({task.metric_name}) returned {value} on {where}, where a finite number was "
        f"expected; the outputs, {described(output)}, are finite, and the targets are "
        f"{described(target)}. Give samples on which it is defined (of every class, say), or write "
        "a metric that returns a number for any outputs, such as the worst one."
    )


def _try_whole(
    task: Task, network: nn.Module, split: Any, name: str, undefined: CompressionError
) -> None:
    """Take the metric of a whole split, after one batch of it was not enough."""
    output, target, samples = predict(network, split, task)
    error = _metric_error(task, output, target, f"all {samples:,} samples of Data.{name}")
    if error is not None:
        raise error from undefined


def _check_passes(split: Any, name: str, first: Any) -> None:
    """Raise if a split ends after one pass, as far as that can be seen without the network.

    Args:
        split: Batches.
        name: Of the split.
        first: The first batch of one pass; that of the next one must be like it, or passes of one
            length must follow.
    """
    if isinstance(split, list | tuple):
        return
    source = split.dataset if isinstance(split, DataLoader) else split
    if isinstance(split, DataLoader) and not isinstance(source, IterableDataset):
        return
    if isinstance(source, Iterable) and iter(source) is iter(source):
        raise _ends(name)
    if not _same(first, next(_pass(split), None)):
        first, second = (sum(1 for _ in islice(_pass(split), COUNTED)) for _ in range(2))
        if second < first:
            raise _ends(name)


def _pass(split: Any) -> Iterator[Any]:
    with seeded("first batch"), seeded_generators(split, 0):
        yield from split


def _same(one: Any, other: Any) -> bool:
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=False))
    return one is other or all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b
        for a, b in pairs
    )


def _ends(name: str) -> CompressionError:
    return CompressionError(
        f"Data.{name} ends after one pass: a second one does not start anew. Every epoch goes "
        "through it. Give a DataLoader over a data set, a list, or an object whose __iter__ makes "
        "a new iterator each time."
    )


def scored(
    model: nn.Module, batches: Any, name: str, task: Task, processes: Processes | None = None
) -> tuple[float, int]:
    """Return the metric of a split and its number of samples, as `evaluate` does; it is finite.

    Args:
        model: Any network; mode and statistics stay.
        batches: The split.
        name: Of the split: "val".
        task: Metric and forward.
        processes: See `evaluate`.

    Raises:
        CompressionError: There is a NaN in the split, or the metric is not defined on its targets
            and finite outputs.
        DivergedError: The outputs are not finite.
    """
    processes = processes or Processes()
    output, target, samples = predict(model, batches, task, processes, f"Data.{name}")
    where = f"all {samples:,} samples of Data.{name}"

    def metric() -> float:
        return to_number(called(task.metric, "Task.metric", output, target, where), "Task.metric")

    value = processes.agreed(processes.each(metric))
    if math.isfinite(value):
        return value, samples
    raise _undefined(task, value, output, target, where)


def check_loss(loss: Any, where: str) -> None:
    """Raise unless a loss is a finite scalar that can be differentiated.

    Args:
        loss: What ``Task.loss`` returned.
        where: Names the batch.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise CompressionError(
            f"Task.loss must return a scalar tensor; on {where} it returned {found}. Reduce it, "
            "e.g. with .mean()."
        )
    if not loss.requires_grad:
        raise CompressionError(
            f"Task.loss returned a value without gradient on {where}. Use torch operations only, "
            "and a model with at least one parameter that requires grad "
            "(model.requires_grad_(True))."
        )
    if not loss.isfinite():
        raise CompressionError(
            f"Task.loss must return a finite number; it returned {loss.item()} on {where}. Check "
            "the targets and the model's weights."
        )
