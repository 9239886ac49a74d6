"""One epoch, and one score: a plain loop that knows nothing of compression."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress.config.recovery import OptimizerConfig, RecoveryConfig
from pbcompress.core.modules import device_of, preserved_mode
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.training.distillation import Objective
from pbcompress.training.engine import Engine
from pbcompress.training.task import (
    Batches,
    Task,
    batch_count,
    check_finite,
    moved,
    seeded_generators,
    to_number,
)

__all__ = ["evaluate", "lr_factor", "make_optimizer", "predict", "train_epoch"]


def lr_factor(config: OptimizerConfig, progress: float) -> float:
    """Return the learning rate as a share of its peak at ``progress`` in [0, 1) of a phase.

    Example:
        >>> config = OptimizerConfig(warmup=0.5)
        >>> lr_factor(config, 0.25), lr_factor(config, 0.75)
        (0.5, 0.5)
    """
    if config.schedule == "constant":
        return 1.0
    if progress < config.warmup:
        return progress / config.warmup
    rest = min((progress - config.warmup) / (1 - config.warmup), 1.0)
    return 1 - rest if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def make_optimizer(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig, *, is_dendrite: bool
) -> torch.optim.Optimizer:
    """Return a fresh optimizer over the parameters of one phase."""
    lr = config.dendrite_lr if is_dendrite else config.lr
    decay = 0.0 if is_dendrite else config.weight_decay
    if config.algorithm == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if config.algorithm == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


def train_epoch(
    engine: Engine,
    network: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: Any,
    set_lr: Callable[[float], None],
    set_loss_scale: Callable[[float], None],
    *,
    seed: tuple[int | str, ...],
    config: RecoveryConfig,
) -> tuple[float, int]:
    """Train on every batch once, in the mode that ``network`` is in.

    Args:
        engine: Runs the steps.
        network: Trained in place; what ``engine.setup`` returned.
        batches: The train split, or this process's part of it.
        objective: Loss of the network on a batch.
        optimizer: Holds what trains; what ``engine.setup`` returned.
        set_lr: Called before every step with the share of the epoch that is done halfway
            through it, so no step of a warm-up is lost to a rate of zero.
        set_loss_scale: Told what each loss will be multiplied by before its backward pass.
        seed: Names the random stream of this epoch: order of samples, dropout, augmentation.
        config: ``engine.accumulate`` and ``optimizer.max_grad_norm``.

    Returns:
        Mean loss over the batches, and the number of optimizer steps.

    Raises:
        DivergedError: A loss is not finite; the message says if the data was not.
    """
    device, group = device_of(network), config.engine.accumulate
    expected = math.ceil(batch_count(batches) / group)
    total, seen, steps = 0.0, 0, 0
    with seeded(*seed), seeded_generators(batches, torch.initial_seed() % 2**63):
        for raw, is_last in _marked(batches, group):
            if seen % group == 0:
                set_lr(min((steps + 0.5) / expected, 1.0) if expected else 0.5)
                set_loss_scale(engine.loss_scale / group)
                optimizer.zero_grad(set_to_none=True)
            batch = moved(raw, device)
            seen += 1
            ends = is_last or seen % group == 0
            with engine.accumulating(network, not ends):
                loss = objective(network, batch)
                if engine.world == 1 and not loss.isfinite():
                    check_finite(batch, f"batch {seen - 1} of Data.train")
                    raise DivergedError(
                        f"The loss became {loss.item()} at step {steps} of an epoch on finite "
                        "data. Lower OptimizerConfig.lr, or set max_grad_norm."
                    )
                engine.backward(loss if group == 1 else loss / group)
            total += loss.item()
            if ends:
                if config.optimizer.max_grad_norm is not None:
                    engine.clip(network, optimizer, config.optimizer.max_grad_norm)
                optimizer.step()
                steps += 1
    if seen == 0:
        raise CompressionError(
            "Data.train yielded no batch. Give batches that can be gone through again."
        )
    mean = engine.mean(total / seen)
    if not math.isfinite(mean):  # all processes stop together
        raise DivergedError(
            f"The mean loss of an epoch became {mean}. Lower OptimizerConfig.lr, or set "
            "max_grad_norm."
        )
    return mean, steps


def _marked(batches: Batches, group: int) -> Iterator[tuple[Any, bool]]:
    """Yield batches with whether each is the last; looks ahead only where batches are grouped."""
    if group == 1:
        yield from ((batch, True) for batch in batches)
        return
    waiting: list[Any] = []
    for batch in batches:
        if waiting:
            yield waiting.pop(), False
        waiting.append(batch)
    yield from ((batch, True) for batch in waiting)


def predict(
    model: nn.Module, batches: Batches, task: Task, engine: Engine | None = None
) -> tuple[Any, Any, int]:
    """Return outputs and targets of a split, joined, on the CPU, and its number of samples.

    Mode and statistics of the model stay.
    """
    device, engine = device_of(model), engine or Engine()
    parts: dict[int, Any] = {}
    with (
        preserved_mode(model, training=False),
        torch.no_grad(),
        seeded("evaluate"),
        seeded_generators(batches, 0),
    ):
        for number, batch in enumerate(batches):
            if number % engine.world == engine.rank:
                parts[number] = tree_map(_to_cpu, task.run(model, moved(batch, device)))
    parts = engine.gathered(parts)
    if not parts:
        raise CompressionError(
            "A split yielded no batch. Give batches that can be gone through again."
        )
    outputs, targets = zip(*(parts[number] for number in sorted(parts)), strict=True)
    target = _join(targets)
    first = next((t for t in tree_leaves(target) if isinstance(t, Tensor)), None)
    samples = len(first) if first is not None and first.dim() else len(targets)
    return _join(outputs), target, samples


def evaluate(
    model: nn.Module, batches: Batches, task: Task, engine: Engine | None = None
) -> tuple[float, int]:
    """Return the metric of a split and its number of samples; mode and statistics stay.

    Args:
        model: Any network.
        batches: The split.
        task: Metric and forward.
        engine: Of several processes each runs its part of the batches, and all of them take the
            metric of the whole split; None: one process.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> evaluate(net, [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))], Task())[1]
        3
    """
    output, target, samples = predict(model, batches, task, engine)
    return to_number(task.metric(output, target), "Task.metric"), samples


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf


def _join(parts: Sequence[Any]) -> Any:
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
