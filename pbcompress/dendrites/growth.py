"""Put dendrites into a network, one set at a time, and take them out again."""

from dataclasses import replace

from torch import nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.core.accepted_models import check_whole
from pbcompress.core.modules import replace_module
from pbcompress.core.randomness import whole_seed
from pbcompress.core.turns import in_turn
from pbcompress.dendrites.forms import GrowableLayers, growable_layers, why_unfoldable
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.errors import CompressionError, UnsupportedLayerError

__all__ = ["attach_dendrites_", "detach_dendrites_"]


@in_turn
def attach_dendrites_(
    model: nn.Module,
    config: DendriteConfig | CompressConfig | None = None,
    *,
    layers: GrowableLayers | None = None,
    seed: int = 0,
) -> tuple[str, ...]:
    """Add one dendrite set in place; the function of ``model`` stays bit-equal.

    The first call wraps layers, a further call adds a set to those that are wrapped. Parameters
    are added, so make the optimizer afterwards.

    Args:
        model: Network of Linear and convolution layers.
        config: What to grow, `DendriteConfig` where None; of a `CompressConfig` its ``dendrites``.
        layers: Exactly these layers, with whether each has its own BatchNorm; None: what
            ``config`` selects.
        seed: Seed of the new weights; the global random state is left alone.

    Returns:
        The names of the layers that grew.

    Raises:
        UnsupportedLayerError: ``config.layers`` names a layer that cannot grow.
        CompressionError: Nothing matches, the model has dendrites of another form, or is sharded.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> attach_dendrites_(net, DendriteConfig(layers=("0",)))
        ('0',)
        >>> type(net[0]).__name__, type(net[2]).__name__
        ('DendriteLayer', 'Linear')
    """
    check_whole(model)
    seed = whole_seed(seed)
    config = whole_config(config or DendriteConfig(), DendriteConfig).dendrites
    wrapped = dendrite_layers(model)
    for name, layer in wrapped.items():
        if replace(layer.config, max_sets=0) != replace(config, max_sets=0):
            raise CompressionError(
                f"attach_dendrites_ was called with another DendriteConfig than the one that "
                f"{name!r} grew with. Use the same, or detach_dendrites_ first."
            )
    if not wrapped:
        chosen = growable_layers(model, config) if layers is None else layers
        if not chosen:
            raise CompressionError(
                "attach_dendrites_ found no Linear and no convolution below the model's root. "
                "Put a bare layer into nn.Sequential first."
            )
        for name in chosen:
            reason = why_unfoldable(model, model.get_submodule(name), config)
            if reason is not None:
                raise UnsupportedLayerError(
                    f"attach_dendrites_ was asked to grow {name!r}: {reason}. Leave it out.",
                    name,
                    reason,
                )
        for name, normalized in chosen.items():
            base = model.get_submodule(name)
            grown = DendriteLayer(base, config, normalized=normalized).train(base.training)
            replace_module(model, name, grown)
        wrapped = dendrite_layers(model)
    for name, layer in wrapped.items():
        layer.add_set(seed=(seed, name, layer.num_sets))
    return tuple(wrapped)


def detach_dendrites_(model: nn.Module, num_sets: int = 1) -> None:
    """Remove the newest sets in place; a layer without any is the original layer again.

    Args:
        model: Network with dendrites.
        num_sets: How many sets to remove, at most those that are there.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> _ = attach_dendrites_(net)
        >>> detach_dendrites_(net)
        >>> type(net[0]).__name__
        'Linear'
    """
    for name, layer in dendrite_layers(model).items():
        for _ in range(min(num_sets, layer.num_sets)):
            layer.remove_set()
        if layer.num_sets == 0:
            replace_module(model, name, layer.base_layer)
