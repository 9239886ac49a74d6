"""Plan narrower widths for a parameter target, prove the plan, and apply it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pbcompress.allocation import CostModel, Widths, allocate
from pbcompress.config import Budget, CompressConfig
from pbcompress.errors import CompressionError, StateMismatchError, TargetUnreachableError
from pbcompress.forms import growable_layers, set_params
from pbcompress.geometry import LayerGeometry, is_depthwise
from pbcompress.grouping import ChannelGroup, Dim, Grouping, cut_, find_groups
from pbcompress.importance import unit_scores
from pbcompress.measure import ModelCost, measure
from pbcompress.surgery import (
    Call,
    as_call,
    copy_model,
    map_tensors,
    matches,
    parameter_count,
    seeded,
    single_sample,
    to_device,
)

__all__ = ["LayerCut", "WidthPlan", "plan_widths", "resolve_target", "shrink", "shrink_"]

PROOF_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class LayerCut:
    """The channels that one dimension of one layer loses.

    Attributes:
        layer: Dotted name.
        dim: "out" or "in".
        removed: Indices along the dimension before the cut, ascending.
        width: Size of the dimension before the cut.
    """

    layer: str
    dim: Dim
    removed: tuple[int, ...]
    width: int

    @property
    def width_after(self) -> int:
        """Size of the dimension after the cut."""
        return self.width - len(self.removed)


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
        steps = [[s.layer, s.dim, s.width, list(s.removed)] for s in self.steps]
        return {"steps": steps, "target_params": self.target_params}

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
        CompressionError: A bound is zero, negative, not a number, or not below the original.
    """
    budget = asked if isinstance(asked, Budget) else Budget(params=asked)
    bounds: list[int | None] = []
    for name, value, full in (
        ("params", budget.params, cost.params),
        ("flops", budget.flops, cost.flops),
    ):
        if value is None:
            bounds.append(None)
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_share = is_number and 0 < value < 1
        count = int(value * full) if is_share else value
        is_count = is_number and math.isfinite(value) and value == int(value)
        if not (is_share or is_count) or not 0 < count < full:
            raise TargetUnreachableError(
                f"A target of {value!r} {name} was asked for; the model has {full:,}. Ask for a "
                "whole number below that, or a share between 0 and 1.",
                smallest=0,
            )
        bounds.append(int(count))
    return (cost.params - 1 if bounds[0] is None else bounds[0]), bounds[1]


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
    cost_before = measure(model, example_inputs)
    target, max_flops = resolve_target(target_params, cost_before)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    call = to_device(single_sample(as_call(example_inputs)), device)
    grouping = _without_kept(find_groups(model, call), config.width.keep)
    bound = target
    while True:
        search = _Search(model, grouping, config)
        widths = search.solve(bound)
        steps = search.steps(widths)
        small = copy_model(model)
        failure = _proof_failure(model, small, steps, call)
        if failure is not None:
            grouping = _without_guilty(model, grouping, call, failure)
            continue
        cost_after = measure(small, example_inputs)
        if max_flops is None or cost_after.flops <= max_flops:
            break
        bound = min(bound - 1, int(cost_after.params * max_flops / cost_after.flops))
    return WidthPlan(
        steps=steps,
        cost_before=cost_before,
        cost_after=cost_after,
        target_params=target,
        reserved_params=search.cost.reserved(widths),
        grow=search.grow,
        left_alone=grouping.left_alone,
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
        self.geometries = {
            name: LayerGeometry.of(module)
            for name, module in model.named_modules()
            if name in names
        }
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

    def solve(self, target: int) -> Widths:
        """Return widths; layers whose dendrites exceed the share stop growing, dearest first."""
        while True:
            widths = allocate(self.cost, self.scores, target, self.config.width)
            share = self.config.dendrites.share
            fits = widths is not None and (
                not self.grow or self.cost.reserved(widths) <= float(share) * target
            )
            if widths is not None and fits:
                return widths
            if not self.grow:
                self._raise_unreachable(target)
            prices = widths or [1 for _ in self.grouping.groups]
            dearest = max(
                self.grow,
                key=lambda name: self.cost.reserve[name](*self.cost.layer_widths(name, prices)),
            )
            self.grow = {k: v for k, v in self.grow.items() if k != dearest}
            self.cost = self._cost_model()

    def _raise_unreachable(self, target: int) -> None:
        low, high = target, self.cost.total([g.width for g in self.grouping.groups])
        while low < high:  # the first target that has a solution
            middle = (low + high) // 2
            if allocate(self.cost, self.scores, middle, self.config.width) is None:
                low = middle + 1
            else:
                high = middle
        fixed = "; ".join(f"{k}: {v}" for k, v in self.grouping.left_alone.items()) or "none"
        raise TargetUnreachableError(
            f"A target of {target:,} parameters was asked for; the smallest reachable network has "
            f"{low:,}. Ask for at least that, or allow narrower layers (WidthConfig.max_ratio, "
            f"min_width, round_to). Layers that keep their width: {fixed}.",
            smallest=low,
        )

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
            LayerCut(layer, dim, tuple(sorted(indices)), _width(self.geometries[layer], dim))
            for (layer, dim), indices in removed.items()
        )


def _width(geometry: LayerGeometry, dim: Dim) -> int:
    return geometry.out_width if dim == "out" else geometry.in_width


def _without_kept(grouping: Grouping, keep: tuple[str, ...]) -> Grouping:
    kept = {
        group.name: "WidthConfig.keep names it"
        for group in grouping.groups
        if any(m.dim == "out" and matches(m.layer, keep) for m in group.members)
    }
    return _drop(grouping, kept)


def _drop(grouping: Grouping, reasons: Mapping[str, str]) -> Grouping:
    groups = tuple(g for g in grouping.groups if g.name not in reasons)
    return Grouping(groups, {**grouping.left_alone, **reasons})


def _without_guilty(model: nn.Module, grouping: Grouping, call: Call, failure: str) -> Grouping:
    """Leave alone every group whose narrowing by one unit fails the proof on its own."""
    reasons = {}
    for group in grouping.groups:
        failed = _proof_failure(model, copy_model(model), _one_unit(model, group), call)
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
        LayerCut(
            m.layer,
            m.dim,
            m.positions[0],
            _width(LayerGeometry.of(model.get_submodule(m.layer)), m.dim),
        )
        for m in group.members
    )


def _proof_failure(
    model: nn.Module, small: nn.Module, steps: Sequence[LayerCut], call: Call
) -> str | None:
    """Cut ``small``, a copy of ``model``, and say how it differs from what it must compute.

    A network that does not read some channels computes the same as one that does not have them, so
    the sliced copy is held against a copy whose weights on the removed inputs are zero.
    """
    _cut_all_(small, steps)
    for dtype, tolerance in PROOF_TOLERANCE.items():
        masked, sliced = copy_model(model).eval(), copy_model(small).eval()
        for step in steps:
            if step.dim == "in":
                _zero_inputs(masked.get_submodule(step.layer), step.removed)
        try:
            expected = _outputs(masked.to(dtype), call, dtype)
        except Exception:
            continue
        try:
            found = _outputs(sliced.to(dtype), call, dtype)
        except Exception as err:
            return f"the forward pass fails without its channels ({_first_line(err)})"
        return _difference(expected, found, tolerance)
    return None


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]


def _zero_inputs(layer: nn.Module, removed: Sequence[int]) -> None:
    weight: Tensor = layer.weight.data  # type: ignore[assignment]
    groups = int(getattr(layer, "groups", 1)) if not is_depthwise(layer) else 1
    columns, rows = weight.shape[1], weight.shape[0] // groups
    for index in removed:
        group, column = divmod(index, columns)
        weight[group * rows : (group + 1) * rows, column] = 0


def _outputs(model: nn.Module, call: Call, dtype: torch.dtype) -> list[list[Tensor]]:
    """Return all output tensors at batch sizes 1 and 2, on random values for float inputs."""

    def randomize(copies: int) -> Callable[[Tensor], Tensor]:
        def change(t: Tensor) -> Tensor:
            batch = torch.cat([t] * copies) if t.dim() else t
            return torch.randn_like(batch, dtype=dtype) if t.is_floating_point() else batch

        return change

    results = []
    with torch.no_grad():
        for copies in (1, 2):
            with seeded("proof", copies):
                args, kwargs = map_tensors(call, randomize(copies))
                output = model(*args, **kwargs)
            results.append([t for t in tree_leaves(output) if isinstance(t, Tensor)])
    return results


def _difference(
    expected: list[list[Tensor]], found: list[list[Tensor]], tolerance: float
) -> str | None:
    for wanted, got in zip(expected, found, strict=True):
        if [t.shape for t in wanted] != [t.shape for t in got]:
            return "the shape of the network's output depends on its channels"
        for a, b in zip(wanted, got, strict=True):
            scale = a.abs().max().item() if a.numel() else 0.0
            if not torch.allclose(a, b, rtol=0, atol=tolerance * max(scale, 1e-12), equal_nan=True):
                return "the network mixes its channels in a way that slicing does not follow"
    return None


def _cut_all_(model: nn.Module, steps: Sequence[LayerCut]) -> None:
    """Carry out cuts in place."""
    for step in steps:
        cut_(model.get_submodule(step.layer), step.dim, step.removed)


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
    modules = dict(model.named_modules())
    for step in steps:
        found = LayerGeometry.of(modules[step.layer]) if step.layer in modules else None
        if found is None or _width(found, step.dim) != step.width:
            width = "no such layer" if found is None else f"width {_width(found, step.dim)}"
            raise StateMismatchError(
                f"The plan cuts {step.layer!r} ({step.dim}, width {step.width}); this model has "
                f"{width} there. Apply a plan to the architecture that it was made for."
            )
    _cut_all_(model, steps)


def shrink(model: nn.Module, plan: WidthPlan) -> nn.Module:
    """Return a pruned deep copy of ``model``; see `shrink_`.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> shrink(net, plan_widths(net, torch.zeros(1, 8), 50))(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """
    small = copy_model(model)
    shrink_(small, plan)
    return small
