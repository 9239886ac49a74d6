"""Bounds on latency beside rounding by hand: how fast they are found, and what is left.

For each network and each share of the original's latency, in ONNX Runtime (one thread, batch 1):

- "bound": `Budget(latency_ms=share)`, with two allocations. How near is what was measured to the
  bound and to the prediction, what did planning cost, and how many parameters are left?
- "hand": uniform widths in multiples of 8, their parameters bisected until the network just keeps
  to the same latency, as somebody would do it who rounds by hand and times every network.

And "expected": half and a quarter of the parameters with several roundings; how far is
`plan.expected_speedup`, which no timing went into, from what is measured?

Ratios and processor time alone are noted: other work on the machine changes milliseconds.

    python -m scripts.speed.bounds lines.jsonl
    python -m scripts.speed.bounds lines.jsonl --tables
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from pbcompress.core.inputs import as_call
from pbcompress.planning.export_bench import ExportBench
from pbcompress.recipes.demo import make_network
from scripts.lines import Line, append_line, read_lines
from scripts.planner.networks import Entry
from scripts.speed.bounded import table
from scripts.speed.by_hand import MULTIPLE, plan_by_hand, share_left
from scripts.speed.networks import networks

SHARES = (0.5, 0.7)
ALLOCATIONS = ("balanced", "uniform")
BOUNDED = ("mobilenet_v2", "resnet18")
EXPECTED = (
    *(("uniform", share, multiple) for share in (0.5, 0.25) for multiple in (1, 8)),
    ("balanced", 0.5, 1),
)


def _perceptron() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    return nn.Sequential(*layers)


def _series_network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for in_, out, kernel in ((1, 32, 7), (32, 64, 5), (64, 128, 3)):
        conv = nn.Conv1d(in_, out, kernel, padding=kernel // 2)
        layers += [conv, nn.BatchNorm1d(out), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 10))


def all_networks() -> dict[str, Entry]:
    """Return all networks by name."""
    more = (_perceptron, (64,)), (_series_network, (1, 1024)), (make_network, (1, 8, 8))
    names = ("perceptron", "series", "digits")
    return networks() | {
        name: Entry(name, lambda make=make: make().eval(), partial(_normal, shape))
        for name, (make, shape) in zip(names, more, strict=True)
    }


def _normal(shape: tuple[int, ...], batch: int) -> tuple[torch.Tensor]:
    return (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)),)


def bound(model: nn.Module, inputs: Any, share: float, allocation: str) -> Line:
    """Ask for a share of the original's latency."""
    plain = _seconds(lambda: pb.plan_widths(model, inputs, 0.5))
    config, found = pb.WidthConfig(allocation=allocation), []  # type: ignore[arg-type]
    budget = pb.Budget(latency_ms=share)
    spent = _seconds(lambda: found.append(pb.plan_widths(model, inputs, budget, config=config)))
    plan, shipped = found[0], found[0].shipped
    return share_left(plan) | {
        "of_bound": shipped.latency_after / (share * shipped.latency_before),
        "predicted": shipped.latency_predicted / shipped.latency_after,
        "seconds": spent,
        "plain_plans": spent / plain,
        "round_to": shipped.round_to,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the processor that something takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def hand(model: nn.Module, inputs: Any, share: float) -> Line:
    """Round by hand; see `plan_by_hand`."""
    plan, of_bound = plan_by_hand(model, inputs, share)
    return share_left(plan) | {"of_bound": of_bound}


def expected(model: nn.Module, inputs: Any) -> list[Line]:
    """Compare what plans promise with what is measured."""
    lines = []
    with ExportBench(model, as_call(inputs), ()) as bench:
        for allocation, share, multiple in EXPECTED:
            config = pb.WidthConfig(allocation=allocation, round_to=multiple)  # type: ignore[arg-type]
            plan = pb.plan_widths(model, inputs, share, config=config)
            after = bench.measure(pb.shrink(model, plan)).milliseconds
            lines.append(
                {
                    "arm": f"{allocation} {share:.0%}, multiples of {multiple}",
                    "expected": plan.expected_speedup,
                    "speed_up": bench.original.milliseconds / after,
                    "flop_ratio": plan.cost_before.flops / plan.cost_after.flops,
                }
            )
    return lines


def run(path: Path) -> None:
    """Measure what the file does not have yet."""
    entries = all_networks()
    jobs: list[tuple[str, str, float, str]] = [
        (name, "bound", share, allocation)
        for name in BOUNDED
        for share in SHARES
        for allocation in ALLOCATIONS
    ]
    jobs += [(name, "hand", share, "uniform") for name in BOUNDED for share in SHARES]
    jobs += [(name, "expected", 0.0, "") for name in entries]
    done = {(r["name"], r["question"], r["share"], r["allocation"]) for r in _own(read_lines(path))}
    for job in jobs:
        if job in done:
            continue
        name, question, share, allocation = job
        model, inputs, found = entries[name].make(), entries[name].inputs(1), []
        if question == "bound":
            found = [bound(model, inputs, share, allocation)]
        elif question == "hand":
            found = [hand(model, inputs, share)]
        else:
            found = expected(model, inputs)
        key = {"name": name, "question": question, "share": share, "allocation": allocation}
        for line in found:
            append_line(path, key | line)
            print(key | line, file=sys.stderr)


def tables(lines: Sequence[Line]) -> str:
    """Return the section of docs/benchmarks/latency.md."""
    own = _own(lines)
    parts = [*_bounds_table(own), "", *table(lines), "", *_expected_table(own)]
    return "\n".join(parts).rstrip() + "\n"


def _own(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of other questions than that of `bounded.py`."""
    return [line for line in lines if line["question"] != "trained"]


def _bounds_table(lines: Sequence[Line]) -> list[str]:
    rows = [
        "## A bound on latency beside rounding by hand",
        "",
        "| network | latency asked | how | measured / bound | predicted / measured |"
        " parameters left | FLOPs left | plain plans | processor s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in (r for r in lines if r["question"] in ("bound", "hand")):
        is_hand = r["question"] == "hand"
        how = f"by hand, multiples of {MULTIPLE}" if is_hand else f"bound, {r['allocation']}"
        spent = "- | -" if is_hand else f"{r['plain_plans']:.1f} | {r['seconds']:.1f}"
        rows.append(
            f"| {r['name']} | {r['share']:.0%} | {how} | {r['of_bound']:.3f} | "
            f"{'-' if is_hand else format(r['predicted'], '.3f')} | {r['params']:.1%} | "
            f"{r['flops']:.1%} | {spent} |"
        )
    return rows


def _expected_table(lines: Sequence[Line]) -> list[str]:
    told = [r for r in lines if r["question"] == "expected"]
    if not told:
        return []
    rows = [
        "## The speed-up that a plan expects",
        "",
        "| network | widths | FLOP ratio | expected | measured | expected / measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    errors = sorted(abs(r["expected"] / r["speed_up"] - 1) for r in told)
    for r in told:
        rows.append(
            f"| {r['name']} | {r['arm']} | {r['flop_ratio']:.2f} | {r['expected']:.2f} | "
            f"{r['speed_up']:.2f} | {r['expected'] / r['speed_up']:.2f} |"
        )
    near = sum(error <= 0.2 for error in errors) / len(errors)
    rows += [
        "",
        f"{len(errors)} plans: off by {statistics.median(errors):.1%} in the median, by at most "
        f"{errors[int(0.9 * (len(errors) - 1))]:.1%} for nine of ten, {errors[-1]:.1%} for the "
        f"worst; {near:.0%} are within 20 %.",
    ]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--tables", action="store_true", help="print the tables of the lines")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    if arguments.tables:
        print(tables(read_lines(arguments.lines)), end="")
    else:
        run(arguments.lines)


if __name__ == "__main__":
    main()
