"""How the epochs of one phase are trained: its optimizer, its schedule, and what runs its steps."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.config.recovery import RecoveryConfig
from pbcompress.errors import CompressionError
from pbcompress.recovery.phase import Phase
from pbcompress.recovery.policy import PhaseKind
from pbcompress.recovery.replay import Replay
from pbcompress.recovery.saved_optimizer import optimizer_state, restore_optimizer_
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.channels_last import takes_channels_last
from pbcompress.training.distillation import Objective, make_objective
from pbcompress.training.engine import Engine
from pbcompress.training.experiment import Experiment
from pbcompress.training.loop import Stepper, make_optimizer, train_epoch
from pbcompress.training.task import Batches, batch_count
from pbcompress.training.weight_average import WeightAverage

__all__ = ["OptimizerFactory", "PhaseTrainer", "SharedTraining"]

UNKNOWN = 100  # batches of an epoch, where a split has no length
AVERAGE = "average."  # before the names of an average's tensors

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class SharedTraining:
    """What all phases of a recovery share.

    Attributes:
        model: Trained in place.
        config: Lengths, rates, and what is done with gradients.
        experiment: Data, task and seed; its train split is for what looks at the same batches in
            every process.
        engine: Runs the steps.
        batches: This process's part of the train split.
        objective: Loss of the neurons, with the distance from the teacher.
        stage: Name of the training in the history, and part of the seed of every epoch.
        factory: Makes the optimizers; None: as the configuration says.
        images: Networks that train on images in channels-last memory, the teacher among them.
    """

    model: nn.Module
    config: RecoveryConfig
    experiment: Experiment
    engine: Engine
    batches: Batches
    objective: Objective
    stage: str
    factory: OptimizerFactory | None
    images: tuple[nn.Module, ...] = ()


class PhaseTrainer:
    """What trains one phase, from its first epoch to its last.

    Args:
        shared: What it shares with other phases.
        phase: The phase.
        lr_scale: Factor of all learning rates.

    Attributes:
        index: Number of the phase.
    """

    def __init__(self, shared: SharedTraining, phase: Phase, lr_scale: float = 1.0) -> None:
        self._shared, self._phase, self.index = shared, phase, phase.index
        self._config = shared.config
        self._is_dendrite = phase.kind is PhaseKind.DENDRITE
        of_task = make_objective(shared.experiment.task, self._config.distillation, None)
        self._objective = of_task if self._is_dendrite else shared.objective
        if phase.sets and not self._is_dendrite:
            lr_scale *= self._config.optimizer.growth_lr
        self._optimizer = self._make_optimizer(lr_scale)
        self._replay = self._make_replay() if self._is_dendrite else None
        engine = shared.engine if self._replay is None else Engine()  # rows need no network
        self._average = None if self._is_dendrite else self._make_average()
        self._stepper = _PhaseStepper(
            engine, shared.model, self._optimizer, self._config, phase, self._average
        )

    def epoch(self) -> tuple[float, int]:
        """Train one epoch; return the mean loss and the number of optimizer steps."""
        try:
            with takes_channels_last(*self._shared.images):
                return self._epoch()
        except RuntimeError as err:
            if self._shared.images:
                err.add_note(
                    "Images were in channels-last memory, which one batch had been tried with. "
                    "EngineConfig(channels_last=False) trains without."
                )
            raise

    def _epoch(self) -> tuple[float, int]:
        number = self._stepper.epoch = self._phase.epoch
        self._phase.train()
        seed = (self._shared.experiment.seed, self._shared.stage, self.index, number)
        if self._replay is not None:
            steps = self._steps(self._replay.batches)
            return self._replay.epoch(self._stepper, steps=steps, seed=seed)
        # processes drop out other neurons, and look at the same positions in a dendrite phase
        processes = self._shared.engine.processes
        is_apart = processes.world > 1 and not self._is_dendrite
        return train_epoch(
            self._stepper,
            self._shared.batches,
            self._objective,
            seed=(*seed, processes.rank) if is_apart else seed,
            count=partial(self._shared.experiment.task.samples, self._shared.model),
        )

    @property
    def is_replayed(self) -> bool:
        """Whether the steps are taken on rows in memory."""
        return self._replay is not None

    @property
    def lr(self) -> float:
        """Learning rate of the latest step."""
        return self._stepper.lr

    def _make_optimizer(self, lr_scale: float) -> torch.optim.Optimizer:
        parameters = self._phase.parameters()
        if self._shared.factory is None:
            optimizer = make_optimizer(
                parameters, self._config.optimizer, is_dendrite=self._is_dendrite
            )
        else:
            optimizer = self._shared.factory(parameters)
            _check_optimizer(optimizer, parameters)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * lr_scale
        return optimizer

    def _make_average(self) -> WeightAverage | None:
        """Return the average of the weights over a part of the phase."""
        share = self._config.optimizer.average
        if not share:
            return None
        batches = batch_count(self._shared.batches) or UNKNOWN
        steps = self._phase.length * math.ceil(batches / self._config.engine.accumulate)
        return WeightAverage(self._shared.model, max(share * steps, 1.0))

    def averaged(self) -> AbstractContextManager[None]:
        """Return what gives the model the weights that are scored and kept, while it lasts."""
        return nullcontext() if self._average is None else self._average.applied()

    def _make_replay(self) -> Replay | None:
        """Return a phase from memory; None where it is not wanted or memory is too small."""
        experiment = self._shared.experiment
        train, count = experiment.data.train, batch_count(experiment.data.train)
        if not count:
            return None
        sample = Sample(train, experiment.task, count, experiment.seed + 1000 * self.index)
        with takes_channels_last(*self._shared.images):
            return Replay.within(self._shared.model, sample, self._config.replay)

    def _steps(self, batches: int) -> int:
        """Return the optimizer steps of an epoch that passes through the network."""
        own = min(batch_count(self._shared.batches), batches)
        return math.ceil(own / self._config.engine.accumulate)

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Return the tensors of the optimizer and of the average, and the rest as JSON."""
        tensors, rest = optimizer_state(self._optimizer)
        if self._average is None:
            return tensors, {"optimizer": rest}
        tensors |= {f"{AVERAGE}{name}": t for name, t in self._average.state().items()}
        return tensors, {"optimizer": rest, "averaged": self._average.steps}

    def restore(self, tensors: Mapping[str, Tensor], rest: Any) -> None:
        """Take up `state`."""
        means = {k.removeprefix(AVERAGE): t for k, t in tensors.items() if k.startswith(AVERAGE)}
        slots = {k: t for k, t in tensors.items() if not k.startswith(AVERAGE)}
        restore_optimizer_(self._optimizer, slots, rest["optimizer"])
        if self._average is not None:
            self._average.restore(means, rest["averaged"])


class _PhaseStepper(Stepper):
    """Steps along the schedule of a phase, and passes on how the losses are scaled."""

    def __init__(
        self,
        engine: Engine,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: RecoveryConfig,
        phase: Phase,
        average: WeightAverage | None,
    ) -> None:
        super().__init__(engine, network, optimizer, config, length=phase.length)
        self._phase, self._average = phase, average

    def step(self) -> None:
        super().step()
        if self._average is not None:
            self._average.update()

    def begin_batch(self, share: float) -> None:
        if self._phase.kind is PhaseKind.DENDRITE:
            self._phase.set_loss_scale(self.engine.loss_scale * share)


def _check_optimizer(optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise CompressionError(
            "optimizer must make a torch.optim.Optimizer from a list of parameters; it returned "
            f"{type(optimizer).__name__}."
        )
    kind = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise CompressionError(
            f"optimizer made a {kind}, whose step looks at the batch several times (it takes a "
            "closure); a step of a recovery looks once. Make one whose step() takes nothing."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise CompressionError(
            f"optimizer made a {kind}, which takes sparse gradients alone; weights of a phase have "
            "dense ones. Make an Adam or AdamW, and embeddings with sparse=False."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for p in parameters}
    if held != wanted:
        raise CompressionError(
            f"optimizer was given the {len(wanted)} parameters of a phase, and what it "
            f"made lacks {len(wanted - held)} of them and holds {len(held - wanted)} others. Make "
            "it from the list that it is given."
        )
