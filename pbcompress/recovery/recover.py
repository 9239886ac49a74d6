"""Train the cycles of a growth to their end, and resume an interrupted run."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.core.accepted_models import check_whole
from pbcompress.core.json_documents import damage_named
from pbcompress.core.modules import device_of, kept_modes
from pbcompress.core.tensor_files import write_tensors
from pbcompress.core.turns import in_turn
from pbcompress.dendrites.forms import GrowableLayers
from pbcompress.errors import DivergedError
from pbcompress.recovery.checkpoint import CHECKPOINT_FORMAT, Checkpoint
from pbcompress.recovery.initialization import initialize_candidates_
from pbcompress.recovery.learning_rate import find_lr, range_test_steps, with_lr
from pbcompress.recovery.phase import Phase
from pbcompress.recovery.phase_cycles import Cycles
from pbcompress.recovery.phase_trainer import OptimizerFactory, PhaseTrainer, SharedTraining
from pbcompress.recovery.policy import PhaseKind, planned_epochs
from pbcompress.training.callbacks import Callback
from pbcompress.training.channels_last import that_take_channels_last
from pbcompress.training.data_checks import check_data, scored
from pbcompress.training.distillation import check_distillation, make_objective
from pbcompress.training.engine import make_engine
from pbcompress.training.experiment import Experiment
from pbcompress.training.history import History, Stage, checked_records
from pbcompress.training.task import CheckedData, Data, Task

__all__ = ["recover_"]

OTHER_MODEL = "Choose another run_dir, or move the checkpoint away to start anew"

logger = logging.getLogger(__name__)


@in_turn
def recover_(
    model: nn.Module,
    data: Data,
    task: Task | None = None,
    *,
    config: CompressConfig | DendriteConfig | RecoveryConfig | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    stage: str = Stage.DENDRITES,
    layers: GrowableLayers | None = None,
    lengths: Sequence[int] | None = None,
    checkpoint: Checkpoint | None = None,
    teacher: nn.Module | None = None,
    optimizer: OptimizerFactory | None = None,
) -> History:
    """Recover lost accuracy in place: neuron phase, dendrite phase, neuron phase, and so on.

    The model ends with the weights of its best validation score and with the dendrite sets that
    helped, in eval mode. Each epoch has its own random stream, so the same call gives the same
    weights on the same machine; the global random state is left alone.

    Args:
        model: Network to train, on its device.
        data: ``train`` trains, ``val`` decides, ``test`` is not touched.
        task: Loss and metric; the default is classification.
        config: ``dendrites`` and ``recovery``; either may be given alone.
        seed: Seed of everything random.
        callbacks: Called after every epoch.
        stage: Name of this training in the history: a `Stage`, or one of your own. It is part of
            the seed of every epoch.
        layers: Exactly these layers grow, with whether each dendrite has its own BatchNorm.
        lengths: Grow nothing, and train phases of these epochs: the control by width alone.
        checkpoint: Where to keep the state after every epoch, and to go on from.
        teacher: The network to learn from, for ``RecoveryConfig.distillation``; left as it is.
        optimizer: Makes the optimizer of each phase from the list of its parameters, in place of
            the one that ``config.recovery`` describes; its rates are scheduled all the same.

    Returns:
        One record for each epoch.

    Raises:
        CompressionError: The data, the loss or the metric cannot be used; nothing was trained.
        DivergedError: A loss or score was not finite, and again at a lower learning rate; the
            model has its best weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,)))]
        >>> recovery = RecoveryConfig(epochs=2, dendrite_epochs=1, max_failures=1)
        >>> data = Data(train=batches, val=batches)
        >>> config = CompressConfig(dendrites=DendriteConfig(), recovery=recovery)
        >>> history = recover_(net, data, config=config)
        >>> [record["kind"] for record in history][:3]
        ['neuron', 'neuron', 'dendrite']
    """
    choices = whole_config(config, DendriteConfig, RecoveryConfig)
    r, task = choices.recovery, task or Task()
    check_whole(model)
    engine = make_engine(model, r.engine)
    checked = engine.processes.each(lambda: _checked(data, task, model, teacher, r))
    images = _with_images(model, teacher, r, checked.first, task)
    saved = None if checkpoint is None else checkpoint.read(device_of(model), engine.processes)
    if optimizer is None:
        known = None if saved is None else saved[1]["lr"]
        world = engine.processes.world
        choices = _with_rate(choices, known, model, checked, task, seed, lengths, teacher, world)
        r = choices.recovery
    growth = Cycles(model, choices, layers=layers, lengths=lengths, seed=seed)
    shared = SharedTraining(
        model=model,
        config=r,
        experiment=Experiment(checked, task, seed),
        engine=engine,
        batches=engine.batches(data.train),
        objective=make_objective(task, r.distillation, teacher, model),
        stage=str(stage),
        factory=optimizer,
        images=images,
    )
    run = _Run(shared, growth, checkpoint)
    with kept_modes(model):
        try:
            if saved is not None:
                run.resume(*saved)
            _train(run, callbacks)
        except BaseException:
            growth.abandon()
            raise
        if growth.absorbed:
            run.history.records[-1]["absorbed"] = growth.absorbed
        run.tell(callbacks, lambda callback: callback.on_end())
    model.eval()
    return run.history


def _checked(
    data: Data, task: Task, model: nn.Module, teacher: nn.Module | None, config: RecoveryConfig
) -> CheckedData:
    """Return data that were checked; `compress` did so before it cut the model."""
    if not isinstance(data, CheckedData):
        data = check_data(data, task, model, device_of(model), samples=8)
    check_distillation(task, config.distillation, teacher, data.first)
    return data


def _with_rate(
    config: CompressConfig,
    known: float | None,
    model: nn.Module,
    data: CheckedData,
    task: Task,
    seed: int,
    lengths: Sequence[int] | None,
    teacher: nn.Module | None,
    processes: int,
) -> CompressConfig:
    """Return a configuration with the rate of its neuron phases: as given, known, or found."""
    if config.recovery.optimizer.lr != "auto":
        return config
    if known is None:
        epochs = None if lengths is None else sum(lengths)
        steps = range_test_steps(data.train, config, epochs, processes=processes)
        known = find_lr(model, data, task, config=config, seed=seed, steps=steps, teacher=teacher)
    return with_lr(config, known)


def _with_images(
    model: nn.Module, teacher: nn.Module | None, config: RecoveryConfig, batch: Any, task: Task
) -> tuple[nn.Module, ...]:
    """Return the networks that train on images in channels-last memory."""
    if not config.engine.channels_last:
        return ()
    networks = [model]
    if teacher is not None and config.distillation.is_on:
        networks.append(teacher)
    return that_take_channels_last(networks, batch, task)


def _train(run: "_Run", callbacks: Sequence[Callback]) -> None:
    most = _most_epochs(run.growth)

    def begin(callback: Callback) -> None:
        callback.on_stage(run.shared.stage, most)
        for record in run.history:
            callback.on_epoch(record)

    run.tell(callbacks, begin)
    for phase in run.growth:
        while not phase.done:
            try:
                record = run.epoch(phase)
            except DivergedError as err:
                run.retry(phase, err)
                continue
            run.tell(callbacks, partial(_on_epoch, record))
        run.leave()


def _on_epoch(record: dict[str, Any], callback: Callback) -> None:
    callback.on_epoch(record)


def _most_epochs(growth: Cycles) -> int:
    if growth.lengths is not None:
        return sum(growth.lengths)
    r, dendrites = growth.recovery, growth.dendrites
    if dendrites.max_sets:  # failed sets take as long as those that help
        dendrites = replace(dendrites, max_sets=dendrites.max_sets + r.max_failures - 1)
    most = planned_epochs(r, dendrites)
    return most if r.max_epochs is None else min(most, r.max_epochs)


class _Run:
    """The state of one recovery between two epochs."""

    def __init__(
        self, shared: SharedTraining, growth: Cycles, checkpoint: Checkpoint | None
    ) -> None:
        self.shared, self.growth, self.checkpoint = shared, growth, checkpoint
        self.engine, self.processes = shared.engine, shared.engine.processes
        self.history = History()
        growth.keep_time(lambda: self.processes.agreed(time.monotonic()))
        self._retried: int | None = None
        self._trainer: PhaseTrainer | None = None

    def tell(self, callbacks: Sequence[Callback], what: Callable[[Callback], None]) -> None:
        """Call the callbacks of the first process."""

        def told() -> None:
            for callback in callbacks:
                what(callback)

        self.processes.first(told)

    def epoch(self, phase: Phase) -> dict[str, Any]:
        """Train and score one epoch, record it, and keep the state."""
        started, epoch = time.monotonic(), phase.epoch
        trainer = self._trainer_of(phase)
        loss, steps = trainer.epoch()
        self.processes.share(self.shared.model)
        is_at_rest = phase.kind is PhaseKind.DENDRITE and epoch > 0  # candidates add nothing
        with trainer.averaged():
            metric = self.history.records[-1]["metric"] if is_at_rest else self._metric()
            phase.report(self.shared.experiment.task.score(metric))
        record: dict[str, Any] = {
            "stage": self.shared.stage,
            "phase": phase.index,
            "kind": str(phase.kind),
            "epoch": epoch,
            "sets": phase.sets,
            "loss": loss,
            "metric": metric,
            "steps": steps,
            "lr": trainer.lr,
        }
        if phase.kind is PhaseKind.DENDRITE:
            record |= {"correlation": phase.correlation, "improved": phase.improved}
            record["replayed"] = trainer.is_replayed
            record["scores"] = {name: _deciles(r) for name, r in phase.scores.items()}
        if phase.kind is PhaseKind.NEURON and phase.sets and epoch == 0:
            record["nodes"] = self.growth.newest_nodes
        record["seconds"] = round(time.monotonic() - started, 3)
        self.history.records.append(record)
        self.processes.first(self._save)
        return record

    def _metric(self) -> float:
        self.processes.share(self.shared.model)
        data, task = self.shared.experiment.data, self.shared.experiment.task
        return scored(self.shared.model, data.val, "val", task, self.processes)[0]

    def retry(self, phase: Phase, error: DivergedError) -> None:
        """Go on from good weights at a lower learning rate; raise ``error`` the second time."""
        if self._retried == phase.index:
            raise error
        logger.warning(
            "%s Phase %d goes on from its best weights at %g of its learning rate.",
            error,
            phase.index,
            self.shared.config.optimizer.retry_lr,
        )
        self.growth.rewind()
        self._retried, self._trainer = phase.index, None

    def _trainer_of(self, phase: Phase) -> PhaseTrainer:
        """Return what trains a phase, a fresh one where the phase is new."""
        if self._trainer is None or self._trainer.index != phase.index:
            if phase.kind is PhaseKind.DENDRITE and phase.epoch == 0:
                self._initialize_candidates_(phase)
            factor = self.shared.config.optimizer.retry_lr if self._retried == phase.index else 1.0
            self._trainer = PhaseTrainer(self.shared, phase, factor)
            if self.checkpoint is not None:
                self._trainer.state()  # refuses what cannot be kept, before an epoch
        return self._trainer

    def _initialize_candidates_(self, phase: Phase) -> None:
        if self.growth.dendrites.scored_rule.initialization != "spectral":
            return
        experiment = self.shared.experiment
        initialize_candidates_(
            self.shared.model,
            experiment.data.train,  # the same batches in every process
            experiment.task,
            batches_used=16 * self.processes.world,
            seed=experiment.seed + 1000 * phase.index,
        )

    def leave(self) -> None:
        """Forget what trained a phase, with all that it holds in memory."""
        self._trainer = None

    def _save(self) -> None:
        if self.checkpoint is None or self._trainer is None:
            return
        tensors, state = self.growth.state()
        slots, optimizer = self._trainer.state()
        tensors |= {f"optimizer.{key}": slot for key, slot in slots.items()}
        write_tensors(
            self.checkpoint.path,
            tensors,
            {
                "format": CHECKPOINT_FORMAT,
                "fingerprint": self.checkpoint.fingerprint,
                "growth": state,
                "optimizer": {"phase": self._trainer.index, "state": optimizer},
                "history": self.history.records,
                "engine": self.engine.state(),
                "processes": self.processes.world,
                "retried": self._retried,
                "lr": self.shared.config.optimizer.lr,
            },
        )

    def resume(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up the state that a former run left."""
        slots = {
            k.removeprefix("optimizer."): v
            for k, v in tensors.items()
            if k.startswith("optimizer.")
        }
        rest = {k: v for k, v in tensors.items() if not k.startswith("optimizer.")}
        assert self.checkpoint is not None
        with damage_named(str(self.checkpoint.path), OTHER_MODEL):
            self.growth.restore(rest, state["growth"])
            self.history = History(checked_records(state["history"]))
            self.engine.restore(state["engine"])
            self._retried = state["retried"]
            phase, optimizer = self.growth.phase, state["optimizer"]
            is_fresh = phase is None or phase.done or optimizer["phase"] != phase.index
        if phase is None or is_fresh:
            return
        trainer = self._trainer_of(phase)
        with damage_named(str(self.checkpoint.path), OTHER_MODEL):
            trainer.restore(slots, optimizer["state"])


def _deciles(scores: Tensor) -> list[float]:
    places = torch.linspace(0, 1, 11, dtype=torch.float64, device=scores.device)
    return [round(v, 5) for v in scores.double().quantile(places).tolist()]
