"""Costs of the exported network as closed forms, learned from networks that were measured."""

import statistics
from collections import defaultdict

from torch import nn

from pbcompress.costs.closed_form import CostModel, Widths, parameter_costs
from pbcompress.costs.latency_model import (
    NANOSECONDS,
    LatencyModel,
    LayerFit,
    LayerKind,
    Measured,
    Point,
    fit_layer,
    kind_of,
)
from pbcompress.costs.operator_table import Machine
from pbcompress.costs.operators import operators_of
from pbcompress.structure.channel_groups import Grouping

__all__ = ["Calibration", "layer_kinds"]

BYTES = 4  # of a float32
OWNED = 0.5  # of the time must be told by layer, or it is split as the table says


def layer_kinds(model: nn.Module, grouping: Grouping) -> dict[str, LayerKind]:
    """Return the kind of every layer that does counted work."""
    return {work.module: kind_of(model.get_submodule(work.module)) for work in grouping.works}


class Calibration:
    """What was measured so far of networks of different widths, the original first.

    Args:
        model: The original.
        grouping: Its groups; later ones may have lost some.
        machine: The table of operators.
        original: The original, measured.
    """

    def __init__(
        self, model: nn.Module, grouping: Grouping, machine: Machine, original: Measured
    ) -> None:
        self.model, self.machine = model, machine
        self.points: dict[str, list[Point]] = defaultdict(list)
        self.others: list[float] = []
        self.add(grouping, [group.width for group in grouping.groups], original)

    def add(self, grouping: Grouping, widths: Widths, measured: Measured) -> None:
        """Learn from one more network."""
        self.last = widths, measured
        table = self._model(grouping, {})
        told = {name: table.told(name, widths) for name in table.operators}
        by_layer, other = dict(measured.by_layer), measured.other
        other += sum(time for name, time in by_layer.items() if name not in told)
        if sum(by_layer.values()) < OWNED * measured.milliseconds:
            whole = sum(told.values()) or 1.0
            by_layer = {n: measured.milliseconds * own / whole for n, own in told.items()}
            other = 0.0
        for name, own in told.items():
            self.points[name].append((own, by_layer.get(name, 0.0)))
        self.others.append(other)

    def latency(self, grouping: Grouping) -> LatencyModel:
        """Return the latency in nanoseconds; exact for the network that was measured last."""
        fits = {name: fit_layer(points) for name, points in self.points.items()}
        widths, measured = self.last
        constant = statistics.median(self.others)
        rough = self._model(grouping, fits, constant)
        if len(widths) != len(grouping.groups):  # a proof has excluded groups meanwhile
            return rough
        scale = measured.milliseconds * NANOSECONDS / max(rough.total(widths), 1)
        return self._model(grouping, fits, constant, scale)

    def _model(
        self,
        grouping: Grouping,
        fits: dict[str, LayerFit],
        constant: float = 0.0,
        scale: float = 1.0,
    ) -> LatencyModel:
        operators = operators_of(self.model, grouping)
        return LatencyModel(grouping.groups, operators, fits, self.machine, constant, scale)

    def file_bytes(self, grouping: Grouping) -> CostModel:
        """Return the bytes of the file; exact for the network that was measured last."""
        terms = [(BYTES * n, axes) for n, axes in parameter_costs(self.model, grouping).values()]
        widths, measured = self.last
        if len(widths) != len(grouping.groups):
            return CostModel(grouping.groups, terms)
        rest = measured.file_bytes - CostModel(grouping.groups, terms).total(widths)
        return CostModel(grouping.groups, [*terms, (rest, ())])
