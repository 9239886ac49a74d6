"""The learning rate of a recovery, by a range test: a short training whose rate rises all the way.

The loss falls, is least somewhere, and rises again. A whole schedule does best at about a third of
the rate of the least loss. A network that is cut little is near its optimum and has its least loss
early; a schedule can take it further than a short test does, so it gets the usual rate if it bears
three times that: if the loss there is still nearer to its least than to that of a network that
knows nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.core.modules import copy_model, device_of, preserved_mode
from pbcompress.core.randomness import seeded
from pbcompress.errors import DivergedError
from pbcompress.recovery.policy import planned_epochs
from pbcompress.training.batch_tensors import moved
from pbcompress.training.distillation import Objective, make_objective
from pbcompress.training.engine import Engine, make_engine
from pbcompress.training.loop import Stepper, grouped, make_optimizer, train_epoch
from pbcompress.training.task import Batches, Data, Task, batch_count, seeded_generators

__all__ = ["LEAST", "find_lr", "range_test_steps", "with_lr"]

SHARE = 0.05  # of the steps of a recovery
LEAST, MOST = 24, 200  # steps
RANGES = {"sgd": (1e-3, 10.0), "adam": (1e-4, 1.0), "adamw": (1e-4, 1.0)}
USUAL = {"sgd": 2e-1, "adam": 2e-2, "adamw": 2e-2}
OF_NORMS = 0.1  # of the usual rate: networks that normalise each sample, transformers above all
WINDOW = 30  # losses are smoothed over this part of the test,
HALF_WINDOW = 12  # and, where a level of them is asked for, over this part on either side
BELOW = 3.0  # how many times lower the best rate is than the one that a short test bears
MORE = 0.5  # a rate is borne while the loss is at most this part above its least,
TOWARDS_CHANCE = 0.25  # or this part of the way from there to the loss of one output for all
CHANCE_BATCHES = 8  # that it is taken from


def find_lr(
    model: nn.Module,
    data: Data,
    task: Task | None = None,
    *,
    config: CompressConfig | RecoveryConfig | None = None,
    seed: int = 0,
    steps: int | None = None,
    teacher: nn.Module | None = None,
) -> float:
    """Return a peak learning rate for a recovery, from a range test on the train split.

    A copy of the network takes some steps while the rate rises exponentially over four decades.
    The result is a third of the rate at which the smoothed loss is least. If it is more, it is the
    usual rate (.02; for SGD .2; a tenth of it for networks with LayerNorm), but at most a third of
    the rate up to which the loss stays near its least: at most half above it, or a quarter of the
    way to the loss of a network that gives every sample the same output. The model stays as it is.

    Args:
        model: Network to train, on its device.
        data: ``train`` is used.
        task: Loss; the default is classification.
        config: ``recovery`` says which optimizer, precision and distillation.
        seed: Seed of everything random.
        steps: Optimizer steps; None: see `range_test_steps`.
        teacher: The network to learn from, as of `recover_`.

    Returns:
        The rate: ``OptimizerConfig(lr=...)``.

    Raises:
        CompressionError: The data cannot be used.
        DivergedError: The loss is not finite at the lowest rate.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,)))]
        >>> 3e-5 < find_lr(net, Data(train=batches, val=batches)) < 0.4
        True

    Source:
        Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3,
        https://arxiv.org/abs/1506.01186. The factor of three is measured: `docs/research.md`.
    """
    choices = whole_config(config, DendriteConfig, RecoveryConfig)
    r, task, network = choices.recovery, task or Task(), copy_model(model).train()
    engine = make_engine(network, replace(r.engine, compile=False))
    batches = engine.batches(data.train)
    count = steps or range_test_steps(batches, choices)
    sweep = _Sweep(engine, network, r, count)
    objective = make_objective(task, r.distillation, teacher, network)
    chance = engine.processes.mean(_chance(network, batches, objective))
    losses = sweep.losses(batches, objective, partial(task.samples, network), seed)
    smooth = _smoothed(losses)
    if not smooth:
        raise DivergedError(
            f"A range test of the learning rate began at {sweep.rate(0):g} and its loss was not "
            "finite there. Look at the loss and at the data, or pass OptimizerConfig(lr=...)."
        )
    least, borne = smooth.index(min(smooth)), _borne(losses[: len(smooth)], chance)
    usual = USUAL[r.optimizer.algorithm] * (OF_NORMS if _normalises_samples(network) else 1)
    return max(sweep.rate(least) / BELOW, min(sweep.rate(borne) / BELOW, usual))


def range_test_steps(
    batches: Batches, config: CompressConfig, epochs: int | None = None, *, processes: int = 1
) -> int:
    """Return the steps of a range test: 5 % of those of the recovery, from 24 to 200.

    Args:
        batches: The train split.
        config: Its phases.
        epochs: Of the recovery, where they are given.
        processes: That share the batches.
    """
    epochs = epochs or planned_epochs(config.recovery, config.dendrites)
    whole = epochs * math.ceil(
        batch_count(batches) // processes / config.recovery.engine.accumulate
    )
    return min(max(int(SHARE * whole), LEAST), MOST)


def with_lr(config: CompressConfig, lr: float) -> CompressConfig:
    """Return a configuration with a peak learning rate for neuron phases."""
    r = config.recovery
    return replace(config, recovery=replace(r, optimizer=replace(r.optimizer, lr=lr)))


class _Sweep(Stepper):
    """Takes steps at rates that rise, and notes the loss of each."""

    def __init__(
        self, engine: Engine, network: nn.Module, config: RecoveryConfig, steps: int
    ) -> None:
        lowest, highest = RANGES[config.optimizer.algorithm]
        low = replace(config.optimizer, lr=lowest)
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = make_optimizer(parameters, low, is_dendrite=False)
        super().__init__(engine, network, optimizer, config, length=1)
        self._lowest, self._span, self._steps = lowest, highest / lowest, steps
        self._taken = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        rate: float = self._lowest * self._span ** (step / max(self._steps - 1, 1))
        return rate

    def begin_step(self, progress: float) -> None:
        super().begin_step(progress)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(self._taken)
        self._taken += 1

    def losses(
        self, batches: Batches, objective: Objective, count: Callable[[Any], int], seed: int
    ) -> list[float]:
        """Take the steps, and return the loss of each; they end where one is not finite."""
        found: list[Tensor] = []

        def noted(network: nn.Module, batch: Any) -> Tensor:
            loss = objective(network, batch)
            found.append(loss.detach())
            return loss

        first = _First(batches, self._steps * self.accumulate)
        with (
            seeded("range", seed),
            seeded_generators(batches, torch.initial_seed() % 2**63),
            suppress(DivergedError),  # that is where the test ends
        ):
            train_epoch(self, first, noted, seed=("range", seed), count=count)
        own = [self.engine.processes.mean(loss.item()) for loss in found]
        return [sum(part) / len(part) for part in grouped(own, self.accumulate)]


class _First:
    """The first batches of a split, which is gone through again where it is too short."""

    def __init__(self, batches: Batches, count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        left = self._count
        while left:
            before = left
            for batch in self._batches:
                yield batch
                left -= 1
                if not left:
                    return
            if left == before:  # which is told by who asked for a batch
                return


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Return running means of the losses, up to the first that is not finite."""
    new = 1 / (1 + len(losses) / WINDOW)
    smooth: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            break
        smooth.append(loss if not smooth else (1 - new) * smooth[-1] + new * loss)
    return smooth


@torch.no_grad()
def _chance(network: nn.Module, batches: Batches, objective: Objective) -> float:
    """Return the mean loss where each sample has the mean of its batch's outputs.

    It is not a number where a loss does not take such outputs.
    """
    losses = []
    with (
        preserved_mode(network, training=False),
        seeded("chance"),
        seeded_generators(batches, 0),
        network.register_forward_hook(lambda _, args, output: tree_map(_same_for_all, output)),
    ):
        for batch in islice(batches, CHANCE_BATCHES):
            try:
                losses.append(float(objective(network, moved(batch, device_of(network)))))
            except Exception:  # whatever the loss wants of outputs; the other bound is left
                return math.nan
    return sum(losses) / len(losses) if losses else math.nan


def _same_for_all(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim():
        return leaf.mean(0, keepdim=True).expand_as(leaf).clone()
    return leaf


def _borne(losses: Sequence[float], chance: float) -> int:
    """Return the last step, from that of the least loss on, before the loss is far above it.

    Single losses say little: those of the first batches may be low by chance, and because they are
    those that a compensation saw. So levels are means over the steps around one.
    """
    half = max(len(losses) // HALF_WINDOW, 1)
    around = [losses[max(i - half, 0) : i + half + 1] for i in range(len(losses))]
    levels = [sum(part) / len(part) for part in around]
    least = levels.index(min(levels))
    above = MORE * abs(levels[least])
    if math.isfinite(chance):
        above = max(above, TOWARDS_CHANCE * (chance - levels[least]))
    limit = levels[least] + above
    beyond = (i for i in range(least, len(levels)) if levels[i] > limit)
    return max(next(beyond, len(levels)) - 1, 0)


def _normalises_samples(network: nn.Module) -> bool:
    names = {type(module).__name__ for module in network.modules()}
    return any("LayerNorm" in name or "RMSNorm" in name for name in names)
