"""The forms of a dendrite: what module it is, and what it costs as a closed form in the widths."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pbcompress.config.dendrites import (
    DendriteConfig,
    Full,
    Grouped,
    LowRank,
    ScoredRule,
    Shared,
    Tied,
)
from pbcompress.core.modules import matches
from pbcompress.core.randomness import seeded
from pbcompress.dendrites.attention_projections import OpenAttention
from pbcompress.errors import CompressionError, UnsupportedLayerError
from pbcompress.structure.layer_geometry import LayerGeometry

__all__ = [
    "GROWABLE",
    "ChannelAffine",
    "FeatureNorm",
    "GroupedLinear",
    "GrowableLayers",
    "UncentredNorm",
    "growable_layers",
    "make_branch",
    "node_count",
    "scale_and_offset",
    "set_params",
    "spatial_dims",
    "why_unfoldable",
]

GrowableLayers = Mapping[str, bool]  # by name: whether each dendrite has its own BatchNorm

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
GROWABLE = (nn.Linear, *_CONVS.values(), *_TRANSPOSED.values())


class FeatureNorm(nn.BatchNorm1d):
    """A BatchNorm over the last axis, where a Linear has its channels, at any rank.

    Example:
        >>> FeatureNorm(4)(torch.randn(3, 5, 4)).shape
        torch.Size([3, 5, 4])
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (..., num_features) over all axes but the last."""
        flat = input.flatten(0, -2) if input.dim() > 2 else input
        return super().forward(flat).reshape(input.shape)


class UncentredNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm without mean and offset: it only divides by the root of the mean square.

    Dendrites that are absorbed have it. It adds nothing that a layer without bias could not take,
    and it bears a batch of one sample.

    Args:
        channels: Size of the channel axis.
        dims: Spatial axes after it.

    Example:
        >>> UncentredNorm(1, 0)(torch.tensor([[3.0], [-3.0]])).tolist()
        [[0.9999994039535522], [-0.9999994039535522]]
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__(channels)
        self.register_parameter("bias", None)
        self.dims = dims

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Scale (N, channels, ...), or (..., channels) where there are no spatial axes."""
        is_measured = self.training and input.numel() > 0
        square: Any = self._mean_square(input) if is_measured else self.running_var
        scale: torch.Tensor = self.weight * (square + self.eps).rsqrt()
        return input * scale.to(input.dtype).reshape(-1, *[1] * self.dims)

    def _mean_square(self, input: torch.Tensor) -> torch.Tensor:
        axis = input.dim() - 1 - self.dims
        values = input if input.element_size() >= 4 else input.float()
        others = [a for a in range(input.dim()) if a != axis]
        square = values.square().mean(others) if others else values.square()
        kept: Any = self.running_var
        tracked: Any = self.num_batches_tracked
        tracked.add_(1)
        rate = 1 / tracked if self.momentum is None else self.momentum
        kept.lerp_(square.detach().to(kept.dtype), rate)
        return square


_NORMS = {0: FeatureNorm, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def spatial_dims(layer: nn.Module) -> int:
    """Return 0 for a Linear, 1 to 3 for a convolution."""
    return len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else 0


def growable_layers(model: nn.Module, config: DendriteConfig) -> dict[str, bool]:
    """Return the layers that may grow dendrites, and whether each is followed by a BatchNorm.

    A layer counts as followed when the next module in the order of registration is a BatchNorm of
    its width, which is how networks are written.

    Raises:
        UnsupportedLayerError: ``config.layers`` names a layer of a kind that cannot grow.
        CompressionError: ``config.layers`` matches nothing.
    """
    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    found: dict[str, bool] = {}
    for i, (name, layer) in enumerate(leaves):
        if config.layers is not None and not matches(name, config.layers):
            continue
        reason = _refusal(model, name, layer) or why_unfoldable(model, layer, config)
        if reason is None:
            width = LayerGeometry.of(layer).out_width
            following = leaves[i + 1][1] if i + 1 < len(leaves) else None
            is_normed = isinstance(following, nn.modules.batchnorm._BatchNorm)
            is_normed = is_normed and getattr(following, "num_features", 0) == width
            found[name] = bool(config.normalize) and (is_normed or config.is_absorbed)
        elif config.layers is not None and name in config.layers:
            raise UnsupportedLayerError(
                f"DendriteConfig.layers names {name!r}: {reason}. Leave it out.", name, reason
            )
    if config.layers is not None and not found:
        raise CompressionError(
            f"DendriteConfig.layers={config.layers} matches no layer that can grow dendrites. "
            f"Candidates: {', '.join(growable_layers(model, DendriteConfig())) or 'none'}."
        )
    return found


def _refusal(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        return (
            f"a {type(layer).__name__} sums up its gates inside one fused kernel, where no "
            "dendrite can add to them"
        )
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return f"a {type(layer).__name__} looks rows up, and has no sum for a dendrite to add to"
    parent = model.get_submodule(name.rpartition(".")[0])
    is_of_torch = type(parent).__module__ == "torch.nn.modules.transformer"
    is_open = isinstance(getattr(parent, "self_attn", None), OpenAttention)
    if isinstance(parent, nn.MultiheadAttention) or (is_of_torch and not is_open):
        return (
            f"its parent {type(parent).__name__} reads its weight directly, until "
            "open_attention_(model)"
        )
    if type(layer) not in GROWABLE:
        return f"a {type(layer).__name__} cannot grow dendrites"
    return None


def why_unfoldable(model: nn.Module, layer: Any, config: DendriteConfig) -> str | None:
    """Return why linear dendrites could not be absorbed by a layer that can grow."""
    if not config.is_absorbed:
        return None
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a hook, and dendrites cannot fold into it"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks, which may change what passes, and dendrites cannot fold past them"
    if sum(held is weight for m in model.modules() for held in m._parameters.values()) > 1:
        return "another layer has its weight too, and its dendrites cannot fold into both"
    form = config.form
    if isinstance(form, LowRank | Shared) and getattr(layer, "groups", 1) > 1:
        return f'it has groups, and nodes of form "{form.kind}" read all of its inputs'
    if isinstance(form, Tied) and layer.bias is None and not config.normalize:
        return "it has no bias, and the offsets of tied dendrites cannot fold into it"
    return None


class ChannelAffine(nn.Module):
    """Scale and offset of every channel: a tied dendrite's map of its neuron's own weighted sum.

    Args:
        channels: Size of the channel axis.
        dims: Spatial axes after it.

    Example:
        >>> ChannelAffine(4, 2)(torch.zeros(3, 4, 5, 5)).shape
        torch.Size([3, 4, 5, 5])
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels, ...), or (..., channels) where there are no spatial axes."""
        shape = (-1, *[1] * self.dims)
        return torch.addcmul(self.bias.reshape(shape), x, self.weight.reshape(shape))


def scale_and_offset(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a BatchNorm with fixed statistics does to each channel."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    if isinstance(norm, UncentredNorm):
        return scale, torch.zeros_like(scale)
    offset = -norm.running_mean * scale
    return scale, offset if norm.bias is None else offset + norm.bias


def node_count(out_width: int, config: DendriteConfig) -> int:
    """Return how many nodes one set has in a layer of ``out_width`` channels."""
    return config.form.nodes if isinstance(config.form, Shared) else out_width


def _groups(geometry: LayerGeometry, out_width: int, in_width: int, form: Grouped) -> int:
    if geometry.groups == 0:
        return out_width
    return math.gcd(math.gcd(in_width, out_width), form.groups * geometry.groups_at(in_width))


def set_params(
    geometry: LayerGeometry,
    out_width: int,
    in_width: int,
    config: DendriteConfig,
    *,
    normalized: bool,
) -> int:
    """Return the parameters of ``config.max_sets`` sets on one layer: nodes, norms, U and V.

    Where nodes are selected this is the most that the kept ones may take. What is absorbed takes
    nothing.
    """
    if config.is_absorbed:
        return 0
    sets, nodes = config.max_sets, node_count(out_width, config)
    bias = min(geometry.per_channel, 1)
    dense = in_width * geometry.taps
    match config.form:
        case Full():
            weights = geometry.weights(out_width, in_width)
        case Grouped() as form:
            weights = out_width * dense // _groups(geometry, out_width, in_width, form)
        case LowRank(rank=rank):
            weights = rank * (dense + out_width)
        case Shared():
            weights = nodes * dense
        case Tied():  # a BatchNorm is scale and offset already
            weights, bias = (0 if normalized else nodes), (0 if normalized else 1)
    per_set = weights + nodes * bias + (2 * nodes if normalized else 0)
    gains = out_width * nodes if isinstance(config.form, Shared) else out_width
    links = nodes * sets * (sets - 1) // 2 if config.cascade else 0
    kept = config.rule.node_share if isinstance(config.rule, ScoredRule) else 1.0
    return math.floor(kept * (sets * (per_set + gains) + links))


def make_branch(
    layer: nn.Module, config: DendriteConfig, *, normalized: bool, seed: tuple[int | str, ...]
) -> nn.Module:
    """Return the input map D_d of one new dendrite set, freshly initialised.

    Args:
        layer: The base layer, a Linear or a convolution.
        config: Form and sizes.
        normalized: Whether a BatchNorm follows the map.
        seed: Names the random stream of the initial weights.
    """
    geometry = LayerGeometry.of(layer)
    out_width, in_width = geometry.out_width, geometry.in_width
    has_bias = geometry.per_channel > 0
    with seeded("branch", *seed):
        match config.form:
            case Full():
                groups = getattr(layer, "groups", 1)
                branch = _like(layer, in_width, out_width, groups, bias=has_bias)
            case Grouped() as form:
                groups = _groups(geometry, out_width, in_width, form)
                branch = _like(layer, in_width, out_width, groups, bias=has_bias)
            case LowRank(rank=rank):
                down = _like(layer, in_width, rank, 1, bias=False)
                branch = nn.Sequential(down, _pointwise(layer, rank, out_width))
            case Shared(nodes=nodes):
                branch = _like(layer, in_width, nodes, 1, bias=has_bias)
            case Tied():
                affine = ChannelAffine(out_width, spatial_dims(layer))
                branch = _tied(_norm(layer, out_width, config) if normalized else affine)
                normalized = False
    if normalized:
        branch = nn.Sequential(branch, _norm(layer, node_count(out_width, config), config))
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    return branch.to(device=weight.device, dtype=weight.dtype)


def _norm(layer: nn.Module, channels: int, config: DendriteConfig) -> nn.Module:
    """Return the norm of a branch: one that folds away with it, where that is asked for."""
    dims = spatial_dims(layer)
    if config.is_absorbed:
        return UncentredNorm(channels, dims)
    return _NORMS[dims](channels)


def _tied(affine: Any) -> nn.Module:
    """Return hinges at random places of a neuron's own sum, rising or falling."""
    if affine.bias is not None:
        nn.init.uniform_(affine.bias, -1, 1)
    with torch.no_grad():
        affine.weight.copy_(torch.randint(2, affine.weight.shape) * 2 - 1)
    return affine  # type: ignore[no-any-return]


def _geometry_arguments(layer: nn.Module) -> Mapping[str, object]:
    names = ["kernel_size", "stride", "padding", "dilation", "padding_mode"]
    if type(layer) in _TRANSPOSED.values():
        names.append("output_padding")
    return {name: getattr(layer, name) for name in names}


def _like(layer: nn.Module, in_width: int, out_width: int, groups: int, *, bias: bool) -> nn.Module:
    if spatial_dims(layer) == 0:
        if groups > 1:
            return GroupedLinear(in_width, out_width, groups, bias=bias)
        return nn.Linear(in_width, out_width, bias=bias)
    is_transposed = type(layer) in _TRANSPOSED.values()
    conv = (_TRANSPOSED if is_transposed else _CONVS)[spatial_dims(layer)]
    arguments: dict[str, object] = dict(_geometry_arguments(layer))
    return conv(in_width, out_width, groups=groups, bias=bias, **arguments)  # type: ignore[arg-type]


def _pointwise(layer: nn.Module, in_width: int, out_width: int) -> nn.Module:
    bias = getattr(layer, "bias", None) is not None
    if spatial_dims(layer) == 0:
        return nn.Linear(in_width, out_width, bias=bias)
    return _CONVS[spatial_dims(layer)](in_width, out_width, 1, bias=bias)


class GroupedLinear(nn.Module):
    """A Linear whose inputs and outputs fall into groups that do not see each other.

    Args:
        in_features: Size of the last axis of the input, a multiple of ``groups``.
        out_features: Size of the last axis of the output, a multiple of ``groups``.
        groups: Number of groups.
        bias: Whether to add a bias.

    Example:
        >>> GroupedLinear(6, 4, 2, bias=True)(torch.zeros(3, 5, 6)).shape
        torch.Size([3, 5, 4])
    """

    def __init__(
        self, in_features: int, out_features: int, groups: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.groups = groups
        per_in, per_out = in_features // groups, out_features // groups
        bound = 1 / math.sqrt(per_in)
        self.weight = nn.Parameter(torch.empty(groups, per_in, per_out).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        rows = x.reshape(math.prod(x.shape[:-1]), self.groups, self.weight.shape[1])
        y = rows.transpose(0, 1) @ self.weight  # one product for each group, of all rows
        y = y.transpose(0, 1).reshape(*x.shape[:-1], self.groups * self.weight.shape[2])
        return y if self.bias is None else y + self.bias
