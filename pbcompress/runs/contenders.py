"""The networks that a run trains for one target, and what each scores."""

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from torch import nn

from pbcompress.compensation.report import CompensationReport
from pbcompress.costs.measured import ModelCost
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.planning.width_plan import WidthPlan
from pbcompress.training.history import History, Stage

__all__ = ["Contender", "Score", "Split"]

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Score:
    """Metric of a network on the splits that decide (val) and that report (test)."""

    val: float
    val_samples: int
    test: float | None = None
    test_samples: int = 0

    @property
    def shown(self) -> float:
        """What a network is judged by in the end: test, or val where there is no test."""
        return self.val if self.test is None else self.test

    @property
    def split(self) -> Split:
        """The split of ``shown``."""
        return "val" if self.test is None else "test"

    def on(self, split: Split) -> float | None:
        """Return the metric on a split; None where it was not scored."""
        return self.val if split == "val" else self.test

    def samples(self, split: Split) -> int:
        """Return the number of samples of a split."""
        return self.val_samples if split == "val" else self.test_samples


@dataclass(frozen=True)
class Contender:
    """One network that was made from the original for the same target.

    Attributes:
        name: Whether it spends the target on width alone, or some of it on dendrites.
        network: The trained network.
        plan: Its widths.
        cost: Parameters and FLOPs, dendrites included.
        score: Its metric; None if it was not trained.
        history: Its training; None if it was not trained.
        sets: Dendrite sets that it has.
        absorbed: Dendrite sets that it had, and that are folded into its neurons.
        is_only_fitted: Whether training made nothing better of it than the fit to the original.
        trial: Its metric on validation after the trial; None where there was none.
        compensation: What was fitted right after the cut; None if nothing was.
        lr: Peak learning rate of its neuron phases; None: not trained.
    """

    name: Stage
    network: nn.Module
    plan: WidthPlan
    cost: ModelCost
    score: Score | None
    history: History | None
    sets: int
    trial: float | None = None
    compensation: CompensationReport | None = None
    lr: float | None = None
    absorbed: int = 0
    is_only_fitted: bool = False

    @property
    def has_grown(self) -> bool:
        """Whether dendrites helped, be they still there or absorbed."""
        return self.sets + self.absorbed > 0

    @property
    def dendrite_params(self) -> int:
        """Parameters of dendrites, U and V included."""
        layers = dendrite_layers(self.network).values()
        base = sum(p.numel() for layer in layers for p in layer.base_layer.parameters())
        return sum(p.numel() for layer in layers for p in layer.parameters()) - base

    @property
    def phase_lengths(self) -> list[int]:
        """Epochs of every phase."""
        phases = groupby(self.history or (), key=lambda record: record["phase"])
        return [len(list(group)) for _, group in phases]
