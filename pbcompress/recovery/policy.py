"""What to do next, as a pure function of the scores so far. No tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pbcompress.config.dendrites import DendriteConfig, ScoredRule
from pbcompress.config.recovery import RecoveryConfig

__all__ = [
    "Action",
    "PhaseKind",
    "PhaseLog",
    "best_epoch",
    "counts_from",
    "is_better",
    "linearity",
    "longest",
    "next_action",
    "planned_epochs",
    "sets_kept",
    "thaw_length",
]

SMALLEST_GAIN = 1e-5  # of the best score, whatever its unit: less is the order of sums


class PhaseKind(StrEnum):
    """Who trains: the neurons (with U), the newest dendrites, or at the end all of them."""

    NEURON = "neuron"
    DENDRITE = "dendrite"
    THAW = "thaw"


class Action(StrEnum):
    """The next step of a growth.

    GROW, THAW and STOP load the best checkpoint first: a set that did not help is gone with them.
    """

    CONTINUE = "continue"
    GROW = "grow"
    ACCEPT = "accept"
    THAW = "thaw"
    STOP = "stop"


@dataclass(frozen=True)
class PhaseLog:
    """Scores of one phase.

    Attributes:
        kind: Neuron or dendrite phase.
        sets: Sets in the network during the phase, a candidate included.
        scores: Validation score of each epoch, higher is better.
        improved: Dendrite phase: nodes that improved their own score, by epoch.
        counts_from: The first epoch whose weights may be the best; before it, dendrites that are
            to be absorbed are not linear yet.
    """

    kind: PhaseKind
    sets: int
    scores: tuple[float, ...] = ()
    improved: tuple[int, ...] = ()
    counts_from: int = 0

    @property
    def best(self) -> tuple[float, int] | None:
        """The best score that counts, and the last epoch that has it; None where none does.

        The later of two epochs has the lower learning rate behind it.
        """
        counted = [(score, epoch) for epoch, score in enumerate(self.scores)][self.counts_from :]
        return max(counted, default=None)

    def with_epoch(self, score: float, improved: int = 0) -> "PhaseLog":
        """Return the log with one more epoch."""
        return replace(self, scores=(*self.scores, score), improved=(*self.improved, improved))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "kind": str(self.kind),
            "sets": self.sets,
            "scores": list(self.scores),
            "improved": list(self.improved),
            "counts_from": self.counts_from,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "PhaseLog":
        """Rebuild a log."""
        kind, scores, improved = PhaseKind(data["kind"]), data["scores"], data["improved"]
        return cls(kind, data["sets"], tuple(scores), tuple(improved), data["counts_from"])


def thaw_length(recovery: RecoveryConfig, dendrites: DendriteConfig) -> int:
    """Return the most epochs of a thaw; 0 where there is none."""
    if recovery.thaw_epochs is not None:
        return recovery.thaw_epochs
    return recovery.epochs if dendrites.freeze_after else 0


def longest(kind: PhaseKind, recovery: RecoveryConfig, dendrites: DendriteConfig) -> int:
    """Return the most epochs of a phase."""
    lengths = {PhaseKind.NEURON: recovery.epochs, PhaseKind.DENDRITE: recovery.dendrite_epochs}
    return lengths.get(kind, thaw_length(recovery, dendrites))


def planned_epochs(recovery: RecoveryConfig, dendrites: DendriteConfig) -> int:
    """Return the epochs of a growth in which every set helps and no phase ends early."""
    sets, has_phase = dendrites.max_sets, isinstance(dendrites.rule, ScoredRule)
    of_a_set = recovery.epochs + has_phase * recovery.dendrite_epochs
    first = 0 if sets and dendrites.at_start else recovery.epochs
    return first + sets * of_a_set + (thaw_length(recovery, dendrites) if sets else 0)


def counts_from(
    kind: PhaseKind,
    log: Sequence[PhaseLog],
    recovery: RecoveryConfig,
    dendrites: DendriteConfig,
    *,
    has_new_set: bool,
) -> int:
    """Return the first epoch of a new phase whose weights may be the best.

    Sets that lose their nonlinearity do so in the neuron phase right after they grew.

    Args:
        kind: Of the new phase.
        log: The phases before it.
        recovery: Lengths and bounds.
        dendrites: ``annealing``.
        has_new_set: Whether a set has grown for this phase.
    """
    if not dendrites.anneals or kind is not PhaseKind.NEURON or not has_new_set:
        return 0
    assert dendrites.annealing is not None
    epochs = recovery.epochs
    if recovery.max_epochs is not None:
        epochs = min(epochs, recovery.max_epochs - sum(len(phase.scores) for phase in log))
    return max(math.ceil(dendrites.annealing * epochs) - 1, 0)


def linearity(phase: PhaseLog) -> float:
    """Return how far the newest set is linear in the epoch of a phase that comes, in [0, 1].

    Example:
        >>> linearity(PhaseLog(PhaseKind.NEURON, 1, scores=(0.5,), counts_from=3))
        0.5
    """
    if phase.kind is PhaseKind.DENDRITE:
        return 0.0
    return min((len(phase.scores) + 1) / (phase.counts_from + 1), 1.0)


def is_better(score: float, best: float | None, sets: int, config: RecoveryConfig) -> bool:
    """Tell whether ``score`` beats ``best`` by the margin for a network that has ``sets`` sets."""
    if best is None:
        return True
    relative = config.improvement[min(sets, len(config.improvement) - 1)]
    return score - best > (relative if relative < 0 else max(relative, SMALLEST_GAIN)) * abs(best)


def sets_kept(log: Sequence[PhaseLog], config: RecoveryConfig) -> tuple[int, int]:
    """Return how many sets helped so far and how many failed."""
    kept = failed = 0
    best: float | None = None
    for phase in log:
        if phase.kind is not PhaseKind.NEURON or phase.best is None:
            continue
        top = phase.best[0]
        if phase.sets > kept:
            if is_better(top, best, kept, config):
                kept, best = phase.sets, None
            else:
                failed += 1
                continue
        best = top if best is None else max(best, top)
    return kept, failed


def best_epoch(log: Sequence[PhaseLog], config: RecoveryConfig) -> tuple[int, int]:
    """Return the (phase, epoch) whose weights are the best: of the highest score that counts.

    A grown network counts only if it beats the best smaller one by the margin.
    """
    best: tuple[float, tuple[int, int]] | None = None
    kept = 0
    for index, phase in enumerate(log):
        if phase.kind is PhaseKind.DENDRITE or phase.best is None:
            continue
        top, epoch = phase.best
        if phase.sets > kept:
            if not is_better(top, best[0] if best else None, kept, config):
                continue
            kept, best = phase.sets, None  # the smaller network is out, even if it was better
        if best is None or top > best[0]:
            best = (top, (index, epoch))
    return best[1] if best else (-1, -1)


def next_action(
    log: Sequence[PhaseLog],
    recovery: RecoveryConfig,
    dendrites: DendriteConfig,
    *,
    minutes: float = 0.0,
) -> Action:
    """Return what follows, given every phase so far, the current one last.

    Args:
        log: At least one phase.
        recovery: Lengths, patience and bounds.
        dendrites: ``max_sets``.
        minutes: Training time so far.

    Example:
        >>> log = [PhaseLog(PhaseKind.NEURON, 0, (0.5, 0.6))]
        >>> next_action(log, RecoveryConfig(epochs=2), DendriteConfig(max_sets=1))
        <Action.GROW: 'grow'>

    Source:
        Brenner and Itti, 2025, section 3, with the changes in docs/decisions, subsystem recovery.
    """
    phase = log[-1]
    epochs = sum(len(p.scores) for p in log)
    if recovery.max_epochs is not None and epochs >= recovery.max_epochs:
        return Action.STOP
    if recovery.max_minutes is not None and minutes >= recovery.max_minutes:
        return Action.STOP
    if phase.kind is PhaseKind.DENDRITE:
        recent = phase.improved[-recovery.dendrite_patience :]
        stalled = len(recent) == recovery.dendrite_patience and not any(recent)
        is_over = stalled or len(phase.scores) >= recovery.dendrite_epochs
        return Action.ACCEPT if is_over else Action.CONTINUE
    if len(phase.scores) < longest(phase.kind, recovery, dendrites) and not _plateaued(
        log, recovery
    ):
        return Action.CONTINUE
    if phase.kind is PhaseKind.THAW:
        return Action.STOP
    kept, failed = sets_kept(log, recovery)
    if kept < dendrites.max_sets and failed < recovery.max_failures:
        return Action.GROW
    return Action.THAW if kept and thaw_length(recovery, dendrites) else Action.STOP


def _plateaued(log: Sequence[PhaseLog], config: RecoveryConfig) -> bool:
    """Tell whether the current neuron phase had no better score for ``patience`` epochs."""
    scores, sets = log[-1].scores[log[-1].counts_from :], log[-1].sets
    if config.patience is None or not scores:
        return False
    best, last = None, 0
    for epoch, score in enumerate(scores):
        if is_better(score, best, sets, config):
            best, last = score, epoch
    return len(scores) - 1 - last >= config.patience
