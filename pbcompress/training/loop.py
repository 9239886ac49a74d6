"""One step, one epoch, and one score: a plain loop that knows nothing of compression."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pbcompress.config.recovery import OptimizerConfig, RecoveryConfig
from pbcompress.core.modules import device_of, preserved_mode
from pbcompress.core.processes import Processes
from pbcompress.core.randomness import seeded
from pbcompress.core.turns import in_turn
from pbcompress.errors import CompressionError
from pbcompress.training.batch_tensors import moved, moved_and_checked
from pbcompress.training.distillation import Objective
from pbcompress.training.engine import Engine
from pbcompress.training.first_mistakes import in_batch
from pbcompress.training.joining import sample_count, samples_of
from pbcompress.training.loss_checks import LossChecks
from pbcompress.training.ragged import joined_at_any_length
from pbcompress.training.task import Batches, Task, batch_count, seeded_generators, to_number

__all__ = [
    "Stepper",
    "evaluate",
    "grouped",
    "lr_factor",
    "make_optimizer",
    "predict",
    "train_epoch",
]


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
    assert lr != "auto", "the rate of a neuron phase is found before its optimizer is made"
    decay = 0.0 if is_dendrite else config.weight_decay
    if config.algorithm == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if config.algorithm == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


class Stepper:
    """Takes the optimizer steps of a phase of training, along its schedule.

    A step is `begin_step`, `begin_batch` and a backward pass for each of its batches, and `step`.

    Args:
        engine: Runs the network and the steps.
        network: Trained in place.
        optimizer: Holds what trains, at the peak rates of the schedule.
        config: ``optimizer.schedule``, ``optimizer.max_grad_norm`` and ``engine.accumulate``.
        length: Epochs of the schedule, at least 1.

    Attributes:
        network: What runs the network while this phase lasts.
        epoch: Number of the current epoch in the schedule, from 0.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> config = RecoveryConfig(optimizer=OptimizerConfig(schedule="linear", warmup=0.0))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        >>> stepper = Stepper(Engine(), net, optimizer, config, length=2)
        >>> stepper.begin_step(0.5)  # halfway through the first of two epochs
        >>> stepper.lr
        0.375
    """

    def __init__(
        self,
        engine: Engine,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: RecoveryConfig,
        *,
        length: int,
    ) -> None:
        self.engine, self.epoch = engine, 0
        self.network, self._engine_optimizer = engine.setup(network, optimizer)
        self._optimizer, self._config, self._length = optimizer, config, length
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    @property
    def accumulate(self) -> int:
        """Batches of one step."""
        return self._config.engine.accumulate

    @property
    def lr(self) -> float:
        """Learning rate of the latest step."""
        return float(self._optimizer.param_groups[0]["lr"])  # it may be a tensor

    def begin_step(self, progress: float) -> None:
        """Set the learning rate, and drop the gradients of the step before.

        Args:
            progress: Share of the epoch that is done halfway through this step, so no step of a
                warm-up is lost to a rate of zero.
        """
        factor = lr_factor(self._config.optimizer, min((self.epoch + progress) / self._length, 1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._engine_optimizer.zero_grad(set_to_none=True)

    def begin_batch(self, share: float) -> None:
        """Take note of what the loss of the next batch is multiplied by."""

    def step(self) -> None:
        """Clip the gradients where that is asked for, and update the weights."""
        bound = self._config.optimizer.max_grad_norm
        if bound is not None:
            self.engine.clip(self.network, self._engine_optimizer, bound)
        self._engine_optimizer.step()


def train_epoch(
    stepper: Stepper,
    batches: Batches,
    objective: Objective,
    *,
    seed: tuple[int | str, ...],
    count: Callable[[Any], int] = sample_count,
) -> tuple[float, int]:
    """Train on every batch once, in the mode that the network is in.

    Args:
        stepper: Has the network, and takes the steps.
        batches: The train split, or this process's part of it.
        objective: Loss of the network on a batch.
        seed: Names the random stream of this epoch: order of samples, dropout, augmentation.
        count: Samples of a batch.

    Returns:
        Mean loss over the batches, and the number of optimizer steps.

    Raises:
        CompressionError: There is no batch, or one has a NaN or targets that the loss does not
            take; the message says which.
        DivergedError: A loss is not finite on finite data.
    """
    engine, network = stepper.engine, stepper.network
    device, processes = device_of(network), engine.processes
    expected = math.ceil(batch_count(batches) / stepper.accumulate)
    losses, seen, steps = LossChecks(processes, device), 0, 0
    with seeded(*seed), seeded_generators(batches, torch.initial_seed() % 2**63):
        for group in _together(grouped(batches, stepper.accumulate), processes):
            stepper.begin_step(min((steps + 0.5) / expected, 1.0) if expected else 0.5)
            shares = _shares(group, processes, count)
            while group:
                place = _place(seen, processes)
                batch, share = moved(group.pop(0), device), shares.pop(0)
                losses.take_data(batch, place)
                with engine.accumulating(network, bool(group)):
                    stepper.begin_batch(share)
                    loss = processes.each(partial(_loss, objective, network, batch, place))
                    losses.take_loss(loss)
                    engine.backward(loss if share == 1 else loss * share)
                seen += 1
            stepper.step()
            steps += 1
        losses.settle()
    if seen == 0:
        raise CompressionError(
            "Data.train yielded no batch in this epoch. Give batches that can be gone through "
            "again: a DataLoader over a data set, a list, or an object whose __iter__ starts anew."
        )
    return losses.mean(), steps


def _loss(objective: Objective, network: nn.Module, batch: Any, place: str) -> Tensor:
    with in_batch(place):
        return objective(network, batch)


def _place(number: int, processes: Processes) -> str:
    own = "" if processes.world == 1 else f" that process {processes.rank} takes"
    return f"batch {number} of Data.train{own}"


def _together(groups: Iterator[list[Any]], processes: Processes) -> Iterator[list[Any]]:
    """Yield the groups of this process while all of them have some.

    Raises:
        CompressionError: In all of them, where one has none left before the others.
    """
    while True:
        group = processes.each(lambda: next(groups, []))
        sizes = [int(size) for size in processes.numbers(len(group))]
        if len(set(sizes)) > 1:
            raise CompressionError(
                "Processes take equally many batches of Data.train for each step; in one step they "
                f"had {sizes}. Give all of them the same data, of one length."
            )
        if not group:
            return
        yield group


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the batches of each step, or what there is of each batch; the last may have fewer."""
    source = iter(batches)
    while group := list(islice(source, size)):
        yield group


def _shares(
    group: Sequence[Any], processes: Processes, count: Callable[[Any], int] = sample_count
) -> list[float]:
    """Return by what each batch's loss, a mean over samples, goes into that of all of a step.

    Gradients of several processes are averaged, so all of their samples are counted.
    """
    if len(group) == 1 and processes.world == 1:
        return [1.0]
    counts = [count(batch) for batch in group]
    whole = processes.mean(sum(counts))
    return [own / max(whole, 1) for own in counts]


def predict(
    model: nn.Module,
    batches: Batches,
    task: Task,
    processes: Processes | None = None,
    name: str = "the split",
) -> tuple[Any, Any, int]:
    """Return outputs and targets of a split, joined, on the CPU, and its number of samples.

    Mode and statistics of the model stay.

    Args:
        model: Any network.
        batches: The split.
        task: Forward and reduce; and the metric, where batches have axes of different lengths (see
            `joined_at_any_length`).
        processes: See `evaluate`.
        name: Of the split, for messages.
    """
    processes = processes or Processes()
    own = processes.each(partial(_own_outputs, model, batches, task, processes, name))
    parts = {number: part for found in processes.gathered(own) for number, part in found.items()}
    if not parts:
        raise CompressionError(
            f"{name[:1].upper()}{name[1:]} yielded no batch. Give batches that can be gone through "
            "again."
        )
    return joined_at_any_length([parts[number] for number in sorted(parts)], task.metric)


def _own_outputs(
    model: nn.Module, batches: Batches, task: Task, processes: Processes, name: str
) -> dict[int, Any]:
    """Return outputs, targets and samples of the batches that this process takes, by number."""
    device, parts = device_of(model), dict[int, Any]()
    with (
        preserved_mode(model, training=False),
        torch.no_grad(),
        seeded("evaluate"),
        seeded_generators(batches, 0),
    ):
        for number, batch in enumerate(batches):
            if number % processes.world == processes.rank:
                place = f"batch {number} of {name}"
                batch = moved_and_checked(batch, device, place)  # an accuracy would not tell
                with in_batch(place):
                    output, target = tree_map(_to_cpu, task.scored(model, batch))
                parts[number] = (output, target, samples_of(output, target, batch))
    return parts


@in_turn
def evaluate(
    model: nn.Module, batches: Batches, task: Task, processes: Processes | None = None
) -> tuple[float, int]:
    """Return the metric of a split and its number of samples; mode and statistics stay.

    Args:
        model: Any network.
        batches: The split.
        task: Metric and forward.
        processes: Each runs its part of the batches, and all of them take the metric of the whole
            split; None: this one alone.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> evaluate(net, [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))], Task())[1]
        3
    """
    processes = processes or Processes()
    output, target, samples = predict(model, batches, task, processes)
    value = processes.each(lambda: to_number(task.metric(output, target), "Task.metric"))
    return processes.agreed(value), samples


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf
