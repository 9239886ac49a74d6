"""Remove positions of one dimension of a module. The only module on torch-pruning.

A plain layer is cut by torch-pruning, which keeps its sizes in step. Every other parameter or
buffer is sliced as a tensor, under each name that it has, and an integer attribute that counts
what was cut is lowered.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from pbcompress.structure.layer_geometry import LayerGeometry, is_depthwise

__all__ = [
    "Kept",
    "cut_",
    "dimension_size",
    "is_plain",
    "keep",
    "keep_in_step",
    "named_dimension",
    "parameter_axes",
]

_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BY_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.PReLU)
_ATTRIBUTE = re.compile(r"@(\w+)(?:\[(\d+)\])?")

Spread = Callable[[Tensor], Tensor]
Kept = Mapping[int, Tensor]  # by axis, the indices that stay


def is_plain(layer: nn.Module) -> bool:
    """Tell whether "out" and "in" name dimensions of a layer: a known kind, a plain weight."""
    if type(layer) not in _MIXING + _BY_CHANNEL or "weight" not in layer._parameters:
        return False
    if not isinstance(layer, nn.modules.conv._ConvNd) or is_depthwise(layer):
        return True
    return layer.groups == 1 or layer.groups < layer.in_channels


def named_dimension(
    model: nn.Module, name: str, axis: int, shared: AbstractSet[str]
) -> tuple[str, str, Spread]:
    """Return how a cut names one axis of a parameter or buffer.

    Args:
        model: The network.
        name: Dotted name of the parameter or buffer.
        axis: The axis.
        shared: Every name of a parameter or buffer that has several.

    Returns:
        The module, the dimension, and what indices along the axis, shape (units, indices), are
        along that dimension: the input axis of a grouped convolution's weight has an index for one
        channel of every group.
    """
    layer, _, own = name.rpartition(".")
    module = model.get_submodule(layer)
    names = {f"{layer}.{n}".lstrip(".") for n in [*module._parameters, *module._buffers]}
    if not is_plain(module) or names & shared:
        return layer, f"{own}:{axis}", lambda indices: indices
    if axis == 0 or type(module) not in _MIXING:
        return layer, "out", lambda indices: indices
    weight: Tensor = getattr(module, "weight")  # noqa: B009
    groups, size = int(getattr(module, "groups", 1)), weight.shape[1]
    starts = torch.arange(groups) * size
    return layer, "in", lambda indices: (indices[..., None] + starts).flatten(-2)


def dimension_size(model: nn.Module, layer: str, dim: str) -> int | None:
    """Return the size of a named dimension, None if the model has no such one."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    if dim in ("out", "in"):
        if not is_plain(module):
            return None
        geometry = LayerGeometry.of(module)
        return geometry.out_width if dim == "out" else geometry.in_width
    match = _ATTRIBUTE.fullmatch(dim)
    if match:
        value: Any = getattr(module, match[1], None)
        if match[2] is not None:
            is_long = isinstance(value, tuple | list) and int(match[2]) < len(value)
            value = value[int(match[2])] if is_long else None
        return value if isinstance(value, int) else None
    name, _, axis = dim.partition(":")
    tensor = module._parameters.get(name, module._buffers.get(name))
    is_there = tensor is not None and axis.isdigit() and int(axis) < tensor.dim()
    return tensor.shape[int(axis)] if tensor is not None and is_there else None


def parameter_axes(
    model: nn.Module, layer: str, dim: str
) -> Iterator[tuple[nn.Parameter, int, int]]:
    """Yield what a cut of a named dimension takes from parameters, the inverse of its name.

    Yields:
        The parameter, the axis, and its size: an index along the dimension is that along the axis
        modulo the size (every group of a grouped convolution loses the same inputs).
    """
    module = model.get_submodule(layer)
    name, _, axis = dim.partition(":")
    if dim == "in":
        name, axis = "weight", "1"
    if dim == "out":
        for parameter in module.parameters(recurse=False):
            yield parameter, 0, parameter.shape[0]
    elif axis:
        found = module._parameters.get(name)
        if found is not None:
            yield found, int(axis), found.shape[int(axis)]


def keep(tensor: Tensor, kept: Kept) -> Tensor:
    """Return the part of a tensor that stays."""
    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor


def cut_(model: nn.Module, layer: str, dim: str, removed: Sequence[int]) -> None:
    """Remove positions in place; whether parameters train stays as it was.

    Args:
        model: The network.
        layer: Dotted name of a module.
        dim: "out" or "in" of a plain layer, "NAME:AXIS" of a parameter or buffer, "@NAME" or
            "@NAME[INDEX]" of an integer attribute.
        removed: Indices along the dimension.
    """
    module = model.get_submodule(layer)
    if dim in ("out", "in"):
        return _cut_plain(module, dim, removed)
    match = _ATTRIBUTE.fullmatch(dim)
    if match:
        return _lower(module, match[1], match[2], len(removed))
    name, _, axis = dim.partition(":")
    old: Tensor = getattr(module, name)
    kept = [i for i in range(old.shape[int(axis)]) if i not in set(removed)]
    with torch.no_grad():
        new = old.index_select(int(axis), torch.tensor(kept, device=old.device))
    if isinstance(old, nn.Parameter):
        new = type(old)(new, requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = old.grad.index_select(int(axis), torch.tensor(kept, device=old.device))
    for owner in model.modules():
        for own in [*owner._parameters, *owner._buffers]:
            if owner._parameters.get(own, owner._buffers.get(own)) is old:
                setattr(owner, own, new)
                if "parametrizations" not in owner._modules:  # else its weight is not ready
                    keep_in_step(owner)
    return None


def _cut_plain(layer: nn.Module, dim: str, removed: Sequence[int]) -> None:
    trains = {name: p.requires_grad for name, p in layer.named_parameters(recurse=False)}
    kind = ops.module2type(layer)
    if isinstance(layer, nn.modules.conv._ConvNd) and not is_depthwise(layer):
        kind = ops.OPTYPE.CONV  # torch-pruning takes out_channels == groups for depthwise
    pruner = PrunerBox[kind]
    prune = pruner.prune_out_channels if dim == "out" else pruner.prune_in_channels
    prune(layer, list(removed))
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.requires_grad_(trains[name])


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
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        state.out_features, state.in_features = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
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
        state.num_channels = len(weight)  # type: ignore[arg-type]
    elif isinstance(module, nn.Embedding):
        state.num_embeddings, state.embedding_dim = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.RNNBase):
        state.input_size = module.weight_ih_l0.shape[1]  # type: ignore[index]
        state.hidden_size = module.weight_hh_l0.shape[1]  # type: ignore[index]
    elif isinstance(module, nn.RNNCellBase):
        state.input_size = module.weight_ih.shape[1]
        state.hidden_size = module.weight_hh.shape[1]
