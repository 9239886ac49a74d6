"""The path from a model to a smaller one, in one call."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pbcompress.comparison.intervals import Estimate
from pbcompress.comparison.scoring import paired_change, split_of
from pbcompress.config.budget import Budget
from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.config.widths import WidthConfig
from pbcompress.core.processes import join_processes
from pbcompress.core.turns import in_turn
from pbcompress.pruning.shrinking import shrink
from pbcompress.result import CompressionResult
from pbcompress.runs.contender_training import (
    ContenderTraining,
    plan_with_dendrites,
    plan_without_dendrites,
)
from pbcompress.runs.contenders import Contender, Score
from pbcompress.runs.deployment import MODEL_FILE, Deployment, deploy, file_notes
from pbcompress.runs.fitted_network import CALIBRATION_BATCHES, compensated_by_all_
from pbcompress.runs.held_folder import held
from pbcompress.runs.job import Job, agreed_job, check_job
from pbcompress.runs.race import Outcome, race
from pbcompress.training.callbacks import Callback
from pbcompress.training.history import Stage
from pbcompress.training.progress import ProgressBar
from pbcompress.training.task import Batches, Data, Task

__all__ = ["compress"]

logger = logging.getLogger(__name__)


@in_turn
def compress(
    model: nn.Module,
    target_params: float | Budget,
    *,
    example_inputs: object = None,
    data: Data | Batches | None = None,
    task: Task | None = None,
    config: CompressConfig | WidthConfig | DendriteConfig | RecoveryConfig | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    control: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> CompressionResult:
    """Shrink a trained network to a target, recover lost accuracy, and measure the result.

    Widths are planned and proven, the narrower network is trained, in cycles of dendrite growth
    where they are asked for, and original and result are compared on size, work, speed and metric.
    With ``DendriteConfig(share="auto")`` a network with dendrites and one without have a trial, and
    validation decides which of them trains on; dendrites that are absorbed need none.

    Under torchrun all processes call this alike. They train and score together, the first one plans
    and writes, and all get the same result.

    Args:
        model: A trained network of Linear and convolution layers; never modified.
        target_params: At most this many parameters, dendrites included: a count, a share in (0, 1)
            of the original, or a `Budget`.
        example_inputs: A tensor, tuple or dict of one forward pass; default: those of the first
            train batch.
        data: Batches to train, decide and test on. Batches of inputs alone, some hundred samples
            without labels: what reads narrowed channels is fitted to what it read before, in
            seconds, and nothing is trained (see `compensate_`). None: shrink only, which leaves
            the accuracy low.
        task: Loss and metric; default: classification.
        config: All further choices, or one part of them: how widths are chosen, what grows or how
            weights are trained.
        device: Where to train; default: CUDA, then MPS, then CPU.
        seed: Seed of everything random. The same call gives the same numbers on the same machine.
        run_dir: Folder for checkpoints, weights, history and report. The same call with the same
            folder resumes where it was stopped.
        control: Also train the network that spends the whole target on width, and report it.
        callbacks: Called after every epoch.
        progress: Show a progress bar on the standard error stream.

    Returns:
        The compressed network and all that was measured.

    Raises:
        TargetUnreachableError: The target is not below the original or below what is reachable.
        CompressionError: The model, inputs, data or folder cannot be used, another call works in
            the folder, or processes were called with different things; nothing was trained.
            Another process of this call failed; its message is told.
        StateMismatchError: ``run_dir`` holds a run of another model, task, data or choice: all that
            decides it counts, as far as it can be seen.
        DivergedError: Training produced a loss that is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> config = CompressConfig(deploy=False)
        >>> result = compress(net, 0.5, example_inputs=torch.zeros(1, 8), config=config)
        >>> result.cost_after.params <= 353
        True
    """
    check = partial(
        check_job,
        model,
        target_params,
        example_inputs=example_inputs,
        data=data,
        task=task or Task(),
        config=whole_config(config, WidthConfig, DendriteConfig, RecoveryConfig),
        device=device,
        seed=seed,
        run_dir=run_dir,
    )
    processes = join_processes()
    with processes.held_by_first(held(None if run_dir is None else Path(run_dir))):
        job = agreed_job(processes, check)
        if job.experiment is None:
            return _finished(job, _shrunk(job), None)
        watching = (*callbacks, ProgressBar()) if progress else tuple(callbacks)
        training = ContenderTraining(job, job.experiment, watching)
        before = training.score(job.original)
        return _finished(
            job, _with_fit(_trained(training, control=processes.agreed(control))), before
        )


def _shrunk(job: Job) -> Outcome:
    """Shrink without training."""
    plan = plan_without_dendrites(job).plan
    network = shrink(job.original, plan).eval()
    contender = Contender(Stage.WIDTH, network, plan, plan.cost_after, None, None, 0)
    if job.calibration is None:
        note = "No data was given: the network was only shrunk, and its accuracy was not recovered."
        logger.warning(note)
        return Outcome(contender, None, note)
    asked = job.config.recovery.compensation_batches
    batches = asked if isinstance(asked, int) and asked else CALIBRATION_BATCHES
    report = compensated_by_all_(
        job.processes,
        *(network, job.original, plan, job.calibration, job.task),
        batches=batches,
        seed=job.seed,
    )
    note = f"Nothing was trained: data had inputs alone. {report.summary}"
    return Outcome(replace(contender, compensation=report), None, note)


def _trained(training: ContenderTraining, *, control: bool) -> Outcome:
    """Plan and train the networks that the configuration asks for; validation decides."""
    job = training.job
    grown = plan_with_dendrites(job)
    if grown is None:
        contender = training.train(plan_without_dendrites(job))
        return Outcome(contender, None, _why_width_alone(job.config))
    if job.config.dendrites.share == "auto" and not job.config.dendrites.is_absorbed:
        return race(training, grown, plan_without_dendrites(job), control=control)
    chosen = training.train(grown)
    if chosen.is_only_fitted and not control:
        return Outcome(chosen, None, "One network was trained.")
    if chosen.has_grown and not control:
        return Outcome(chosen, None, f"One network was trained: {_dendrites_of(chosen)}.")
    other = training.train(plan_without_dendrites(job), lengths=chosen.phase_lengths)
    if chosen.has_grown:
        note = f"The result has {_dendrites_of(chosen)}; width alone is the control."
        return Outcome(chosen, other, note)
    note = "No dendrite set helped on validation: the result is width alone."
    return Outcome(other, chosen, note)


def _with_fit(outcome: Outcome) -> Outcome:
    """Say so where the result is a network that was fitted and not trained."""
    chosen = outcome.chosen
    if not chosen.is_only_fitted or chosen.compensation is None:
        return outcome
    note = (
        f"{outcome.note} It ships as it was fitted to the original: training made nothing better "
        f"of it on validation. {chosen.compensation.summary}"
    )
    return replace(outcome, note=note)


def _dendrites_of(chosen: Contender) -> str:
    if chosen.absorbed:
        return f"{chosen.absorbed} set(s) of dendrites, absorbed by their neurons"
    return f"{chosen.sets} set(s) of dendrites"


def _why_width_alone(config: CompressConfig) -> str:
    dendrites = config.dendrites
    why = "no dendrites were asked for"
    if dendrites.max_sets and dendrites.share != 0:
        why = "the target has no room for a set of dendrites"
        if dendrites.max_price is not None:
            why += f" that cost at most {dendrites.max_price:g} of a neuron each"
    return f"One network was trained, width alone, because {why}."


def _finished(job: Job, outcome: Outcome, before: Score | None) -> CompressionResult:
    """Measure the result as it ships, and write it into the folder of the run."""
    chosen, processes = outcome.chosen, job.processes
    if chosen.cost.params > job.bound:
        raise AssertionError(f"result has {chosen.cost.params} parameters of {job.bound}")
    result = CompressionResult(
        cost_before=job.cost_before,
        budget=job.budget,
        score_before=before,
        chosen=chosen,
        other=outcome.other,
        deployment=processes.first(lambda: _deployed(job, chosen)),
        history=outcome.history,
        config=job.config,
        task=job.task,
        seed=job.seed,
        note=outcome.note,
        example_inputs=job.inputs.example_inputs,
        fingerprint=job.fingerprint,
        over_control=processes.first(lambda: _over_control(job, chosen, outcome.other)),
    )
    processes.first(lambda: _write(result, job.run_dir))
    return result


def _write(result: CompressionResult, folder: Path | None) -> None:
    if folder is not None:
        result.save(folder)
        result.write_reports(folder)


def _deployed(job: Job, chosen: Contender) -> Deployment | str | None:
    if not job.config.deploy:
        return None
    path = job.run_dir / MODEL_FILE if job.run_dir else None
    notes = file_notes(chosen.cost, chosen.plan, job.fingerprint, job.task, chosen.score)
    return deploy(job.original, chosen.network, job.inputs, path, job.data, job.task, notes)


def _over_control(job: Job, chosen: Contender, other: Contender | None) -> Estimate | None:
    """Return how much better the result is than its control, where one was trained to the end."""
    if other is None or (other.trial is None and chosen.trial is not None):
        return None  # what lost a trial was trained no further
    assert chosen.score is not None
    assert other.score is not None
    return paired_change(
        (other.network, chosen.network),
        (other.name, chosen.name),
        split_of(job.data),
        job.task,
        (other.score.shown, chosen.score.shown),
    )
