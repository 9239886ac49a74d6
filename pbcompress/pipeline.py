"""The path from a model to a smaller one, in one call."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pbcompress.comparison.intervals import Estimate
from pbcompress.comparison.scoring import paired_change, split_of
from pbcompress.config.budget import Budget
from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.config.widths import WidthConfig
from pbcompress.core.accepted_models import check_model
from pbcompress.core.inputs import as_call, to_device
from pbcompress.core.modules import copy_model
from pbcompress.core.tensor_files import write_bytes
from pbcompress.costs.measured import measure
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.planning.importance import sample_for
from pbcompress.planning.planner import resolve_target
from pbcompress.planning.width_plan import WidthPlan, plan_widths
from pbcompress.pruning.shrinking import shrink
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.policy import is_better
from pbcompress.recovery.recover import recover_
from pbcompress.recovery.trial import remainder_of, trial_of
from pbcompress.result import CompressionResult
from pbcompress.runs.contenders import Arm, Score
from pbcompress.runs.deployment import deploy, file_notes
from pbcompress.runs.run_state import STATE_FILE, read_state
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from pbcompress.training.callbacks import Callback
from pbcompress.training.engine import choose_device, world_size
from pbcompress.training.history import History
from pbcompress.training.loop import evaluate
from pbcompress.training.progress import ProgressBar
from pbcompress.training.task import Data, Task, check_data, inputs_of

__all__ = ["compress"]

logger = logging.getLogger(__name__)


def compress(
    model: nn.Module,
    target_params: float | Budget,
    *,
    example_inputs: object = None,
    data: Data | None = None,
    task: Task | None = None,
    config: CompressConfig | WidthConfig | DendriteConfig | RecoveryConfig | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    control: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> CompressionResult:
    """Shrink a trained network to a target, win its accuracy back, and measure the result.

    Widths are planned and proven, the narrower network is trained in cycles of dendrite growth,
    and original and result are compared on size, work, speed and metric. With ``share="auto"`` a
    network without dendrites has a trial too, and validation decides which of them trains on.

    Args:
        model: A trained network of Linear and convolution layers; never modified.
        target_params: At most so many parameters, dendrites included: a count, a share in (0, 1) of
            the original, or a `Budget`.
        example_inputs: A tensor, tuple or dict of one forward pass; default: those of the first
            train batch.
        data: Batches to train, decide and test on; None shrinks only, and leaves the accuracy low.
        task: Loss and metric; default: classification.
        config: All further choices, or one part of them: how widths are chosen, what grows or how
            weights are trained.
        device: Where to train; default: CUDA, then MPS, then CPU.
        seed: Seed of everything random. The same call gives the same numbers on the same machine.
        run_dir: Folder for checkpoints, weights, history and report. The same call with the same
            folder goes on where it was stopped.
        control: Also train the network that spends the whole target on width, and report it.
        callbacks: Told of every epoch.
        progress: Show a progress bar on the standard error stream.

    Returns:
        The compressed network and all that was measured.

    Raises:
        TargetUnreachableError: The target is not below the original or below what is reachable.
        CompressionError: The model, inputs, data or folder cannot be used; nothing was trained.
        StateMismatchError: ``run_dir`` holds another run.
        DivergedError: Training produced a loss that is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> config = CompressConfig(deploy=False)
        >>> result = compress(net, 0.5, example_inputs=torch.zeros(1, 8), config=config)
        >>> result.cost_after.params <= 353
        True
    """
    choices = whole_config(config, WidthConfig, DendriteConfig, RecoveryConfig)
    job = _Job(
        model, target_params, example_inputs, data, task, choices, device, seed, run_dir, callbacks
    )
    if progress and data is not None:
        job.callbacks = (*job.callbacks, ProgressBar())
    return job.shrink_only() if data is None else job.shrink_and_recover(data, control)


class _Way(NamedTuple):
    """A network to make: its name in the history, its configuration and its widths."""

    name: str
    config: CompressConfig
    plan: WidthPlan


class _Job:
    """One call of `compress`, checked before anything changes."""

    def __init__(
        self,
        model: nn.Module,
        target_params: float | Budget,
        example_inputs: object,
        data: Data | None,
        task: Task | None,
        config: CompressConfig,
        device: str | torch.device | None,
        seed: int,
        run_dir: str | Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        if example_inputs is None and data is None:
            raise CompressionError(
                "compress(model, target) does not know what goes into the model. Call "
                "compress(model, target, example_inputs=torch.zeros(1, 3, 32, 32)) with inputs of "
                "your model, or pass data=pb.Data(train=..., val=...)."
            )
        if world_size() > 1:
            raise CompressionError(
                f"compress was called in one of {world_size()} processes; it plans, compares and "
                "writes files in one. Call shrink before torchrun, and recover_ in its processes."
            )
        check_model(model)
        self.config, self.task, self.seed = config, task or Task(), seed
        self.data, self.target, self.callbacks = data, target_params, tuple(callbacks)
        sample_for(self.config.width, data, self.task, seed)  # raises where data are missing
        self.device = choose_device(device)
        self.original = copy_model(model).to(self.device).eval()
        if data is not None:
            check_data(data, self.task, self.original, self.device)
        if example_inputs is not None:
            self.call = to_device(as_call(example_inputs), self.device)
        else:
            assert data is not None
            self.call = inputs_of(data, self.task, self.original, self.device)
        self.cost_before = measure(self.original, self._inputs())
        self.bound = resolve_target(target_params, self.cost_before)[0]
        self.run_dir = Path(run_dir) if run_dir is not None else None
        self.fingerprint = self._fingerprint()
        if self.run_dir is not None:
            _check_run_dir(self.run_dir, self.fingerprint)

    def _inputs(self) -> object:
        args, kwargs = self.call
        if kwargs and args:
            raise CompressionError(
                "Task.forward calls the model with positional and named inputs at once. Pass "
                "example_inputs as a tuple or a dict."
            )
        return kwargs or args

    def _fingerprint(self) -> str:
        """Identify what decides the outcome: weights, target, configuration, seed and task."""
        digest = hashlib.sha256()
        for name, tensor in self.original.state_dict().items():
            digest.update(name.encode())
            if isinstance(tensor, Tensor):
                digest.update(str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
        target = self.target.to_dict() if isinstance(self.target, Budget) else self.target
        choices = [self.config.to_dict(), target, self.seed, self.task.metric_name]
        digest.update(json.dumps(choices, sort_keys=True).encode())
        return digest.hexdigest()

    def _plan(self, stage: str, config: CompressConfig) -> WidthPlan:
        """Return the plan of an arm; a run that goes on takes the one that it began with."""
        path = None
        if self.run_dir is not None:
            path = self.run_dir / "checkpoints" / f"{stage}-{self.fingerprint[:16]}.plan.json"
            if path.is_file():
                return WidthPlan.from_json(path.read_text())
        plan = plan_widths(
            self.original,
            self._inputs(),
            self.target,
            config=config,
            data=self.data,
            task=self.task,
            seed=self.seed,
        )
        if path is not None:
            write_bytes(path, plan.to_json().encode())
        return plan

    # --- the two ways ---------------------------------------------------------------------------

    def shrink_only(self) -> CompressionResult:
        """Shrink without training."""
        note = "No data was given: the network was only shrunk, and its accuracy was not recovered."
        logger.warning(note)
        plan = self._plan("width", _without_dendrites(self.config))
        arm = Arm("width", shrink(self.original, plan).eval(), plan, plan.cost_after, None, None, 0)
        return self._finish(arm, None, None, History(), note)

    def shrink_and_recover(self, data: Data, control: bool) -> CompressionResult:
        """Train the arms, choose by validation, and score the test split once each."""
        before = self._score(self.original, data)
        grown = self._grown_way()
        other: Arm | None = None
        if grown is None:
            chosen, note = self._train(self._wide_way(), data), self._why_width_alone()
        elif self.config.dendrites.share == "auto":
            chosen, other, note = self._race(grown, self._wide_way(), data, control)
        else:
            chosen, note = self._train(grown, data), "One network was trained: dendrites."
            if control or not chosen.sets:
                other = self._train(self._wide_way(), data, lengths=chosen.phase_lengths)
                note = "The share of the dendrites was given; width alone is the control."
            if other and not chosen.sets:
                chosen, other = other, chosen
                note = "No dendrite set helped on validation: the result is width alone."
        history = History.joined([arm.history for arm in (chosen, other) if arm and arm.history])
        return self._finish(chosen, other, before, history, note)

    def _way(self, name: str, config: CompressConfig) -> _Way:
        return _Way(name, config, self._plan(name, config))

    def _wide_way(self) -> _Way:
        return self._way("width", _without_dendrites(self.config))

    def _grown_way(self) -> _Way | None:
        dendrites = self.config.dendrites
        if not dendrites.max_sets or dendrites.share == 0:
            return None
        share = 1.0 if dendrites.share == "auto" else dendrites.share
        config = replace(self.config, dendrites=replace(dendrites, share=share))
        way = self._way("dendrites", config)
        return way if way.plan.grow else None

    def _why_width_alone(self) -> str:
        dendrites = self.config.dendrites
        why = "no dendrites were asked for"
        if dendrites.max_sets and dendrites.share != 0:
            why = "the target has no room for a set of dendrites"
            if dendrites.max_price is not None:
                why += f" that cost at most {dendrites.max_price:g} of a neuron each"
        return f"One network was trained, width alone, for {why}."

    def _race(self, grown: _Way, wide: _Way, data: Data, control: bool) -> tuple[Arm, Arm, str]:
        """Return the network that validation favours after a trial of both, and the other one."""
        small = grown._replace(config=trial_of(grown.config))
        first = self._train(small, data, part="-trial")
        second = self._train(wide, data, part="-trial", lengths=first.phase_lengths)
        assert first.score is not None
        assert second.score is not None
        of_grown, of_wide = (self.task.score(score.val) for score in (first.score, second.score))
        is_grown = is_better(of_grown, of_wide, 0, self.config.recovery)
        epochs = sum(first.phase_lengths)

        def train_on(way: _Way, arm: Arm) -> Arm:
            rest = remainder_of(grown.config, 2 * epochs, arm.sets)
            return self._train(way._replace(config=rest), data, start=arm)

        ways = [(grown, first), (wide, second)]
        winner, loser = ways if is_grown else ways[::-1]
        chosen = train_on(*winner)
        note = (
            f"After a trial of {epochs} epochs each, {self.task.metric_name} on validation was "
            f"{first.score.val:.4f} with dendrites and {second.score.val:.4f} by width alone, so "
            f"{'dendrites' if is_grown else 'width alone'} had the rest of the training."
        )
        return chosen, train_on(*loser) if control else loser[1], note

    def _train(
        self,
        way: _Way,
        data: Data,
        *,
        part: str = "",
        lengths: Sequence[int] | None = None,
        start: Arm | None = None,
    ) -> Arm:
        """Train a network of a plan, or train one on after its trial."""
        if start is None:
            network = shrink(self.original, way.plan)
            reestimate_batchnorm_(network, data, self.task, seed=self.seed)
        else:
            network = copy_model(start.network)
        checkpoint = None
        if self.run_dir is not None:
            path = self.run_dir / "checkpoints" / f"{way.name}{part}.safetensors"
            checkpoint = Checkpoint(path, self.fingerprint)
        history = recover_(
            network,
            data,
            self.task,
            config=way.config,
            seed=self.seed + (start is not None),  # other batches than those of the trial
            callbacks=self.callbacks,
            stage=way.name,
            layers=way.plan.grow or None,
            lengths=lengths,
            checkpoint=checkpoint,
            teacher=self.original,
        )
        trial = None
        if start is not None and start.history and start.score:
            history, trial = History.joined([start.history, history]), start.score.val
        sets = max((layer.num_sets for layer in dendrite_layers(network).values()), default=0)
        score = self._score(network, replace(data, test=None) if part else data)
        cost = measure(network, self._inputs())
        return Arm(way.name, network, way.plan, cost, score, history, sets, trial)

    def _score(self, network: nn.Module, data: Data) -> Score:
        value, samples = evaluate(network, data.val, self.task)
        if data.test is None:
            return Score(value, samples)
        return Score(value, samples, *evaluate(network, data.test, self.task))

    def _finish(
        self, chosen: Arm, other: Arm | None, before: Score | None, history: History, note: str
    ) -> CompressionResult:
        if chosen.cost.params > self.bound:
            raise AssertionError(f"result has {chosen.cost.params} parameters of {self.bound}")
        deployment = self._deploy(chosen) if self.config.deploy else None
        result = CompressionResult(
            model=chosen.network,
            plan=chosen.plan,
            cost_before=self.cost_before,
            cost_after=chosen.cost,
            target_params=self.bound,
            score_before=before,
            score_after=chosen.score,
            chosen=chosen,
            other=other,
            deployment=deployment,
            history=history,
            config=self.config,
            task=self.task,
            seed=self.seed,
            note=note,
            example_inputs=self._inputs(),
            fingerprint=self.fingerprint,
            over_control=self._over_control(chosen, other),
        )
        if self.run_dir is not None:
            result.save(self.run_dir)
            result.write_reports(self.run_dir)
        return result

    def _over_control(self, chosen: Arm, other: Arm | None) -> Estimate | None:
        if other is None or (other.trial is None and chosen.trial is not None):
            return None  # what lost a trial was trained no further
        assert chosen.score is not None
        assert other.score is not None
        return paired_change(
            (other.network, chosen.network),
            (other.name, chosen.name),
            split_of(self.data),
            self.task,
            (other.score.shown, chosen.score.shown),
        )

    def _deploy(self, chosen: Arm) -> Any:
        path = self.run_dir / "model.onnx" if self.run_dir else None
        notes = file_notes(chosen.cost, chosen.plan, self.fingerprint, self.task, chosen.score)
        inputs = self._inputs()
        return deploy(self.original, chosen.network, inputs, path, self.data, self.task, notes)


def _without_dendrites(config: CompressConfig) -> CompressConfig:
    return replace(config, dendrites=replace(config.dendrites, max_sets=0))


def _check_run_dir(folder: Path, fingerprint: str) -> None:
    if (folder / STATE_FILE).is_file() and read_state(folder).get("fingerprint") != fingerprint:
        raise StateMismatchError(
            f"{folder} holds a run of another model, target, configuration or seed. Choose another "
            "run_dir, or delete this one."
        )
    probe = folder / ".writable"
    write_bytes(probe, b"")
    probe.unlink()
