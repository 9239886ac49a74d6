"""A plan as JSON data, each value checked by its type when it is read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pbcompress.config.budget import Budget
from pbcompress.config.whole import CompressConfig
from pbcompress.core.json_documents import damage_named, parse
from pbcompress.core.records import from_data
from pbcompress.costs.flop_counters import LayerCost
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import ModelCost
from pbcompress.planning.planner import Solution
from pbcompress.pruning.cuts import LayerCut
from pbcompress.pruning.unit_choice import Places, UnitChoice

__all__ = ["KIND", "VERSION", "Parts", "plan_data", "plan_parts"]

KIND, VERSION = "pbcompress plan", 2
WHERE = "The plan"
Parts = tuple[Solution, CompressConfig, Budget]


@dataclass(frozen=True)
class _Cost:
    """As `ModelCost.to_dict` writes it."""

    params: int
    flops: int
    uncounted_ops: Mapping[str, int]
    input_shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, LayerCost]
    by_operation: Mapping[str, int] = field(default_factory=dict)
    dispatched: Mapping[str, int] | None = None

    def cost(self) -> ModelCost:
        return ModelCost(
            params=self.params,
            flops=self.flops,
            uncounted_ops=self.uncounted_ops,
            input_shapes=self.input_shapes,
            by_layer=self.layers,
            by_operation=self.by_operation,
            dispatched=self.dispatched,
        )


@dataclass(frozen=True)
class _Choice:
    """As `UnitChoice.to_dict` writes it."""

    name: str
    width: int
    kept: int
    members: tuple[tuple[str, str, int, int, tuple[int, ...]], ...]

    def choice(self) -> UnitChoice:
        members = tuple(Places(*member) for member in self.members)
        return UnitChoice(self.name, self.width, self.kept, members)


@dataclass(frozen=True)
class _Bounds:
    params: int
    flops: int | None


@dataclass(frozen=True)
class _Plan:
    """As `plan_data` writes it, beside its kind and version."""

    steps: tuple[tuple[str, str, int, tuple[int, ...]], ...]
    before: _Cost
    after: _Cost
    budget: Mapping[str, Any]
    bounds: _Bounds
    reserved_params: int
    grow: Mapping[str, bool]
    left_alone: Mapping[str, str]
    shipped: Shipped | None
    config: Mapping[str, Any]
    expected_speedup: float | None = None
    stated: Mapping[str, int] = field(default_factory=dict)
    proven: str = ""
    choices: tuple[_Choice, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unused: str = ""


def plan_data(solution: Solution, config: CompressConfig, budget: Budget) -> dict[str, Any]:
    """Return a plan as JSON data."""
    return {
        "kind": KIND,
        "version": VERSION,
        "steps": [step.to_list() for step in solution.steps],
        "before": solution.cost_before.to_dict(),
        "after": solution.cost_after.to_dict(),
        "budget": budget.to_dict(),
        "bounds": {"params": solution.target_params, "flops": solution.target_flops},
        "reserved_params": solution.reserved_params,
        "grow": dict(solution.grow),
        "left_alone": dict(solution.left_alone),
        "shipped": asdict(solution.shipped) if solution.shipped else None,
        "expected_speedup": solution.expected_speedup,
        "stated": dict(solution.stated),
        "proven": solution.proven,
        "choices": [choice.to_dict() for choice in solution.choices],
        "names": {first: list(names) for first, names in solution.names.items()},
        "unused": solution.unused,
        "config": config.to_dict(),
    }


def plan_parts(text: str | bytes) -> Parts:
    """Return what `plan_data` was made from.

    Raises:
        StateMismatchError: The text is truncated, changed, of another kind or version, or a value
            is missing, unknown or of another type.
    """
    data = parse(text, KIND, VERSION, WHERE, by_hand=True)
    rest = {name: value for name, value in data.items() if name not in ("kind", "version")}
    kept = from_data(_Plan, rest, WHERE)
    with damage_named(WHERE, "Save it again"):
        solution = Solution(
            steps=tuple(map(LayerCut.from_list, kept.steps)),
            cost_before=kept.before.cost(),
            cost_after=kept.after.cost(),
            target_params=kept.bounds.params,
            target_flops=kept.bounds.flops,
            reserved_params=kept.reserved_params,
            grow=kept.grow,
            left_alone=kept.left_alone,
            shipped=kept.shipped,
            expected_speedup=kept.expected_speedup,
            stated=kept.stated,
            proven=kept.proven,
            choices=tuple(choice.choice() for choice in kept.choices),
            names=kept.names,
            unused=kept.unused,
        )
        return solution, CompressConfig.from_dict(kept.config), Budget.from_dict(kept.budget)
