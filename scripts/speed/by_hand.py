"""Rounding by hand: uniform widths in multiples of 8 that just keep to a latency."""

import statistics
from typing import Any

from torch import nn

import pbcompress as pb
from pbcompress.core.inputs import as_call
from pbcompress.planning.export_bench import ExportBench

__all__ = ["MULTIPLE", "plan_by_hand", "share_left"]

MULTIPLE = 8
BISECTIONS = 7
REPEATS = 3  # of a measurement: one that is off would stop a bisection at the wrong place


def plan_by_hand(model: nn.Module, inputs: Any, share: float) -> tuple[pb.WidthPlan, float]:
    """Return the plan of most parameters that keeps to a share of the latency, and what it has.

    Raises:
        ValueError: None that was tried does.
    """
    config = pb.WidthConfig(allocation="uniform", round_to=MULTIPLE)
    low, high, best = 0.02, 0.98, None
    with ExportBench(model, as_call(inputs), ()) as bench:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            plan = pb.plan_widths(model, inputs, middle, config=config)
            network = pb.shrink(model, plan)
            after = statistics.median(bench.measure(network).milliseconds for _ in range(REPEATS))
            of_bound = after / (share * bench.original.milliseconds)
            if of_bound <= 1:
                low, best = middle, (plan, of_bound)
            else:
                high = middle
    if best is None:
        raise ValueError(f"no network in multiples of {MULTIPLE} has {share:.0%} of the latency")
    return best


def share_left(plan: pb.WidthPlan) -> dict[str, float]:
    """Return the shares of the parameters and FLOPs that a plan leaves."""
    before, after = plan.cost_before, plan.cost_after
    return {"params": after.params / before.params, "flops": after.flops / before.flops}
