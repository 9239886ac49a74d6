"""One phase as a training loop sees it: who trains, and where the scores go."""

from typing import Protocol

from torch import Tensor, nn

from pbcompress.core.modules import rest_
from pbcompress.dendrites.layer import candidate_pools, dendrite_layers
from pbcompress.recovery.node_scores import NodeScores
from pbcompress.recovery.policy import PhaseKind, PhaseLog

__all__ = ["Phase"]


class _Growth(Protocol):
    """What a phase is of."""

    model: nn.Module
    log: list[PhaseLog]
    scores: NodeScores

    def take(self, phase: "Phase", score: float) -> None: ...
    def is_over(self, phase: "Phase") -> bool: ...
    def length_of(self, phase: "Phase") -> int: ...


class Phase:
    """One phase of a growth: who trains, and the way to report a score.

    Attributes:
        kind: ``PhaseKind.NEURON``, ``DENDRITE`` or ``THAW``.
        index: Number of the phase, from 0.
    """

    def __init__(self, owner: "_Growth", index: int, kind: PhaseKind) -> None:
        self._owner = owner
        self.index = index
        self.kind = kind

    @property
    def done(self) -> bool:
        """Whether the phase is over; then go on to the next one."""
        return self._owner.is_over(self)

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0: how many scores were reported."""
        return len(self._owner.log[self.index].scores)

    @property
    def length(self) -> int:
        """Most epochs that the phase can take: what a learning rate schedule spans."""
        return self._owner.length_of(self)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains in this phase; make a fresh optimizer over it."""
        return [p for p in self._owner.model.parameters() if p.requires_grad]

    def train(self) -> None:
        """Put the model into training mode for this phase; use it instead of ``model.train()``.

        In a dendrite phase only the candidates train: the neurons' BatchNorm and dropout stay in
        eval mode.
        """
        model = self._owner.model
        if self.kind is not PhaseKind.DENDRITE:
            model.train()
            return
        rest_(model)
        for layer in dendrite_layers(model).values():
            for branch, _ in layer.candidates:
                branch.train()

    def set_loss_scale(self, factor: float) -> None:
        """Set what the loss is multiplied by before its backward pass; 1 by default.

        A candidate's gradient does not depend on the scale of the error, so it would not grow with
        the factor, and what divides gradients by it afterwards (a ``GradScaler``) would make it too
        small. Set ``scaler.get_scale()`` before each step, over the batches of a step where the
        loss is divided by their number.
        """
        for pool in candidate_pools(self._owner.model).values():
            pool.loss_scale = factor

    def report(self, score: float) -> bool:
        """Take the validation score of one epoch, higher is better.

        Returns:
            Whether the phase goes on.

        Raises:
            DivergedError: The score is not a finite number.
            CompressionError: Another phase has begun since.
        """
        self._owner.take(self, float(score))
        return not self.done

    @property
    def correlation(self) -> float | None:
        """Mean |r| of the candidates in the last epoch; None in a neuron phase."""
        return self._owner.scores.mean if self.kind is PhaseKind.DENDRITE else None

    @property
    def scores(self) -> dict[str, Tensor]:
        """|r| of every candidate node in the last epoch, by layer; empty in a neuron phase."""
        return self._owner.scores.by_layer if self.kind is PhaseKind.DENDRITE else {}

    @property
    def improved(self) -> int:
        """Nodes that improved their |r| in the last epoch."""
        counts = self._owner.log[self.index].improved
        return counts[-1] if counts else 0

    @property
    def sets(self) -> int:
        """Dendrite sets in the network, a candidate included."""
        return self._owner.log[self.index].sets
