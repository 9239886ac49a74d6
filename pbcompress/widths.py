"""Plan narrower widths for a parameter target, prove the plan, and apply it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import nn

from pbcompress.budgets import MeasuredBudget, confirmed, fastest
from pbcompress.config import Budget, CompressConfig
from pbcompress.costs import Widths, model_cost
from pbcompress.cuts import LayerCut, check_cuts, cut_all_
from pbcompress.deadline import Deadline
from pbcompress.dendrite import attach_dendrites_
from pbcompress.errors import CompressionError, TargetUnreachableError
from pbcompress.grouping import find_groups
from pbcompress.importance import sample_for, unit_scores
from pbcompress.latency import Shipped
from pbcompress.measure import ModelCost, input_shapes, measure
from pbcompress.proof import proof_failure
from pbcompress.search import Removed, Request, WidthSearch, cuts_of, without_kept
from pbcompress.statistics import Sample
from pbcompress.surgery import (
    Call,
    as_call,
    copy_model,
    device_of,
    map_tensors,
    single_sample,
    to_device,
)
from pbcompress.task import Data, Task

__all__ = [
    "LayerCut",
    "WidthPlan",
    "plan_widths",
    "resolve_target",
    "shrink",
    "shrink_",
]

FLOPS_TRIALS = 6
_TOO_SLOW = (
    "Give smaller example_inputs (one sample, a smaller image or a shorter sequence), exclude "
    "layers with WidthConfig.keep, or raise WidthConfig.max_seconds."
)
FEW = 4  # groups that are judged one by one


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
        shipped: The exported networks as measured, where the target asked for it.
    """

    steps: tuple[LayerCut, ...]
    cost_before: ModelCost
    cost_after: ModelCost
    target_params: int
    reserved_params: int
    grow: Mapping[str, bool]
    left_alone: Mapping[str, str]
    shipped: Shipped | None = None

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
        lines += [str(self.shipped)] if self.shipped else []
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

    Bounds on what ships are resolved where it is measured.

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
        if value is None and (isinstance(asked, Budget) or name == "flops"):
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
    data: Data | None = None,
    task: Task | None = None,
    seed: int = 0,
) -> WidthPlan:
    """Find the widest narrower network that fits a target, and prove it on a copy.

    Widths and parameters do not shrink alike (half the channels leave about a quarter of the
    parameters), so the widths are searched on a closed form of the cost. The plan is then carried
    out on a deep copy, which must compute what the original computes when the removed channels are
    not read. A group of channels for which that fails keeps its width, with the reason.

    Args:
        model: Network to shrink; left as it is.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch.
        target_params: At most so many parameters: a count, a share in (0, 1) or a `Budget`. A
            latency or a file size is confirmed on exported networks, which takes some seconds for
            each of them.
        config: ``width`` says how, and with a number as ``dendrites.share`` room is kept for
            ``dendrites.max_sets`` sets; with "auto" none is.
        data: For an importance that needs train batches; no other split is touched.
        task: How the model runs on a batch, and its loss; default: classification.
        seed: Names the order of those batches.

    Returns:
        The plan.

    Raises:
        TargetUnreachableError: The target is not below the original, or below the smallest
            reachable network; ``.smallest`` says what that one has.
        CompressionError: The forward pass fails on ``example_inputs``, an importance needs data
            and there are none, or a latency or file size is asked of a network that cannot be
            exported.

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
    sample = sample_for(config.width, data, task, seed)
    with torch.inference_mode(False):  # tensors made in it cannot be followed
        network = copy_model(model).eval()
        call = to_device(single_sample(as_call(example_inputs)), device_of(model))
        planner = _Planner(model, network, map_tensors(call, torch.clone), config, sample)
        params, flops = resolve_target(target_params, planner.cost_before)
        round_to = config.width.round_to
        request = Request(params, flops, 1 if round_to == "auto" else round_to)
        asked = target_params if isinstance(target_params, Budget) else Budget(params=params)
        on_file = (asked.latency_ms, asked.file_bytes) != (None, None)
        if on_file or round_to == "auto":
            return _measured(planner, request, asked)
        return planner.propose(request)[0]


def _measured(planner: "_Planner", request: Request, asked: Budget) -> WidthPlan:
    """Return a plan that was chosen by measuring exported networks."""
    from pbcompress.shipping import Workshop  # onnx and its runtime, only where they are needed

    layers = {work.module for work in planner.grouping.works}
    with Workshop(planner.model, planner.call, layers) as bench:
        budget = MeasuredBudget.of(asked.latency_ms, asked.file_bytes, bench.original)
        if budget == MeasuredBudget(None, None):
            plan, shipped = fastest(planner, bench, request)
        else:
            by_time = budget.milliseconds is not None and request.round_to == 1
            rounds = by_time or planner.config.width.round_to == "auto"
            plan, shipped = confirmed(planner, bench, request, budget, rounds)
    return replace(plan, shipped=shipped)


class _Planner:
    """Plans for one model; remembers the groups that a proof has excluded."""

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        call: Call,
        config: CompressConfig,
        sample: Sample | None,
    ) -> None:
        self.model, self.call, self.config = model, call, config
        self.network: nn.Module | None = network  # a copy, which a proof uses up
        self.deadline = Deadline(config.width.max_seconds, _TOO_SLOW)
        grouping = find_groups(
            network, call, attention=config.width.attention, deadline=self.deadline
        )
        self.grouping = without_kept(model, grouping, config.width.keep)
        self.scores = unit_scores(model, self.grouping.groups, config.width.importance, sample)
        self.cost_before = self.cost([g.width for g in self.grouping.groups])

    def cost(self, widths: Widths) -> ModelCost:
        """Return the predicted cost at other widths."""
        return model_cost(self.model, self.grouping, widths, input_shapes(self.call))

    def propose(self, request: Request, smallest: bool = False) -> tuple[WidthPlan, Widths]:
        """Return a proven plan that keeps to the bounds with its dendrites, or the smallest.

        FLOPs of dendrites are measured: they have no closed form.
        """
        plan, widths = self._plan(request, smallest)
        if request.flops is None or smallest or not plan.grow:
            return plan, widths
        bound = request.flops
        for _ in range(FLOPS_TRIALS):
            args, kwargs = self.call
            grown = measure(self.network_of(plan), kwargs or args).flops
            if grown <= request.flops:
                return plan, widths
            bound = bound * request.flops // grown
            plan, widths = self._plan(replace(request, flops=bound), smallest=False)
        raise TargetUnreachableError(
            f"A target of {request.flops:,} FLOPs was asked for, dendrites included; the smallest "
            f"network that was found has {grown:,}. Ask for more FLOPs, or for cheaper dendrites.",
            smallest=None,
        )

    def network_of(self, plan: WidthPlan) -> nn.Module:
        """Return the network of a plan, with the dendrites that it has room for."""
        grown = shrink(self.model, plan)
        for _ in range(self.config.dendrites.max_sets if plan.grow else 0):
            attach_dendrites_(grown, self.config.dendrites, layers=plan.grow)
        return grown

    def _plan(self, request: Request, smallest: bool) -> tuple[WidthPlan, Widths]:
        while True:
            search = WidthSearch(self.model, self.grouping, self.config, self.scores)
            if smallest:
                search.grow = {}
            widths = None if smallest else search.solve(request)
            trial = search.narrowest(request) if widths is None else widths
            removed = search.removed(trial)
            steps = cuts_of(self.model, self.grouping, removed)
            if self._proof_failure(removed, steps) is None:
                break
            self._drop_guilty(removed)
        if widths is None and not smallest:
            raise self._unreachable(search, request)
        plan = WidthPlan(
            steps=steps,
            cost_before=self.cost_before,
            cost_after=self.cost(trial),
            target_params=request.params,
            reserved_params=search.params.reserved(trial) if search.grow else 0,
            grow=search.grow,
            left_alone=self.grouping.left_alone,
        )
        return plan, trial

    def _proof_failure(self, removed: Removed, steps: Sequence[LayerCut]) -> str | None:
        self.deadline.check("Planning, in the proof of its cuts,")
        network = self.network if self.network is not None else copy_model(self.model).eval()
        self.network = None
        traced = self.grouping.trace
        gone = torch.zeros(traced.coupling.size, dtype=torch.bool)
        for name, units in removed.items():
            gone[self.grouping.units[name][units]] = True
        return proof_failure(network, traced, gone, steps, self.call)

    def _drop_guilty(self, removed: Removed) -> None:
        """Leave alone the groups whose narrowing fails the proof.

        Groups of the same structure are judged by the first of them, the others of a guilty one's
        structure together, and one by one only where they are few or nothing was found.
        """
        kinds: dict[str, list[str]] = {}
        for group in self.grouping.groups:
            if group.name in removed:
                kinds.setdefault(group.kind, []).append(group.name)
        found = self._guilty({names[0]: removed[names[0]] for names in kinds.values()})
        reasons = dict(found)
        for first, *others in kinds.values():
            if first in found and others:
                same = {name: removed[name] for name in others}
                if len(others) <= FEW:
                    reasons.update(self._guilty(same))
                elif self._failure(same) is not None:
                    reasons.update(dict.fromkeys(others, found[first]))
        self.grouping = self.grouping.without(reasons or self._guilty(removed))

    def _guilty(self, removed: Removed) -> dict[str, str]:
        """Return those of some groups that fail, with the reason; all, if only together."""
        failure = self._failure(removed)
        names = list(removed)
        if failure is None:
            return {}
        if len(names) == 1:
            return {names[0]: failure}
        half = len(names) // 2
        parts = ({n: removed[n] for n in some} for some in (names[:half], names[half:]))
        found = {name: why for part in parts for name, why in self._guilty(part).items()}
        return found or dict.fromkeys(names, failure)

    def _failure(self, removed: Removed) -> str | None:
        return self._proof_failure(removed, cuts_of(self.model, self.grouping, removed))

    def _unreachable(self, search: WidthSearch, request: Request) -> TargetUnreachableError:
        widths, params, flops = search.narrowest(request), request.params, request.flops
        smallest = search.params.total(widths)
        cost = self.cost(widths)
        asked = (
            f"{params:,} parameters"
            if flops is None
            else f"{params:,} parameters and {flops:,} FLOPs"
        )
        largest = max(cost.by_layer, key=lambda name: cost.by_layer[name].params)
        fixed = "; ".join(
            f"{k or 'the model itself'}: {v}" for k, v in self.grouping.left_alone.items()
        )
        return TargetUnreachableError(
            f"A target of {asked} was asked for; the smallest reachable network has {smallest:,} "
            f"parameters and {search.flops.total(widths):,} FLOPs, most of them in "
            f"{largest or 'the model itself'!r} ({cost.by_layer[largest].params:,}). Ask for at "
            "least that, or allow narrower layers (WidthConfig.max_ratio, min_width, round_to). "
            f"Layers that keep their width: {fixed or 'none'}.",
            smallest=smallest,
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
