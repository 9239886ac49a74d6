"""Which units go: one search for widths over the groups of a network, and the cuts it means."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pbcompress.config.whole import CompressConfig
from pbcompress.config.widths import WidthConfig
from pbcompress.core.modules import matches
from pbcompress.costs.alignment import multiples_for
from pbcompress.costs.bounds import Bounds, Cost
from pbcompress.costs.closed_form import CostModel, Widths, parameter_costs, work_costs
from pbcompress.dendrites.forms import growable_layers, set_params
from pbcompress.errors import CompressionError, a_few
from pbcompress.planning.allocation import FILL_GOAL, all_choices, allocate, narrowest
from pbcompress.planning.proportions import SPEED, Preference, count_weights, preference_of
from pbcompress.planning.rounding import allocate_rounded, finer
from pbcompress.planning.same_width import Roles, role_scores
from pbcompress.planning.scarcity import Scarcity
from pbcompress.pruning.cuts import LayerCut
from pbcompress.structure.channel_groups import (
    Axis,
    ChannelGroup,
    Grouping,
    layer_axes,
    output_axes,
)
from pbcompress.structure.dimensions import dimension_size
from pbcompress.structure.layer_geometry import LayerGeometry

__all__ = ["Removed", "Request", "WidthSearch", "cuts_of", "without_kept"]

TRIES = 5  # to come near to several costs at once
ROLE_MULTIPLE = 64  # channels that the width of a role is a multiple of, where it can be
USED = 0.97  # of each of them
PRICE_SLACK = 1.005  # of a price: a target of many decimals should not miss a unit by it
Removed = Mapping[str, Sequence[int]]  # units, by the name of their group


@dataclass(frozen=True)
class Request:
    """What a search must keep to.

    Attributes:
        params: Most parameters, dendrites included.
        flops: Most multiply-adds, or None.
        round_to: What widths are rounded to, measured; None: what the configuration says.
        costs: Further closed forms over the groups, with the most that each may be.
    """

    params: int
    flops: int | None = None
    round_to: int | None = None
    costs: Sequence[tuple[Callable[[Grouping], Cost], int]] = ()


class WidthSearch:
    """One search: the cost models of a network, a grouping and a configuration.

    Attributes:
        params: Parameters, with room for dendrites.
        flops: Multiply-adds of the network without them.
        grow: Layers that room is kept for, with whether each dendrite has its own BatchNorm.
    """

    def __init__(
        self,
        model: nn.Module,
        roles: Roles,
        config: CompressConfig,
        scores: Mapping[str, Tensor],
    ) -> None:
        self.model, self.config = model, config
        self.roles = roles
        self.grouping = grouping = roles.merged
        self._unit_scores = scores
        self.scores = [role_scores(roles, scores, group) for group in grouping.groups]
        self._weights = count_weights(grouping.groups, grouping.shapes)
        dendrites = config.dendrites
        reserve = dendrites.max_sets > 0 and dendrites.share not in ("auto", 0)
        self.grow = growable_layers(model, dendrites) if reserve else {}
        self.flops = CostModel(grouping.groups, work_costs(grouping))
        self._terms = list(parameter_costs(model, grouping).values())
        self.params = self._parameters()

    def _parameters(self) -> CostModel:
        reserve: dict[str, Callable[[int, int], int]] = {}
        layers: dict[str, tuple[Axis, Axis]] = {}
        names = {id(p): n for n, p in self.model.named_parameters()}  # of shared ones, the first
        for name, normed in self.grow.items():
            layer = self.model.get_submodule(name)
            geometry = LayerGeometry.of(layer)
            reserve[name] = partial(
                set_params, geometry, config=self.config.dendrites, normalized=normed
            )
            held = layer._parameters
            weight = held.get("weight", held.get("weight_v"))  # with an old norm
            shape = self.grouping.shapes.get(names.get(id(weight), ""))
            layers[name] = layer_axes(layer, shape)
        return CostModel(self.grouping.groups, self._terms, reserve, layers)

    def solve(self, request: Request) -> Widths | None:
        """Return widths, or None; layers whose dendrites cost too much stop growing."""
        further = [(make(self.grouping), limit) for make, limit in request.costs]
        if request.flops is not None:
            further.insert(0, (self.flops, request.flops))
        costs, limits = [cost for cost, _ in further], [limit for _, limit in further]
        while True:
            bounds = Bounds([self.params, *costs], [request.params, *limits])
            widths = self._allocated(request, bounds)
            share = self.config.dendrites.share
            fits = widths is not None and (
                not self.grow or self.params.reserved(widths) <= float(share) * request.params
            )
            found = widths or self.narrowest(request)
            too_dear = self._too_dear(found)
            if widths is not None and fits and not too_dear:
                return widths
            if not self.grow:
                return None
            reserve = self.params.reserve
            dearest = too_dear or [
                max(self.grow, key=lambda n: reserve[n](*self.params.layer_widths(n, found)))
            ]
            self.grow = {k: v for k, v in self.grow.items() if k not in dearest}
            self.params = self._parameters()

    def _allocated(self, request: Request, bounds: Bounds) -> Widths | None:
        """Return widths that use up all bounds, as far as whole multiples allow it.

        Rounding may give those of equal shares less work than those that should have less.
        """
        speed = SPEED.get(self.config.width.allocation, 0.0)
        speeds = dict.fromkeys((speed, min(speed, 1.0)))
        found = [self._at_speed(own, request, bounds) for own in speeds]

        def rank(widths: Widths) -> tuple[bool, int]:
            return bounds.load(bounds.totals(widths)) < FILL_GOAL, self.flops.total(widths)

        return min((own for own in found if own is not None), key=rank, default=None)

    def _at_speed(self, speed: float, request: Request, bounds: Bounds) -> Widths | None:
        """Return widths that use up all bounds, as far as whole multiples allow it.

        The price of work is a bound too where the target can be used up beside it. Where work has
        a price, nothing is narrower than a block if that will do: it would take as long.
        """
        scarce = bounds.scarce([group.pinned or group.width for group in self.grouping.groups])
        multiples, gives_way = self.multiples(request)
        aims = self._aims(scarce, speed)
        if len(aims.costs) > len(scarce.costs):
            work, limit = aims.costs[-1], aims.limits[-1]
            priced = Bounds([*bounds.costs, work], [*bounds.limits, PRICE_SLACK * limit])
            whole, free = self._whole(multiples), self.config.width
            for own, config in ((priced, whole), (bounds, whole), (priced, free)):
                share, widths = self._best(own, scarce, aims, multiples, gives_way, config)
                if share >= FILL_GOAL:
                    return widths
        best: tuple[float, Widths | None] = (0.0, None)
        while True:
            found = self._best(bounds, scarce, aims, multiples, gives_way, self.config.width)
            best = max(best, found, key=lambda pair: pair[0])
            is_used = best[0] >= USED or len(scarce.costs) == 1
            if best[1] is None or is_used or not gives_way or max(multiples) == 1:
                return best[1]
            multiples = finer(multiples)

    def _aims(self, scarce: Bounds, speed: float) -> Bounds:
        """Return what widths aim at: the bounds, and a price of the work where it is free."""
        if not speed or list(scarce.costs) != [self.params]:
            return scarce
        return Scarcity(self.grouping.groups, self._weights).compromise(scarce, self.flops, speed)

    def _best(
        self,
        bounds: Bounds,
        scarce: Bounds,
        aims: Bounds,
        multiples: Sequence[int],
        gives_way: bool,
        config: WidthConfig,
    ) -> tuple[float, Widths | None]:
        """Return the widths that use most of what is scarce, with the share that they use.

        What rounding left of an aim is asked for again, on top. Of widths that use enough, those
        nearest to all aims are best.
        """
        groups = self.grouping.groups
        best: tuple[tuple[float, float], float, Widths | None] = ((0.0, 0.0), 0.0, None)
        asked = aims
        for _ in range(TRIES):
            preference = self._preference(asked)
            if gives_way:
                widths = allocate_rounded(groups, bounds, preference, multiples, config)
            else:
                widths = allocate(bounds, preference, all_choices(groups, multiples, config))
            if widths is None:
                break
            shares = aims.shares(aims.totals(widths))
            used = min(scarce.shares(scarce.totals(widths)))
            near = min(min(share, 1 / share) for share in shares)
            best = max(best, ((min(used, FILL_GOAL), near), used, widths), key=lambda own: own[0])
            if near >= USED or len(shares) == 1 or config.allocation not in SPEED:
                break
            limits = [own / share for own, share in zip(asked.limits, shares, strict=True)]
            asked = Bounds(asked.costs, limits)
        return best[1:]

    def _whole(self, multiples: Sequence[int]) -> WidthConfig:
        """Return the configuration with a floor of one block."""
        width = self.config.width
        block = min((multiple for multiple in multiples if multiple > 1), default=1)
        return replace(width, min_width=max(width.min_width, block))

    def _preference(self, aims: Bounds) -> Preference:
        """Return how wide groups are beside each other."""
        groups, allocation = self.grouping.groups, self.config.width.allocation
        return preference_of(allocation, groups, self.scores, aims, self._weights)

    def _too_dear(self, widths: Widths) -> list[str]:
        """Return the layers in which a dendrite costs more than ``max_price`` of a neuron."""
        limit = self.config.dendrites.max_price
        return [n for n in self.grow if limit is not None and self._price(n, widths) > limit]

    def _price(self, layer: str, widths: Widths) -> float:
        """Return what a dendrite of a layer costs, in neurons; infinite at the network's outputs.

        A neuron costs its own weights and those that read it, in every layer of its group.
        """
        out, in_ = self.params.layer_widths(layer, widths)
        dendrite = self.params.reserve[layer](out, in_) / out / self.config.dendrites.max_sets
        plain = CostModel(self.grouping.groups, self._terms)
        places = {group.name: i for i, group in enumerate(self.grouping.groups)}
        neurons = [
            plain.change(places[name], widths[places[name]] + 1, widths) / positions
            for name, positions in self.params.layers[layer][0].groups
            if name in places
        ]
        return dendrite / min(neurons) if neurons else math.inf

    def narrowest(self, request: Request) -> Widths:
        """Return the smallest widths that the configuration allows."""
        multiples, gives_way = self.multiples(request)
        return narrowest(self.grouping.groups, multiples, self.config.width, gives_way)

    def multiples(self, request: Request) -> tuple[list[int], bool]:
        """Return the multiple of every group, and whether it gives way to the bounds."""
        width, groups = self.config.width, self.grouping.groups
        if isinstance(width.round_to, int) and width.round_to > 1:
            return [width.round_to] * len(groups), False
        if type(width.same_width) is int:
            return [width.same_width * self.roles.unit_of(group) for group in groups], False
        if request.round_to is not None:
            return [request.round_to] * len(groups), True
        if width.round_to == 1:
            return [1] * len(groups), False
        return list(self._liked), True

    @cached_property
    def _liked(self) -> list[int]:
        """What the hardware likes the channels of every group to be a multiple of."""
        if self.roles.is_shared:
            return list(map(_role_multiple, self.grouping.groups))
        return multiples_for(self.model, self.grouping.groups, self.config.width.hardware)

    def removed(self, widths: Widths) -> Removed:
        """Return the units that go at given widths of all groups: the least important of each."""
        removed = {}
        for group, width in zip(self.roles.whole.groups, widths, strict=True):
            if width < group.width:
                scores = self._unit_scores[group.name]
                order = torch.argsort(scores, descending=True, stable=True).tolist()
                removed[group.name] = order[width:]
        return removed


def _role_multiple(group: ChannelGroup) -> int:
    """Return `ROLE_MULTIPLE`, or the largest power of two of which a small role has eight."""
    eighth = group.width * group.channels_per_unit // 8
    return min(ROLE_MULTIPLE, 1 << max(eighth.bit_length() - 1, 0))


def cuts_of(model: nn.Module, grouping: Grouping, removed: Removed) -> tuple[LayerCut, ...]:
    """Return the cuts that take the named units out."""
    indices: dict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)
    for group in grouping.groups:
        units = removed.get(group.name)
        if units:
            gone = torch.tensor(units)
            lost: dict[int, tuple[int, ...]] = {}  # most members have the positions of another
            for member in group.members:
                if (key := id(member.positions)) not in lost:
                    lost[key] = tuple(sorted({*member.positions[gone].flatten().tolist()}))
                indices[member.layer, member.dim].append(lost[key])
    return tuple(
        LayerCut(
            layer,
            dim,
            parts[0] if len(parts) == 1 else tuple(sorted({i for part in parts for i in part})),
            dimension_size(model, layer, dim) or 0,
        )
        for (layer, dim), parts in indices.items()
    )


def without_kept(model: nn.Module, grouping: Grouping, keep: tuple[str, ...]) -> Grouping:
    """Leave alone the groups that reach a layer that the user keeps."""
    if not keep:
        return grouping
    names = [name for name, _ in model.named_modules()]
    for pattern in keep:
        if not any(matches(name, (pattern,)) for name in names):
            raise CompressionError(
                f"WidthConfig.keep names {pattern!r}; the model has no such layer. Its layers are "
                f"{a_few([name for name in names if name], 12)}."
            )
    outputs = {layer: dict(axis.groups) for layer, axis in output_axes(model, grouping).items()}
    reasons = {}
    for group in grouping.groups:
        kept = [
            m.layer
            for m in group.members
            if matches(m.layer, keep)
            and (group.name in outputs[m.layer] if m.layer in outputs else m.dim != "in")
        ]
        if kept:
            who = "it" if group.name in kept else f"{kept[0]!r}, whose channels go with its own"
            reasons[group.name] = f"WidthConfig.keep names {who}"
    return grouping.without(reasons)
