"""The scores of candidates, epoch by epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pbcompress.dendrites.candidate_pool import CandidatePool
from pbcompress.dendrites.correlation import mean_scores, node_scores

__all__ = ["NodeScores"]

SMALLEST_GAIN = 1e-5

Sums = dict[str, Tensor]


class NodeScores:
    """The scores in score leaves after each epoch of a dendrite phase.

    Args:
        improvement: Relative gain of a node's |r| that counts.

    Attributes:
        latest: By layer, the sums of the last epoch; see `correlation.score_leaf`.
        mean: Mean |r| over layers in the last epoch; None before the first one.
    """

    def __init__(self, improvement: float) -> None:
        self.improvement = improvement
        self.begin()

    def begin(self) -> None:
        """Forget all, at the start of a dendrite phase."""
        self.latest: Sums = {}
        self.mean: float | None = None
        self._best: Sums = {}
        self._summed: Sums = {}

    @property
    def by_layer(self) -> Sums:
        """|r| of every node in the last epoch, the best one of its candidates, by layer."""
        return {name: _of_nodes(sums) for name, sums in self.latest.items()}

    def take(self, pools: Mapping[str, CandidatePool]) -> int:
        """Read the scores of one epoch; return how many nodes improved their own."""
        improved = 0
        for name, pool in pools.items():
            summed = pool.summed_scores()
            if summed is None:  # the loss does not depend on this layer
                continue
            self.latest[name] = summed - self._summed.get(name, torch.zeros_like(summed))
            self._summed[name] = summed
            score = _of_nodes(self.latest[name])
            best = self._best.get(name, torch.zeros_like(score))
            improved += int(
                (score > best + (best * self.improvement).clamp(min=SMALLEST_GAIN)).sum()
            )
            self._best[name] = torch.maximum(best, score)
        means = [score.mean() for score in self.by_layer.values()]
        self.mean = float(torch.stack(means).mean()) if means else 0.0
        return improved

    def state(self) -> Sums:
        """Return tensors for `restore`."""
        parts = {"latest": self.latest, "best": self._best, "summed": self._summed}
        return {f"{part}.{name}": t for part, held in parts.items() for name, t in held.items()}

    def restore(self, tensors: Mapping[str, Tensor], mean: float | None) -> None:
        """Take up `state`."""
        self.begin()
        self.mean = mean
        parts = {"latest": self.latest, "best": self._best, "summed": self._summed}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor


def _of_nodes(sums: Tensor) -> Tensor:
    return node_scores(mean_scores(sums)).amax(0)
