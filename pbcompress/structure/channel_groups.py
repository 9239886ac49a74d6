"""Which channels must go together: the groups of a network that may be narrowed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from pbcompress.core.deadline import Deadline
from pbcompress.core.inputs import Call
from pbcompress.core.modules import shared_parameter_names
from pbcompress.structure.dimensions import is_plain, named_dimension, weight_name
from pbcompress.structure.label_families import Families, settle
from pbcompress.structure.label_pass import trace
from pbcompress.structure.layer_geometry import LayerGeometry, has_own_groups
from pbcompress.structure.tracer import Trace

__all__ = [
    "Axis",
    "ChannelGroup",
    "Grouping",
    "Member",
    "Work",
    "find_groups",
    "layer_axes",
    "output_axes",
    "reasons",
]

_PRODUCERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension that a group narrows.

    Attributes:
        layer: Dotted name of a module.
        dim: "out" or "in" of a plain layer, else "NAME:AXIS" of a parameter or buffer, or "@NAME"
            of an integer attribute that counts the units.
        positions: Indices along the dimension that each unit holds, shape (units, indices).
    """

    layer: str
    dim: str
    positions: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of several layers that keep or lose the same units.

    Attributes:
        name: The first layer that produces these channels.
        width: Units that can go one by one (a unit is a channel, one channel of every group of a
            grouped convolution, or an attention head).
        members: Every dimension that the units reach.
        kind: What tells groups of the same structure: equal in isomorphic groups.
        pinned: Units that it must have; None where that is free.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    kind: str = ""
    pinned: int | None = None

    @property
    def channels_per_unit(self) -> int:
        """Channels of the first layer that one unit holds."""
        return self.members[0].positions.shape[1]


@dataclass(frozen=True)
class Axis:
    """A dimension's size as a function of widths: its size, less what every group's units hold.

    Attributes:
        size: Size of the original.
        groups: For each group that reaches it, by name, the positions of one unit.
    """

    size: int
    groups: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one operation: a coefficient times the sizes of some dimensions."""

    module: str
    coefficient: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Grouping:
    """What a network can lose and what that costs.

    Attributes:
        groups: All groups that may be narrowed.
        left_alone: The producing layers that may not, with the reason.
        shapes: The dimensions of every parameter that takes part, by name.
        works: Counted operations.
        units: For each group, the label of each unit in ``trace``.
        trace: The pass that this was read from.
    """

    groups: tuple[ChannelGroup, ...]
    left_alone: Mapping[str, str]
    shapes: Mapping[str, tuple[Axis, ...]]
    works: tuple[Work, ...]
    units: Mapping[str, Tensor]
    trace: Trace

    def without(self, reasons: Mapping[str, str]) -> "Grouping":
        """Return the grouping in which the named groups are left alone."""
        groups = tuple(g for g in self.groups if g.name not in reasons)
        return replace(self, groups=groups, left_alone={**self.left_alone, **reasons})


def find_groups(
    network: nn.Module,
    call: Call,
    *,
    attention: Literal["heads", "dimensions"] = "heads",
    deadline: Deadline | None = None,
) -> Grouping:
    """Trace one forward pass and return the coupled channel groups.

    Args:
        network: A copy in eval mode that the trace may use; it is left as it was.
        call: ``(args, kwargs)`` of one forward pass, on the network's device.
        attention: What goes where a dimension is heads times channels.
        deadline: Bound on the time of the pass.

    Returns:
        The groups in the order of the layers, and what is left alone and why.

    Raises:
        CompressionError: The forward pass fails.
    """
    traced = trace(network, call, deadline)
    families = settle(traced, attention)
    return _Reader(network, traced, families).grouping()


class _Reader:
    """Turns families of labels into groups of named dimensions."""

    def __init__(self, network: nn.Module, traced: Trace, families: Families) -> None:
        self.network, self.traced, self.families = network, traced, families
        self.modules = dict(network.named_modules(remove_duplicate=False))
        self.parameters = dict(network.named_parameters())
        tensors = [*self.parameters, *(name for name, _ in network.named_buffers())]
        self.order = {name: i for i, name in enumerate(tensors)}
        self.weights = {id(p): name for name, p in self.parameters.items()}
        aliases = shared_parameter_names(network)
        self.shared = {*aliases, *aliases.values()}
        self.names: dict[int, str] = {}
        self.axes: dict[int, Axis] = {}  # by the ``id`` of the labels

    def grouping(self) -> Grouping:
        reached: dict[int, dict[tuple[str, str], Tensor]] = defaultdict(dict)
        for name in sorted(self.traced.tensors, key=self.order.__getitem__):
            module = self.modules[name.rpartition(".")[0]]
            for dim, labels in enumerate(self.traced.tensors[name]):
                found = self.families.positions(labels)
                if found:
                    layer, place, spread = named_dimension(module, name, dim, self.shared)
                for family, positions in found:
                    reached[family].setdefault((layer, place), spread(positions))
        for attribute, labels in self.traced.bindings.items():
            if attribute in self.traced.stated:
                continue  # set from the weights
            suffix = "" if attribute.index is None else f"[{attribute.index}]"
            for family, positions in self.families.positions(labels):
                reached[family][attribute.module, f"@{attribute.name}{suffix}"] = positions
        groups = []
        small: dict[str, str] = {}
        narrowed: set[str] = set()
        for family, members in reached.items():
            group = self._group(members)
            if group.width < 2:
                produced = [key for key in members if self._produces(*key)]
                for layer in [group.name, *(layer for layer, _ in produced)]:
                    small[layer] = _together(group.channels_per_unit)
                continue
            narrowed.update(layer for layer, dim in members if self._produces(layer, dim))
            if group.name in self.names.values():  # another part of the same layer
                first = int(group.members[0].positions[0, 0])
                group = replace(group, name=f"{group.name}[{first}]")
            self.names[family] = group.name
            groups.append(group)
        return Grouping(
            groups=tuple(groups),
            left_alone={
                **self._left_alone(),
                **{layer: why for layer, why in small.items() if layer not in narrowed},
            },
            shapes=self._shapes(),
            works=tuple(
                Work(w.module, w.coefficient, tuple(a for v in w.dims for a in self._factors(v)))
                for w in self.traced.works
            ),
            units={name: self.families.labels[f] for f, name in self.names.items()},
            trace=self.traced,
        )

    def _shapes(self) -> dict[str, tuple[Axis, ...]]:
        shapes = {
            name: tuple(self._axis(labels) for labels in axes)
            for name, axes in self.traced.tensors.items()
            if name in self.parameters
        }
        for name in self.parameters.keys() - shapes.keys():  # a bias that the code does not use
            layer, _, own = name.rpartition(".")
            weight = shapes.get(f"{layer}.weight".lstrip("."))
            if weight and own == "bias" and is_plain(self.modules[layer]):
                shapes[name] = weight[:1]
        return shapes

    def _factors(self, labels: Tensor) -> list[Axis]:
        """Return axes whose sizes multiply to a dimension's: two where pairs fill a grid."""
        parts = self.families.parts[id(labels)]
        if len(parts) == 2 and all((self.families.of[part] >= 0).all() for part in parts):
            outer, inner = parts
            rows = len(outer.unique_consecutive())
            grid, other = outer.view(rows, -1), inner.view(rows, -1)
            if (grid == grid[:, :1]).all() and (other == other[:1]).all():
                return [self._axis_of([grid[:, 0]]), self._axis_of([other[0]])]
        return [self._axis(labels)]

    def _axis(self, labels: Tensor) -> Axis:
        axis = self.axes.get(id(labels))
        if axis is None:
            axis = self.axes[id(labels)] = self._axis_of(self.families.parts[id(labels)])
        return axis

    def _axis_of(self, parts: Sequence[Tensor]) -> Axis:
        found = [one for part in parts for one in self.families.of_part(part)]
        groups = tuple((self.names[f], p.shape[1]) for f, p in found if f in self.names)
        return Axis(len(parts[0]), groups)

    def _group(self, members: Mapping[tuple[str, str], Tensor]) -> ChannelGroup:
        """Make a group, the first layer that produces its channels first."""
        keys = sorted(members, key=lambda key: not self._produces(*key))
        modules = [type(self.modules[layer]).__name__ for layer, _ in keys]
        name, dim = keys[0]
        return ChannelGroup(
            name=name if dim == "out" else f"{name}.{dim}".lstrip("."),
            width=len(members[keys[0]]),
            members=tuple(Member(*key, members[key]) for key in keys),
            kind=" ".join(sorted(f"{m}:{k[1]}" for m, k in zip(modules, keys, strict=True))),
        )

    def _produces(self, layer: str, dim: str) -> bool:
        return dim in ("out", "weight:0") and isinstance(self.modules[layer], _PRODUCERS)

    def _left_alone(self) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for name, module in self.network.named_modules():
            if not isinstance(module, _PRODUCERS):
                continue
            key = weight_name(module, name, self.weights, self.traced.tensors)
            if key not in self.traced.tensors:
                reasons[name] = "the forward pass does not reach it"
                continue
            labels = self.traced.tensors[key][_out_axis(module)]
            if not any(part.any() for part in self.families.parts[id(labels)]):
                reason = self.traced.coupling.reason(labels)
                reasons[name] = reason or "it has one channel, which stays"
        return reasons


def _together(channels: int) -> str:
    if channels == 1:
        return "it has one channel, which stays"
    return (
        f"its {channels} channels can only go all together (one head, one per group, or parts that "
        "are mixed), so they stay"
    )


def _out_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight that its output channels go along."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return 0 if has_own_groups(layer) else 1
    return int(isinstance(layer, nn.Embedding | nn.EmbeddingBag))


def output_axes(model: nn.Module, grouping: Grouping) -> dict[str, Axis]:
    """Return the output dimension of every layer that produces channels, by its name."""
    names = {id(p): name for name, p in model.named_parameters()}
    axes: dict[str, Axis] = {}
    for layer, module in model.named_modules():
        if not isinstance(module, _PRODUCERS):
            continue
        weight = module._parameters.get("weight")
        own = [names[id(weight)]] if weight is not None else grouping.shapes
        keys = [
            k
            for k in own
            if k in grouping.shapes and (weight is not None or k.startswith(f"{layer}."))
        ]
        shape = max((grouping.shapes[k] for k in keys), key=len, default=None)
        if shape is None:
            sizes = (
                getattr(module, n, None) for n in ("out_channels", "out_features", "embedding_dim")
            )
            axes[layer] = Axis(next(size for size in sizes if size is not None))
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            axes[layer] = layer_axes(module, shape)[0]
        else:
            axes[layer] = shape[_out_axis(module)]
    return axes


def reasons(model: nn.Module, grouping: Grouping) -> dict[str, str]:
    """Return why layers keep their width, those included whose channels go with another's."""
    free = {group.name for group in grouping.groups}
    found = dict(grouping.left_alone)
    for layer, axis in output_axes(model, grouping).items():
        names = [name for name, _ in axis.groups]
        fixed = next((name for name in names if name in grouping.left_alone), None)
        if layer not in found and fixed is not None and not free.intersection(names):
            why = grouping.left_alone[fixed]
            found[layer] = f"its channels go with those of {fixed!r}: {why}"
    return found


def layer_axes(layer: nn.Module, weight: tuple[Axis, ...] | None) -> tuple[Axis, Axis]:
    """Return the (out, in) dimensions of a Linear or convolution from those of its weight."""
    geometry = LayerGeometry.of(layer)
    if weight is None:
        return Axis(geometry.out_width), Axis(geometry.in_width)
    out, in_ = weight[:2]
    groups = geometry.groups
    if groups == 0:
        return out, out
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # its weight has the inputs first
        has_own = geometry.has_group_of_each_input
        wide = _times(out, geometry.out_width // groups) if has_own else _times(in_, groups)
        return wide, out
    if geometry.has_group_of_each_input:
        return out, _times(out, 1, geometry.out_width // groups)
    return out, _times(in_, groups)


def _times(axis: Axis, factor: int, parts: int = 1) -> Axis:
    """Return an axis with so many times as many positions, over so many parts."""
    units = tuple((name, n * factor // parts) for name, n in axis.groups)
    return Axis(axis.size * factor // parts, units)
