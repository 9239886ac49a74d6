"""How the epochs of one phase are trained: its optimizer, its schedule, and what runs its steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.errors import CompressionError
from pbcompress.recovery.initialization import initialize_candidates_
from pbcompress.recovery.phase import Phase
from pbcompress.recovery.phase_cycles import Cycles
from pbcompress.recovery.policy import PhaseKind, longest
from pbcompress.recovery.replay import Replay
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.channels_last import takes_channels_last
from pbcompress.training.distillation import Objective, make_objective
from pbcompress.training.engine import Engine
from pbcompress.training.loop import lr_factor, make_optimizer, train_epoch
from pbcompress.training.task import Batches, Data, Task, batch_count

__all__ = ["OptimizerFactory", "PhaseTrainer", "Training"]

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Training:
    """What all phases of a recovery share.

    Attributes:
        growth: Who trains when, and the configuration.
        engine: Runs the steps.
        data: Splits; the train split is for what looks at the same batches in every process.
        batches: This process's part of the train split.
        task: Loss and forward.
        objective: Loss of the neurons, with what the teacher says.
        seed: Names all that is random.
        stage: Name of the training in the history.
        factory: Makes the optimizers; None: as the configuration says.
        images: Networks that train on images in channels-last memory, the teacher among them.
    """

    growth: Cycles
    engine: Engine
    data: Data
    batches: Batches
    task: Task
    objective: Objective
    seed: int
    stage: str
    factory: OptimizerFactory | None
    images: tuple[nn.Module, ...] = ()


class PhaseTrainer:
    """What trains one phase, from its first epoch to its last.

    Args:
        training: What it shares with other phases.
        phase: The phase.
        lr_scale: Factor of all learning rates.

    Attributes:
        index: Number of the phase.
    """

    def __init__(self, training: Training, phase: Phase, lr_scale: float = 1.0) -> None:
        self._of, self._phase, self.index = training, phase, phase.index
        self._config = training.growth.recovery
        self._is_dendrite = phase.kind is PhaseKind.DENDRITE
        if self._is_dendrite:
            self._initialize_candidates_()
        of_task = make_objective(training.task, self._config.distillation, None)
        self._objective = of_task if self._is_dendrite else training.objective
        if phase.sets and not self._is_dendrite:
            lr_scale *= self._config.optimizer.growth_lr
        self._optimizer = self._make_optimizer(lr_scale)
        self._replay = self._make_replay() if self._is_dendrite else None
        self._network: nn.Module = training.growth.model
        self._stepper: Any = self._optimizer
        if self._replay is None:
            self._network, self._stepper = training.engine.setup(self._network, self._optimizer)

    def epoch(self) -> tuple[float, int]:
        """Train one epoch; return the mean loss and the number of optimizer steps."""
        try:
            with takes_channels_last(*self._of.images):
                return self._epoch()
        except RuntimeError as err:
            if self._of.images:
                err.add_note(
                    "Images were in channels-last memory, which one batch had been tried with. "
                    "EngineConfig(channels_last=False) trains without."
                )
            raise

    def _epoch(self) -> tuple[float, int]:
        number = len(self._of.growth.log[self.index].scores)
        self._phase.train()
        seed = (self._of.seed, self._of.stage, self.index, number)
        if self._replay is not None:
            return self._replay.epoch(
                self._optimizer,
                self._set_lr,
                steps=self._steps(self._replay.batches),
                seed=seed,
                accumulate=self._config.engine.accumulate,
                max_grad_norm=self._config.optimizer.max_grad_norm,
            )
        # processes drop out other neurons, and look at the same positions in a dendrite phase
        is_apart = self._of.engine.world > 1 and not self._is_dendrite
        return train_epoch(
            self._of.engine,
            self._network,
            self._of.batches,
            self._objective,
            self._stepper,
            self._set_lr,
            self._phase.set_loss_scale,
            seed=(*seed, self._of.engine.rank) if is_apart else seed,
            config=self._config,
        )

    @property
    def is_replayed(self) -> bool:
        """Whether the steps are taken on rows in memory."""
        return self._replay is not None

    @property
    def lr(self) -> float:
        """Learning rate of the latest step."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def _set_lr(self, done: float) -> None:
        growth = self._of.growth
        epoch = len(growth.log[self.index].scores)
        if growth.lengths is not None:
            length = growth.lengths[self.index]
        else:
            length = longest(self._phase.kind, self._config, growth.dendrites)
        factor = lr_factor(self._config.optimizer, min((epoch + done) / length, 1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _make_optimizer(self, lr_scale: float) -> torch.optim.Optimizer:
        parameters = self._phase.parameters()
        if self._of.factory is None:
            optimizer = make_optimizer(
                parameters, self._config.optimizer, is_dendrite=self._is_dendrite
            )
        else:
            optimizer = self._of.factory(parameters)
            _check_optimizer(optimizer, parameters)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"] * lr_scale
        return optimizer

    def _initialize_candidates_(self) -> None:
        growth = self._of.growth
        if (
            growth.dendrites.scored_rule.initialization != "spectral"
            or growth.log[self.index].scores
        ):
            return
        initialize_candidates_(
            growth.model,
            self._of.data.train,  # the same batches in every process
            self._of.task,
            batches_used=16 * self._of.engine.world,
            seed=self._of.seed + 1000 * self.index,
        )

    def _make_replay(self) -> Replay | None:
        """Return a phase from memory; None where it is not wanted or memory is too small."""
        growth, count = self._of.growth, batch_count(self._of.data.train)
        if not count:
            return None
        seed = self._of.seed + 1000 * self.index
        sample = Sample(self._of.data.train, self._of.task, count, seed)
        with takes_channels_last(*self._of.images):
            return Replay.within(growth.model, sample, self._config.replay)

    def _steps(self, batches: int) -> int:
        """Return the optimizer steps of an epoch that passes through the network."""
        own = min(batch_count(self._of.batches), batches)
        return math.ceil(own / self._config.engine.accumulate)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the optimizer, by parameter and slot."""
        slots = self._optimizer.state_dict()["state"].items()
        return {
            f"{key}.{name}": value
            for key, of_parameter in slots
            for name, value in of_parameter.items()
            if value is not None  # the momentum of "sgd" without any
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up `state`."""
        slots: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            slots.setdefault(int(index), {})[name] = value
        state = self._optimizer.state_dict()
        state["state"] = slots
        self._optimizer.load_state_dict(state)


def _check_optimizer(optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise CompressionError(
            "optimizer must make a torch.optim.Optimizer from a list of parameters; it returned "
            f"{type(optimizer).__name__}."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for p in parameters}
    if held != wanted:
        raise CompressionError(
            f"optimizer was given the {len(wanted)} parameters of a phase, and the one that it "
            f"made lacks {len(wanted - held)} of them and holds {len(held - wanted)} others. Make "
            "it from the list that it is given."
        )
