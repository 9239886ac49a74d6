"""Speed at the same accuracy: our widths and torch-pruning in eights on trained networks.

All start from the same trained network, get the same size and the same optimizer steps, and are
then timed in turn with the original. torch-pruning comes as near to the target as its steps of 8
allow, and the default and "fast" are asked for the size that it reached. Nothing grows. Weights
are chosen on the validation split; the test split is scored once.

    pbcompress zoo fetch cifar10
    python -m scripts.speed.trained lines.jsonl --folder data --seeds 0 1 2 3 4

Its lines may stand in the file of `run.py`.
"""

import sys
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch

import pbcompress as pb
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from scripts.accuracy.grid import OFF, TASKS
from scripts.accuracy.run import Bench, parser_of, train
from scripts.lines import append_line, read_lines
from scripts.planner.networks import Inputs
from scripts.speed.arms import OURS, PEER, WIDTHS
from scripts.speed.peer import Peer
from scripts.speed.run import ORIGINAL, TARGETS
from scripts.speed.timing import speeds

NAMES = ("digits_resnet", "digits_mobilenet", "cifar_5000")
SECONDS = 5.0


def lines_of(bench: Bench, peer: Peer, target: float) -> list[dict[str, Any]]:
    """Return the lines of all arms."""
    example, task = bench.example, bench.task
    base = pb.measure(bench.model, example)
    pruned = peer.network(int(target * base.params))
    reached = pb.measure(pruned, example).params
    networks = {ORIGINAL: bench.model, PEER: pruned}
    for arm in OURS:
        config = pb.CompressConfig(width=pb.WidthConfig(**WIDTHS[arm]), dendrites=OFF)
        plan = pb.plan_widths(bench.model, example, reached, config=config)
        networks[arm] = pb.shrink(bench.model, plan)

    def inputs(batch: int) -> Inputs:
        return (example.expand(batch, *example.shape[1:]).contiguous(),)

    found = {}
    for arm in (*OURS, PEER):
        network, cost = networks[arm], pb.measure(networks[arm], example)
        reestimate_batchnorm_(network, bench.data, pb.Task(), seed=bench.seed)
        steps = train(network, bench.data, OFF, [task.epochs], bench.seed, lr=task.lr)
        sizes = {"params": cost.params, "flops": cost.flops, "base_flops": base.flops}
        found[arm] = {"steps": steps, **sizes, **bench.score(network)}
    timed = speeds(networks, inputs, int8=False, large=True, seconds=SECONDS)
    return [bench.line(arm, target, own | timed[arm]) for arm, own in found.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for and not yet there."""
    parser = parser_of(__doc__, tasks=NAMES, targets=TARGETS, seeds=range(5))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {key_of(line) for line in read_lines(options.lines)}
    for seed in options.seeds:
        for name in TASKS:
            targets = [t for t in options.targets if (name, t, seed) not in done]
            if not targets or not any(fnmatch(name, pattern) for pattern in options.tasks):
                continue
            bench = Bench(name, seed, options.folder)
            peer = Peer(bench.model, bench.example)
            for target in targets:
                for line in lines_of(bench, peer, target):
                    append_line(options.lines, line)
                    print(line, file=sys.stderr)
    return 0


def key_of(line: dict[str, Any]) -> tuple[str | None, float, int | None]:
    """Return what a line is of; lines of `run.py` have no task here."""
    return line.get("task"), line["target"], line.get("seed")


if __name__ == "__main__":
    raise SystemExit(main())
