"""Data, task and one epoch: a plain loop that knows nothing of compression."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pbcompress.config import RecoveryConfig
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.surgery import (
    Call,
    copy_model,
    device_of,
    map_tensors,
    preserved_mode,
    seeded,
)

__all__ = [
    "Callback",
    "Data",
    "Task",
    "accuracy",
    "check_data",
    "evaluate",
    "inputs_of",
    "lr_factor",
    "make_optimizer",
    "train_epoch",
]

Batches = Iterable[Any]


@dataclass(frozen=True)
class Data:
    """The batches of a task; each split can be gone through again and again.

    Args:
        train: Trains the weights.
        val: Decides: best epoch, whether a dendrite set stays, which network is the result.
        test: Scored once, at the end; never decides anything.
    """

    train: Batches
    val: Batches
    test: Batches | None = None


def accuracy(output: Tensor, target: Tensor) -> float:
    """Return the share of samples whose highest output is the target class.

    Args:
        output: Shape (N, classes, ...).
        target: Shape (N, ...), integers.

    Example:
        >>> accuracy(torch.eye(3), torch.tensor([0, 1, 1]))
        0.6666666865348816
    """
    return (output.argmax(1) == target).float().mean().item()


@dataclass(frozen=True)
class Task:
    """What is learned, and how it is scored; the default is classification.

    Args:
        loss: ``loss(output, target)`` gives the scalar to minimise.
        metric: ``metric(output, target)`` gives one number for a whole split; it gets the outputs
            and targets of all its batches joined along the first axis.
        higher_is_better: Direction of the metric; zero and negative values are fine.
        forward: ``forward(model, batch)`` gives ``(output, target)``; None is a batch of
            ``(inputs, target)``, with inputs a tensor, a tuple or a dict.
        name: Of the metric, for tables.

    Example:
        >>> mse = torch.nn.functional.mse_loss
        >>> Task(loss=mse, metric=mse, higher_is_better=False, name="mse").score(0.5)
        -0.5
    """

    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy
    metric: Callable[[Any, Any], Any] = accuracy
    higher_is_better: bool = True
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None
    name: str = ""

    @property
    def metric_name(self) -> str:
        """Name of the metric: ``name``, or that of the function."""
        return self.name or getattr(self.metric, "__name__", "metric")

    def score(self, metric: float) -> float:
        """Return the metric so that higher is better."""
        return metric if self.higher_is_better else -metric

    def run(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return ``(output, target)`` of one batch."""
        if self.forward is not None:
            return self.forward(model, batch)
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise CompressionError(
                "A batch of (inputs, target) was expected; the loader yielded "
                f"{_describe(batch)}. Pass Task(forward=...) that takes (model, batch) and returns "
                "(output, target)."
            )
        inputs, target = batch
        if isinstance(inputs, dict):
            return model(**inputs), target
        if isinstance(inputs, tuple | list):
            return model(*inputs), target
        return model(inputs), target


def _describe(batch: Any) -> str:
    kind = type(batch).__name__
    if isinstance(batch, dict):
        return f"a dict with {', '.join(map(str, batch))}"
    return f"a {kind} of {len(batch)}" if isinstance(batch, tuple | list) else f"a {kind}"


class Callback:
    """Hooks into `compress` and `recover_`: override what you need, and draw no random numbers."""

    def on_stage(self, stage: str, total_epochs: int) -> None:
        """Run when a stage of training begins, with the most epochs that it can take."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Run after every epoch, with its line of the history."""

    def on_end(self) -> None:
        """Run when training is over."""


def check_data(data: Data, task: Task, model: nn.Module, device: torch.device) -> None:
    """Try one batch of every split on a copy of ``model``, so that errors come before training.

    Raises:
        CompressionError: A split is empty, yields something unexpected or NaN, can be gone through
            only once, or the loss is not a differentiable finite scalar.
    """
    network = copy_model(model).to(device).eval()
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        if split is None and name == "test":
            continue
        batch = _move(_first_batch(split, name), device)
        _check_finite(batch, f"the first batch of Data.{name}")
        with seeded("check"), torch.set_grad_enabled(name == "train"):
            output, target = task.run(network, batch)
            if name == "train":
                _check_loss(task.loss(output, target))
            else:
                _to_number(task.metric(output, target), "Task.metric")


def _first_batch(split: Any, name: str) -> Any:
    if split is None or not isinstance(split, Iterable):
        raise CompressionError(
            f"Data.{name} must be batches that can be gone through again, such as a DataLoader "
            f"or a list; found {type(split).__name__}."
        )
    if isinstance(split, Iterator):
        raise CompressionError(
            f"Data.{name} is an iterator that ends after one pass. Give what makes it: a "
            "DataLoader, a list, or an object whose __iter__ starts anew."
        )
    with seeded("first batch"), _seeded_generators(split, 0):
        for batch in split:
            return batch
    raise CompressionError(f"Data.{name} yielded no batch. Give at least one.")


def inputs_of(data: Data, task: Task, model: nn.Module, device: torch.device) -> Call:
    """Return the ``(args, kwargs)`` with which the first train batch calls the model."""
    network, calls = copy_model(model).to(device).eval(), []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    network.register_forward_pre_hook(record, with_kwargs=True)
    batch = _move(_first_batch(data.train, "train"), device)
    with torch.no_grad(), seeded("check"):
        task.run(network, batch)
    if not calls:
        raise CompressionError(
            "Task.forward did not call the model, so its inputs are not known. Pass example_inputs."
        )
    return map_tensors(calls[0], lambda t: t.detach().clone())


def _move(batch: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda t: t.to(device), batch)


def _check_finite(batch: Any, where: str) -> None:
    for tensor in tree_leaves(batch):
        if (
            isinstance(tensor, Tensor)
            and tensor.is_floating_point()
            and not tensor.isfinite().all()
        ):
            raise CompressionError(f"There is a NaN or infinity in {where}. Clean the data first.")


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise CompressionError(
            f"Task.loss must return a scalar tensor; it returned {found}. Reduce it, e.g. with "
            ".mean()."
        )
    if not loss.requires_grad:
        raise CompressionError(
            "Task.loss returned a value without gradient. Use torch operations only, and a model "
            "with at least one parameter that requires grad."
        )
    if not loss.isfinite():
        raise CompressionError(
            f"Task.loss must return a finite number; it returned {loss.item()} on the first batch "
            "of Data.train. Check the targets and the model's weights."
        )


def _to_number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as err:
        raise CompressionError(f"{name} must return one number; it returned {value!r}.") from err


@contextmanager
def _seeded_generators(split: Any, seed: int) -> Iterator[None]:
    """Seed the generators that a loader carries, and give their states back at the end."""
    owners = [split, getattr(split, "sampler", None), getattr(split, "batch_sampler", None)]
    owners.append(getattr(owners[2], "sampler", None))
    found = {
        id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)
    }
    states = {key: generator.get_state() for key, generator in found.items()}
    for generator in found.values():
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for key, generator in found.items():
            generator.set_state(states[key])


def lr_factor(config: RecoveryConfig, progress: float) -> float:
    """Return the learning rate as a share of its peak at ``progress`` in [0, 1) of a phase.

    Example:
        >>> lr_factor(RecoveryConfig(warmup=0.5), 0.25), lr_factor(RecoveryConfig(warmup=0.5), 0.75)
        (0.5, 0.5)
    """
    if config.schedule == "constant":
        return 1.0
    if progress < config.warmup:
        return progress / config.warmup
    rest = min((progress - config.warmup) / (1 - config.warmup), 1.0)
    return 1 - rest if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: RecoveryConfig, *, is_dendrite: bool
) -> torch.optim.Optimizer:
    """Return a fresh optimizer over the parameters of one phase."""
    lr = config.dendrite_lr if is_dendrite else config.lr
    decay = 0.0 if is_dendrite else config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


def train_epoch(
    model: nn.Module,
    batches: Batches,
    task: Task,
    optimizer: torch.optim.Optimizer,
    set_lr: Callable[[float], None],
    *,
    seed: tuple[int | str, ...],
    max_grad_norm: float | None = None,
) -> tuple[float, int]:
    """Train on every batch once, in the mode that ``model`` is in.

    Args:
        model: Trained in place.
        batches: The train split.
        task: Loss and forward.
        optimizer: Holds what trains.
        set_lr: Called before every step with the share of the epoch that is done halfway
            through it, so no step of a warm-up is lost to a rate of zero.
        seed: Names the random stream of this epoch: order of samples, dropout, augmentation.
        max_grad_norm: Clip to this norm.

    Returns:
        Mean loss over the batches, and the number of optimizer steps.

    Raises:
        DivergedError: A loss is not finite; the message says if the data was not.
    """
    device = device_of(model)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    expected = _length(batches)
    total, steps = 0.0, 0
    with seeded(*seed), _seeded_generators(batches, torch.initial_seed() % 2**63):
        for raw in batches:
            set_lr(min((steps + 0.5) / expected, 1.0) if expected else 0.5)
            batch = _move(raw, device)
            optimizer.zero_grad(set_to_none=True)
            output, target = task.run(model, batch)
            loss = task.loss(output, target)
            if not loss.isfinite():
                _check_finite(batch, f"batch {steps} of Data.train")
                raise DivergedError(
                    f"The loss became {loss.item()} at step {steps} of an epoch on finite data. "
                    "Lower RecoveryConfig.lr, or set max_grad_norm."
                )
            loss.backward()
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(trained, max_grad_norm)
            optimizer.step()
            total += loss.item()
            steps += 1
    if steps == 0:
        raise CompressionError(
            "Data.train yielded no batch. Give batches that can be gone through again."
        )
    return total / steps, steps


def _length(batches: Batches) -> int:
    try:
        return len(batches) if isinstance(batches, Sized) else 0
    except TypeError:  # a DataLoader over an IterableDataset
        return 0


def evaluate(model: nn.Module, batches: Batches, task: Task) -> tuple[float, int]:
    """Return the metric of a split and its number of samples; mode and statistics stay.

    Args:
        model: Any network.
        batches: The split.
        task: Metric and forward.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> evaluate(net, [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))], Task())[1]
        3
    """
    device = device_of(model)
    outputs, targets = [], []
    with (
        preserved_mode(model, training=False),
        torch.no_grad(),
        seeded("evaluate"),
        _seeded_generators(batches, 0),
    ):
        for batch in batches:
            output, target = task.run(model, _move(batch, device))
            outputs.append(tree_map(_to_cpu, output))
            targets.append(tree_map(_to_cpu, target))
    if not outputs:
        raise CompressionError(
            "A split yielded no batch. Give batches that can be gone through again."
        )
    target = _join(targets)
    value = _to_number(task.metric(_join(outputs), target), "Task.metric")
    first = next((t for t in tree_leaves(target) if isinstance(t, Tensor)), None)
    return value, len(first) if first is not None and first.dim() else len(targets)


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf


def _join(parts: list[Any]) -> Any:
    def join(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, Tensor):
            return torch.cat(leaves) if first.dim() > 0 else torch.stack(leaves)
        is_constant = isinstance(first, str | int | float | None) and len(set(leaves)) == 1
        if len(leaves) == 1 or is_constant:
            return first
        raise CompressionError(
            "Task.metric gets the outputs and targets of a whole split, and there is a "
            f"{type(first).__name__} among them, which cannot be joined. Return tensors from "
            "Task.forward."
        )

    return tree_map(join, parts[0], *parts[1:])
