"""The inference form: BatchNorm folded, base and dendrites of a layer as one wide operation."""

from typing import Any

from torch import fx, nn

from pbcompress.core.modules import copy_model, replace_module
from pbcompress.core.turns import in_turn
from pbcompress.dendrites.absorption import absorb_dendrites_
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.linear_maps import is_plain_map
from pbcompress.export.batchnorm_folding import BatchNorm, fold, fold_into_dendrites_
from pbcompress.export.fused_layer import FusedDendriteLayer

__all__ = ["fuse"]


@in_turn
def fuse(model: nn.Module) -> nn.Module:
    """Return the inference form of a network: a plain module in eval mode, ``model`` untouched.

    A BatchNorm that is the only reader of a Linear, a convolution or a layer with dendrites is
    folded into it, and each layer with dendrites becomes one wide operation followed by the
    formula; one whose dendrites are linear is the plain layer again. Where the forward cannot be
    traced symbolically, BatchNorm stays as it is, and layers with forward hooks, which may change
    what passes, stay as they are.

    Args:
        model: A network with or without dendrites.

    Returns:
        A deep copy whose outputs agree to rounding.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> type(fuse(net)[1]).__name__
        'Identity'
    """
    frozen = copy_model(model).eval().requires_grad_(False)
    absorb_dendrites_(frozen, [n for n, m in dendrite_layers(frozen).items() if _absorbs(m)])
    for name, norm_name in _norm_pairs(frozen):
        layer, norm = frozen.get_submodule(name), frozen.get_submodule(norm_name)
        if isinstance(layer, DendriteLayer):
            fold_into_dendrites_(layer, norm)
        else:
            replace_module(frozen, name, fold(layer, norm))
        replace_module(frozen, norm_name, nn.Identity())
    for name, layer in dendrite_layers(frozen).items():
        if not _is_hooked(layer):
            replace_module(frozen, name, FusedDendriteLayer(layer))
    return frozen.eval().requires_grad_(False)


class _Tracer(fx.Tracer):
    """Traces a network down to its layers; a layer with dendrites is one of them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DendriteLayer) or super().is_leaf_module(m, module_qualified_name)


def _norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Return (layer, BatchNorm) names where the norm is the only reader of the layer's output."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # control flow that cannot be traced: nothing is folded, nothing is wrong
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    modules = dict(model.named_modules())
    pairs = []
    for node in calls:
        source: Any = node.args[0] if node.args else None
        if not isinstance(modules[str(node.target)], BatchNorm) or source not in calls:
            continue
        names = (str(source.target), str(node.target))
        is_layer = isinstance(
            modules[names[0]], nn.Linear | nn.modules.conv._ConvNd | DendriteLayer
        )
        is_only_reader = len(source.users) == 1 and all(targets.count(n) == 1 for n in names)
        both = [modules[name] for name in names]
        if is_layer and is_only_reader and not any(map(_is_hooked, both)) and _can_fold(*both):
            pairs.append(names)
    return pairs


def _absorbs(layer: DendriteLayer) -> bool:
    is_whole = layer.pool is None and is_plain_map(layer.base_layer) and not _is_hooked(layer)
    return layer.config.is_absorbed and is_whole and layer.is_linear


def _is_hooked(module: nn.Module) -> bool:
    """Tell whether hooks may change what passes through a layer, or through the one within."""
    own = [module, module.base_layer] if isinstance(module, DendriteLayer) else [module]
    return any(m._forward_hooks or m._forward_pre_hooks for m in own)


def _can_fold(layer: nn.Module, norm: Any) -> bool:
    if isinstance(layer, DendriteLayer):
        return _can_fold(layer.base_layer, norm)
    has_statistics = norm.running_mean is not None and norm.running_var is not None
    return has_statistics and type(layer).__module__.startswith("torch.nn.modules")
