"""Bounds that only a measurement can confirm: the latency and the size of the exported network.

Predict, measure, and solve again with what was learned. What is returned was measured, and proven:
the networks on the way to it are not, beyond the first.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from torch import nn

from pbcompress.core.inputs import Call
from pbcompress.costs.bounds import Cost
from pbcompress.costs.closed_form import Widths
from pbcompress.costs.exported_model import Calibration, layer_kinds
from pbcompress.costs.latency_model import NANOSECONDS, LayerKind, Measured, Shipped
from pbcompress.costs.measured import ModelCost
from pbcompress.costs.operator_table import Machine
from pbcompress.errors import TargetUnreachableError
from pbcompress.planning.width_search import Request
from pbcompress.structure.channel_groups import Grouping

__all__ = ["Bench", "MeasuredBudget", "OpenBench", "Plan", "Planner", "confirmed", "fastest"]

# Of a latency bound, round by round: half of all measurements lie above the prediction. The first
# one is a guess from the original alone.
AIMS = (0.97, 0.98, 0.975, 0.97, 0.965, 0.95, 0.93)
NEAR = 0.95  # of a bound: enough to stop


class Plan(Protocol):
    """What is proposed."""

    @property
    def cost_before(self) -> ModelCost:
        """Cost of the original."""

    @property
    def cost_after(self) -> ModelCost:
        """Cost of the network."""


P = TypeVar("P", bound=Plan)


class Planner(Protocol[P]):
    """Proposes plans for one model."""

    model: nn.Module
    grouping: Grouping

    def propose(self, request: Request, smallest: bool = False) -> tuple[P, Widths]:
        """Return a proven plan that keeps to a request, or the smallest, with its widths."""

    def sketch(self, request: Request) -> tuple[P, Widths]:
        """Return a plan that keeps to a request and is not proven yet, with its widths."""

    def holds(self, plan: P, widths: Widths) -> bool:
        """Prove a plan; leave alone from now on what its proof finds guilty."""

    def network_of(self, plan: P) -> nn.Module:
        """Return the network of a plan, with the dendrites that it has room for."""


class Bench(Protocol):
    """Measures networks beside an original."""

    threads: int
    original: Measured

    @property
    def machine(self) -> Machine:
        """The table of operators."""

    def measure(self, network: nn.Module) -> Measured:
        """Measure a network."""

    def multiples(self, kinds: Sequence[LayerKind]) -> Mapping[LayerKind, int]:
        """Return which multiples the runtime is fast with, as measured on this machine."""


# Opens a bench for an original, the inputs of one sample, and the layers to tell the time of;
# and, as the last, whether files are to have the size of what ships.
OpenBench = Callable[[nn.Module, Call, Collection[str], bool], AbstractContextManager[Bench]]


@dataclass(frozen=True)
class MeasuredBudget:
    """Bounds on what ships, in counts.

    Attributes:
        milliseconds: Most milliseconds, or None.
        file_bytes: Most bytes, or None.
    """

    milliseconds: float | None
    file_bytes: int | None

    @staticmethod
    def of(
        latency_ms: float | None, file_bytes: float | None, original: Measured
    ) -> "MeasuredBudget":
        """Resolve bounds, shares of the original among them.

        Raises:
            TargetUnreachableError: A bound is not above zero and below the original.
        """
        size = _resolved("file_bytes", file_bytes, original.file_bytes)
        time = _resolved("latency_ms", latency_ms, original.milliseconds)
        return MeasuredBudget(time, None if size is None else int(size))

    def shares(self, measured: Measured) -> dict[str, float]:
        """Return the share of every bound that a network uses; at most 1 fits."""
        shares = {}
        if self.milliseconds is not None:
            shares["milliseconds"] = measured.milliseconds / self.milliseconds
        if self.file_bytes is not None:
            shares["file_bytes"] = measured.file_bytes / self.file_bytes
        return shares

    def fits(self, measured: Measured) -> bool:
        """Tell whether a network keeps to all bounds."""
        return max(self.shares(measured).values(), default=0.0) <= 1


def _resolved(name: str, asked: float | None, full: float) -> float | None:
    if asked is None:
        return None
    bound = asked * full if 0 < asked < 1 else asked
    if not 0 < bound < full:
        raise TargetUnreachableError(
            f"A target of {asked!r} {name} was asked for; the original has {full:,.6g} as measured "
            "here. Ask for a number below that, or a share between 0 and 1.",
            smallest=None,
        )
    return bound


@dataclass(frozen=True)
class _Trial(Generic[P]):
    """A plan that was exported and measured, with what had been predicted of it."""

    plan: P
    widths: Widths
    measured: Measured
    milliseconds: float | None = None
    file_bytes: int | None = None


def _multiple(planner: Planner[P], bench: Bench) -> int:
    """Return the multiple that is fast in all layers of a network."""
    kinds = sorted(set(layer_kinds(planner.model, planner.grouping).values()))
    return max(bench.multiples(kinds).values(), default=1)


def fastest(planner: Planner[P], bench: Bench, request: Request) -> tuple[P, Shipped]:
    """Return the faster of the plans with and without rounding, for bounds that are counted."""
    timed = []
    for multiple in dict.fromkeys((_multiple(planner, bench), 1)):
        plan, widths = planner.propose(replace(request, round_to=multiple))
        timed.append((multiple, _Trial(plan, widths, bench.measure(planner.network_of(plan)))))
    multiple, trial = min(timed, key=lambda entry: entry[1].measured.milliseconds)
    return trial.plan, _shipped(trial, bench, multiple)


def confirmed(
    planner: Planner[P], bench: Bench, request: Request, budget: MeasuredBudget, rounds: bool
) -> tuple[P, Shipped]:
    """Return the largest plan that was measured to keep to all bounds.

    Args:
        planner: Of the model.
        bench: Its original measured.
        request: The bounds that are counted.
        budget: The bounds that are measured, at least one.
        rounds: Whether the multiple of widths is to be measured.

    Raises:
        TargetUnreachableError: A bound is below the smallest reachable network, whose cost
            ``.smallest`` is, in the unit of the bound.
    """
    return _Confirmation(planner, bench, request, budget, rounds).result()


class _NoProofError(Exception):
    """A plan could not be measured, and does not hold either."""


class _Confirmation(Generic[P]):
    """The rounds of one search: everything measured so far, and the models learned from it."""

    def __init__(
        self,
        planner: Planner[P],
        bench: Bench,
        request: Request,
        budget: MeasuredBudget,
        rounds: bool,
    ) -> None:
        self.planner, self.bench, self.budget = planner, bench, budget
        self.request = request
        if rounds:
            self.request = replace(request, round_to=_multiple(planner, bench))
        self.calibration = Calibration(
            planner.model, planner.grouping, bench.machine, bench.original
        )
        self.trials: list[_Trial[P]] = []

    def result(self) -> tuple[P, Shipped]:
        """Search, and prove what was found; search again where the proof leaves groups alone."""
        self.planner.propose(self.request)  # refuses bounds on counts first, and guilty groups
        while True:
            with suppress(_NoProofError):
                best = self._found()
                if self.planner.holds(best.plan, best.widths):
                    return best.plan, _shipped(best, self.bench, self.request.round_to or 1)
            self.trials = []  # their widths are those of other groups

    def _found(self) -> _Trial[P]:
        """Propose, measure and learn until a plan fits and is near a bound."""
        for aim in AIMS:
            try:
                plan, widths = self.planner.sketch(self._bounded(aim))
            except TargetUnreachableError:  # as predicted; the smallest tells more
                known = len(self.trials)
                self._smallest()
                if len(self.trials) == known:
                    break
                continue
            if any(widths == trial.widths for trial in self.trials):
                continue
            if self._is_near(self._measure(plan, widths)):
                break
        return self._best()

    def _best(self) -> _Trial[P]:
        """Return the largest plan that fits, of those near a bound where there are some."""
        fitting = [trial for trial in self.trials if self.budget.fits(trial.measured)]
        near = [trial for trial in fitting if self._is_near(trial)]
        candidates = near or fitting or [self._smallest()]
        return max(candidates, key=lambda trial: trial.plan.cost_after.params)

    def _is_near(self, trial: _Trial[P]) -> bool:
        return NEAR <= max(self.budget.shares(trial.measured).values()) <= 1

    def _measure(self, plan: P, widths: Widths) -> _Trial[P]:
        grouping = self.planner.grouping
        time = size = None
        if self.budget.milliseconds is not None:
            time = self.calibration.latency(grouping).total(widths) / NANOSECONDS
        if self.budget.file_bytes is not None:
            size = self.calibration.file_bytes(grouping).total(widths)
        try:
            measured = self.bench.measure(self.planner.network_of(plan))
        except Exception as err:
            if self.planner.holds(plan, widths):
                raise
            raise _NoProofError from err
        self.calibration.add(grouping, widths, measured)
        self.trials.append(_Trial(plan, widths, measured, time, size))
        return self.trials[-1]

    def _smallest(self) -> _Trial[P]:
        plan, widths = self.planner.propose(self.request, smallest=True)
        known = [trial for trial in self.trials if trial.widths == widths]
        trial = known[0] if known else self._measure(plan, widths)
        if not self.budget.fits(trial.measured):
            raise self._unreachable(trial)
        return trial

    def _bounded(self, aim: float) -> Request:
        """Return the request with the closed forms that were learned, at a share of the time."""
        costs: list[tuple[Callable[[Grouping], Cost], int]] = []
        if self.budget.milliseconds is not None:
            limit = int(aim * self.budget.milliseconds * NANOSECONDS)
            costs.append((self.calibration.latency, limit))
        if self.budget.file_bytes is not None:
            costs.append((self.calibration.file_bytes, self.budget.file_bytes))
        return replace(self.request, costs=[*self.request.costs, *costs])

    def _unreachable(self, smallest: _Trial[P]) -> TargetUnreachableError:
        shares = self.budget.shares(smallest.measured)
        name = max(shares, key=shares.__getitem__)
        measured = smallest.measured
        if name == "milliseconds":
            by_layer: Mapping[str, float] = measured.by_layer
            reached: float = measured.milliseconds
            asked, found, unit = f"{self.budget.milliseconds:.4g}", f"{reached:.4g}", "ms"
        else:
            costs = smallest.plan.cost_after.by_layer
            by_layer = {layer: 4 * cost.params for layer, cost in costs.items()}
            reached = measured.file_bytes
            asked, found, unit = f"{self.budget.file_bytes:,}", f"{reached:,}", "bytes"
        layer = max(by_layer, key=by_layer.__getitem__, default="")
        return TargetUnreachableError(
            f"A target of {asked} {unit} was asked for; the smallest reachable network has {found} "
            f"{unit} as measured here, the largest part of a layer in "
            f"{layer or 'the model itself'!r} ({by_layer.get(layer, 0.0):,.4g} {unit}). Ask for "
            "at least that, or allow narrower layers (WidthConfig.max_ratio, min_width, round_to).",
            smallest=reached,
        )


def _shipped(trial: _Trial[P], bench: Bench, multiple: int) -> Shipped:
    return Shipped(
        latency_before=bench.original.milliseconds,
        latency_after=trial.measured.milliseconds,
        latency_predicted=trial.milliseconds,
        bytes_before=bench.original.file_bytes,
        bytes_after=trial.measured.file_bytes,
        bytes_predicted=trial.file_bytes,
        round_to=multiple,
        threads=bench.threads,
    )
