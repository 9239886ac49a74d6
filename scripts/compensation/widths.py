"""Do Gram matrices say where width goes, and which channels? Against the planner's rule.

At the same number of parameters: the planner's widths or those by equal price, channels by
magnitude or greedily by what the others do not explain. All are compensated and have BatchNorm
measured anew; scored at once and after a short recovery. Lines as in `run.py`.

    python -m scripts.compensation.widths widths.jsonl --tasks letter_mlp --seeds 60 61 62
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import pbcompress as pb
from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.modules import copy_model
from pbcompress.planning.importance import unit_scores
from pbcompress.planning.width_search import cuts_of
from pbcompress.pruning.shrinking import shrink
from pbcompress.structure.channel_groups import ChannelGroup, find_groups
from scripts.accuracy.grid import OFF
from scripts.accuracy.run import Bench, train
from scripts.compensation.prices import curves_of, widths_of
from scripts.compensation.run import SEEDS, TARGETS
from scripts.lines import append_line, read_lines

TASKS = ("letter_mlp", "digits_mlp", "digits_resnet", "watch_cnn")
BATCHES = 8


@dataclass(frozen=True)
class Cuts:
    """Cuts alone, in place of a plan."""

    steps: tuple[pb.LayerCut, ...]
    stated: Mapping[str, int] = field(default_factory=dict)


def lines_of(bench: Bench, target: float) -> Iterator[dict[str, Any]]:
    """Yield the result of each way."""
    model, example = copy_model(bench.model).eval(), bench.example
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed)
        grouping = find_groups(copy_model(model), single_sample(as_call(example)))
        curves = curves_of(model, grouping, list(islice(bench.data.train, BATCHES)))
    scores = unit_scores(model, grouping.groups)
    plan = pb.plan_widths(bench.model, example, target)
    small = shrink(model, plan)
    planned = [_units_left(group, plan) for group in grouping.groups]
    assert pb.measure(small, example).params == plan.cost_after.params
    priced = widths_of(model, grouping, curves, plan.cost_after.params)
    for where, widths in (("rule", planned), ("price", priced)):
        for which in ("magnitude", "greedy"):
            removed = {}
            for group, width in zip(grouping.groups, widths, strict=True):
                order = scores[group.name].argsort(descending=True, stable=True).tolist()
                if which == "greedy" and curves[group.name].errors[0]:
                    order = curves[group.name].order
                if width < group.width:
                    removed[group.name] = order[width:]
            cuts = Cuts(cuts_of(model, grouping, removed))
            found = {"widths": where, "channels": which, "shares": widths}
            yield found | scored(bench, cuts)


def _units_left(group: ChannelGroup, plan: pb.WidthPlan) -> int:
    member = group.members[0]
    cuts = (s for s in plan.steps if (s.layer, s.dim) == (member.layer, member.dim))
    gone = {index for cut in cuts for index in cut.removed}
    return sum(not gone.intersection(unit) for unit in member.positions.tolist())


def scored(bench: Bench, cuts: Cuts) -> dict[str, Any]:
    """Return the scores at once and after a sixth of the epochs."""
    small = shrink(bench.model, cuts).eval()
    pb.compensate_(small, bench.model, cuts, bench.data, seed=bench.seed)
    pb.reestimate_batchnorm_(small, bench.data, seed=bench.seed)
    cost = pb.measure(small, bench.example)
    found = {"params": cost.params, "flops": cost.flops, "compensated": bench.score(small)}
    epochs = max(1, round(bench.task.epochs / 6))
    train(small, bench.data, OFF, [epochs], bench.seed, lr=bench.task.lr)
    return found | {"short": bench.score(small)}


def main(argv: Sequence[str] | None = None, bench_of: Callable[..., Bench] = Bench) -> int:
    """Append the lines that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    done = {(line["task"], line["seed"], line["target"]) for line in read_lines(options.lines)}
    for seed in options.seeds:
        for task in options.tasks:
            targets = [t for t in options.targets if (task, seed, t) not in done]
            if not targets:
                continue
            bench = bench_of(task, seed, options.folder)
            for target in targets:
                about = {"task": task, "seed": seed, "target": target, "base": bench.scores}
                for line in list(lines_of(bench, target)):
                    append_line(options.lines, about | line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
