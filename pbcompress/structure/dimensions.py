"""Which dimensions a module's tensors have, how a cut names them, and what is kept of them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.structure.layer_geometry import LayerGeometry, is_depthwise

__all__ = [
    "ATTRIBUTE",
    "STATED",
    "Kept",
    "Spread",
    "dimension_size",
    "is_plain",
    "keep",
    "named_dimension",
    "parameter_axes",
    "stated_sizes",
    "weight_name",
    "what_stays",
]

_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BY_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.PReLU)
_STATES = (
    *(nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag),
    *(nn.modules.batchnorm._NormBase, nn.GroupNorm),
)
# Sizes that these layers of torch, and attention, state of their weights
STATED = (
    *("in_features", "out_features", "in_channels", "out_channels"),
    *("num_embeddings", "embedding_dim", "num_features", "num_channels", "num_groups"),
    *("embed_dim", "kdim", "vdim", "num_heads"),
)
ATTRIBUTE = re.compile(r"@(\w+)(?:\[(\d+)\])?")
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
    module: nn.Module, name: str, axis: int, shared: AbstractSet[str]
) -> tuple[str, str, Spread]:
    """Return how a cut names one axis of a parameter or buffer.

    Args:
        module: The module that holds it.
        name: Dotted name of the parameter or buffer in the network.
        axis: The axis.
        shared: Every name of a parameter or buffer that has several.

    Returns:
        The module, the dimension, and what indices along the axis, shape (units, indices), are
        along that dimension: the input axis of a grouped convolution's weight has an index for one
        channel of every group.
    """
    layer, _, own = name.rpartition(".")
    is_shared = shared and any(
        f"{layer}.{n}".lstrip(".") in shared for n in [*module._parameters, *module._buffers]
    )
    if is_shared or not is_plain(module):
        return layer, f"{own}:{axis}", lambda indices: indices
    groups = int(getattr(module, "groups", 1))
    if axis == 0 or type(module) not in _MIXING or groups == 1:
        of_inputs = axis == 1 and type(module) in _MIXING
        return layer, "in" if of_inputs else "out", lambda indices: indices
    size = module.get_parameter("weight").shape[1]
    starts = torch.arange(groups) * size
    return layer, "in", lambda indices: (indices[..., None] + starts).flatten(-2)


def stated_sizes(layer: nn.Module, axes: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what each size that a layer of torch states counts, along the axes of its weight.

    Args:
        layer: Any module.
        axes: For each axis of its weight (of its statistics, where it has none) one value for each
            position.

    Example:
        >>> stated_sizes(nn.Conv1d(4, 2, 1, groups=2), [torch.tensor([7, 8]), torch.tensor([5, 6])])
        {'in_channels': tensor([5, 6, 5, 6]), 'out_channels': tensor([7, 8])}
    """
    if not isinstance(layer, _STATES):
        return {}
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, nn.Linear):
        return {"in_features": axes[1], "out_features": axes[0]}
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return {"num_embeddings": axes[0], "embedding_dim": axes[1]}
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return {"in_channels": axes[0], "out_channels": axes[1].repeat(groups)}
    if isinstance(layer, nn.modules.conv._ConvNd):
        has_own = groups > 1 and len(axes[1]) == 1  # every input has outputs of its own
        inputs = axes[0][:: len(axes[0]) // groups] if has_own else axes[1].repeat(groups)
        return {"in_channels": inputs, "out_channels": axes[0]}
    if not isinstance(layer, nn.GroupNorm):
        return {"num_features": axes[0]}
    every_alone = {"num_groups": axes[0]} if layer.num_groups == layer.num_channels else {}
    return {"num_channels": axes[0], **every_alone}


def weight_name(
    layer: nn.Module, name: str, names: Mapping[int, str], axes: Mapping[str, Sequence[Tensor]]
) -> str:
    """Return the name of the tensor that has a layer's sizes; "" if there is none.

    Args:
        layer: A layer of torch.
        name: Dotted name of it.
        names: Name of every parameter and buffer of the network, by its ``id``.
        axes: Axes of those that take part. Of those that a weight is computed from, the largest of
            the nearest.
    """
    for own in (layer._parameters.get("weight"), layer._buffers.get("running_mean")):
        if own is not None:
            return names.get(id(own), "")
    prefix = f"{name}.".lstrip(".")
    parts = [key for key in axes if key.startswith(prefix) and key != f"{prefix}bias"]
    # a parametrization may hold larger tensors than the weight, farther in
    rank = {key: (-key.count("."), math.prod(map(len, axes[key]))) for key in parts}
    return max(parts, key=rank.__getitem__, default="")


def dimension_size(model: nn.Module, layer: str, dim: str) -> int | None:
    """Return the size of a named dimension, None if the model does not have it."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    if dim in ("out", "in"):
        if not is_plain(module):
            return None
        geometry = LayerGeometry.of(module)
        return geometry.out_width if dim == "out" else geometry.in_width
    match = ATTRIBUTE.fullmatch(dim)
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


def what_stays(size: int, removed: Sequence[int] | Tensor) -> Tensor:
    """Return the indices of a dimension that are not removed."""
    stays = torch.ones(size, dtype=torch.bool)
    stays[torch.as_tensor(removed, dtype=torch.long)] = False
    return stays.nonzero().squeeze(1)


def keep(tensor: Tensor, kept: Kept) -> Tensor:
    """Return the part of a tensor that stays."""
    for axis, indices in kept.items():
        tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor
