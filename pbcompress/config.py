"""Every choice as a frozen value: keyword-only, checked at once, always JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pbcompress.core.config_values import Choices, require
from pbcompress.errors import StateMismatchError

__all__ = ["Budget", "CompressConfig", "DendriteConfig", "RecoveryConfig", "WidthConfig"]

CONFIG_VERSION = 1

Rule = Literal["correlation", "gradient", "hybrid"]
Form = Literal["full", "grouped", "lowrank", "shared", "tied"]
Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu"]
Importance = Literal["magnitude", "bn_scale", "taylor", "variance", "fisher"]


@dataclass(frozen=True)
class Budget(Choices):
    """What the compressed network may cost; every bound that is set holds at once.

    Args:
        params: Parameters (elements, shared ones once): an int is a count, a float in (0, 1) a
            share of the original.
        flops: Multiply-adds of one sample in eval mode: a count, or a share of the original.
        latency_ms: Milliseconds of the exported network in ONNX Runtime on this machine (CPU, one
            thread, batch 1, dendrites included), measured: a number from 1, or a share in (0, 1)
            of the original's.
        file_bytes: Size of the exported ONNX file (float32, BatchNorm folded where it can be): a
            count, or a share of the original's.

    Example:
        >>> Budget(params=0.25).params
        0.25
    """

    params: int | float | None = None
    flops: int | float | None = None
    latency_ms: float | None = None
    file_bytes: int | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = (self.params, self.flops, self.latency_ms, self.file_bytes)
        if all(bound is None for bound in bounds):
            raise ValueError(
                "Budget() has no bound; set params, flops, latency_ms, file_bytes or several."
            )


@dataclass(frozen=True, kw_only=True)
class WidthConfig(Choices):
    """How widths are chosen.

    Args:
        allocation: "uniform" narrows every channel group alike; "balanced" narrows those less whose
            layers are small: the share that a group keeps goes by one over the root of the mean
            size of the layers that write and read it, in parameters or what else is bounded.
            "global" ranks the channels of all groups in one list, each group's importance scaled to
            mean 1; "isomorphic" does so among the groups of the same structure.
        importance: What tells which channels go. "magnitude" is the squared weights; "bn_scale" the
            absolute scale of the norm layers, magnitude where a group has none. The others need
            data: "taylor" is the squared first-order change of a batch's loss, "fisher" the squared
            weights times their diagonal Fisher information, "variance" the variance of what the
            next layers read, magnitude where that could not be observed.
        importance_batches: Train batches that a criterion with data looks at, at most.
        round_to: Widths are multiples of this wherever a group's original width allows. "auto":
            the multiple that ONNX Runtime is fast with on this machine is measured (1 to 32), the
            exported network is timed against one without rounding, and single groups leave the
            multiples where the target would be missed by more than 2 % otherwise. A latency bound
            rounds in this way too where this is 1.
        min_width: Fewest channels that a group keeps, at least 1.
        max_ratio: Largest share of a group's channels that may go, in (0, 1).
        keep: Layers (names or ``fnmatch`` patterns) whose width stays.
        pin: Widths that are given, as pairs of a layer (name or pattern) and its output channels:
            a count, or a share in (0, 1] of the original. The rest is narrowed around them, and
            floors and rounding do not hold for them. Of several pairs that name a layer the last
            counts. A mapping is taken too.
        attention: What attention with several heads loses: whole "heads", or the same "dimensions"
            of every head where the code does not scale by their number.
        max_seconds: Bound on the time of planning; None: no bound.
    """

    allocation: Literal["uniform", "balanced", "global", "isomorphic"] = "balanced"
    importance: Importance = "magnitude"
    importance_batches: int = 16
    round_to: int | Literal["auto"] = 1
    min_width: int = 1
    max_ratio: float = 0.99
    keep: tuple[str, ...] = ()
    pin: tuple[tuple[str, int | float], ...] = ()
    attention: Literal["heads", "dimensions"] = "heads"
    max_seconds: float | None = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        is_multiple = self.round_to == "auto" or int(self.round_to) >= 1
        require(is_multiple, self, "round_to", "at least 1, or 'auto'")
        is_bound = self.max_seconds is None or self.max_seconds > 0
        require(is_bound, self, "max_seconds", "positive, or None")
        require(self.importance_batches >= 1, self, "importance_batches", "at least 1")
        require(self.min_width >= 1, self, "min_width", "at least 1")
        require(0 < self.max_ratio < 1, self, "max_ratio", "between 0 and 1")
        is_width = all(w >= 1 if isinstance(w, int) else 0 < w <= 1 for _, w in self.pin)
        require(is_width, self, "pin", "pairs of a layer and a count from 1, or a share in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class DendriteConfig(Choices):
    """What a dendrite is, how it learns and how many may grow.

    Args:
        rule: "correlation" trains a dendrite to correlate with its neuron's remaining error and
            then accepts it; "gradient" accepts it at once and trains it by the task loss;
            "hybrid" does the first, then trains everything together.
        backprop_through: False cuts the gradient from a dendrite to earlier layers (perforated).
            None is the rule's own: False for "correlation", True for the others.
        freeze_after: True fixes the input weights of an accepted dendrite for good. For "gradient"
            and "hybrid" they move in the neuron phase after their acceptance, and are fixed when
            the next set grows. None is the rule's own: True for "correlation".
        form: "full" is a copy of the layer; "grouped" the same map in ``groups`` groups; "lowrank"
            a map through ``rank`` channels; "shared" ``nodes`` nodes for the whole layer, each
            reaching every neuron through a dense U; "tied" reads the neuron's own weighted sum
            through a scale and an offset, so it has no input weights.
        activation: Nonlinearity of a dendrite.
        cascade: Whether a dendrite hears the earlier ones of its neuron (V).
        normalize: Give a dendrite its own BatchNorm where the layer is followed by one.
        layers: Names or ``fnmatch`` patterns of the layers that may grow; None is every Linear and
            convolution that can.
        max_price: Of these, only layers grow in which a dendrite costs at most so many neurons,
            each with its own weights and those that read it: little in early layers, close to 1 in
            late ones, and without bound at the network's outputs. Only `plan_widths`, and so
            `compress`, looks at it. None: no bound.
        max_sets: Most sets that may grow; 0 turns dendrites off.
        at_start: Grow the first set before the first neuron phase, so that it has all of the
            training, and not after it.
        candidates: Size of the candidate pool: so many train side by side in a dendrite phase, and
            each node keeps the best one ("lowrank": each layer).
        node_share: Part of a set's parameters that its nodes may keep after a dendrite phase, in
            (0, 1]; below 1 only the best-scoring nodes of the whole network stay.
        initial_gain: U of an accepted node: "zero", so that the function does not change, or
            "least_squares", the fit to the negative error of a sample in closed form, divided by
            the number of layers that grew. Samples lie on the first axis of a layer's output.
        initialization: First weights of candidates: "random", or "spectral", in closed form from
            the inputs and errors of a few batches (`recovery.initialization`); of a pool the
            first candidate. `recover_` sees to it, a loop over `cycles` calls
            `initialize_candidates_` itself. None is the rule's own: "random" for "gradient", which
            has no dendrite phase, otherwise "spectral".
        samples: In a dendrite phase, candidates look at every k-th position of a layer's output
            along each axis, from a random one on in each step, with the largest k that leaves so
            many samples (batch x positions). 0: all positions.
        share: Largest part of the target that dendrites may take, in [0, 1]; "auto" gives a
            network with dendrites and one without a short trial (``RecoveryConfig.trial``), and
            the rest of the training to the one that validation favours.
        groups: Groups of form "grouped", as far as they divide the layer's channels.
        rank: Channels of form "lowrank".
        nodes: Nodes of form "shared".

    Example:
        >>> DendriteConfig(rule="gradient").backprop_through
        True
        >>> DendriteConfig.from_dict(DendriteConfig(form="shared").to_dict()).form
        'shared'

    Source:
        Brenner and Itti, Perforated Backpropagation, 2025, https://arxiv.org/abs/2501.18018;
        Fahlman and Lebiere, The Cascade-Correlation Learning Architecture, 1990.
    """

    rule: Rule = "correlation"
    backprop_through: bool | None = None
    freeze_after: bool | None = None
    form: Form = "full"
    activation: Activation = "relu"
    cascade: bool = True
    normalize: bool = True
    layers: tuple[str, ...] | None = None
    max_price: float | None = None
    max_sets: int = 1
    at_start: bool = False
    candidates: int = 1
    node_share: float = 1.0
    initial_gain: Literal["zero", "least_squares"] = "zero"
    initialization: Literal["random", "spectral"] | None = None
    samples: int = 4096
    share: float | Literal["auto"] = "auto"
    groups: int = 4
    rank: int = 4
    nodes: int = 8

    @classmethod
    def cheap(cls, **choices: Any) -> Self:
        """Return the dendrites that came nearest to plain width in `docs/benchmarks/accuracy.md`.

        A few shared nodes for each layer, from the start and by the task's gradient, where a
        dendrite costs at most a quarter of another neuron.

        Args:
            **choices: Further fields, or other values of these.

        Example:
            >>> DendriteConfig.cheap(nodes=4).max_price
            0.25
        """
        own: dict[str, Any] = {
            "rule": "gradient",
            "form": "shared",
            "at_start": True,
            "max_price": 0.25,
        }
        return cls(**(own | choices))

    def __post_init__(self) -> None:
        super().__post_init__()
        is_correlation = self.rule == "correlation"
        if self.backprop_through is None:
            object.__setattr__(self, "backprop_through", not is_correlation)
        if self.freeze_after is None:
            object.__setattr__(self, "freeze_after", is_correlation)
        if self.initialization is None:
            own = "random" if self.rule == "gradient" else "spectral"
            object.__setattr__(self, "initialization", own)
        require(self.max_sets >= 0, self, "max_sets", "at least 0")
        require(self.candidates >= 1, self, "candidates", "at least 1")
        require(self.samples >= 0, self, "samples", "at least 0")
        require(0 < self.node_share <= 1, self, "node_share", "above 0 and at most 1")
        if self.rule == "gradient":  # without a dendrite phase there are no scores
            wanted = "with rule 'correlation' or 'hybrid'; rule 'gradient' has no scores"
            require(self.candidates == 1, self, "candidates", f"1, or more {wanted}")
            require(self.node_share == 1, self, "node_share", f"1, or less {wanted}")
            require(self.initial_gain == "zero", self, "initial_gain", f"'zero', or else {wanted}")
            is_random = self.initialization == "random"
            require(is_random, self, "initialization", f"'random', or else {wanted}")
        for name in ("groups", "rank", "nodes"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        is_price = self.max_price is None or self.max_price > 0
        require(is_price, self, "max_price", "above 0, or None")
        is_share = self.share == "auto" or 0 <= float(self.share) <= 1
        require(is_share, self, "share", "'auto' or a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(Choices):
    """How the weights are trained after a change of structure.

    Args:
        epochs: Longest neuron phase, in epochs; the learning rate's schedule spans it.
        dendrite_epochs: Longest dendrite phase.
        thaw_epochs: Longest last phase, in which neurons and all dendrites train together, for
            frozen dendrites go stale; it counts only if it is better. 0: none. None: ``epochs``
            where dendrites were frozen.
        patience: End a neuron phase after so many epochs without a better score; None: run
            ``epochs``, which is right for a schedule that ends at zero.
        dendrite_patience: End a dendrite phase after so many epochs in which no node of the
            network improved its score by ``node_improvement``.
        node_improvement: Relative gain of a node's score that counts.
        improvement: Relative gain of the validation score that counts, by the number of sets
            grown so far; the last one holds for more. Below zero, a set may cost so much and stay.
        trial: Share of every phase's epochs that each network gets in the trial of
            ``DendriteConfig.share="auto"``, in (0, 0.5); no epoch is added for it.
        max_failures: Failed sets that end growth.
        max_epochs: Bound on all epochs together.
        max_minutes: Bound on the time of training; with it a run is no longer repeatable.
        optimizer: "adamw", "adam" or "sgd".
        lr: Peak learning rate of neuron phases.
        dendrite_lr: Peak learning rate of dendrite phases.
        growth_lr: Factor of the peak learning rate in phases of a network that has dendrites, above
            0: frozen dendrites fit the layers before them as those were.
        weight_decay: Weight decay of neuron phases; a dendrite phase has none.
        momentum: Momentum of "sgd".
        schedule: "cosine" (after ``warmup``), "linear" or "constant".
        warmup: Share of a phase in which the learning rate rises from zero, in [0, 1).
        max_grad_norm: Clip the gradient's norm; None: do not.
        precision: "32", or mixed precision in "bf16" or "fp16" (with a loss scale), which needs
            Lightning Fabric.
        accumulate: Batches that one optimizer step takes, at least 1.
        compile: Run the network through ``torch.compile``, anew in each phase.
        channels_last: On a CPU, give images (arguments of four dimensions) in channels-last memory
            to a network with 2-d convolutions, if one batch shows that it computes the same so.
            Steps of the CNNs that were measured take .6 to .95 of their time.
        replay: Memory in GiB for a dendrite phase: while neurons rest, what candidates read and the
            errors of their neurons are drawn once, at random samples and positions, and all steps
            are taken on them. 0, or where so much holds too few for a layer: each step passes
            through the network.
        retry_lr: Factor of the learning rate with which a phase goes on from its best weights after
            a loss or score that is not finite, in (0, 1); a second time is an error.
        distillation: Share of the loss of neuron phases that compares class scores with those of
            the original network, in [0, 1].
        temperature: Softens the class scores that are compared.
        feature_distillation: Weight of the squared relative difference of features, added to the
            loss of neuron phases, for modules whose outputs have one shape in both networks.
    """

    epochs: int = 20
    dendrite_epochs: int = 8
    thaw_epochs: int | None = None
    patience: int | None = None
    dendrite_patience: int = 3
    node_improvement: float = 0.1
    improvement: tuple[float, ...] = (1e-3, 1e-4, 0.0)
    trial: float = 0.1
    max_failures: int = 2
    max_epochs: int | None = None
    max_minutes: float | None = None
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 3e-3
    dendrite_lr: float = 3e-3
    growth_lr: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.2
    max_grad_norm: float | None = None
    precision: Literal["32", "bf16", "fp16"] = "32"
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = True
    replay: float = 1.0
    retry_lr: float = 0.1
    distillation: float = 0.0
    temperature: float = 4.0
    feature_distillation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "epochs",
            "dendrite_epochs",
            "dendrite_patience",
            "max_failures",
            "accumulate",
        ):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("patience", "max_epochs", "max_minutes", "max_grad_norm"):
            value = getattr(self, name)
            require(value is None or value > 0, self, name, "positive, or None")
        for name in ("lr", "dendrite_lr", "growth_lr", "temperature"):
            require(getattr(self, name) > 0, self, name, "positive")
        for name in (
            "weight_decay",
            "momentum",
            "node_improvement",
            "feature_distillation",
            "replay",
        ):
            require(getattr(self, name) >= 0, self, name, "zero or positive")
        thaw = self.thaw_epochs
        require(thaw is None or thaw >= 0, self, "thaw_epochs", "zero or positive, or None")
        require(0 < self.retry_lr < 1, self, "retry_lr", "between 0 and 1")
        require(0 < self.trial < 0.5, self, "trial", "above 0 and below 0.5")
        require(0 <= self.distillation <= 1, self, "distillation", "from 0 to 1")
        require(0 <= self.warmup < 1, self, "warmup", "at least 0 and below 1")
        require(len(self.improvement) > 0, self, "improvement", "at least one number")


@dataclass(frozen=True, kw_only=True)
class CompressConfig(Choices):
    """All choices of one call of `compress`.

    Args:
        width: How widths are chosen.
        dendrites: What grows; default: `DendriteConfig.cheap`.
        recovery: How weights are trained.
        deploy: Whether `compress` also exports both networks, for the file size and latency rows
            of its table.

    Example:
        >>> config = CompressConfig(recovery=RecoveryConfig(epochs=3))
        >>> CompressConfig.from_dict(config.to_dict()) == config
        True
    """

    width: WidthConfig = field(default_factory=WidthConfig)
    dendrites: DendriteConfig = field(default_factory=DendriteConfig.cheap)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    deploy: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with the version of its form."""
        return {"version": CONFIG_VERSION, **super().to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a configuration from `to_dict`; a newer version is refused."""
        version = data.get("version", CONFIG_VERSION) if isinstance(data, Mapping) else None
        if not isinstance(version, int):
            raise StateMismatchError(
                f"A configuration was expected, as CompressConfig.to_dict makes it; found {data!r}."
            )
        if version > CONFIG_VERSION:
            raise StateMismatchError(
                f"This configuration has version {version}; this pbcompress reads up to "
                f"{CONFIG_VERSION}. Update pbcompress."
            )
        return super().from_dict({k: v for k, v in data.items() if k != "version"})
