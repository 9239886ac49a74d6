"""Who trains in a phase: flags on the parameters of a model, and buffers that must not move."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from pbcompress.config.dendrites import Correlation, DendriteConfig
from pbcompress.dendrites.layer import dendrite_layers, neuron_parameters
from pbcompress.recovery.policy import PhaseKind

__all__ = ["let_train_", "put_buffers_", "resting_buffers"]


def let_train_(
    model: nn.Module, kind: PhaseKind, trainable: Collection[str], dendrites: DendriteConfig
) -> None:
    """Let parameters take gradients as a phase wants it, and freeze the others.

    Args:
        model: Network with or without dendrites.
        kind: Neurons and U train in a neuron phase and in a thaw, candidates in a dendrite phase.
        trainable: Names of the neurons' parameters that the user did not freeze.
        dendrites: Whether accepted sets go on training.
    """
    is_neuron = kind is not PhaseKind.DENDRITE
    for name, parameter in neuron_parameters(model).items():
        parameter.requires_grad_(is_neuron and name in trainable)
    newest_trains = not is_neuron or not isinstance(dendrites.rule, Correlation)
    for layer in dendrite_layers(model).values():
        for gain in layer.gains:
            gain.requires_grad_(is_neuron and gain.numel() > 0)
        if kind is PhaseKind.THAW or (is_neuron and not dendrites.freeze_after):
            layer.freeze(0)
        else:
            layer.freeze(layer.num_sets - int(newest_trains))


def resting_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers that rest in a dendrite phase: all but those of candidates."""
    of_candidates = tuple(
        f"{name}.{part}."
        for name, layer in dendrite_layers(model).items()
        for part in (f"dendrites.{layer.num_sets - 1}", "pool")
    )
    return {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if not name.startswith(of_candidates)
    }


def put_buffers_(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Give buffers their former values; others stay as they are."""
    for name, buffer in model.named_buffers():
        if name in kept:
            buffer.copy_(kept[name])
