"""Costs of the exported network as closed forms, learned from networks that were measured."""

import statistics
from collections import defaultdict
from collections.abc import Mapping

from torch import nn

from pbcompress.costs.closed_form import CostModel, Widths, parameter_costs
from pbcompress.costs.latency_model import (
    NANOSECONDS,
    LatencyModel,
    LayerKind,
    Measured,
    Point,
    Rounding,
    features,
    fit_layer,
    kind_of,
    layer_works,
)
from pbcompress.structure.channel_groups import Grouping

__all__ = ["Calibration", "layer_kinds"]

BYTES = 4  # of a float32
OWNED = 0.5  # of the time must be told by layer, or it is split by multiply-adds


def layer_kinds(model: nn.Module, grouping: Grouping) -> dict[str, LayerKind]:
    """Return the kind of every layer that does counted work."""
    return {work.module: kind_of(model.get_submodule(work.module)) for work in grouping.works}


class Calibration:
    """What was measured so far of networks of different widths, the original first.

    Args:
        model: The original.
        grouping: Its groups; later ones may have lost some.
        roundings: What the runtime makes of widths, by kind of layer.
        original: The original, measured.
    """

    def __init__(
        self,
        model: nn.Module,
        grouping: Grouping,
        roundings: Mapping[LayerKind, Rounding],
        original: Measured,
    ) -> None:
        self.model = model
        kinds = layer_kinds(model, grouping)
        self.roundings = {name: roundings.get(kind, Rounding()) for name, kind in kinds.items()}
        self.points: dict[str, list[Point]] = defaultdict(list)
        self.others: list[float] = []
        self.add(grouping, [group.width for group in grouping.groups], original)

    def add(self, grouping: Grouping, widths: Widths, measured: Measured) -> None:
        """Learn from one more network."""
        self.last = widths, measured
        numbers = CostModel(grouping.groups, [])
        found = {
            name: features(layer, numbers, widths, self.roundings[name])
            for name, layer in layer_works(self.model, grouping).items()
        }
        by_layer, other = dict(measured.by_layer), measured.other
        if sum(by_layer.values()) < OWNED * measured.milliseconds:
            work = sum(done for done, _ in found.values()) or 1.0
            by_layer = {n: measured.milliseconds * done / work for n, (done, _) in found.items()}
            other = 0.0
        for name, (done, channels) in found.items():
            self.points[name].append((done, channels, by_layer.get(name, 0.0)))
        self.others.append(other)

    def latency(self, grouping: Grouping) -> LatencyModel:
        """Return the latency in nanoseconds; exact for the network that was measured last."""
        fits = {name: fit_layer(points) for name, points in self.points.items()}
        constant = statistics.median(self.others)
        widths, measured = self.last
        parts = (grouping.groups, layer_works(self.model, grouping), fits, self.roundings)
        rough = LatencyModel(*parts, constant)
        if len(widths) != len(grouping.groups):  # a proof has excluded groups meanwhile
            return rough
        scale = measured.milliseconds * NANOSECONDS / max(rough.total(widths), 1)
        return LatencyModel(*parts, constant, scale)

    def file_bytes(self, grouping: Grouping) -> CostModel:
        """Return the bytes of the file; exact for the network that was measured last."""
        terms = [(BYTES * n, axes) for n, axes in parameter_costs(self.model, grouping).values()]
        widths, measured = self.last
        if len(widths) != len(grouping.groups):
            return CostModel(grouping.groups, terms)
        rest = measured.file_bytes - CostModel(grouping.groups, terms).total(widths)
        return CostModel(grouping.groups, [*terms, (rest, ())])
