"""What does closed-form compensation give: at once, after a short recovery, after all of it?

One network is trained for each task and seed, as `scripts.accuracy` does, and cut with the
planner's widths. One JSON line for each target and part; a part that has its line is skipped, so a
stopped run can go on. Parts: "cut" trains nothing, and has torch-pruning's cut of the same size
beside it (by magnitude, one share for all layers); "short" recovers for a sixth of the epochs of
the task, "full" for all of them, both with and without compensation, on the same batches.

    python -m scripts.compensation.run lines.jsonl --tasks letter_mlp --seeds 60 61 62
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from pbcompress.pruning.shrinking import shrink
from scripts.accuracy.grid import OFF, TASKS
from scripts.accuracy.run import Bench, train
from scripts.lines import append_line, read_lines
from scripts.speed.peer import NothingPrunedError, Peer

QUICK = (
    *("letter_mlp", "digits_mlp", "penbased_mlp", "satimage_mlp", "digits_resnet", "watch_cnn"),
    *("digits_mobilenet", "r8_transformer", "fashion_1200", "mnist_1200", "r8_minilm"),
)
PARTS = {"cut": 0.0, "short": 1 / 6, "full": 1.0}  # share of the epochs
TARGETS = (0.75, 0.5, 0.25)
SEEDS = (60, 61, 62)


def part_of(bench: Bench, plan: pb.WidthPlan, share: float) -> dict[str, Any]:
    """Return the scores of each way, after some share of the epochs."""
    arms = {
        "cut": plainly,
        "reestimated": reestimated,
        "torch-pruning": pruned,
        "compensated": compensated,
        "both": both,
    }
    if share:
        arms = {"plain": reestimated, "compensated": both}
    found: dict[str, Any] = {"epochs": 0}
    for name, make in arms.items():
        started = time.process_time()
        try:
            small = make(bench, plan)
        except NothingPrunedError as err:
            found[name] = {"none": str(err)}
            continue
        found[f"{name} seconds"] = round(time.process_time() - started, 2)
        if share:
            epochs = max(1, round(share * bench.task.epochs))
            train(small, bench.data, OFF, [epochs], bench.seed, lr=bench.task.lr)
            found["epochs"] = epochs
        found[name] = bench.score(small)
    return found


def plainly(bench: Bench, plan: pb.WidthPlan) -> nn.Module:
    """Return the cut network as it is."""
    return shrink(bench.model, plan).eval()


def reestimated(bench: Bench, plan: pb.WidthPlan) -> nn.Module:
    """Return it with BatchNorm statistics measured anew."""
    small = plainly(bench, plan)
    pb.reestimate_batchnorm_(small, bench.data, seed=bench.seed)
    return small


def pruned(bench: Bench, plan: pb.WidthPlan) -> nn.Module:
    """Return torch-pruning's network of this size, with BatchNorm statistics measured anew."""
    try:
        small = Peer(bench.model, bench.example, round_to=1).network(plan.cost_after.params)
    except Exception as err:  # what the pruner cannot do is a finding
        raise NothingPrunedError(f"{type(err).__name__}: {err}") from err
    pb.reestimate_batchnorm_(small, bench.data, seed=bench.seed)
    return small


def compensated(bench: Bench, plan: pb.WidthPlan) -> nn.Module:
    """Return it compensated."""
    small = plainly(bench, plan)
    pb.compensate_(small, bench.model, plan, bench.data, seed=bench.seed)
    return small


def both(bench: Bench, plan: pb.WidthPlan) -> nn.Module:
    """Return it compensated, and then with BatchNorm statistics measured anew."""
    small = compensated(bench, plan)
    pb.reestimate_batchnorm_(small, bench.data, seed=bench.seed)
    return small


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return what names a line."""
    return tuple(line[name] for name in ("task", "seed", "target", "part"))


def main(argv: Sequence[str] | None = None, bench_of: Callable[..., Bench] = Bench) -> int:
    """Append the lines that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument("--tasks", nargs="+", default=QUICK, choices=list(TASKS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    done = {key_of(line) for line in read_lines(options.lines)}
    for seed in options.seeds:
        for task in options.tasks:
            keys = [(task, seed, t, p) for p in options.parts for t in options.targets]
            keys = [key for key in keys if key not in done]
            if not keys:
                continue
            bench = bench_of(task, seed, options.folder)
            for _, _, target, part in keys:
                plan = pb.plan_widths(bench.model, bench.example, target)
                line = {"task": task, "seed": seed, "target": target, "part": part}
                line |= {"params": plan.cost_after.params, "base": bench.scores}
                append_line(options.lines, line | part_of(bench, plan, PARTS[part]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
