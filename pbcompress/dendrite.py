"""The layer that contains another one and its dendrites."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.config import DendriteConfig
from pbcompress.correlation import CorrelationProbe
from pbcompress.errors import CompressionError
from pbcompress.forms import growable_layers, make_branch, node_count, spatial_dims
from pbcompress.surgery import channel_axis, replace_module

__all__ = [
    "ACTIVATIONS",
    "DendriteLayer",
    "attach_dendrites_",
    "dendrite_layers",
    "detach_dendrites_",
    "mix",
    "neuron_parameters",
]

ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def mix(activation: Tensor, gain: Tensor, dims: int) -> Tensor:
    """Return the contribution of one set: U * a per channel, or the dense map of shared nodes.

    Args:
        activation: Nodes on the channel axis of a layer with ``dims`` spatial axes.
        gain: Shape (channels,), or (nodes, channels) for shared nodes.
        dims: 0 for Linear, 1 to 3 for convolutions.
    """
    if gain.dim() == 1:
        return activation * gain.reshape(-1, *[1] * dims)
    if dims == 0:
        return functional.linear(activation, gain.T)
    return _CONV[dims](activation, gain.T.reshape(*gain.T.shape, *[1] * dims))


class DendriteLayer(nn.Module):
    """A layer with dendrites: further nodes that see its input and add to its output.

    For output channel c, dendrites d = 1..D and activation function f::

        z_d = D_d(x) + sum_{e<d} V[d,e,c] * a_e
        a_d = f(z_d)
        y   = base(x) + sum_d U[d,c] * a_d

    A new set has U = 0, so it never changes the function. With form "shared" the nodes are fewer
    than the channels, and U[d] is a dense map from nodes to channels.

    Args:
        base_layer: A Linear or Conv1d/2d/3d; kept as it is.
        config: Form, activation and the two switches.
        normalized: Whether each dendrite has its own BatchNorm.

    Attributes:
        base_layer: The original layer.
        dendrites: The input maps D_d.
        gains: U: shape (D, channels), or (D, nodes, channels) for shared nodes.
        links: V: entry d has shape (d, nodes), the weights from the earlier dendrites.
        frozen_sets: The first so many sets are fixed: no gradient, BatchNorm in eval mode.
        candidate: While a dendrite phase lasts, the score leaf of the newest set; else None.

    Example:
        >>> layer, x = nn.Linear(3, 2), torch.ones(4, 3)
        >>> grown = DendriteLayer(layer, DendriteConfig(activation="tanh"), normalized=False)
        >>> grown.add_set(seed=("example",))
        >>> bool(torch.equal(grown(x), layer(x)))
        True

    Source:
        Brenner and Itti, Perforated Backpropagation, 2025, sections 2 and 3,
        https://arxiv.org/abs/2501.18018.
    """

    gains: nn.Parameter

    def __init__(self, base_layer: nn.Module, config: DendriteConfig, *, normalized: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dendrites = nn.ModuleList()
        self.links = nn.ParameterList()
        self.config = config
        self.normalized = normalized
        self.frozen_sets = 0
        self.candidate: Tensor | None = None
        self.channels = int(getattr(base_layer, "out_channels", 0) or base_layer.out_features)  # type: ignore[arg-type]
        self.nodes = node_count(self.channels, config)
        self.dims = spatial_dims(base_layer)
        self.gains = nn.Parameter(self._weight.new_zeros(0, *self._gain_shape))

    @property
    def num_sets(self) -> int:
        """Number of dendrite sets, a candidate included."""
        return len(self.dendrites)

    @property
    def trained_sets(self) -> int:
        """Number of sets up to the newest one that adds something: whose U is not zero."""
        speaking = [index for index, gain in enumerate(self.gains) if bool(gain.any())]
        return max(speaking, default=-1) + 1

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def _gain_shape(self) -> tuple[int, ...]:
        is_shared = self.config.form == "shared"
        return (self.nodes, self.channels) if is_shared else (self.channels,)

    def add_set(self, seed: tuple[int | str, ...]) -> None:
        """Add one set with U = 0 and V = 0; ``seed`` names the random stream of its weights."""
        branch = make_branch(self.base_layer, self.config, normalized=self.normalized, seed=seed)
        self.dendrites.append(branch.train(self.training))
        earlier = self.num_sets - 1 if self.config.cascade else 0
        self.links.append(nn.Parameter(self._weight.new_zeros(earlier, self.nodes)))
        row = self._weight.new_zeros(1, *self._gain_shape)
        self.gains = nn.Parameter(torch.cat([self.gains.detach(), row]))

    def remove_set(self) -> None:
        """Remove the newest set."""
        del self.dendrites[-1]
        self.links = nn.ParameterList(list(self.links)[:-1])
        self.gains = nn.Parameter(self.gains.detach()[:-1].clone())
        self.frozen_sets = min(self.frozen_sets, self.num_sets)
        self.candidate = None

    def set_parameters(self, index: int) -> list[nn.Parameter]:
        """Return the input weights and V of one set (U apart)."""
        return [*self.dendrites[index].parameters(), self.links[index]]

    def begin_candidacy(self) -> None:
        """Train the newest set by correlation from now on, and collect its scores."""
        is_shared = self.config.form == "shared"
        shape = (self.nodes + 1, self.channels) if is_shared else (self.nodes + 1,)
        working = torch.promote_types(self._weight.dtype, torch.float32)  # sums many batches
        self.candidate = self._weight.new_zeros(shape, dtype=working).requires_grad_()

    def summed_correlation(self) -> Tensor | None:
        """Return the sum of r over the phase, with the number of batches as last row; a copy."""
        if self.candidate is None or self.candidate.grad is None:
            return None
        return self.candidate.grad.clone()

    def freeze(self, num_sets: int) -> None:
        """Fix the first ``num_sets`` sets and let the others train."""
        self.frozen_sets = num_sets
        for index in range(self.num_sets):
            for parameter in self.set_parameters(index):
                parameter.requires_grad_(index >= num_sets)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DendriteLayer":
        """Set the mode; a frozen dendrite's BatchNorm stays in eval mode."""
        super().train(mode)
        for dendrite in list(self.dendrites)[: self.frozen_sets]:
            dendrite.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map the base layer's input to its output plus the dendrites' signal."""
        y: Tensor = self.base_layer(x)
        function = ACTIVATIONS[self.config.activation]
        activations: list[Tensor] = []
        for index, dendrite in enumerate(self.dendrites):
            is_candidate = self.candidate is not None and index == self.num_sets - 1
            through = self.config.backprop_through and not is_candidate
            z = dendrite(x if through else x.detach())
            for link, earlier in zip(self.links[index], activations, strict=False):
                heard = earlier.detach() if is_candidate else earlier
                z = z + heard * link.reshape(-1, *[1] * self.dims)
            a = function(z)
            if is_candidate:  # its U is zero: it listens, and does not speak
                axis, pairwise = channel_axis(self.base_layer), self.config.form != "shared"
                return _probe(y, a, self.candidate, axis, pairwise)
            activations.append(a)
            y = y + mix(a, self.gains[index], self.dims).to(y.dtype)  # differs under autocast
        return y

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of this layer."""
        c = self.config
        return f"sets={self.num_sets}, form={c.form}, rule={c.rule}, activation={c.activation}"


def _probe(y: Tensor, a: Tensor, score: Tensor | None, axis: int, pairwise: bool) -> Tensor:
    probed: Tensor = CorrelationProbe.apply(y, a, score, axis, pairwise)  # type: ignore[no-untyped-call]
    return probed


def dendrite_layers(model: nn.Module) -> dict[str, DendriteLayer]:
    """Return the layers of ``model`` that have dendrites, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, DendriteLayer)}


def neuron_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are no dendrite's, by the name they have without dendrites."""
    layers = dendrite_layers(model).values()
    added = {id(p) for m in layers for p in [*m.dendrites.parameters(), *m.links, m.gains]}
    return {
        name.replace(".base_layer.", "."): p
        for name, p in model.named_parameters()
        if id(p) not in added
    }


def attach_dendrites_(
    model: nn.Module,
    config: DendriteConfig | None = None,
    *,
    layers: Mapping[str, bool] | None = None,
    seed: int = 0,
) -> tuple[str, ...]:
    """Add one dendrite set in place; the function of ``model`` stays bit-equal.

    The first call wraps layers, a further call adds a set to those that are wrapped. Parameters
    are added, so make the optimizer afterwards.

    Args:
        model: Network of Linear and convolution layers.
        config: What to grow, the default where None.
        layers: Exactly these layers, with whether each has its own BatchNorm; None: what
            ``config`` selects.
        seed: Seed of the new weights; the global random state is left alone.

    Returns:
        The names of the layers that grew.

    Raises:
        UnsupportedLayerError: ``config.layers`` names a layer that cannot grow.
        CompressionError: Nothing matches, or the model already has dendrites of another form.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> attach_dendrites_(net, DendriteConfig(layers=("0",)))
        ('0',)
        >>> type(net[0]).__name__, type(net[2]).__name__
        ('DendriteLayer', 'Linear')
    """
    config = config or DendriteConfig()
    wrapped = dendrite_layers(model)
    for name, layer in wrapped.items():
        if layer.config.to_dict() | {"max_sets": 0} != config.to_dict() | {"max_sets": 0}:
            raise CompressionError(
                f"attach_dendrites_ was called with another DendriteConfig than the one that "
                f"{name!r} grew with. Use the same, or detach_dendrites_ first."
            )
    if not wrapped:
        chosen = growable_layers(model, config) if layers is None else layers
        if not chosen:
            raise CompressionError(
                "attach_dendrites_ found no Linear, Conv1d, Conv2d or Conv3d below the model's "
                "root. Put a bare layer into nn.Sequential first."
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
