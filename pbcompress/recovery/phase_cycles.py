"""Cycles of growth as a generator of phases: it freezes, yields, and takes scores back."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig, Gradient
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.core.accepted_models import check_whole
from pbcompress.core.randomness import whole_seed
from pbcompress.dendrites.absorption import absorb_dendrites_, anneal_
from pbcompress.dendrites.forms import GrowableLayers
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import (
    candidate_pools,
    dendrite_layers,
    neuron_parameters,
    set_count,
)
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.recovery.best_weights import BestWeights
from pbcompress.recovery.freezing import let_train_, put_buffers_, resting_buffers
from pbcompress.recovery.growing_layers import check_annealing, detach_untrained_, what_grows
from pbcompress.recovery.node_scores import NodeScores
from pbcompress.recovery.node_selection import accept_
from pbcompress.recovery.phase import Phase
from pbcompress.recovery.policy import (
    Action,
    PhaseKind,
    PhaseLog,
    best_epoch,
    counts_from,
    linearity,
    longest,
    next_action,
)
from pbcompress.training.snapshots import check_weights, put_weights_, weights_of

__all__ = ["Cycles", "Phase", "cycles"]

logger = logging.getLogger(__name__)


class Cycles(Iterator[Phase]):
    """The iterator that `cycles` returns; it also can be saved and restored between epochs.

    `policy.next_action` decides what comes next; this carries it out on the model.

    Attributes:
        absorbed: Sets that were folded into their neurons at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CompressConfig,
        *,
        layers: GrowableLayers | None = None,
        lengths: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.seed = whole_seed(seed)
        self.lengths = lengths
        self._trainable = {n for n, p in neuron_parameters(model).items() if p.requires_grad}
        self._check()
        self.dendrites, self.layers = what_grows(model, config.dendrites, layers)
        check_annealing(self.dendrites, config.recovery)
        self._untrained = detach_untrained_(model)
        if lengths is not None:
            self.dendrites = replace(self.dendrites, max_sets=0)
        self.recovery = config.recovery
        self.log: list[PhaseLog] = []
        self.minutes = 0.0
        self.scores = NodeScores(config.recovery.node_improvement)
        self.phase: Phase | None = None
        self._best = BestWeights(model)
        self._first_sets = self._best.sets
        self._attempts = self.absorbed = 0
        self._reported = True
        self.keep_time(time.monotonic)
        self._resting: dict[str, Tensor] = {}

    def _check(self) -> None:
        check_whole(self.model)
        check_weights(self.model)
        if not self._trainable:
            raise CompressionError(
                "Recovery was asked for and no parameter of the model requires grad, so nothing "
                "can train. Call model.requires_grad_(True), or leave data out to shrink only."
            )
        if self.lengths is not None and min(self.lengths, default=0) < 1:
            raise CompressionError(
                f"lengths was given as {list(self.lengths)}. Give at least one phase, each of at "
                "least one epoch."
            )

    def keep_time(self, clock: Callable[[], float]) -> None:
        """Measure ``minutes`` by a clock in seconds; several processes need one that they share."""
        self._time, self._clock = clock, clock()

    # --- from phase to phase ------------------------------------------------------------------

    def __next__(self) -> Phase:
        """Return the current phase while it lasts, then the next one."""
        if self.phase is not None and not self.is_over(self.phase):
            if not self._reported:
                raise CompressionError(
                    "The loop came back for the next phase without a score. Call "
                    "phase.report(score) once after each epoch."
                )
            self._reported = False
            return self.phase
        if self.phase is None:
            if self.dendrites.at_start and self.dendrites.max_sets and not set_count(self.model):
                self._start_set()
            else:
                self._start(PhaseKind.NEURON)
        else:
            self._advance(self._action())
        self._reported = False
        assert self.phase is not None  # _advance raises StopIteration at the end
        return self.phase

    def _action(self) -> Action:
        """Return the next action; with fixed lengths, phases follow each other by count alone."""
        if self.lengths is None:
            return next_action(self.log, self.recovery, self.dendrites, minutes=self.minutes)
        if len(self.log[-1].scores) < self.lengths[len(self.log) - 1]:
            return Action.CONTINUE
        return Action.GROW if len(self.log) < len(self.lengths) else Action.STOP

    def _advance(self, action: Action) -> None:
        if action is Action.ACCEPT:
            layers = dendrite_layers(self.model)
            _warn_of_unreached([name for name in layers if name not in self.scores.latest])
            accept_(layers, self.scores.latest)
            self._start(PhaseKind.NEURON)
            return
        self._best.put_back_()
        if action is Action.STOP:
            self._absorb()
            self._let_train(PhaseKind.NEURON)
            self.model.zero_grad(set_to_none=True)
            raise StopIteration
        if action is Action.THAW or self.lengths is not None:
            self._start(PhaseKind.NEURON if self.lengths is not None else PhaseKind.THAW)
            return
        self._start_set()

    def _start_set(self) -> None:
        self._grow()
        is_gradient = isinstance(self.dendrites.rule, Gradient)
        self._start(PhaseKind.NEURON if is_gradient else PhaseKind.DENDRITE)

    def _start(self, kind: PhaseKind) -> None:
        sets = set_count(self.model)
        is_grown = sets > 0 and self._attempts > 0 and self.lengths is None
        first = counts_from(kind, self.log, self.recovery, self.dendrites, has_new_set=is_grown)
        self.log.append(PhaseLog(kind, sets, counts_from=first))
        if kind is PhaseKind.DENDRITE:
            self._begin_candidacy()
            self.scores.begin()
        self._open_phase()
        self._best.begin_phase()

    def _open_phase(self) -> None:
        kind = self.log[-1].kind
        self.phase = Phase(self, len(self.log) - 1, kind)
        self._anneal()
        self._let_train(kind)
        self.model.zero_grad(set_to_none=True)  # a gradient left on what is frozen now is stale
        self._resting = resting_buffers(self.model) if kind is PhaseKind.DENDRITE else {}

    def _anneal(self) -> None:
        anneal_(self.model, linearity(self.log[-1]))

    def _absorb(self) -> None:
        layers = [n for n, m in dendrite_layers(self.model).items() if m.config.is_absorbed]
        if layers:
            self.absorbed = set_count(self.model)
            absorb_dendrites_(self.model, layers)

    def _let_train(self, kind: PhaseKind) -> None:
        let_train_(self.model, kind, self._trainable, self.dendrites)

    def _grow(self) -> None:
        wrapped = dendrite_layers(self.model)
        config = next(iter(wrapped.values())).config if wrapped else self.dendrites
        seed = self.seed + 1000 * self._attempts
        attach_dendrites_(self.model, config, layers=self.layers, seed=seed)
        self._attempts += 1

    def _begin_candidacy(self) -> None:
        rivals = range(1, self.dendrites.scored_rule.candidates)
        for name, layer in dendrite_layers(self.model).items():
            of_layer = (self.seed, self._attempts, name, layer.num_sets)
            layer.begin_candidacy([(*of_layer, rival) for rival in rivals])

    # --- what a phase reads and reports -------------------------------------------------------

    def is_over(self, phase: Phase) -> bool:
        """Tell whether a phase has had its last epoch."""
        if phase is not self.phase:
            return True
        return bool(self.log[-1].scores) and self._action() is not Action.CONTINUE

    def length_of(self, phase: Phase) -> int:
        """Return the most epochs of a phase."""
        if self.lengths is not None:
            return self.lengths[phase.index]
        return longest(phase.kind, self.recovery, self.dendrites)

    def take(self, phase: Phase, score: float) -> None:
        """Record the score of one epoch of ``phase``."""
        if phase is not self.phase:
            raise CompressionError(
                f"A score was reported to phase {phase.index}, and a later one has begun. Report "
                "to the phase that the loop yielded last."
            )
        if not math.isfinite(score):
            self.abandon()
            raise DivergedError(
                f"The validation score of an epoch is {score}; the model has its best weights "
                "again. Lower the learning rate, or make the metric defined for every output."
            )
        now = self._time()
        self.minutes += (now - self._clock) / 60
        self._clock, self._reported = now, True
        improved = 0
        if phase.kind is PhaseKind.DENDRITE:
            improved = self.scores.take(candidate_pools(self.model))
            put_buffers_(self.model, self._resting)  # a loop that called model.train() moved them
        self.log[-1] = self.log[-1].with_epoch(score, improved)
        latest = (len(self.log) - 1, len(self.log[-1].scores) - 1)
        if best_epoch(self.log, self.recovery) == latest:
            self._best.keep()
        self._anneal()

    @property
    def newest_nodes(self) -> dict[str, list[int]]:
        """Nodes of the newest set, and of a whole one, by layer."""
        counts = {}
        for name, layer in dendrite_layers(self.model).items():
            slots: Any = layer.slots[-1]
            counts[name] = [slots.count, layer.nodes]
        return counts

    # --- back to good weights -----------------------------------------------------------------

    def rewind(self) -> None:
        """Restore the best weights of the current phase, those of its start where it has none."""
        self._best.rewind_(to_best=best_epoch(self.log, self.recovery)[0] == len(self.log) - 1)
        if self.log[-1].kind is PhaseKind.DENDRITE:
            self.scores.begin()
            for pool in candidate_pools(self.model).values():
                pool.restart()
        self._anneal()

    def abandon(self) -> None:
        """Leave a training that failed: the model gets its best weights so far.

        Before the first score these are the ones that it came with, with the sets it came with.
        """
        self._best.put_back_()
        if self._best.sets > self._first_sets:
            self._absorb()
        self._let_train(PhaseKind.NEURON)
        if self.phase is not None:  # it began without gradients
            self.model.zero_grad(set_to_none=True)
        if set_count(self.model) == self._first_sets:
            self._attempts = 0
            for _ in range(self._untrained):
                self._grow()

    # --- save and restore ---------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a fresh `Cycles` over the original model needs to go on from here."""
        tensors = {f"model.{k}": v for k, v in weights_of(self.model).items()}
        tensors |= self._best.state()
        for name, pool in candidate_pools(self.model).items():
            summed = pool.summed_scores()
            if summed is not None:
                tensors[f"candidate.{name}"] = summed
        tensors |= {f"scores.{k}": v for k, v in self.scores.state().items()}
        return tensors, {
            "log": [phase.to_dict() for phase in self.log],
            "sets": set_count(self.model),
            "nodes": {n: layer.kept_nodes for n, layer in dendrite_layers(self.model).items()},
            "best_sets": self._best.sets,
            "attempts": self._attempts,
            "minutes": self.minutes,
            "correlation": self.scores.mean,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from `state`; call it before the first phase."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = tensor
        self.log = [PhaseLog.from_dict(phase) for phase in state["log"]]
        while set_count(self.model) < state["sets"]:
            self._grow()
        for name, layer in dendrite_layers(self.model).items():
            layer.keep_all_nodes(state["nodes"][name])
        self._attempts = state["attempts"]
        self.minutes = state["minutes"]
        if self.log[-1].kind is PhaseKind.DENDRITE:
            self._begin_candidacy()
        put_weights_(self.model, parts["model"])
        self._best.restore(parts["best"], parts["started"], state["best_sets"])
        self._open_phase()
        for name, pool in candidate_pools(self.model).items():
            pool.restart(parts.get("candidate", {}).get(name))
        self.scores.restore(parts.get("scores", {}), state["correlation"])


def _warn_of_unreached(names: Sequence[str]) -> None:
    if names:
        logger.warning(
            "No error reached the candidates of %s%s, which stay as they began. The loss does not "
            "depend on these layers, their weight is read past them, or they lie in a re-entrant "
            "checkpoint before which nothing trains (use_reentrant=False helps).",
            ", ".join(names[:4]),
            f" and {len(names) - 4} more" if len(names) > 4 else "",
        )


def cycles(
    model: nn.Module,
    *,
    config: CompressConfig | DendriteConfig | RecoveryConfig | None = None,
    layers: GrowableLayers | None = None,
    lengths: Sequence[int] | None = None,
    seed: int = 0,
) -> Cycles:
    """Yield the phases of a growth, for a training loop of your own.

    Each phase says what trains; the loop, the optimizer and the data stay yours. When a set did not
    help, the best former weights are restored before the next phase; after the last phase the model
    holds the best weights. A phase that is not over is yielded again, so one report for each
    turn of the loop is as good as an inner loop over ``phase.done``.

    Args:
        model: Trained network, grown in place.
        config: ``dendrites`` and ``recovery`` (lengths, patience, bounds); either may be given
            alone.
        layers: Exactly these layers grow, with whether each dendrite has its own BatchNorm.
        lengths: Grow nothing, and run neuron phases of these epochs: the control.
        seed: Seed of the new weights.

    Returns:
        An iterator of `Phase`.

    Example:
        >>> import torch
        >>> net, x, y = nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 1)
        >>> net = nn.Sequential(net)
        >>> recovery = RecoveryConfig(epochs=2, dendrite_epochs=1)
        >>> config = CompressConfig(dendrites=DendriteConfig(), recovery=recovery)
        >>> kinds = []
        >>> for phase in cycles(net, config=config):
        ...     optimizer = torch.optim.SGD(phase.parameters(), lr=0.1)
        ...     while not phase.done:
        ...         phase.train()
        ...         optimizer.zero_grad()
        ...         loss = (net(x) - y).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         _ = phase.report(-loss.item())
        ...     kinds.append(str(phase.kind))
        >>> kinds[:3]
        ['neuron', 'dendrite', 'neuron']
    """
    choices = whole_config(config, DendriteConfig, RecoveryConfig)
    return Cycles(model, choices, layers=layers, lengths=lengths, seed=seed)
