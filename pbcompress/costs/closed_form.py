"""What a network costs, as a closed form in the widths of its channel groups."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from torch import nn

from pbcompress.costs.measured import LayerCost, ModelCost
from pbcompress.structure.channel_groups import Axis, ChannelGroup, Grouping, output_axes

__all__ = ["CostModel", "Widths", "model_cost", "parameter_costs", "work_costs"]

Widths = list[int]  # units of every group
Term = tuple[int, tuple[Axis, ...]]  # a coefficient, and the dimensions whose sizes multiply it
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
        self.base = 0
        merged: Counter[tuple[Axis, ...]] = Counter()
        for coefficient, axes in terms:
            moving = [a for a in axes if any(name in self._place for name, _ in a.groups)]
            fixed = math.prod(a.size for a in axes if a not in moving)
            if moving:
                merged[tuple(sorted(moving, key=repr))] += coefficient * fixed
            else:
                self.base += coefficient * fixed
        self._terms = list(merged.items())

    @cached_property
    def _touched(self) -> list[list[int]]:
        touched: list[list[int]] = [[] for _ in self.groups]
        for number, (axes, _) in enumerate(self._terms):
            for index in {self._place[n] for a in axes for n, _ in a.groups if n in self._place}:
                touched[index].append(number)
        return touched

    @cached_property
    def _grown(self) -> list[list[str]]:
        grown: dict[int, list[str]] = defaultdict(list)
        for layer in self.reserve:
            names = {n for axis in self.layers[layer] for n, _ in axis.groups}
            for index in {self._place[n] for n in names if n in self._place}:
                grown[index].append(layer)
        return [grown[i] for i in range(len(self.groups))]

    def size(self, axis: Axis, widths: Widths) -> int:
        """Return the size of a dimension."""
        size = axis.size
        for name, positions in axis.groups:
            index = self._place.get(name)
            if index is not None:
                size -= (self.groups[index].width - widths[index]) * positions
        return size

    def layer_widths(self, layer: str, widths: Widths) -> tuple[int, int]:
        """Return the (out, in) widths of a layer that has a reserve."""
        out, in_ = self.layers[layer]
        return int(self.size(out, widths)), int(self.size(in_, widths))  # whole channels

    def _term(self, number: int, widths: Widths) -> int:
        axes, coefficient = self._terms[number]
        for axis in axes:
            coefficient *= self.size(axis, widths)
        return coefficient

    def reserved(self, widths: Widths) -> int:
        """Return the part of `total` that waits for dendrites."""
        return sum(r(*self.layer_widths(name, widths)) for name, r in self.reserve.items())

    def total(self, widths: Widths) -> int:
        """Return the cost of the whole network, reserve included."""
        terms = sum(self._term(n, widths) for n in range(len(self._terms)))
        return self.base + terms + self.reserved(widths)

    def change(self, index: int, width: int, widths: Widths) -> int:
        """Return how `total` changes when one group takes another width."""
        other = [*widths[:index], width, *widths[index + 1 :]]
        change = sum(self._term(n, other) - self._term(n, widths) for n in self._touched[index])
        for layer in self._grown[index]:
            reserve = self.reserve[layer]
            change += reserve(*self.layer_widths(layer, other))
            change -= reserve(*self.layer_widths(layer, widths))
        return change


def parameter_costs(model: nn.Module, grouping: Grouping) -> dict[str, Term]:
    """Return the elements of every parameter, shared ones once, by name."""
    return {
        name: (1, grouping.shapes.get(name, tuple(Axis(n) for n in parameter.shape)))
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
    params: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    for name, (coefficient, axes) in parameter_costs(model, grouping).items():
        layer = name.rpartition(".")[0]
        params[layer] += coefficient * math.prod(numbers.size(a, widths) for a in axes)
    for work in grouping.works:
        flops[work.module] += work.coefficient * math.prod(
            numbers.size(a, widths) for a in work.axes
        )
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
        return numbers.size(axes[1], widths) * module.groups
    return numbers.size(axes[0], widths)
