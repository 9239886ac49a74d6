"""Remove positions of one dimension of a module. The only module on torch-pruning.

A plain layer is cut by torch-pruning, which keeps its sizes in step, but for BatchNorm, for which
that takes longer than for a convolution. Every other parameter or buffer is sliced as a tensor,
under each name that it has, and an integer attribute that counts what was cut is lowered.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from pbcompress.pruning.weight_norms import is_computed
from pbcompress.structure.dimensions import ATTRIBUTE, what_stays
from pbcompress.structure.layer_geometry import has_own_groups, is_depthwise

__all__ = ["Owners", "cut_", "keep_in_step", "owners_of"]

_STATING = (
    *(nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm),
    *(nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase),
)
_AFFINE, _STATISTICS = ("weight", "bias"), ("running_mean", "running_var")  # of BatchNorm
Owners = dict[
    int, list[tuple[nn.Module, str]]
]  # by the id of a tensor: modules and its names there


def owners_of(model: nn.Module) -> Owners:
    """Return who holds each parameter and buffer of a network, for many calls of `cut_`."""
    owners: Owners = defaultdict(list)
    for owner in model.modules():
        for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is not None:
                owners[id(tensor)].append((owner, name))
    return owners


def cut_(
    model: nn.Module, layer: str, dim: str, removed: Sequence[int], owners: Owners | None = None
) -> None:
    """Remove positions in place; whether parameters train stays as it was.

    Args:
        model: The network.
        layer: Dotted name of a module.
        dim: "out" or "in" of a plain layer, "NAME:AXIS" of a parameter or buffer, "@NAME" or
            "@NAME[INDEX]" of an integer attribute.
        removed: Indices along the dimension.
        owners: Who holds each tensor of ``model``; updated. Found where it is not given.
    """
    module = model.get_submodule(layer)
    match = ATTRIBUTE.fullmatch(dim)
    if dim in ("out", "in"):
        _cut_plain(module, dim, removed)
    elif match:
        _lower(module, match[1], match[2], len(removed))
    else:
        name, _, axis = dim.partition(":")
        _cut_tensor(
            module, name, int(axis), removed, owners_of(model) if owners is None else owners
        )


def _cut_tensor(
    module: nn.Module, name: str, axis: int, removed: Sequence[int], owners: Owners
) -> None:
    old: Tensor = getattr(module, name)
    new = _selected(old, axis, what_stays(old.shape[axis], removed))
    known = dict.fromkeys([*owners.get(id(old), []), (module, name)])  # some may hold others now
    held = [(o, own) for o, own in known if o._parameters.get(own, o._buffers.get(own)) is old]
    owners[id(new)] = held
    for owner, own in held:
        setattr(owner, own, new)
        if not is_computed(owner):  # else its weight is not ready
            keep_in_step(owner)


def _selected(tensor: Tensor, axis: int, kept: Tensor) -> Tensor:
    """Return what stays of a parameter, with its gradient, or of a buffer."""
    kept = kept.to(tensor.device)
    with torch.no_grad():
        new = tensor.index_select(axis, kept)
    if isinstance(tensor, nn.Parameter):
        kind = type(tensor)  # of a tensor that is a class of its own it is that class
        kind = kind if issubclass(kind, nn.Parameter) else nn.Parameter
        new = kind(new, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            new.grad = tensor.grad.index_select(axis, kept)
    return new


def _cut_plain(layer: nn.Module, dim: str, removed: Sequence[int]) -> None:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        kept = what_stays(layer.num_features, removed)
        for held, names in ((layer._parameters, _AFFINE), (layer._buffers, _STATISTICS)):
            for name in names:
                if (tensor := held.get(name)) is not None:
                    held[name] = _selected(tensor, 0, kept)  # type: ignore[assignment]
        layer.num_features = len(kept)
        return
    frozen = [n for n, p in layer._parameters.items() if p is not None and not p.requires_grad]
    kind = ops.module2type(layer)
    if isinstance(layer, nn.modules.conv._ConvNd) and not is_depthwise(layer):
        kind = ops.OPTYPE.CONV  # torch-pruning takes out_channels == groups for depthwise
    pruner = PrunerBox[kind]
    prune = pruner.prune_out_channels if dim == "out" else pruner.prune_in_channels
    with torch.no_grad():
        prune(layer, list(removed))
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)


def _lower(module: nn.Module, name: str, index: str | None, count: int) -> None:
    value: Any = getattr(module, name)
    if index is None:
        setattr(module, name, value - count)
        return
    items = list(value)
    items[int(index)] -= count
    setattr(module, name, type(value)(items))


def keep_in_step(module: nn.Module) -> None:
    """Set the sizes that a layer of torch states from its weights."""
    state: Any = module
    if not isinstance(module, _STATING):  # whose weight may be computed when it is read
        return
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        state.out_features, state.in_features = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        if has_own_groups(module):
            state.groups = weight.shape[0]  # type: ignore[union-attr]
        state.in_channels = weight.shape[0]  # type: ignore[union-attr]
        state.out_channels = weight.shape[1] * state.groups  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.conv._ConvNd):
        if state.groups > 1 and weight.shape[1] == 1:  # type: ignore[union-attr]
            state.groups = weight.shape[0] * state.groups // state.out_channels  # type: ignore[union-attr]
        state.out_channels = weight.shape[0]  # type: ignore[union-attr]
        state.in_channels = weight.shape[1] * state.groups  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = next(t for t in (weight, module.bias, module.running_mean) if t is not None)
        state.num_features = len(known)
    elif isinstance(module, nn.GroupNorm):
        if state.num_groups == state.num_channels:
            state.num_groups = len(weight)  # type: ignore[arg-type]
        state.num_channels = len(weight)  # type: ignore[arg-type]
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        state.num_embeddings, state.embedding_dim = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.RNNBase):
        state.input_size = module.weight_ih_l0.shape[1]  # type: ignore[index]
        state.hidden_size = module.weight_hh_l0.shape[1]  # type: ignore[index]
    elif isinstance(module, nn.RNNCellBase):
        state.input_size = module.weight_ih.shape[1]
        state.hidden_size = module.weight_hh.shape[1]
