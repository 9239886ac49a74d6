"""A target of a frontier: its name and folder, and its run of `compress`, here or elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbcompress.config.budget import Budget
from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.config.widths import WidthConfig
from pbcompress.core.processes import Processes
from pbcompress.core.turns import in_turn
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.pipeline import compress
from pbcompress.report.writing import REPORT_FILES
from pbcompress.runs.contender_training import plan_with_dendrites, plan_without_dendrites
from pbcompress.runs.held_folder import held
from pbcompress.runs.job import Job, agreed_job, check_job
from pbcompress.runs.saved_network import STATE_FILE
from pbcompress.training.callbacks import Callback
from pbcompress.training.task import Batches, Data, Task

__all__ = ["OfTarget", "Shared", "Target", "is_over", "prepare", "run", "targets_of"]


@dataclass(frozen=True)
class Target:
    """A target of a frontier.

    Attributes:
        budget: What a network may cost.
        folder: Of its run; its name is that of the target.
    """

    budget: Budget
    folder: Path

    @property
    def name(self) -> str:
        """Every bound that is set, and what it is: "params-0.25"."""
        return self.folder.name


@dataclass(frozen=True)
class Shared:
    """What all targets have in common: the other arguments of `compress`."""

    model: nn.Module
    example_inputs: object
    data: Data | Batches | None
    task: Task | None
    config: CompressConfig | WidthConfig | DendriteConfig | RecoveryConfig | None
    device: str | torch.device | None
    seed: int


def targets_of(targets: Iterable[float | Budget], folder: Path) -> tuple[Target, ...]:
    """Return targets by what they bound.

    Args:
        targets: As `compress` takes each of them.
        folder: Of the frontier.

    Raises:
        CompressionError: There is none, or one stands there twice.
        TargetUnreachableError: One is no target at all.

    Example:
        >>> [target.name for target in targets_of([0.5, Budget(flops=0.25)], Path("runs"))]
        ['params-0.5', 'flops-0.25']
    """
    if isinstance(targets, int | float | Budget):
        targets = [targets]
    found = [Target(budget, folder / _name(budget)) for budget in map(Budget.of, targets)]
    names = [target.name for target in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"with {twice[0]} twice" if twice else "with no target"
        raise CompressionError(
            f"A frontier {what} was asked for. Give each target once, at least one, such as "
            "[0.5, 0.25]."
        )
    return tuple(found)


def _name(budget: Budget) -> str:
    bounds = {name: value for name, value in budget.to_dict().items() if value is not None}
    return "_".join(f"{name}-{value}" for name, value in bounds.items())


@in_turn
def prepare(shared: Shared, target: Target) -> None:
    """Check a target's call and plan its network; the run goes on from this plan.

    Raises:
        CompressionError: As from `compress`, before a training.
    """
    with held(target.folder):
        job = agreed_job(Processes(), lambda: _checked(shared, target))
        if not is_over(target) and plan_with_dendrites(job) is None:
            plan_without_dendrites(job)


def _checked(shared: Shared, target: Target) -> Job:
    return check_job(
        shared.model,
        target.budget,
        example_inputs=shared.example_inputs,
        data=shared.data,
        task=shared.task or Task(),
        config=whole_config(shared.config, WidthConfig, DendriteConfig, RecoveryConfig),
        device=shared.device,
        seed=shared.seed,
        run_dir=target.folder,
    )


def is_over(target: Target) -> bool:
    """Tell whether the run of a target has written all that it writes."""
    needed = (STATE_FILE, REPORT_FILES[0])
    return all((target.folder / name).is_file() for name in needed)


def run(shared: Shared, target: Target, callbacks: Sequence[Callback] = ()) -> str | None:
    """Run `compress` for a target, or go on with it.

    Returns:
        None, or why its training diverged: the other targets are not lost to that.
    """
    try:
        compress(
            shared.model,
            target.budget,
            example_inputs=shared.example_inputs,
            data=shared.data,
            task=shared.task,
            config=shared.config,
            device=shared.device,
            seed=shared.seed,
            run_dir=target.folder,
            callbacks=callbacks,
            progress=False,
        )
    except DivergedError as err:
        return str(err)
    return None


class OfTarget(Callback):
    """Tells a callback of one target: the name of the target stands before that of the stage."""

    def __init__(self, callback: Callback, target: Target) -> None:
        self._callback, self._name = callback, target.name

    def on_stage(self, stage: str, total_epochs: int) -> None:
        """Pass on that a stage begins."""
        self._callback.on_stage(f"{self._name}/{stage}", total_epochs)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Pass on a line of the history."""
        self._callback.on_epoch({**record, "stage": f"{self._name}/{record['stage']}"})

    def on_end(self) -> None:
        """Pass on that a training is over."""
        self._callback.on_end()
