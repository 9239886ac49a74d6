"""How the weights are trained after a change of structure."""

from dataclasses import dataclass
from typing import Literal

from pbcompress.core.config_values import Choices, names_of_parts
from pbcompress.core.field_types import (
    Count,
    NonNegative,
    Numbers,
    Positive,
    ProperShare,
    Share,
    ShareBelowHalf,
    ShareBelowOne,
    WholeNumber,
)

__all__ = ["DistillationConfig", "EngineConfig", "OptimizerConfig", "RecoveryConfig"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Choices):
    """What takes the steps, and at which learning rates.

    Args:
        algorithm: "adamw", "adam" or "sgd".
        lr: Peak learning rate of neuron phases. "auto": a range test finds it, right before the
            first one; it takes 5 % of the recovery's steps (see `find_lr`).
        dendrite_lr: Peak learning rate of dendrite phases.
        growth_lr: Factor of the peak learning rate in phases of a network that has dendrites, above
            0: frozen dendrites fit the layers before them as those were.
        retry_lr: Factor of the learning rate with which a phase resumes from its best weights after
            a loss or score that is not finite, in (0, 1); a second time is an error.
        weight_decay: Weight decay of neuron phases; a dendrite phase has none.
        momentum: Momentum of "sgd".
        schedule: "cosine" (after ``warmup``), "linear" or "constant".
        warmup: Share of a phase in which the learning rate rises from zero, in [0, 1).
        max_grad_norm: Clip the gradient's norm; None: do not.
        average: Share of a neuron phase's steps over which weights are averaged, in [0, 1): what is
            scored after each epoch, and kept, is the moving average and not the latest weights (see
            `WeightAverage`). 0: the latest weights.
    """

    algorithm: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive | Literal["auto"] = "auto"
    dendrite_lr: Positive = 3e-3
    growth_lr: Positive = 1.0
    retry_lr: ProperShare = 0.1
    weight_decay: NonNegative = 1e-4
    momentum: NonNegative = 0.9
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: ShareBelowOne = 0.2
    max_grad_norm: Positive | None = None
    average: ShareBelowOne = 0.05


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Choices):
    """How a step is computed.

    Args:
        precision: "32", or mixed precision in "bf16" or "fp16" (with a loss scale), which needs
            Lightning Fabric.
        accumulate: Batches that one optimizer step takes, at least 1; the last step of an epoch
            takes those that are left. A step is that of one large batch: where ``Task.loss`` is a
            mean over the samples of its batch, it follows the mean over all of them. Several
            processes take the mean of theirs.
        compile: Run the network through ``torch.compile``, anew in each phase.
        channels_last: On a CPU, give images (arguments of four dimensions) in channels-last memory
            to a network with 2-d convolutions, if two samples show that it computes the same so.
            Steps of the CNNs that were measured take .6 to .95 of their time.
    """

    precision: Literal["32", "bf16", "fp16"] = "32"
    accumulate: Count = 1
    compile: bool = False
    channels_last: bool = True


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Choices):
    """What the network learns from the original one in neuron phases.

    Args:
        share: Share of the loss that compares outputs with those of the original network, in
            [0, 1]: the divergence of class probabilities, or of those of labels of which several
            may hold, or the mean squared error of values.
        loss: How classes are compared: "kl", the divergence of their probabilities, or "dist",
            the correlation of these over classes and over samples (DIST), which asks less of a
            small network. Labels and values have one loss each.
        temperature: Softens the scores of classes and labels that are compared. None: 1 for
            "dist", else 4.
        features: Weight of the squared relative difference of features, added to the loss, for
            modules whose outputs have one shape in both networks.
        outputs: "classes", "labels" or "values"; "auto": what ``Task.loss`` shows that they are. It
            is called on other outputs before training, and where it tells nothing that is an error.
        axis: Of the classes; None: the one that ``Task.loss`` shows.
    """

    share: Share = 0.0
    loss: Literal["kl", "dist"] = "kl"
    temperature: Positive | None = None
    features: NonNegative = 0.0
    outputs: Literal["auto", "classes", "labels", "values"] = "auto"
    axis: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is None:
            object.__setattr__(self, "temperature", 1.0 if self.loss == "dist" else 4.0)

    @property
    def is_on(self) -> bool:
        """Whether the original network is looked at."""
        return bool(self.share or self.features)


@names_of_parts
@dataclass(frozen=True, kw_only=True)
class RecoveryConfig(Choices):
    """Which phases the weights are trained in after a change of structure, and how.

    What belongs to the optimizer, the engine or distillation may also be given by its own name, and
    each of these as its first choice: ``RecoveryConfig(lr=0.01, optimizer="sgd")``.

    Args:
        epochs: Longest neuron phase, in epochs; the learning rate's schedule spans it.
        dendrite_epochs: Longest dendrite phase.
        thaw_epochs: Longest last phase, in which neurons and all dendrites train together, because
            frozen dendrites go stale; it counts only if it is better. 0: none. None: ``epochs``
            where dendrites were frozen.
        patience: End a neuron phase after this many epochs without a better score; None: run
            ``epochs``, which is right for a schedule that ends at zero.
        dendrite_patience: End a dendrite phase after this many epochs in which no node of the
            network improved its score by ``node_improvement``.
        node_improvement: Relative gain of a node's score that counts.
        improvement: Relative gain of the validation score that counts, by the number of sets
            grown so far; the last one holds for more. Below zero, a set may cost this much and
            stay.
        trial: Share of every phase's epochs that each network gets in the trial of
            ``DendriteConfig.share="auto"``, in (0, 0.5); no epoch is added for it.
        max_failures: Failed sets that end growth.
        max_epochs: Bound on all epochs together.
        max_minutes: Bound on the time of training; with it a run is no longer repeatable.
        compensation_batches: Train batches, without their labels, on which `compress` fits the
            layers that read narrowed channels in closed form, right after the cut (see
            `compensate_`). 0: none. "auto": the training starts from the cut network, and a copy
            that was fitted on up to 32 batches and not trained is the result if it is better on
            validation.
        replay: Memory in GiB for a dendrite phase: while neurons rest, what candidates read and the
            errors of their neurons are drawn once, at random samples and positions, and all steps
            are taken on them. 0, or where this much holds too few for a layer: each step passes
            through the network.
        optimizer: What takes the steps, and at which learning rates.
        engine: How a step is computed.
        distillation: What neuron phases learn from the original network.

    Example:
        >>> RecoveryConfig(epochs=5, optimizer=OptimizerConfig(lr=0.01)).optimizer.lr
        0.01
        >>> RecoveryConfig(lr=0.01) == RecoveryConfig(optimizer=OptimizerConfig(lr=0.01))
        True
    """

    epochs: Count = 20
    dendrite_epochs: Count = 8
    thaw_epochs: WholeNumber | None = None
    patience: Count | None = None
    dendrite_patience: Count = 3
    node_improvement: NonNegative = 0.1
    improvement: Numbers = (1e-3, 1e-4, 0.0)
    trial: ShareBelowHalf = 0.1
    max_failures: Count = 2
    max_epochs: Count | None = None
    max_minutes: Positive | None = None
    compensation_batches: WholeNumber | Literal["auto"] = "auto"
    replay: NonNegative = 1.0
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    distillation: DistillationConfig = DistillationConfig()
