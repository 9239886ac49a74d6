"""What channels are worth by how well the others stand in for them: Gram matrices as prices.

For every layer that reads a group of channels: the covariance G of what it reads in the original,
and H, the sum of squared weights between two channels it reads. With a part of the channels left,
the least error of its sums is tr(H R), R the covariance that the channels left do not explain, over
tr(H G). The curve of a group is the sum over its readers, with channels taken greedily.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.modules import channel_axis
from pbcompress.costs.closed_form import CostModel, parameter_costs
from pbcompress.structure.channel_groups import ChannelGroup, Grouping

__all__ = ["Curve", "curves_of", "widths_of"]

ROWS = 4096
DAMPING = 1e-6


@dataclass(frozen=True)
class Curve:
    """The price of a group.

    Attributes:
        order: Its units, the one first that explains most.
        errors: Relative error of its readers with the first 0, 1, ... of them left.
    """

    order: list[int]
    errors: list[float]


@dataclass
class _Reader:
    """One layer that reads a group."""

    units: Tensor  # shape (units, channels of a unit)
    cost: Tensor  # H
    rest: Tensor  # R
    full: float = 0.0

    def __post_init__(self) -> None:
        self.full = max(float((self.cost * self.rest).sum()), 1e-12)

    def gain(self, unit: int) -> float:
        """Return how much of the error goes with a unit."""
        return float(torch.trace(self._explained(unit) @ self.cost)) / self.full

    def take(self, unit: int) -> None:
        """Leave a unit in."""
        self.rest = self.rest - self._explained(unit)

    def _explained(self, unit: int) -> Tensor:
        columns = self.rest[:, self.units[unit]]
        own = columns[self.units[unit]]
        damped = own + torch.eye(len(own)) * (DAMPING * own.diagonal().mean() + 1e-12)
        return columns @ torch.linalg.solve(damped, columns.T)


def curves_of(model: nn.Module, grouping: Grouping, batches: Sequence[Any]) -> dict[str, Curve]:
    """Return the curve of every group that plain layers read.

    Args:
        model: The original, in eval mode.
        grouping: Its groups.
        batches: Inputs with targets.
    """
    readers = {
        m.layer
        for group in grouping.groups
        for m in group.members
        if m.dim == "in" and isinstance(model.get_submodule(m.layer), nn.Linear | _CONV)
    }
    covariances = _covariances(model, readers, batches)
    return {g.name: _curve(model, g, covariances) for g in grouping.groups}


_CONV = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _covariances(
    model: nn.Module, readers: set[str], batches: Sequence[Any]
) -> Mapping[str, Tensor]:
    rows: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> Any:
        def read(layer: nn.Module, args: Any) -> None:
            values = args[0].movedim(channel_axis(layer), -1).flatten(0, -2)
            drawn = torch.randperm(len(values))[: max(1, ROWS // len(batches))]
            rows[name].append(values[drawn].double())

        return read

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in readers]
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(values).T.cov() for name, values in rows.items()}


def _curve(model: nn.Module, group: ChannelGroup, covariances: Mapping[str, Tensor]) -> Curve:
    readers = []
    for member in group.members:
        if member.dim != "in" or member.layer not in covariances:
            continue
        layer: Any = model.get_submodule(member.layer)
        weight = layer.weight.detach().double().flatten(2) if layer.weight.dim() > 2 else None
        weight = layer.weight.detach().double()[..., None] if weight is None else weight
        parts = weight.chunk(getattr(layer, "groups", 1))
        cost = torch.block_diag(*(torch.einsum("oit,ojt->ij", part, part) for part in parts))
        mask = torch.block_diag(*(torch.ones(part.shape[1], part.shape[1]) for part in parts))
        own = member.positions.flatten()
        cost, covariance = (t[own][:, own] for t in (cost, covariances[member.layer] * mask))
        units = torch.arange(len(own)).reshape(member.positions.shape)
        readers.append(_Reader(units, cost.double(), covariance.double()))
    order: list[int] = []
    errors = [float(len(readers))]
    while len(order) < group.width:
        left = [unit for unit in range(group.width) if unit not in order]
        gains = [sum(reader.gain(unit) for reader in readers) for unit in left]
        best = max(range(len(left)), key=gains.__getitem__)
        for reader in readers:
            reader.take(left[best])
        order.append(left[best])
        errors.append(max(errors[-1] - gains[best], 0.0))
    return Curve(order, errors)


def widths_of(
    model: nn.Module, grouping: Grouping, curves: Mapping[str, Curve], bound: int
) -> list[int]:
    """Return widths within a bound on parameters, by the least error for each removed one.

    One unit goes at a time, where its error for each parameter that goes with it is least; groups
    that nothing priced keep their width.
    """
    groups = grouping.groups
    costs = CostModel(groups, list(parameter_costs(model, grouping).values()))
    widths = [group.width for group in groups]
    total = costs.total(widths)
    while total > bound:
        prices = {}
        for index, group in enumerate(groups):
            errors = curves[group.name].errors
            if widths[index] > 1 and errors[0]:
                saved = -costs.change(index, widths[index] - 1, widths)
                lost = errors[widths[index] - 1] - errors[widths[index]]
                prices[index] = (lost + 1e-9) / max(saved, 1)
        index = min(prices, key=prices.__getitem__)
        widths[index] -= 1
        total = costs.total(widths)
    return widths
