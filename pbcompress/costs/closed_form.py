"""What a network costs, as a closed form in the widths of its channel groups."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property

from torch import nn

from pbcompress.costs.measured import LayerCost, ModelCost
from pbcompress.structure.channel_groups import (
    Axis,
    ChannelGroup,
    Grouping,
    layer_axes,
    output_axes,
)

__all__ = ["CostModel", "Widths", "model_cost", "parameter_costs", "work_costs"]

Widths = list[int]  # units of every group
Term = tuple[int, tuple[Axis, ...]]  # a coefficient, and the dimensions whose sizes multiply it
Form = tuple[int, list[tuple[int, int]]]  # a size: a number, and by group what each unit adds
Moving = tuple[Form, int]  # a size, and what one unit of the group in question adds
Reserve = Callable[[int, int], int]


class CostModel:
    """One cost (parameters, or multiply-adds) as a sum of products of widths.

    Args:
        groups: The channel groups.
        terms: The sum; dimensions that no group reaches count with their size.
        reserve: Further cost of a layer at (out, in) widths: its future dendrites.
        layers: The (out, in) dimensions of every layer that has a reserve.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        terms: Sequence[Term],
        reserve: Mapping[str, Reserve] | None = None,
        layers: Mapping[str, tuple[Axis, Axis]] | None = None,
    ) -> None:
        self.groups = groups
        self.reserve, self.layers = dict(reserve or {}), dict(layers or {})
        self._place = {group.name: i for i, group in enumerate(groups)}
        self._known: dict[Axis, Form] = {}
        self._names: dict[Axis, str] = {}
        self.base = 0
        merged: Counter[tuple[Axis, ...]] = Counter()
        for coefficient, axes in terms:
            moving = []
            for axis in axes:
                if self._form(axis)[1]:
                    moving.append(axis)
                else:
                    coefficient *= axis.size
            if moving:
                merged[tuple(self._sorted(moving))] += coefficient
            else:
                self.base += coefficient
        self._terms = [(number, [*map(self._form, axes)]) for axes, number in merged.items()]
        self._sizes = {axis: form for axis, form in self._known.items() if form[1]}
        places = {axis: place for place, axis in enumerate(self._sizes)}
        self._products = [
            (number, [places[axis] for axis in axes]) for axes, number in merged.items()
        ]

    def _form(self, axis: Axis) -> Form:
        form = self._known.get(axis)
        if form is None:
            parts = [(self._place[name], n) for name, n in axis.groups if name in self._place]
            form = axis.size - sum(self.groups[i].width * n for i, n in parts), parts
            self._known[axis] = form
        return form

    def _sorted(self, axes: list[Axis]) -> list[Axis]:
        """Return axes in one order, so that equal terms are found to be."""
        if len(axes) == 1:
            return axes
        for axis in axes:
            if axis not in self._names:
                self._names[axis] = repr(axis)
        return sorted(axes, key=self._names.__getitem__)

    @cached_property
    def _touched(self) -> list[list[tuple[int, list[Moving]]]]:
        """For every group the terms that it is in; of each size how much a unit of it adds."""
        touched: list[list[tuple[int, list[Moving]]]] = [[] for _ in self.groups]
        for coefficient, forms in self._terms:
            for index, sizes in _by_group(forms):
                touched[index].append((coefficient, sizes))
        return touched

    @cached_property
    def _grown(self) -> list[list[tuple[Reserve, list[Moving]]]]:
        """The same for the (out, in) widths of layers that have a reserve."""
        grown: list[list[tuple[Reserve, list[Moving]]]] = [[] for _ in self.groups]
        for layer, reserve in self.reserve.items():
            for index, sizes in _by_group([*map(self._form, self.layers[layer])]):
                grown[index].append((reserve, sizes))
        return grown

    def size(self, axis: Axis, widths: Widths) -> int:
        """Return the size of a dimension."""
        return _size(self._form(axis), widths)

    def layer_widths(self, layer: str, widths: Widths) -> tuple[int, int]:
        """Return the (out, in) widths of a layer that has a reserve."""
        out, in_ = self.layers[layer]
        return int(self.size(out, widths)), int(self.size(in_, widths))  # whole channels

    def reserved(self, widths: Widths) -> int:
        """Return the part of `total` that waits for dendrites."""
        return sum(r(*self.layer_widths(name, widths)) for name, r in self.reserve.items())

    def total(self, widths: Widths) -> int:
        """Return the cost of the whole network, reserve included."""
        size = [_size(form, widths) for form in self._sizes.values()].__getitem__
        terms = [number * math.prod(map(size, places)) for number, places in self._products]
        return self.base + sum(terms) + self.reserved(widths)

    def change(self, index: int, width: int, widths: Widths) -> int:
        """Return how `total` changes when one group takes another width."""
        change, more = 0, width - widths[index]
        for coefficient, sizes in self._touched[index]:
            before = after = coefficient
            for form, rate in sizes:
                size = _size(form, widths)
                before *= size
                after *= size + rate * more
            change += after - before
        for reserve, sizes in self._grown[index]:
            own = [_size(form, widths) for form, _ in sizes]
            moved = [size + rate * more for size, (_, rate) in zip(own, sizes, strict=True)]
            change += reserve(*moved) - reserve(*own)
        return change


def _by_group(forms: Sequence[Form]) -> Iterator[tuple[int, list[Moving]]]:
    """Yield every group that sizes depend on, with the sizes and what a unit of it adds to each."""
    rates: list[Counter[int]] = [Counter() for _ in forms]
    for (_, parts), own in zip(forms, rates, strict=True):
        for index, positions in parts:
            own[index] += positions
    for index in dict.fromkeys(i for own in rates for i in own):
        yield index, [(form, own[index]) for form, own in zip(forms, rates, strict=True)]


def _size(form: Form, widths: Widths) -> int:
    size, parts = form
    for index, positions in parts:
        size += widths[index] * positions
    return size


def parameter_costs(model: nn.Module, grouping: Grouping) -> dict[str, Term]:
    """Return the elements of every parameter, shared ones once, by name."""
    return {
        name: (1, grouping.shapes.get(name) or tuple(map(Axis, parameter.shape)))
        for name, parameter in model.named_parameters()
    }


def work_costs(grouping: Grouping) -> list[Term]:
    """Return the multiply-adds of every counted operation."""
    return [(work.coefficient, work.axes) for work in grouping.works]


def model_cost(
    model: nn.Module,
    grouping: Grouping,
    widths: Widths,
    input_shapes: Mapping[str, tuple[int, ...]],
) -> ModelCost:
    """Return the cost of ``model`` at other widths, by layer, from the closed form."""
    numbers = CostModel(grouping.groups, [])
    size = cache(lambda axis: numbers.size(axis, widths))
    params: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    for name, (coefficient, axes) in parameter_costs(model, grouping).items():
        params[name.rpartition(".")[0]] += coefficient * math.prod(map(size, axes))
    for work in grouping.works:
        flops[work.module] += work.coefficient * math.prod(map(size, work.axes))
    layers = {}
    outputs: Mapping[str, Axis] | None = None
    for name, module in model.named_modules():
        if params[name] or flops[name]:
            width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
            own = grouping.shapes.get(f"{name}.weight".lstrip("."))
            if width is not None and own is not None:
                width = _out_width(module, own, numbers, widths)
            elif width is not None:  # its weight is computed from other parameters, or it has none
                outputs = output_axes(model, grouping) if outputs is None else outputs
                width = numbers.size(outputs[name], widths) if name in outputs else width
            layers[name] = LayerCost(type(module).__name__, params[name], flops[name], width)
    return ModelCost(
        params=sum(params.values()),
        flops=sum(flops.values()),
        uncounted_ops=dict(sorted(grouping.trace.uncounted.items())),
        input_shapes=input_shapes,
        by_layer=layers,
    )


def _out_width(module: nn.Module, axes: Sequence[Axis], numbers: CostModel, widths: Widths) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return numbers.size(layer_axes(module, tuple(axes))[0], widths)
    return numbers.size(axes[0], widths)
