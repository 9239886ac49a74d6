"""Makes the networks of a job: planned, cut from the original, trained, and scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from pbcompress.compensation.report import CompensationReport
from pbcompress.config.dendrites import ScoredRule
from pbcompress.config.whole import CompressConfig
from pbcompress.core.bounded_files import is_file
from pbcompress.core.modules import copy_model, parameter_count
from pbcompress.costs.measured import measure
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError
from pbcompress.planning.width_plan import WidthPlan, make_plan
from pbcompress.pruning.shrinking import shrink
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.learning_rate import LEAST, find_lr, range_test_steps, with_lr
from pbcompress.recovery.recover import recover_
from pbcompress.runs.contenders import Contender, Score
from pbcompress.runs.fitted_network import compensated_by_all_, fitted_network
from pbcompress.runs.job import Job
from pbcompress.runs.resumption import (
    mark_of,
    owner_of,
    read_plan,
    read_rate,
    write_plan,
    write_rate,
)
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from pbcompress.training.callbacks import Callback
from pbcompress.training.data_checks import scored
from pbcompress.training.experiment import Experiment
from pbcompress.training.history import History, Stage
from pbcompress.training.loop import evaluate
from pbcompress.training.task import Data

__all__ = [
    "ContenderSpec",
    "ContenderTraining",
    "plan_with_dendrites",
    "plan_without_dendrites",
]


@dataclass(frozen=True)
class ContenderSpec:
    """A network to make.

    Attributes:
        name: As of a `Contender`; also names its files and its records in the history.
        config: How it is trained.
        plan: Its widths.
    """

    name: Stage
    config: CompressConfig
    plan: WidthPlan


def plan_without_dendrites(job: Job) -> ContenderSpec:
    """Plan the network that spends the whole target on width."""
    dendrites = replace(job.config.dendrites, max_sets=0)
    return _planned(job, Stage.WIDTH, replace(job.config, dendrites=dendrites))


def plan_with_dendrites(job: Job) -> ContenderSpec | None:
    """Plan the network that keeps room for dendrites; None where there are none, or no room."""
    dendrites = job.config.dendrites
    if not dendrites.max_sets or dendrites.share == 0:
        return None
    share = 1.0 if dendrites.share == "auto" else dendrites.share
    config = replace(job.config, dendrites=replace(dendrites, share=share))
    spec = _planned(job, Stage.DENDRITES, config)
    return spec if spec.plan.grow else None


def _planned(job: Job, name: Stage, config: CompressConfig) -> ContenderSpec:
    """Plan a network; a resumed run takes the plan that it began with."""
    path = job.checkpoint_path(f"{name}-{job.fingerprint[:16]}.plan.json")
    owner = owner_of(name, job.fingerprint)

    def plan() -> WidthPlan:
        if path is not None and is_file(path):
            return read_plan(path, owner)
        made = make_plan(job.original, job.inputs, job.budget, config, job.experiment)
        if path is not None:
            write_plan(path, owner, made)
        return made

    return ContenderSpec(name, config, job.processes.first(plan))


def _check_room(network: nn.Module, spec: ContenderSpec, bound: int) -> None:
    """Raise if a network would be larger than the target when all of its dendrites have grown."""
    dendrites = spec.config.dendrites
    selects = isinstance(dendrites.rule, ScoredRule) and dendrites.rule.node_share < 1
    if not spec.plan.grow or selects or dendrites.is_absorbed:  # nodes go in the end
        return
    grown = copy_model(network)
    for _ in range(dendrites.max_sets):
        attach_dendrites_(grown, dendrites, layers=spec.plan.grow)
    if (found := parameter_count(grown)) > bound:
        raise CompressionError(
            f"The target is {bound:,} parameters, and the plan keeps "
            f"{spec.plan.reserved_params:,} of them for dendrites; with all of them the network "
            f"would have {found:,}. Nothing was trained. Name other layers in "
            "DendriteConfig.layers, or pass max_sets=0."
        )


@dataclass(frozen=True)
class ContenderTraining:
    """Trains and scores networks of a job, all on the same data.

    Attributes:
        job: The job.
        experiment: What they learn from.
        callbacks: Called after every epoch.
    """

    job: Job
    experiment: Experiment
    callbacks: Sequence[Callback] = ()

    def train(
        self, spec: ContenderSpec, *, is_trial: bool = False, lengths: Sequence[int] | None = None
    ) -> Contender:
        """Cut a network from the original, train it and score it.

        Args:
            spec: The network.
            is_trial: Whether this is the trial before a choice: the test split is left alone.
            lengths: Epochs of every phase, where they are given.
        """
        of = self.experiment
        network = shrink(self.job.original, spec.plan)
        _check_room(network, spec, self.job.bound)
        compensation = self._compensated_(network, spec)
        self._measure_batchnorm_(network)
        spec = self._rated(network, spec, is_trial=is_trial)
        file = f"{spec.name}-trial" if is_trial else spec.name
        history = self._recovered(network, spec, file, of.seed, lengths)
        data = replace(of.data, test=None) if is_trial else of.data
        contender = self._contender(network, spec, self._score(network, data), history)
        contender = replace(contender, compensation=compensation)
        return contender if is_trial else self._better(contender, spec)

    def train_on(self, spec: ContenderSpec, trial: Contender) -> Contender:
        """Train a copy of a network on after its trial, and score it."""
        assert trial.history is not None
        assert trial.score is not None
        assert trial.lr is not None
        network = copy_model(trial.network)
        spec = replace(spec, config=with_lr(spec.config, trial.lr))
        seed = self.experiment.seed + 1  # other batches than those of the trial
        rest = self._recovered(network, spec, spec.name, seed)
        history = History.joined([trial.history, rest])
        score = self._score(network, self.experiment.data)
        contender = self._contender(network, spec, score, history)
        contender = replace(contender, trial=trial.score.val, compensation=trial.compensation)
        return self._better(contender, spec)

    def _measure_batchnorm_(self, network: nn.Module) -> None:
        of, processes = self.experiment, self.job.processes
        processes.each(lambda: reestimate_batchnorm_(network, of.data, of.task, seed=of.seed))
        processes.share(network)

    def _better(self, trained: Contender, spec: ContenderSpec) -> Contender:
        """Return a trained network, or one that was only fitted, if it is better on validation."""
        if spec.config.recovery.compensation_batches != "auto" or trained.sets:
            return trained
        fitted = fitted_network(self.job.original, spec.plan, self.experiment, self.job.processes)
        assert trained.score is not None
        reached = self.experiment.task.score(trained.score.val)
        if fitted is None or not fitted.score > reached:
            return trained
        score = self._score(fitted.network, self.experiment.data)
        return replace(
            trained,
            network=fitted.network,
            score=score,
            compensation=fitted.compensation,
            absorbed=0,
            is_only_fitted=True,
        )

    def _compensated_(self, network: nn.Module, spec: ContenderSpec) -> CompensationReport | None:
        """Fit what reads narrowed channels before the training, if that was asked for."""
        of, batches = self.experiment, spec.config.recovery.compensation_batches
        if not batches or batches == "auto":
            return None
        return compensated_by_all_(
            self.job.processes,
            *(network, self.job.original, spec.plan, of.data, of.task),
            batches=batches,
            seed=of.seed,
        )

    def score(self, network: nn.Module) -> Score:
        """Return the metric of the original on validation, and on test where there is one.

        Raises:
            CompressionError: It is not defined there.
        """
        data, task, processes = self.experiment.data, self.experiment.task, self.job.processes
        value, samples = scored(network, data.val, "val", task, processes)
        if data.test is None:
            return Score(value, samples)
        return Score(value, samples, *scored(network, data.test, "test", task, processes))

    def _score(self, network: nn.Module, data: Data) -> Score:
        task, processes = self.experiment.task, self.job.processes
        value, samples = evaluate(network, data.val, task, processes)
        if data.test is None:
            return Score(value, samples)
        return Score(value, samples, *evaluate(network, data.test, task, processes))

    def _rated(self, network: nn.Module, spec: ContenderSpec, *, is_trial: bool) -> ContenderSpec:
        """Return a network's training with its learning rate, which a resumed run began with.

        The test is as long as the whole training asks for; of two networks each has half of it.
        """
        if spec.config.recovery.optimizer.lr != "auto":
            return spec
        path = self.job.checkpoint_path(f"{spec.name}-{self.job.fingerprint[:16]}.lr.json")
        owner, processes = owner_of(spec.name, self.job.fingerprint), self.job.processes

        def known() -> float | None:
            return read_rate(path, owner) if path is not None and is_file(path) else None

        if (rate := processes.first(known)) is not None:
            return replace(spec, config=with_lr(spec.config, rate))
        of, config = self.experiment, self.job.config
        steps = range_test_steps(of.data.train, config, processes=processes.world)
        lr = find_lr(
            network,
            of.data,
            of.task,
            config=config,
            seed=of.seed,
            steps=max(steps // 2, LEAST) if is_trial else steps,
            teacher=self.job.original,
        )
        if path is not None:
            processes.first(lambda: write_rate(path, owner, lr))
        return replace(spec, config=with_lr(spec.config, lr))

    def _recovered(
        self,
        network: nn.Module,
        spec: ContenderSpec,
        file: str,
        seed: int,
        lengths: Sequence[int] | None = None,
    ) -> History:
        path = self.job.checkpoint_path(f"{file}.safetensors")
        owner = owner_of(file, self.job.fingerprint)
        mark = mark_of(owner, spec.plan, spec.config.recovery.optimizer.lr)
        return recover_(
            network,
            self.experiment.data,
            self.experiment.task,
            config=spec.config,
            seed=seed,
            callbacks=self.callbacks,
            stage=spec.name,
            layers=spec.plan.grow or None,
            lengths=lengths,
            checkpoint=None if path is None else Checkpoint(path, mark),
            teacher=self.job.original,
        )

    def _contender(
        self, network: nn.Module, spec: ContenderSpec, score: Score, history: History
    ) -> Contender:
        sets = max((layer.num_sets for layer in dendrite_layers(network).values()), default=0)
        cost = measure(network, self.job.inputs)
        lr = spec.config.recovery.optimizer.lr
        assert lr != "auto"
        absorbed = history.records[-1].get("absorbed", 0)
        return Contender(
            spec.name, network, spec.plan, cost, score, history, sets, lr=lr, absorbed=absorbed
        )
