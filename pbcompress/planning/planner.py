"""Plan narrower widths for a target, and prove the plan."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import nn

from pbcompress.config.budget import Budget
from pbcompress.config.whole import CompressConfig
from pbcompress.core.deadline import Deadline
from pbcompress.core.inputs import Call, map_tensors
from pbcompress.core.modules import has_no_data, names_of
from pbcompress.costs.closed_form import Widths, model_cost
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import ModelCost, input_shapes, measure
from pbcompress.costs.operator_table import expected_speedup
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.errors import CompressionError, TargetUnreachableError
from pbcompress.planning.explanation import reasons_text
from pbcompress.planning.given_widths import with_pins
from pbcompress.planning.importance import unit_scores
from pbcompress.planning.measured_budget import MeasuredBudget, OpenBench, confirmed, fastest
from pbcompress.planning.proving import Prover
from pbcompress.planning.role_numbers import Configs
from pbcompress.planning.same_width import Roles, statable
from pbcompress.planning.stated_sizes import stated_sizes
from pbcompress.planning.unchanged_layers import Outcome, why_unchanged
from pbcompress.planning.unused_budget import why_unused
from pbcompress.planning.width_search import Removed, Request, WidthSearch, cuts_of, without_kept
from pbcompress.pruning.cuts import LayerCut
from pbcompress.pruning.shrinking import shrink
from pbcompress.pruning.unit_choice import UnitChoice, choices_of
from pbcompress.training.batch_statistics import Sample

__all__ = ["Solution", "find_widths", "resolve_target"]

logger = logging.getLogger(__name__)

FLOPS_TRIALS = 6
_TOO_SLOW = (
    "Give smaller example_inputs (one sample, a smaller image or a shorter sequence), exclude "
    "layers with WidthConfig.keep, or raise WidthConfig.max_seconds."
)
FEW = 4  # groups that are judged one by one
UNPROVEN = "the model's forward pass differs from run to run, so that no cut can be proven"


@dataclass(frozen=True)
class Solution:
    """What the planner found.

    Attributes:
        steps: The cuts, one for each dimension of each layer that changes.
        cost_before: Cost of the original.
        cost_after: Cost of the shrunk network, predicted from the structure of the original.
        target_params: The bound on parameters, dendrites included.
        target_flops: The bound on multiply-adds; None if there is none.
        reserved_params: Part of the target kept free for dendrites.
        grow: Layers that the reserve is for, with whether each dendrite has its own BatchNorm.
        left_alone: Layers that keep their width, with the reason.
        shipped: The exported networks as measured, where the target asked for it.
        expected_speedup: How many times as fast as the original the shrunk network should be in
            ONNX Runtime on a CPU of this machine's kind (one thread, batch 1, without dendrites),
            by a table of operators; None in plans of before there was one.
        stated: What the config of the shrunk network states, by the path of each number.
        proven: What the proof of the cuts was of; "" where nothing is cut.
        choices: In a plan that was made without weights, the groups of which `shrink_files`
            chooses the units; ``steps`` take the last of each until then.
        names: Every name of a parameter that has several, by the first.
        unused: Why no bound is used up; "" where one is.
    """

    steps: tuple[LayerCut, ...]
    cost_before: ModelCost
    cost_after: ModelCost
    target_params: int
    target_flops: int | None
    reserved_params: int
    grow: Mapping[str, bool]
    left_alone: Mapping[str, str]
    shipped: Shipped | None = None
    expected_speedup: float | None = None
    stated: Mapping[str, int] = field(default_factory=dict)
    proven: str = ""
    choices: tuple[UnitChoice, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unused: str = ""


def resolve_target(budget: Budget, cost: ModelCost) -> tuple[int, int | None]:
    """Return the bounds on parameters and FLOPs as counts, the second None if there is none.

    Where none is asked on parameters, it is one less than the original has. Bounds on what ships
    are resolved where it is measured.

    Raises:
        TargetUnreachableError: A bound is neither a whole number nor a share in (0, 1), or it is
            not below the original.
    """
    bounds: dict[str, int] = {}
    asked = (("params", budget.params, cost.params), ("flops", budget.flops, cost.flops))
    for name, value, full in asked:
        if value is None:
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


def find_widths(
    model: nn.Module,
    call: Call,
    budget: Budget,
    config: CompressConfig,
    sample: Sample | None,
    open_bench: OpenBench,
) -> Solution:
    """Search for widths that fit a target, and prove the cuts on a copy; see `plan_widths`.

    Args:
        model: The network.
        call: One sample, on the model's device.
        budget: The bounds.
        config: The choices.
        sample: Batches for an importance that needs some.
        open_bench: Measures networks as they ship; used where the target or the rounding asks.
    """
    on_file = (budget.latency_ms, budget.file_bytes) != (None, None)
    measures = on_file or config.width.round_to == "measured"
    if has_no_data(model) and (measures or config.width.importance != "magnitude"):
        raise CompressionError(
            "A plan was asked for of a model on the meta device, which has no weights to export, "
            "time or rank. Ask for parameters or FLOPs, with importance='magnitude' and without "
            "round_to='measured', or load the weights first."
        )

    def found(planner: _Planner) -> Solution:
        request = Request(*resolve_target(budget, planner.cost_before))
        if measures:
            return _measured(planner, request, budget, open_bench)
        return planner.propose(request)[0]

    planner = _Planner(model, map_tensors(call, torch.clone), config, sample)
    try:
        return found(planner)
    except TargetUnreachableError as err:
        if planner.stated is None or config.width.same_width != "auto" or err.smallest is None:
            raise
    logger.warning(
        "No config states widths that reach the target, so every group of channels has its own: "
        "the shrunk network is loaded from the plan and its weights, not from its config."
    )
    own = replace(config, width=replace(config.width, same_width=False))
    return found(_Planner(model, map_tensors(call, torch.clone), own, sample))


def _measured(
    planner: "_Planner", request: Request, asked: Budget, open_bench: OpenBench
) -> Solution:
    """Return a plan that was chosen by measuring networks as they ship."""
    layers = {work.module for work in planner.grouping.works}
    as_shipped = asked.file_bytes is not None
    with open_bench(planner.model, planner.call, layers, as_shipped) as bench:
        budget = MeasuredBudget.of(asked.latency_ms, asked.file_bytes, bench.original)
        if budget == MeasuredBudget(None, None):
            plan, shipped = fastest(planner, bench, request)
        else:
            round_to = planner.config.width.round_to
            by_time = budget.milliseconds is not None and round_to in ("auto", 1)
            rounds = by_time or round_to == "measured"
            plan, shipped = confirmed(planner, bench, request, budget, rounds)
    return replace(plan, shipped=shipped)


class _Planner:
    """Plans for one model; remembers the groups that a proof has excluded."""

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        config: CompressConfig,
        sample: Sample | None,
    ) -> None:
        self.model, self.call, self.config = model, call, config
        self.deadline = Deadline(config.width.max_seconds, _TOO_SLOW)
        self.prover = Prover(model, call, config.width.attention, self.deadline)
        grouping = self.prover.groups()
        self.grouping = without_kept(model, grouping, config.width.keep)
        self.stated = stated_sizes(model, self.grouping, config.width.same_width)
        if self.stated is not None:
            self.grouping = statable(self.grouping, self.stated)
        self._configs = Configs(self.stated, self.prover, self.deadline)
        groups, importance = self.grouping.groups, config.width.importance
        self.scores = (
            unit_scores(model, groups, importance, sample)
            if self.prover.has_data
            else {group.name: torch.ones(group.width) for group in groups}
        )
        self.cost_before = self.cost([g.width for g in self.grouping.groups])

    def cost(self, widths: Widths) -> ModelCost:
        """Return the predicted cost at other widths."""
        return model_cost(self.model, self.grouping, widths, input_shapes(self.call))

    def propose(self, request: Request, smallest: bool = False) -> tuple[Solution, Widths]:
        """Return a proven plan that keeps to the bounds with its dendrites, or the smallest."""
        return self._fitting(request, smallest, proven=True)

    def sketch(self, request: Request) -> tuple[Solution, Widths]:
        """Return a plan that keeps to the bounds with its dendrites, to be proven yet."""
        return self._fitting(request, smallest=False, proven=False)

    def _fitting(
        self, request: Request, smallest: bool, *, proven: bool
    ) -> tuple[Solution, Widths]:
        """Return a plan that keeps to the bounds; FLOPs of dendrites have no form: measured."""
        plan, widths = self._plan(request, smallest, proven)
        if request.flops is None or smallest or not plan.grow:
            return plan, widths
        bound = request.flops
        for _ in range(FLOPS_TRIALS):
            grown = measure(self.network_of(plan), self.call).flops
            if grown <= request.flops:
                return replace(plan, target_flops=request.flops), widths
            bound = bound * request.flops // grown
            plan, widths = self._plan(replace(request, flops=bound), smallest=False, proven=proven)
        raise TargetUnreachableError(
            f"A target of {request.flops:,} FLOPs was asked for, dendrites included; the smallest "
            f"network that was found has {grown:,}. Ask for more FLOPs, or for cheaper dendrites.",
            smallest=None,
        )

    def holds(self, plan: Solution, widths: Widths) -> bool:
        """Prove a plan; leave alone from now on what its proof finds guilty."""
        removed = self._search().removed(widths)
        if self._proof_failure(removed, plan.steps, plan.cost_after.params) is None:
            return True
        self._drop_guilty(removed)
        return False

    def network_of(self, plan: Solution) -> nn.Module:
        """Return the network of a plan, with the dendrites that it has room for."""
        grown = shrink(self.model, plan)
        for _ in range(self.config.dendrites.max_sets if plan.grow else 0):
            attach_dendrites_(grown, self.config.dendrites, layers=plan.grow)
        return grown

    def _search(self) -> WidthSearch:
        width = self.config.width
        grouping = with_pins(self.model, self.grouping, width.pin)
        has_roles = self.stated is not None or width.same_width not in (False, "auto")
        roles = Roles.of(grouping, self.stated) if has_roles else Roles.alone(grouping)
        return WidthSearch(self.model, roles, self.config, self.scores)

    def _plan(self, request: Request, smallest: bool, proven: bool) -> tuple[Solution, Widths]:
        while True:
            search = self._search()
            if smallest:
                search.grow = {}
            found = None if smallest else search.solve(request)
            trial = search.narrowest(request) if found is None else found
            widths = search.roles.spread(trial)
            removed = search.removed(widths)
            steps = cuts_of(self.model, self.grouping, removed)
            cost = self.cost(widths)
            is_proven = not (proven and removed)
            if is_proven or self._proof_failure(removed, steps, cost.params) is None:
                numbers = self._configs.numbers(search, trial, steps)
                if numbers is not None:
                    break
                self.grouping = self.grouping.without(self._configs.unstated(search, trial))
            else:
                self._drop_guilty(removed)
        if found is None and not smallest:
            raise self._unreachable(search, request)
        sizes = {(step.layer, step.dim): step.width for step in steps}
        plan = Solution(
            steps=steps,
            cost_before=self.cost_before,
            cost_after=cost,
            target_params=request.params,
            target_flops=request.flops,
            reserved_params=search.params.reserved(trial) if search.grow else 0,
            grow=search.grow,
            left_alone=self._why_unchanged(search, trial, request),
            expected_speedup=expected_speedup(self.model, self.grouping, widths),
            stated=numbers,
            proven=self.prover.proven if proven and removed else "",
            choices=() if self.prover.has_data else choices_of(self.grouping, removed, sizes),
            names={first: tuple(own) for first, own in names_of(self.model).items() if own[1:]},
            unused="" if smallest else why_unused(search, trial, request),
        )
        return plan, widths

    def _why_unchanged(
        self, search: WidthSearch, widths: Widths, request: Request
    ) -> Mapping[str, str]:
        found = Outcome(
            grouping=search.grouping,
            widths=widths,
            narrowest=search.narrowest(request),
            scores=search.scores,
            multiples=search.multiples(request)[0],
            by_weights=request.params < self.cost_before.params - 1,
            by_work=request.flops is not None,
        )
        layers = {name: layer.width for name, layer in self.cost_before.by_layer.items()}
        return why_unchanged(self.model, found, self.config.width, layers)

    def _proof_failure(
        self, removed: Removed, steps: Sequence[LayerCut], params: int
    ) -> str | None:
        return self.prover.failure(self.grouping, removed, steps, params)

    def _drop_guilty(self, removed: Removed) -> None:
        """Leave alone the groups whose narrowing fails the proof.

        Groups of the same structure are judged by the first of them, the others of a guilty one's
        structure together, and one by one only where they are few or nothing was found. Where the
        proof fails with nothing removed, no group is guilty, and none can be proven.
        """
        if self._failure({}) is not None:
            names = [group.name for group in self.grouping.groups]
            self.grouping = self.grouping.without(dict.fromkeys(names, UNPROVEN))
            return
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
        widths = [g.width - len(removed.get(g.name, ())) for g in self.grouping.groups]
        cuts = cuts_of(self.model, self.grouping, removed)
        return self._proof_failure(removed, cuts, self.cost(widths).params)

    def _unreachable(self, search: WidthSearch, request: Request) -> TargetUnreachableError:
        widths, params, flops = search.narrowest(request), request.params, request.flops
        smallest = search.params.total(widths)
        cost = self.cost(search.roles.spread(widths))
        asked = (
            f"{params:,} parameters"
            if flops is None
            else f"{params:,} parameters and {flops:,} FLOPs"
        )
        largest = max(cost.by_layer, key=lambda name: cost.by_layer[name].params)
        fixed = reasons_text(self.grouping.left_alone)
        return TargetUnreachableError(
            f"A target of {asked} was asked for; the smallest reachable network has {smallest:,} "
            f"parameters and {search.flops.total(widths):,} FLOPs, most of them in "
            f"{largest or 'the model itself'!r} ({cost.by_layer[largest].params:,}). Ask for at "
            "least that, or allow narrower layers (WidthConfig.max_ratio, min_width, round_to"
            f"{', pin' if self.config.width.pin else ''}). "
            f"Layers that keep their width: {fixed or 'none'}.",
            smallest=smallest,
        )
