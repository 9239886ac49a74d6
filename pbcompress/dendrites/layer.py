"""The layer that contains another one and its dendrites."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig, Shared, Tied
from pbcompress.dendrites.candidate_pool import Candidate, CandidatePool
from pbcompress.dendrites.correlation import score_leaf
from pbcompress.dendrites.forms import make_branch, node_count, spatial_dims
from pbcompress.dendrites.linear_maps import is_plain_map, merged_map, with_map
from pbcompress.dendrites.nodes import BatchNorm, Slots, narrowed, own_weight_of
from pbcompress.dendrites.positions import position_axes
from pbcompress.dendrites.signals import Annealing, activate, add_links, add_set
from pbcompress.errors import CompressionError

__all__ = [
    "DendriteLayer",
    "Watcher",
    "candidate_pools",
    "dendrite_layers",
    "neuron_parameters",
    "set_count",
]

MERGED_ROWS = 64  # fewer samples and positions cost less than the sum of the weights

Seed = tuple[int | str, ...]
Watcher = Callable[[Tensor, Tensor, list[Tensor | None]], Tensor]


class DendriteLayer(nn.Module):
    """A layer with dendrites: further nodes that see its input and add to its output.

    For output channel c, dendrites d = 1..D and activation function f::

        z_d = D_d(x) + sum_{e<d} V[d,e,c] * a_e
        a_d = f(z_d)
        y   = base(x) + sum_d U[d,c] * a_d

    A layer that is called several times in one forward pass has the mean of its scores over the
    calls; weights that it shares with other layers stay shared, and its dendrites are its own.

    Where f is linear and every dendrite's norm is at rest, all of it is one map of the input. In
    training on many rows it runs as such: a step costs what the plain layer's does, and the sum of
    the weights.

    A new set has U = 0, so it never changes the function. With form "shared" the nodes are fewer
    than the channels, and U[d] is a dense map from nodes to channels. While a dendrite phase lasts,
    the newest set is a candidate: it trains beside its rivals in the pool, and is not in the sum.

    Args:
        base_layer: A Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d; kept as it is.
        config: Form, activation and the two switches.
        normalized: Whether each dendrite has its own BatchNorm.

    Attributes:
        base_layer: The original layer.
        dendrites: The input maps D_d.
        gains: U: entry d has shape (nodes,), or (nodes, channels) for shared nodes.
        links: V: entry d has shape (d, nodes), the weights from the earlier dendrites.
        annealing: Where the activation becomes linear: how far that of each set is.
        slots: Which channels (shared nodes: which nodes) each set has.
        frozen_sets: This many of the first sets are fixed: no gradient, BatchNorm in eval mode.
        pool: While a dendrite phase lasts, what trains the newest set; else None.
        watcher: While inputs and errors are observed: gets the output, what dendrites read and the
            activations of the sets in the sum, and returns the output.

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

    pool: CandidatePool | None
    watcher: Watcher | None = None

    def __init__(self, base_layer: nn.Module, config: DendriteConfig, *, normalized: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dendrites = nn.ModuleList()
        self.gains = nn.ParameterList()
        self.links = nn.ParameterList()
        self.slots = nn.ModuleList()
        self.annealing = nn.ModuleList()
        self.register_module("pool", None)
        self.config = config
        self.normalized = normalized
        self.frozen_sets = 0
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
        adding = [index for index, gain in enumerate(self.gains) if bool(gain.any())]
        return max(adding, default=-1) + 1

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight.detach()

    def add_set(self, seed: Seed) -> None:
        """Add one set with U = 0 and V = 0; ``seed`` names the random stream of its weights."""
        candidate = self._candidate(seed, earlier=self.num_sets)
        self.dendrites.append(candidate.branch)
        self.links.append(candidate.links)
        self.gains.append(nn.Parameter(self._weight.new_zeros(self._gain_shape)))
        self.slots.append(Slots(self.nodes).to(self._weight.device).train(self.training))
        if self.config.anneals:
            self.annealing.append(Annealing().to(self._weight))

    def _candidate(self, seed: Seed, earlier: int) -> Candidate:
        branch = make_branch(self.base_layer, self.config, normalized=self.normalized, seed=seed)
        links = self._weight.new_zeros(earlier if self.config.cascade else 0, self.nodes)
        return Candidate(branch.train(self.training), nn.Parameter(links))

    @property
    def _gain_shape(self) -> tuple[int, ...]:
        """Shape of U of a whole set."""
        is_shared = isinstance(self.config.form, Shared)
        return (self.nodes, self.channels) if is_shared else (self.nodes,)

    def remove_set(self) -> None:
        """Remove the newest set."""
        self.end_candidacy()
        del self.dendrites[-1], self.slots[-1], self.annealing[-1:]
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
        """Narrow whole sets to the nodes that `kept_nodes` returned."""
        for index, kept in enumerate(nodes):
            if kept is not None:
                self.keep_nodes(index, torch.tensor(kept, dtype=torch.long))

    @property
    def is_linear(self) -> bool:
        """Whether no set has a nonlinearity, so that all can be absorbed."""
        steps: Any = self.annealing
        return self.config.activation == "linear" or (
            self.config.anneals and all(float(step.linearity) == 1 for step in steps)
        )

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the base layer with linear sets folded in; norms at rest."""
        sets = zip(self.dendrites, self.slots, self.gains, self.links, strict=True)
        total = merged_map(self.base_layer, sets)  # type: ignore[arg-type]
        return own_weight_of(self.base_layer, total.weight), total.bias

    def set_parameters(self, index: int) -> list[nn.Parameter]:
        """Return the input weights and V of one set (U apart)."""
        return [*self.dendrites[index].parameters(), self.links[index]]

    @property
    def candidates(self) -> list[Candidate]:
        """The newest set and, while a dendrite phase lasts, its rivals."""
        newest = Candidate(self.dendrites[-1], self.links[-1])
        return [newest, *(self.pool.rivals if self.pool is not None else ())]

    def begin_candidacy(self, rivals: Sequence[Seed] = ()) -> None:
        """Take the newest set out of the sum, and train it by correlation beside its rivals.

        Args:
            rivals: For each of them, what names the random stream of its weights.
        """
        leaf = score_leaf(self._weight, 1 + len(rivals), *self._gain_shape)
        self.pool = CandidatePool(
            [self._candidate(seed, earlier=self.num_sets - 1) for seed in rivals],
            self.config,
            leaf,
            dims=self.dims,
            normalized=self.normalized,
        ).train(self.training)

    def end_candidacy(self) -> None:
        """Put the newest set into the sum, and forget its rivals and the scores."""
        self.pool = None

    def freeze(self, num_sets: int) -> None:
        """Fix the first ``num_sets`` sets and let the others train."""
        self.frozen_sets = num_sets
        for index in range(self.num_sets):
            for parameter in self.set_parameters(index):  # an empty one would wait for ever
                parameter.requires_grad_(index >= num_sets and parameter.numel() > 0)
        for parameter in () if self.pool is None else self.pool.parameters():
            parameter.requires_grad_(self.num_sets > num_sets and parameter.numel() > 0)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DendriteLayer":
        """Set the mode; a frozen dendrite's BatchNorm stays in eval mode."""
        super().train(mode)
        for dendrite in list(self.dendrites)[: self.frozen_sets]:
            dendrite.eval()
        return self

    def __getattr__(self, name: str) -> Any:
        """Return what other code reads of the base layer: a tensor, a size, or a note on it.

        Whatever the base layer itself holds is served; what its class holds, as methods, is not.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            base: Any = super().__getattr__("base_layer")
            if any(name in held for held in (vars(base), base._parameters, base._buffers)):
                return getattr(base, name)
            raise

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Tensor:
        """Map the base layer's input to its output plus the dendrites' signal."""
        if others or named:
            raise CompressionError(
                f"A {type(self.base_layer).__name__} with dendrites was called with more than its "
                "input. Give output_padding to the layer instead of output_size to its call."
            )
        if self._runs_merged(input):
            return with_map(self.base_layer, input, *self.merged())
        y, input = self._based(input)
        own, read = y, input if self.config.backprop_through else input.detach()
        if isinstance(self.config.form, Tied):
            read = own if self.config.backprop_through else own.detach()
        earlier: list[Tensor | None] = []
        for index in range(self.num_sets - (self.pool is not None)):
            slots: Any = self.slots[index]
            if slots.count == 0:
                earlier.append(None)
                continue
            a = self._activations(index, read, earlier)
            y = add_set(y, a, self.gains[index], slots, self.dims)
            earlier.append(slots.spread(a, -1 - self.dims) if self.config.cascade else None)
        if self.watcher is not None:
            return self.watcher(y, read.detach(), earlier)
        if self.pool is None or not torch.is_grad_enabled():
            return y
        axes = position_axes(self.base_layer, y, self.dims)
        return self.pool.probe(y, read.detach(), earlier, self.candidates, axes)

    def _runs_merged(self, input: Tensor) -> bool:
        """Whether the layer and its sets run as one map: in training, where rows repay the sum."""
        base: Any = self.base_layer
        if self.config.activation != "linear" or not torch.is_grad_enabled():
            return False
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced or input.numel() < MERGED_ROWS * base.weight.shape[1]:
            return False
        is_watched = self.pool is not None or self.watcher is not None
        if not self.config.backprop_through or is_watched or not is_plain_map(base):
            return False
        return not any(
            m._forward_hooks or m._forward_pre_hooks or (isinstance(m, BatchNorm) and m.training)
            for m in self.dendrites.modules()
        )

    def _based(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the neurons' sums and what they read, which hooks of the user may change."""
        if not self.base_layer._forward_pre_hooks:
            return self.base_layer(input), input
        read = [input]
        note = self.base_layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        with note:  # it is the last of them
            return self.base_layer(input), read[-1]

    def _activations(self, index: int, read: Tensor, earlier: Sequence[Tensor | None]) -> Tensor:
        """Return the activations of a set's nodes."""
        slots: Any = self.slots[index]
        z = self.dendrites[index](read)
        own = [None if a is None else slots.take(a, -1 - self.dims) for a in earlier]
        z = add_links(z, self.links[index], own, self.dims)
        if self.config.anneals:
            return self.annealing[index](z, self.config.activation)  # type: ignore[no-any-return]
        return activate(z, self.config.activation)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of this layer."""
        c = self.config
        return f"sets={self.num_sets}, form={c.form}, rule={c.rule}, activation={c.activation}"


def dendrite_layers(model: nn.Module) -> dict[str, DendriteLayer]:
    """Return the layers of ``model`` that have dendrites, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, DendriteLayer)}


def candidate_pools(model: nn.Module) -> dict[str, CandidatePool]:
    """Return the pools of the layers whose newest set is a candidate, by name of the layer."""
    pools = {name: layer.pool for name, layer in dendrite_layers(model).items()}
    return {name: pool for name, pool in pools.items() if pool is not None}


def set_count(model: nn.Module) -> int:
    """Return the dendrite sets of a network, a candidate included: those of its largest layer."""
    return max((layer.num_sets for layer in dendrite_layers(model).values()), default=0)


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
