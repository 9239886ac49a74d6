"""Plan narrower widths for a parameter target, prove the plan, and apply it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import nn

from pbcompress.allocation import CostModel, Widths, allocate, narrowest
from pbcompress.config import Budget, CompressConfig
from pbcompress.cuts import LayerCut, check_cuts, cut_all_, layer_width, proof_failure
from pbcompress.dendrite import attach_dendrites_
from pbcompress.errors import CompressionError, TargetUnreachableError
from pbcompress.forms import growable_layers, set_params
from pbcompress.geometry import LayerGeometry
from pbcompress.grouping import ChannelGroup, Dim, Grouping, find_groups
from pbcompress.importance import unit_scores
from pbcompress.measure import ModelCost, measure
from pbcompress.surgery import (
    Call,
    as_call,
    copy_model,
    device_of,
    matches,
    parameter_count,
    single_sample,
    to_device,
)

__all__ = ["LayerCut", "WidthPlan", "plan_widths", "resolve_target", "shrink", "shrink_"]

FLOPS_GOAL = 0.97
FLOPS_TRIALS = 12


@dataclass(frozen=True)
class WidthPlan:
    """What to cut where: data only, replayed by `shrink` with no data, trace or chance.

    Attributes:
        steps: The cuts, one for each dimension of each layer that changes.
        cost_before: Cost of the original.
        cost_after: Cost of the shrunk network, measured on one.
        target_params: The bound that was asked for.
        reserved_params: Part of the target kept free for dendrites.
        grow: Layers that the reserve is for, with whether each dendrite has its own BatchNorm.
        left_alone: Layers that keep their width, with the reason.
    """

    steps: tuple[LayerCut, ...]
    cost_before: ModelCost
    cost_after: ModelCost
    target_params: int
    reserved_params: int
    grow: Mapping[str, bool]
    left_alone: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return what `shrink` needs as JSON data."""
        return {
            "steps": [step.to_list() for step in self.steps],
            "target_params": self.target_params,
        }

    def __str__(self) -> str:
        before, after = self.cost_before, self.cost_after
        lines = [
            f"{before.params:,} -> {after.params:,} parameters "
            f"(target {self.target_params:,}, {self.reserved_params:,} of it kept for dendrites), "
            f"{before.flops:,} -> {after.flops:,} FLOPs"
        ]
        for name, layer in before.by_layer.items():
            if layer.width is not None:
                now = after.by_layer[name].width
                note = f"  ({self.left_alone[name]})" if name in self.left_alone else ""
                grow = "  + dendrites" if name in self.grow else ""
                lines.append(
                    f"  {name:<32} {layer.kind:<12} {layer.width:>5} -> {now:<5}{grow}{note}"
                )
        return "\n".join(lines)


def resolve_target(asked: float | Budget, cost: ModelCost) -> tuple[int, int | None]:
    """Return the bounds on parameters and FLOPs as counts, the second None if there is none.

    Raises:
        TargetUnreachableError: A bound is neither a whole number nor a share in (0, 1), or it is
            not below the original.
    """
    values: dict[str, object] = {"params": asked, "flops": None}
    if isinstance(asked, Budget):
        values = {"params": asked.params, "flops": asked.flops}
    bounds: dict[str, int] = {}
    for name, full in (("params", cost.params), ("flops", cost.flops)):
        value = values[name]
        if value is None and values != {"params": None, "flops": None}:
            continue
        count = _count(value, full)
        if count is None or count >= full:
            raise TargetUnreachableError(
                f"A target of {value!r} {name} was asked for; the model has {full:,}. Ask for a "
                "whole number below that, or a share between 0 and 1.",
                smallest=None,
            )
        bounds[name] = count
    return bounds.get("params", cost.params - 1), bounds.get("flops")


def _count(value: Any, full: int) -> int | None:
    """Return a bound as a count: a share of the original, or a whole number; else None."""
    is_all = isinstance(value, float) and value == 1  # reads as "all of it", not as a count
    if is_all or isinstance(value, bool) or not isinstance(value, Real):
        return None
    number = float(value)
    if 0 < number < 1:
        return int(number * full)
    return int(number) if number.is_integer() else None


def plan_widths(
    model: nn.Module,
    example_inputs: object,
    target_params: float | Budget,
    *,
    config: CompressConfig | None = None,
) -> WidthPlan:
    """Find the widest narrower network that fits a target, and prove it on a copy.

    Widths and parameters do not shrink alike (half the channels leave about a quarter of the
    parameters), so the widths are searched on a closed form of the cost. The plan is then carried
    out on a deep copy, which must compute what the original computes when the removed channels are
    not read. A group of channels for which that fails keeps its width, with the reason.

    Args:
        model: Network to shrink; left as it is.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch.
        target_params: At most so many parameters: a count, a share in (0, 1) or a `Budget`.
        config: ``width`` says how, and with a number as ``dendrites.share`` room is kept for
            ``dendrites.max_sets`` sets; with "auto" none is.

    Returns:
        The plan.

    Raises:
        TargetUnreachableError: The target is not below the original, or below the smallest
            reachable network; ``.smallest`` says how many parameters that has.
        CompressionError: The forward pass fails on ``example_inputs``.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> plan = plan_widths(net, torch.zeros(1, 8), 0.5)
        >>> 0.97 * 353 <= plan.cost_after.params <= 353
        True

    Source:
        Coupled channels: Fang et al., DepGraph, 2023, https://arxiv.org/abs/2301.12900.
    """
    config = config or CompressConfig()
    if isinstance(model, nn.Module) and any(map(nn.parameter.is_lazy, model.parameters())):
        raise CompressionError(
            "plan_widths was called with a model whose lazy layers have no shape yet. Run one "
            "forward pass on it first."
        )
    cost_before = measure(model, example_inputs)
    target, max_flops = resolve_target(target_params, cost_before)
    device = device_of(model)
    call = to_device(single_sample(as_call(example_inputs)), device)
    planner = _Planner(model, example_inputs, call, config, cost_before)
    plan = planner.plan(target)
    return plan if max_flops is None else planner.plan_within(plan, max_flops)


class _Planner:
    """Plans for one model; remembers the groups that a proof has excluded."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: object,
        call: Call,
        config: CompressConfig,
        cost_before: ModelCost,
    ) -> None:
        self.model, self.example_inputs, self.call = model, example_inputs, call
        self.config, self.cost_before = config, cost_before
        self.grouping = _without_kept(model, find_groups(model, call), config.width.keep)

    def _prove(self, target: int) -> tuple["_Search", Widths | None, tuple[LayerCut, ...]]:
        """Return proven cuts: for a target, or if there are none (widths None) the narrowest."""
        while True:
            search = _Search(self.model, self.grouping, self.config)
            widths = search.solve(target)
            steps = search.steps(search.narrowest() if widths is None else widths)
            failure = proof_failure(self.model, steps, self.call)
            if failure is None:
                return search, widths, steps
            self.grouping = _without_guilty(self.model, self.grouping, self.call, failure)

    def plan(self, target: int) -> WidthPlan:
        """Return a proven plan for a number of parameters."""
        search, widths, steps = self._prove(target)
        if widths is None:
            raise self._unreachable(search, f"{target:,} parameters")
        small = copy_model(self.model)
        cut_all_(small, steps)
        return WidthPlan(
            steps=steps,
            cost_before=self.cost_before,
            cost_after=measure(small, self.example_inputs),
            target_params=target,
            reserved_params=search.cost.reserved(widths),
            grow=search.grow,
            left_alone=self.grouping.left_alone,
        )

    def plan_within(self, plan: WidthPlan, max_flops: int) -> WidthPlan:
        """Return ``plan``, or the plan for the largest parameter target that keeps to a bound."""
        if self._flops(plan) <= max_flops:
            return plan
        target, high = plan.target_params, plan.target_params
        search, _, _ = self._prove(0)
        low = search.cost.total(search.narrowest())
        best = self.plan(low)
        if self._flops(best) > max_flops:
            raise self._unreachable(search, f"{max_flops:,} FLOPs", self._flops(best))
        for _ in range(FLOPS_TRIALS):
            if self._flops(best) >= FLOPS_GOAL * max_flops or high - low < 2:
                break
            middle = (low + high) // 2
            trial = self.plan(middle)
            if self._flops(trial) <= max_flops:
                low, best = middle, trial
            else:
                high = middle
        return replace(best, target_params=target)

    def _flops(self, plan: WidthPlan) -> int:
        """FLOPs of the shrunk network with all the dendrites that the reserve is for."""
        if not plan.grow:
            return plan.cost_after.flops
        grown = shrink(self.model, plan)
        for _ in range(self.config.dendrites.max_sets):
            attach_dendrites_(grown, self.config.dendrites, layers=plan.grow)
        return measure(grown, self.example_inputs).flops

    def _unreachable(
        self, search: "_Search", asked: str, flops: int | None = None
    ) -> TargetUnreachableError:
        smallest = search.cost.total(search.narrowest())
        has = f"{smallest:,}" if flops is None else f"{smallest:,} parameters and {flops:,} FLOPs"
        fixed = (
            "; ".join(
                f"{k or 'the model itself'}: {v}" for k, v in self.grouping.left_alone.items()
            )
            or "none"
        )
        return TargetUnreachableError(
            f"A target of {asked} was asked for; the smallest reachable network has {has}. Ask "
            "for at least that, or allow narrower layers (WidthConfig.max_ratio, min_width, "
            f"round_to). Layers that keep their width: {fixed}.",
            smallest=smallest,
        )


class _Search:
    """One search for widths: the cost model of a model, a grouping and a configuration."""

    def __init__(self, model: nn.Module, grouping: Grouping, config: CompressConfig) -> None:
        self.grouping, self.config = grouping, config
        self.scores = [unit_scores(model, group) for group in grouping.groups]
        dendrites = config.dendrites
        reserve = dendrites.max_sets > 0 and dendrites.share not in ("auto", 0)
        self.grow = growable_layers(model, dendrites) if reserve else {}
        names = {m.layer for g in grouping.groups for m in g.members} | set(self.grow)
        self.layers = {name: layer for name, layer in model.named_modules() if name in names}
        self.geometries = {name: LayerGeometry.of(layer) for name, layer in self.layers.items()}
        inside = sum(g.params(g.out_width, g.in_width) for g in self.geometries.values())
        self.base = parameter_count(model) - inside
        self.cost = self._cost_model()

    def _cost_model(self) -> CostModel:
        reserve: dict[str, Callable[[int, int], int]] = {
            name: partial(
                set_params, self.geometries[name], config=self.config.dendrites, normalized=normed
            )
            for name, normed in self.grow.items()
        }
        return CostModel(self.grouping.groups, self.geometries, self.base, reserve)

    def solve(self, target: int) -> Widths | None:
        """Return widths, or None; layers whose dendrites are too dear stop growing."""
        while True:
            widths = allocate(self.cost, self.scores, target, self.config.width)
            share = self.config.dendrites.share
            fits = widths is not None and (
                not self.grow or self.cost.reserved(widths) <= float(share) * target
            )
            if widths is not None and fits:
                return widths
            if not self.grow:
                return None
            prices = widths or self.narrowest()
            dearest = max(
                self.grow,
                key=lambda name: self.cost.reserve[name](*self.cost.layer_widths(name, prices)),
            )
            self.grow = {k: v for k, v in self.grow.items() if k != dearest}
            self.cost = self._cost_model()

    def narrowest(self) -> Widths:
        """Return the smallest widths that the configuration allows."""
        return narrowest(self.grouping.groups, self.config.width)

    def steps(self, widths: Widths) -> tuple[LayerCut, ...]:
        """Return the cuts that keep the best units of every group."""
        removed: dict[tuple[str, Dim], list[int]] = {}
        for group, scores, width in zip(self.grouping.groups, self.scores, widths, strict=True):
            order = torch.argsort(scores, descending=True, stable=True).tolist()
            for unit in order[width:]:
                for member in group.members:
                    removed.setdefault((member.layer, member.dim), []).extend(
                        member.positions[unit]
                    )
        return tuple(
            LayerCut(
                layer,
                dim,
                tuple(sorted(indices)),
                layer_width(self.layers[layer], dim),
            )
            for (layer, dim), indices in removed.items()
        )


def _without_kept(model: nn.Module, grouping: Grouping, keep: tuple[str, ...]) -> Grouping:
    names = [name for name, _ in model.named_modules()]
    for pattern in keep:
        if not any(matches(name, (pattern,)) for name in names):
            raise CompressionError(
                f"WidthConfig.keep names {pattern!r}; the model has no such layer. Its layers are "
                f"{', '.join(name for name in names if name)}."
            )
    reasons = {}
    for group in grouping.groups:
        kept = [m.layer for m in group.members if m.dim == "out" and matches(m.layer, keep)]
        if kept:
            who = "it" if group.name in kept else f"{kept[0]!r}, whose channels go with its own"
            reasons[group.name] = f"WidthConfig.keep names {who}"
    return _drop(grouping, reasons)


def _drop(grouping: Grouping, reasons: Mapping[str, str]) -> Grouping:
    groups = tuple(g for g in grouping.groups if g.name not in reasons)
    return Grouping(groups, {**grouping.left_alone, **reasons})


def _without_guilty(model: nn.Module, grouping: Grouping, call: Call, failure: str) -> Grouping:
    """Leave alone every group whose narrowing by one unit fails the proof on its own."""
    reasons = {}
    for group in grouping.groups:
        failed = proof_failure(model, _one_unit(model, group), call)
        if failed is not None:
            reasons[group.name] = failed
    if not reasons:
        raise CompressionError(
            f"Each group of channels can be narrowed alone, but not all together: {failure}. Name "
            "the layers to keep in WidthConfig.keep."
        )
    return _drop(grouping, reasons)


def _one_unit(model: nn.Module, group: ChannelGroup) -> tuple[LayerCut, ...]:
    return tuple(
        LayerCut(m.layer, m.dim, m.positions[0], layer_width(model.get_submodule(m.layer), m.dim))
        for m in group.members
    )


def shrink_(model: nn.Module, plan: WidthPlan | Sequence[LayerCut]) -> None:
    """Apply a plan in place. Parameters are new objects: make optimizers afterwards.

    Args:
        model: A fresh network of the architecture that was planned for.
        plan: The plan, or its steps.

    Raises:
        StateMismatchError: A layer of the plan is missing or has another width; nothing was cut.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> shrink_(net, plan_widths(net, torch.zeros(1, 8), 50))
        >>> net[0].out_features
        4
    """
    steps = plan.steps if isinstance(plan, WidthPlan) else tuple(plan)
    check_cuts(model, steps)
    cut_all_(model, steps)


def shrink(model: nn.Module, plan: WidthPlan) -> nn.Module:
    """Return a pruned deep copy of ``model``; see `shrink_`.

    Args:
        model: A network of the architecture that was planned for; left as it is.
        plan: The plan.

    Returns:
        The narrower copy, with new parameters, in the mode that ``model`` is in.

    Raises:
        StateMismatchError: A layer of the plan is missing or has another width.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> shrink(net, plan_widths(net, torch.zeros(1, 8), 50))(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """
    small = copy_model(model)
    shrink_(small, plan)
    return small
