"""What a dendrite is, how it learns, and how many may grow."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pbcompress.core.config_values import Choices
from pbcompress.core.field_types import (
    Count,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
    WholeNumber,
)

__all__ = [
    "Activation",
    "Correlation",
    "DendriteConfig",
    "Form",
    "Full",
    "Gradient",
    "Grouped",
    "Hybrid",
    "LowRank",
    "Rule",
    "ScoredRule",
    "Shared",
    "Tied",
]

Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu", "linear"]
FormName = Literal["full", "grouped", "lowrank", "shared", "tied"]
RuleName = Literal["correlation", "gradient", "hybrid"]


@dataclass(frozen=True, kw_only=True)
class Full(Choices):
    """A dendrite is a copy of the layer."""

    kind: ClassVar[str] = "full"


@dataclass(frozen=True, kw_only=True)
class Grouped(Choices):
    """A dendrite is the map of the layer in groups of channels that do not see each other.

    Args:
        groups: Number of groups, as far as they divide the layer's channels.
    """

    kind: ClassVar[str] = "grouped"
    groups: Count = 4


@dataclass(frozen=True, kw_only=True)
class LowRank(Choices):
    """A dendrite is a map through few channels.

    Args:
        rank: Number of these channels.
    """

    kind: ClassVar[str] = "lowrank"
    rank: Count = 4


@dataclass(frozen=True, kw_only=True)
class Shared(Choices):
    """A few nodes for the whole layer, each reaching every neuron through a dense U.

    Args:
        nodes: Number of nodes.
    """

    kind: ClassVar[str] = "shared"
    nodes: Count = 8


@dataclass(frozen=True, kw_only=True)
class Tied(Choices):
    """A dendrite reads its neuron's own weighted sum through a scale and an offset.

    So it has no input weights.
    """

    kind: ClassVar[str] = "tied"


Form = Full | Grouped | LowRank | Shared | Tied


@dataclass(frozen=True, kw_only=True)
class ScoredRule(Choices):
    """A rule with a dendrite phase, in which candidates are scored by their correlation.

    Args:
        candidates: Size of the candidate pool: this many train side by side in a dendrite phase,
            and each node keeps the best one (with form "lowrank" each layer).
        samples: In a dendrite phase, candidates look at every k-th position of a layer's output
            along each axis, from a random one on in each step, with the largest k that leaves this
            many samples (batch x positions). 0: all positions.
        node_share: Part of a set's parameters that its nodes may keep after a dendrite phase, in
            (0, 1]; below 1 only the best-scoring nodes of the whole network stay.
        initial_gain: U of an accepted node: "zero", so that the function does not change, or
            "least_squares", the fit to the negative error of a sample in closed form, divided by
            the number of layers that grew. Samples lie on the first axis of a layer's output.
        initialization: First weights of candidates: "random", or "spectral", in closed form from
            the inputs and errors of a few batches (`recovery.initialization`); of a pool the
            first candidate. `recover_` sees to it, a loop over `cycles` calls
            `initialize_candidates_` itself.
    """

    candidates: Count = 1
    samples: WholeNumber = 4096
    node_share: PositiveShare = 1.0
    initial_gain: Literal["zero", "least_squares"] = "zero"
    initialization: Literal["random", "spectral"] = "spectral"


@dataclass(frozen=True, kw_only=True)
class Correlation(ScoredRule):
    """Train a dendrite to correlate with its neuron's remaining error, then accept it.

    Args: those of `ScoredRule`.
    """

    kind: ClassVar[str] = "correlation"


@dataclass(frozen=True, kw_only=True)
class Gradient(Choices):
    """Accept a dendrite at once, and train it by the task loss.

    There is no dendrite phase, so there are no candidates and no scores.
    """

    kind: ClassVar[str] = "gradient"


@dataclass(frozen=True, kw_only=True)
class Hybrid(ScoredRule):
    """Do what `Correlation` does, then train everything together.

    Args: those of `ScoredRule`.
    """

    kind: ClassVar[str] = "hybrid"


Rule = Correlation | Gradient | Hybrid


@dataclass(frozen=True, kw_only=True)
class DendriteConfig(Choices):
    """What a dendrite is, how it learns and how many may grow.

    Args:
        rule: `Correlation` trains a dendrite to correlate with its neuron's remaining error and
            then accepts it; `Gradient` accepts it at once and trains it by the task loss;
            `Hybrid` does the first, then trains everything together. The names "correlation",
            "gradient" and "hybrid" become these with their defaults.
        form: `Full` is a copy of the layer; `Grouped` the same map in groups; `LowRank` a map
            through few channels; `Shared` a few nodes for the whole layer; `Tied` reads the
            neuron's own weighted sum. The names "full", "grouped", "lowrank", "shared" and "tied"
            become these with their defaults.
        backprop_through: False cuts the gradient from a dendrite to earlier layers (perforated).
            None is the rule's own: False for "correlation", True for the others.
        freeze_after: True fixes the input weights of an accepted dendrite for good. For "gradient"
            and "hybrid" they move in the neuron phase after their acceptance, and are fixed when
            the next set grows. None is the rule's own: True for "correlation".
        activation: Nonlinearity of a dendrite. Linear ones fold into their neurons when growth is
            over (`absorb_dendrites_`): they have no part in the target, and what ships is the plain
            network.
        annealing: Let a dendrite become linear in this share of the neuron phase after its
            acceptance, so that it is absorbed too; 0: at once. Epochs before are no candidates for
            the best weights. None: it stays as it is.
        cascade: Whether a dendrite reads the earlier ones of its neuron (V).
        normalize: Give a dendrite its own BatchNorm where the layer is followed by one, and
            everywhere if it folds away. None: not if it is linear, because it then runs as one map
            with its layer and is as good.
        layers: Names or ``fnmatch`` patterns of the layers that may grow; None is every Linear and
            convolution that can.
        max_price: Of these, grow only layers where a dendrite costs no more than this many
            neurons, each with its own weights and those that read it: little in early layers,
            close to 1 in late ones, and without bound at the network's outputs. Only
            `plan_widths`, and so `compress`, looks at it. None: no bound.
        max_sets: Most sets that may grow; 0 turns dendrites off.
        at_start: Grow the first set before the first neuron phase, so that it has all of the
            training, and not after it.
        share: Largest part of the target that dendrites may take, in [0, 1]; "auto" gives a
            network with dendrites and one without a short trial (``RecoveryConfig.trial``), and
            the rest of the training to the better one on validation.

    Example:
        >>> DendriteConfig(rule="gradient").backprop_through
        True
        >>> DendriteConfig(form="shared").form
        Shared(nodes=8)
        >>> config = DendriteConfig(form=LowRank(rank=2), rule=Hybrid(candidates=4))
        >>> DendriteConfig.from_dict(config.to_dict()) == config
        True

    Source:
        Brenner and Itti, Perforated Backpropagation, 2025, https://arxiv.org/abs/2501.18018;
        Fahlman and Lebiere, The Cascade-Correlation Learning Architecture, 1990.
    """

    rule: Rule | RuleName = Correlation()
    form: Form | FormName = Full()
    backprop_through: bool | None = None
    freeze_after: bool | None = None
    activation: Activation = "relu"
    annealing: ShareBelowOne | None = None
    cascade: bool = True
    normalize: bool | None = None
    layers: tuple[str, ...] | None = None
    max_price: Positive | None = None
    max_sets: WholeNumber = 1
    at_start: bool = False
    share: Share | Literal["auto"] = "auto"

    @classmethod
    def cheap(cls, **choices: Any) -> Self:
        """Return the dendrites that came nearest to plain width in `docs/benchmarks/accuracy.md`.

        A few shared nodes for each layer, from the start and by the task's gradient, where a
        dendrite costs at most a quarter of another neuron.

        Args:
            **choices: Further fields, or other values of these.

        Example:
            >>> DendriteConfig.cheap(form=Shared(nodes=4)).max_price
            0.25
        """
        own: dict[str, Any] = {
            "rule": Gradient(),
            "form": Shared(),
            "at_start": True,
            "max_price": 0.25,
        }
        return cls(**(own | choices))

    def __post_init__(self) -> None:
        super().__post_init__()
        is_correlation = isinstance(self.rule, Correlation)
        if self.backprop_through is None:
            object.__setattr__(self, "backprop_through", not is_correlation)
        if self.freeze_after is None:
            object.__setattr__(self, "freeze_after", is_correlation)
        if self.normalize is None:
            object.__setattr__(self, "normalize", self.activation != "linear")

    @property
    def is_absorbed(self) -> bool:
        """Whether dendrites are linear in the end, and fold into their neurons."""
        return self.activation == "linear" or self.annealing is not None

    @property
    def anneals(self) -> bool:
        """Whether dendrites begin with a nonlinearity and lose it."""
        return self.activation != "linear" and self.annealing is not None

    @property
    def scored_rule(self) -> ScoredRule:
        """The rule of a dendrite phase; with "gradient" there is no such phase."""
        assert isinstance(self.rule, ScoredRule)
        return self.rule
