"""The layer that contains another one and its dendrites."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig, Shared, Tied
from pbcompress.dendrites.correlation import CorrelationProbe, process_count, score_leaf
from pbcompress.dendrites.forms import make_branch, node_count, spatial_dims
from pbcompress.dendrites.nodes import Slots, narrowed
from pbcompress.dendrites.positions import Window, position_axes
from pbcompress.dendrites.signals import activate, add_set, hear
from pbcompress.errors import CompressionError

__all__ = ["DendriteLayer", "Watcher", "dendrite_layers", "neuron_parameters"]

Watcher = Callable[[Tensor, Tensor, list[Tensor | None]], Tensor]


class DendriteLayer(nn.Module):
    """A layer with dendrites: further nodes that see its input and add to its output.

    For output channel c, dendrites d = 1..D and activation function f::

        z_d = D_d(x) + sum_{e<d} V[d,e,c] * a_e
        a_d = f(z_d)
        y   = base(x) + sum_d U[d,c] * a_d

    A layer that is called several times in one forward pass has the mean of its scores over the
    calls; weights that it shares with other layers stay shared, and its dendrites are its own.

    A new set has U = 0, so it never changes the function. With form "shared" the nodes are fewer
    than the channels, and U[d] is a dense map from nodes to channels.

    Args:
        base_layer: A Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d; kept as it is.
        config: Form, activation and the two switches.
        normalized: Whether each dendrite has its own BatchNorm.

    Attributes:
        base_layer: The original layer.
        dendrites: The input maps D_d.
        gains: U: entry d has shape (nodes,), or (nodes, channels) for shared nodes.
        links: V: entry d has shape (d, nodes), the weights from the earlier dendrites.
        slots: Which channels (shared nodes: which nodes) each set has.
        rivals: While a dendrite phase lasts, the rest of the pool beside the newest set.
        frozen_sets: The first so many sets are fixed: no gradient, BatchNorm in eval mode.
        candidate: While a dendrite phase lasts, the score leaf of the pool; else None.
        loss_scale: What the loss is multiplied by before its backward pass.
        watcher: While inputs and errors are observed: gets the output, what dendrites read and the
            activations of those that speak, and returns the output.

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

    watcher: Watcher | None = None

    def __init__(self, base_layer: nn.Module, config: DendriteConfig, *, normalized: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dendrites = nn.ModuleList()
        self.gains = nn.ParameterList()
        self.links = nn.ParameterList()
        self.slots = nn.ModuleList()
        self.rivals = nn.ModuleList()
        self.rival_links = nn.ParameterList()
        self.config = config
        self.normalized = normalized
        self.frozen_sets = 0
        self.candidate: Tensor | None = None
        self.loss_scale = 1.0
        self.channels = int(getattr(base_layer, "out_channels", 0) or base_layer.out_features)  # type: ignore[arg-type]
        self.nodes = node_count(self.channels, config)
        self.dims = spatial_dims(base_layer)

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

    def add_set(self, seed: tuple[int | str, ...]) -> None:
        """Add one set with U = 0 and V = 0; ``seed`` names the random stream of its weights."""
        self.dendrites.append(self._branch(seed))
        self.links.append(self._silent_links())
        is_shared = isinstance(self.config.form, Shared)
        shape = (self.nodes, self.channels) if is_shared else (self.channels,)
        self.gains.append(nn.Parameter(self._weight.new_zeros(shape)))
        self.slots.append(Slots(self.nodes).to(self._weight.device).train(self.training))

    def add_rival(self, seed: tuple[int | str, ...]) -> None:
        """Add a candidate to the pool of the newest set."""
        self.rivals.append(self._branch(seed))
        self.rival_links.append(self._silent_links())

    def _branch(self, seed: tuple[int | str, ...]) -> nn.Module:
        branch = make_branch(self.base_layer, self.config, normalized=self.normalized, seed=seed)
        return branch.train(self.training)

    def _silent_links(self) -> nn.Parameter:
        earlier = self.num_sets - 1 if self.config.cascade else 0
        return nn.Parameter(self._weight.new_zeros(max(earlier, 0), self.nodes))

    def remove_set(self) -> None:
        """Remove the newest set."""
        self.end_candidacy()
        del self.dendrites[-1], self.slots[-1]
        self.links = nn.ParameterList(list(self.links)[:-1])
        self.gains = nn.ParameterList(list(self.gains)[:-1])
        self.frozen_sets = min(self.frozen_sets, self.num_sets)

    def keep_nodes(self, index: int, kept: Tensor) -> None:
        """Keep some nodes of a whole set.

        Args:
            index: Number of the set.
            kept: Nodes that stay, ascending; none is allowed. See `nodes.narrowed` for
                maps in groups.
        """
        kept = kept.to(self._weight.device)
        branch = self.dendrites[index]
        small = narrowed(branch, kept, -1 - self.dims) if len(kept) else nn.Identity()
        self.dendrites[index] = small.train(branch.training)
        for held in (self.gains, self.links):
            whole = held[index]
            part = whole.detach()[kept] if held is self.gains else whole.detach()[:, kept]
            held[index] = nn.Parameter(part.clone(), whole.requires_grad)
        self.slots[index] = Slots(self.nodes, kept).to(kept.device).train(self.training)

    @property
    def kept_nodes(self) -> list[list[int] | None]:
        """The nodes of every set, as JSON: None is all of them."""
        return [None if s.is_whole else s.kept.tolist() for s in self.slots]  # type: ignore[operator]

    def keep_all_nodes(self, nodes: Sequence[Sequence[int] | None]) -> None:
        """Bring sets that are whole to the nodes that `kept_nodes` told of."""
        for index, kept in enumerate(nodes):
            if kept is not None:
                self.keep_nodes(index, torch.tensor(kept, dtype=torch.long))

    def set_parameters(self, index: int) -> list[nn.Parameter]:
        """Return the input weights and V of one set (U apart)."""
        return [*self.dendrites[index].parameters(), self.links[index]]

    @property
    def pool(self) -> list[tuple[nn.Module, Tensor]]:
        """The candidates of the newest set: input map and links of each."""
        links = [self.links[-1], *self.rival_links]
        return list(zip([self.dendrites[-1], *self.rivals], links, strict=True))

    def begin_candidacy(self) -> None:
        """Train the pool of the newest set by correlation from now on, and collect its scores."""
        shape = (
            (self.nodes, self.channels) if isinstance(self.config.form, Shared) else (self.nodes,)
        )
        self.loss_scale = 1.0
        self.candidate = score_leaf(self._weight, len(self.pool), *shape)

    def end_candidacy(self) -> None:
        """Let the newest set speak, and forget the rest of the pool and the scores."""
        self.candidate, self.loss_scale = None, 1.0
        self.rivals, self.rival_links = nn.ModuleList(), nn.ParameterList()

    def summed_scores(self) -> Tensor | None:
        """Return the sums over the phase, with the rows of `score_leaf`; a copy."""
        if self.candidate is None or self.candidate.grad is None:
            return None
        return self.candidate.grad.clone()

    def freeze(self, num_sets: int) -> None:
        """Fix the first ``num_sets`` sets and let the others train."""
        self.frozen_sets = num_sets
        for index in range(self.num_sets):
            for parameter in self.set_parameters(index):  # an empty one would wait for ever
                parameter.requires_grad_(index >= num_sets and parameter.numel() > 0)
        for parameter in [*self.rivals.parameters(), *self.rival_links]:
            parameter.requires_grad_(self.num_sets > num_sets and parameter.numel() > 0)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DendriteLayer":
        """Set the mode; a frozen dendrite's BatchNorm stays in eval mode."""
        super().train(mode)
        for dendrite in list(self.dendrites)[: self.frozen_sets]:
            dendrite.eval()
        return self

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the base layer, as its size or weight, that other code reads."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        """Map the base layer's input to its output plus the dendrites' signal."""
        if others or named:
            raise CompressionError(
                f"A {type(self.base_layer).__name__} with dendrites was called with more than its "
                "input. Give output_padding to the layer instead of output_size to its call."
            )
        y, input = self._based(input)
        own, read = y, input if self.config.backprop_through else input.detach()
        if isinstance(self.config.form, Tied):
            read = own if self.config.backprop_through else own.detach()
        heard: list[Tensor | None] = []
        speaking = self.num_sets - (self.candidate is not None)
        for index in range(speaking):
            slots: Any = self.slots[index]
            if slots.count == 0:
                heard.append(None)
                continue
            z = self.dendrites[index](read)
            a = self._activation(z, self.links[index], heard, slots)
            y = add_set(y, a, self.gains[index], slots, self.dims)
            heard.append(slots.spread(a, -1 - self.dims) if self.config.cascade else None)
        if self.watcher is not None:
            return self.watcher(y, read.detach(), heard)
        if self.candidate is None or not torch.is_grad_enabled():
            return y
        return self._probed(y, read.detach(), heard)

    def _based(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the neurons' sums and what they read, which hooks of the user may change."""
        if not self.base_layer._forward_pre_hooks:
            return self.base_layer(input), input
        read = [input]
        note = self.base_layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        with note:  # it is the last of them
            return self.base_layer(input), read[-1]

    def _activation(
        self, z: Tensor, links: Tensor, heard: Sequence[Tensor | None], slots: Slots
    ) -> Tensor:
        return activate(hear(z, links, heard, slots, self.dims), self.config.activation)

    def _window(self, y: Tensor) -> Window:
        axes = position_axes(self.base_layer, y, self.dims)
        sizes = [len(y) * process_count(), *(y.shape[axis] for axis in axes)]
        return Window.drawn(sizes, axes, self.config.scored_rule.samples)

    def _probed(self, y: Tensor, x: Tensor, heard: Sequence[Tensor | None]) -> Tensor:
        """Return y, whose error will train the candidates: they listen, and do not speak."""
        if self.normalized and y.numel() == self.channels and process_count() == 1:
            return y  # one sample has no correlation, and a BatchNorm refuses it
        window, slots = self._window(y), self.slots[-1]
        quiet = [None if a is None else window.take(a.detach()) for a in heard]
        activations = [
            self._activation(window.run(branch, x), links, quiet, slots)  # type: ignore[arg-type]
            for branch, links in self.pool
        ]
        pairwise = not isinstance(self.config.form, Shared)
        probe: Any = CorrelationProbe.apply
        how = (-1 - self.dims, pairwise, self.loss_scale, window)
        y = y.clone() if isinstance(self.config.form, Tied) else y  # its candidates need y as it is
        probed: Tensor = probe(y, self.candidate, *how, *activations)
        return probed

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of this layer."""
        c = self.config
        return f"sets={self.num_sets}, form={c.form}, rule={c.rule}, activation={c.activation}"


def dendrite_layers(model: nn.Module) -> dict[str, DendriteLayer]:
    """Return the layers of ``model`` that have dendrites, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, DendriteLayer)}


def neuron_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are no dendrite's, by the name they have without dendrites."""
    layers = dendrite_layers(model)
    added = {id(p) for m in layers.values() for p in m.parameters()}
    added -= {id(p) for m in layers.values() for p in m.base_layer.parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".base_layer.")  # a network may use this name itself
        if id(parameter) not in added:
            found[f"{owner}.{own}" if owner in layers else name] = parameter
    return found
