"""A call of `compress` as a job: checked as a whole before anything changes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pbcompress.config.budget import Budget
from pbcompress.config.whole import CompressConfig
from pbcompress.core.accepted_models import check_model
from pbcompress.core.inputs import Call, as_call, to_device
from pbcompress.core.modules import copy_model
from pbcompress.core.processes import Processes
from pbcompress.core.randomness import whole_seed
from pbcompress.costs.measured import ModelCost, measure
from pbcompress.errors import CompressionError
from pbcompress.planning.importance import sample_for
from pbcompress.planning.planner import resolve_target
from pbcompress.runs.run_folder import read_facts
from pbcompress.runs.run_identity import (
    RunIdentity,
    check_identity,
    check_same,
    identity_of,
    task_identity,
)
from pbcompress.runs.saved_network import STATE_FILE
from pbcompress.training.data_checks import check_calibration, check_data
from pbcompress.training.distillation import check_distillation
from pbcompress.training.engine import choose_device
from pbcompress.training.experiment import Experiment
from pbcompress.training.task import Batches, Data, Task, inputs_of

__all__ = ["Job", "agreed_job", "check_job"]


@dataclass(frozen=True)
class Job:
    """What a run starts from; nothing of it changes while it runs.

    Attributes:
        original: A copy of the model in eval mode, on the device that trains.
        inputs: Of one forward pass, on the same device.
        budget: What was asked for.
        config: All further choices.
        data: The splits; None where nothing is trained.
        calibration: Batches of inputs that the narrowed network is fitted on, without training.
        task: Loss and metric.
        seed: Seed of everything random.
        run_dir: Folder of the run; None: nothing is kept.
        cost_before: Cost of the original.
        bound: Parameters at most, dendrites included.
        identity: What decides the outcome.
        processes: Those that work on it; the first of them alone plans, reads and writes.
    """

    original: nn.Module
    inputs: Call
    budget: Budget
    config: CompressConfig
    data: Data | None
    calibration: Batches | None
    task: Task
    seed: int
    run_dir: Path | None
    cost_before: ModelCost
    bound: int
    identity: RunIdentity
    processes: Processes

    @property
    def fingerprint(self) -> str:
        """One digest of what decides the outcome."""
        return self.identity.fingerprint

    @property
    def experiment(self) -> Experiment | None:
        """What the networks learn from; None where the network is only shrunk."""
        return _experiment(self.data, self.task, self.seed)

    def checkpoint_path(self, name: str) -> Path | None:
        """Return where the run keeps what it needs to resume; None: it keeps nothing."""
        return None if self.run_dir is None else self.run_dir / "checkpoints" / name


def check_job(
    model: nn.Module,
    target: float | Budget,
    *,
    example_inputs: object,
    data: Data | Batches | None,
    task: Task,
    config: CompressConfig,
    device: str | torch.device | None,
    seed: int,
    run_dir: str | Path | None,
) -> Job:
    """Check a call of `compress`, whose arguments these are, and return it as a job.

    Raises:
        TargetUnreachableError: The target is not below the original.
        CompressionError: The model, inputs or data cannot be used.
    """
    seed = whole_seed(seed)
    _check_circumstances(example_inputs, data)
    budget = Budget.of(target)
    check_model(model)
    task_before = task_identity(task)
    labelled = data if isinstance(data, Data) else None
    sample_for(config.width, _experiment(labelled, task, seed))  # raises where data are missing
    place = choose_device(device)
    original = copy_model(model).to(place).eval()
    calibration = None if isinstance(data, Data) else data
    if isinstance(data, Data):
        checked = check_data(data, task, original, place)
        check_distillation(task, config.recovery.distillation, original, checked.first)
        data = checked
    elif data is not None:
        check_calibration(data, task, original, place)
        data = None
    if example_inputs is not None:
        inputs = task.said(to_device(as_call(example_inputs), place))
    else:
        batches = calibration if data is None else data.train
        assert batches is not None
        inputs = inputs_of(batches, task, original, place)
    cost = measure(original, inputs.example_inputs)
    bound, _ = resolve_target(budget, cost)
    identity = identity_of(
        model=original,
        inputs=inputs,
        choices={"target": budget.to_dict(), "configuration": config.to_dict(), "seed": seed},
        data=data if calibration is None else Data(calibration, val=()),
        task=task,
        task_before=task_before,
    )
    return Job(
        original=original,
        inputs=inputs,
        budget=budget,
        config=config,
        data=data,
        calibration=calibration,
        task=task,
        seed=seed,
        run_dir=None if run_dir is None else Path(run_dir),
        cost_before=cost,
        bound=bound,
        identity=identity,
        processes=Processes(),
    )


def agreed_job(processes: Processes, check: Callable[[], Job]) -> Job:
    """Return the job that processes agree on, after its folder was checked too.

    Args:
        processes: They work on it.
        check: Calls `check_job`, in each of them.

    Raises:
        CompressionError: As from `check_job` in one of them, or they differ in what decides.
        StateMismatchError: The folder holds another run.
    """
    own = processes.each(check)
    check_same(processes, own.identity)
    identity = replace(processes.agreed(own.identity), processes=processes.world)
    run_dir = processes.agreed(own.run_dir)
    job = replace(own, identity=identity, run_dir=run_dir, processes=processes)
    processes.first(lambda: _check_folder(job))
    return job


def _check_circumstances(example_inputs: object, data: object) -> None:
    if example_inputs is None and data is None:
        raise CompressionError(
            "compress(model, target) does not know what goes into the model. Call "
            "compress(model, target, example_inputs=torch.zeros(1, 3, 32, 32)) with inputs of "
            "your model, or pass data=pb.Data(train=..., val=...), or batches of inputs alone."
        )


def _experiment(data: Data | None, task: Task, seed: int) -> Experiment | None:
    return None if data is None else Experiment(data, task, seed)


def _check_folder(job: Job) -> None:
    if (folder := job.run_dir) is None:
        return
    known = read_facts(folder).fingerprint if (folder / STATE_FILE).is_file() else None
    check_identity(folder, job.identity, known)
