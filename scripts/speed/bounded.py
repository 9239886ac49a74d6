"""Trained networks at half of the latency: a bound beside rounding by hand, in accuracy.

Both start from the same trained network and get the same optimizer steps, each at a learning rate
of its own and with averaged weights. "bound" is `Budget(latency_ms=0.5)`; "hand" is as in
`bounds.py`. Weights are chosen on the validation split; the test split is scored once.

    pbcompress zoo fetch all
    python -m scripts.speed.bounded bounds.jsonl --folder data

Its lines may stand in the file of `bounds.py`, which makes the table of both.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch

import pbcompress as pb
from scripts.accuracy.run import Bench, parser_of
from scripts.lines import append_line, read_lines
from scripts.paired import paired
from scripts.speed.by_hand import plan_by_hand, share_left
from scripts.speed.trained import recovered, timed

__all__ = ["table"]

NAMES = ("digits_resnet_400",)
SHARE = 0.5
BOUND, HAND = "bound", "hand"


def line_of(bench: Bench, arm: str, share: float) -> dict[str, Any]:
    """Return the line of an arm."""
    example = timed(bench.example)
    if arm == BOUND:
        plan = pb.plan_widths(bench.model, example, pb.Budget(latency_ms=share))
        shipped = plan.shipped
        assert shipped is not None
        of_bound = shipped.latency_after / (share * shipped.latency_before)
    else:
        plan, of_bound = plan_by_hand(bench.model, example, share)
    network = pb.shrink(bench.model, plan)
    scores = recovered(bench, network) | {"of_bound": of_bound}
    line = bench.line(arm, share, scores | share_left(plan))
    return line | {"question": "trained"}


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of both, with the difference between them.

    Raises:
        ValueError: The arms of a run took other numbers of steps.
    """
    runs: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for line in lines:
        if line["question"] == "trained":
            runs.setdefault(line["task"], {}).setdefault(line["arm"], {})[line["seed"]] = line
    if not runs:
        return []
    rows = [
        f"Trained networks at {SHARE:.0%} of the latency, with the same steps; means over seeds:",
        "",
        "| task | seeds | bound: measured / bound, parameters, FLOPs, test | by hand: the same "
        "| difference, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, arms in runs.items():
        seeds = sorted(arms[BOUND].keys() & arms[HAND].keys())
        both = [[arms[arm][seed] for seed in seeds] for arm in (BOUND, HAND)]
        if [line["steps"] for line in both[0]] != [line["steps"] for line in both[1]]:
            raise ValueError(f"{task}: the arms cannot be compared")
        points = [{line["seed"]: 100 * line["test"] for line in own} for own in both]
        difference = str(paired(*points)) if len(seeds) > 1 else ""
        rows.append(f"| {' | '.join([task, str(len(seeds)), *map(_cell, both), difference])} |")
    return rows


def _cell(lines: Sequence[dict[str, Any]]) -> str:
    def mean(name: str) -> float:
        return sum(float(line[name]) for line in lines) / len(lines)

    return (
        f"{mean('of_bound'):.3f}, {mean('params'):.1%}, {mean('flops'):.1%}, "
        f"{100 * mean('test'):.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for and not yet there."""
    parser = parser_of(__doc__, tasks=NAMES, targets=(SHARE,), seeds=range(3))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {
        (line["task"], line["seed"], line["arm"])
        for line in read_lines(options.lines)
        if line["question"] == "trained"
    }
    for seed in options.seeds:
        for name in options.tasks:
            arms = [arm for arm in (BOUND, HAND) if (name, seed, arm) not in done]
            bench = Bench(name, seed, options.folder) if arms else None
            for arm in arms:
                assert bench is not None
                line = line_of(bench, arm, SHARE)
                append_line(options.lines, line)
                print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
