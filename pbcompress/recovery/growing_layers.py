"""What a growth begins with: layers, and sets that are there already."""

from dataclasses import replace

from torch import nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.dendrites.forms import GrowableLayers
from pbcompress.dendrites.growth import detach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers, set_count
from pbcompress.errors import CompressionError

__all__ = ["check_annealing", "detach_untrained_", "what_grows"]


def check_annealing(dendrites: DendriteConfig, recovery: RecoveryConfig) -> None:
    """Raise where time may end while the only networks that there were are not linear yet."""
    is_first = dendrites.anneals and dendrites.at_start and dendrites.max_sets
    if is_first and recovery.max_minutes is not None:
        raise CompressionError(
            f"DendriteConfig(annealing={dendrites.annealing}, at_start=True) was given with "
            f"max_minutes={recovery.max_minutes:g}. Time may end while no network is linear yet, "
            'and there would be no result. Bound max_epochs, or use activation="linear".'
        )


def what_grows(
    model: nn.Module, dendrites: DendriteConfig, layers: GrowableLayers | None
) -> tuple[DendriteConfig, GrowableLayers | None]:
    """Return what grows and where: more of what the model has already, or what was asked for."""
    grown = dendrite_layers(model)
    if not grown:
        return dendrites, layers
    own = next(iter(grown.values())).config
    where = {name: layer.normalized for name, layer in grown.items()}
    return replace(own, max_sets=dendrites.max_sets), where


def detach_untrained_(model: nn.Module) -> int:
    """Remove the sets that were attached and never trained; return how many of them."""
    trained = [layer.trained_sets for layer in dendrite_layers(model).values()]
    untrained = set_count(model) - max(trained, default=0)
    if untrained:
        detach_dendrites_(model, untrained)
    return untrained
