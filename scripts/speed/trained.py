"""Speed at the same accuracy: our widths and torch-pruning in eights on trained networks.

All start from the same trained network, get the same size and the same optimizer steps, each at a
learning rate of its own and with averaged weights, and are timed in turn with the original.
torch-pruning comes as near to the target as its steps of 8 allow, and all others are asked for the
size that it reached. The copy that `compress` fits in closed form, and takes where a training does
not beat it, is left out. Weights are chosen on the validation split; the test split is scored once.

    pbcompress zoo fetch all
    python -m scripts.speed.trained lines.jsonl --folder data --seeds 0 1 2 3 4

Its lines may stand in the file of `run.py`.
"""

import sys
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.functional import interpolate

import pbcompress as pb
from pbcompress.planning.proportions import SPEED
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from scripts.accuracy.grid import TASKS
from scripts.accuracy.run import Bench, parser_of
from scripts.lines import append_line, read_lines
from scripts.planner.networks import Inputs
from scripts.speed.arms import PEER, PRICES
from scripts.speed.peer import Peer
from scripts.speed.run import ORIGINAL, TARGETS
from scripts.speed.timing import speeds

__all__ = ["recovered", "timed"]

NAMES = ("digits_resnet_400", "fashion_mobilenet_1200", "r8_transformer")
SECONDS = 1.5
SIDE = 32  # of images that are timed: on those of 8 x 8 nearly all of the time is calls


def lines_of(bench: Bench, peer: Peer, target: float, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lines of arms."""
    example = bench.example
    base = pb.measure(bench.model, example)
    pruned = peer.network(int(target * base.params))
    reached = pb.measure(pruned, example).params
    networks: dict[str, nn.Module] = {ORIGINAL: bench.model}
    found: dict[str, dict[str, Any]] = {}
    for arm in (own for own in PRICES if own in arms):
        with patch.dict(SPEED, balanced=PRICES[arm]):
            plan = pb.plan_widths(bench.model, example, reached)
        network = pb.shrink(bench.model, plan)
        twin = next((old for old in found if _sizes(networks[old]) == _sizes(network)), None)
        if twin is None:
            networks[arm], found[arm] = network, recovered(bench, network)
        else:  # the same widths are the same run
            networks[arm], found[arm] = networks[twin], dict(found[twin])
    if PEER in arms:
        networks[PEER], found[PEER] = pruned, recovered(bench, pruned)
    for arm, line in found.items():
        cost = pb.measure(networks[arm], example)
        line |= {"params": cost.params, "flops": cost.flops, "base_flops": base.flops}

    def inputs(batch: int) -> Inputs:
        return (timed(example).expand(batch, *timed(example).shape[1:]).contiguous(),)

    found_speeds = speeds(networks, inputs, int8=False, large=True, seconds=SECONDS)
    return [bench.line(arm, target, own | found_speeds[arm]) for arm, own in found.items()]


def recovered(bench: Bench, network: nn.Module) -> dict[str, Any]:
    """Train a network in place as `compress` does, and return its scores."""
    reestimate_batchnorm_(network, bench.data, pb.Task(), seed=bench.seed)
    lengths = [bench.task.epochs]
    steps = pb.recover_(network, bench.data, seed=bench.seed, lengths=lengths).steps
    return {"steps": steps, **bench.score(network)}


def _sizes(network: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in network.parameters()]


def timed(example: torch.Tensor) -> torch.Tensor:
    """Return what a network is timed on: small images are scaled up."""
    if example.dim() == 4 and example.shape[-1] < SIDE:
        return interpolate(example, (SIDE, SIDE))
    return example


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for and not yet there."""
    parser = parser_of(__doc__, tasks=NAMES, targets=TARGETS, seeds=range(5))
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {key_of(line) for line in read_lines(options.lines)}
    for seed in options.seeds:
        for name in TASKS:
            if not any(fnmatch(name, pattern) for pattern in options.tasks):
                continue
            asked = [own for own in (*PRICES, PEER) if any(fnmatch(own, p) for p in options.arms)]
            open_arms = {
                target: [own for own in asked if (name, target, seed, own) not in done]
                for target in options.targets
            }
            if not any(open_arms.values()):
                continue
            bench = Bench(name, seed, options.folder)
            peer = Peer(bench.model, bench.example)
            for target, arms in open_arms.items():
                for line in lines_of(bench, peer, target, arms) if arms else ():
                    append_line(options.lines, line)
                    print(line, file=sys.stderr)
    return 0


def key_of(line: dict[str, Any]) -> tuple[str | None, float, int | None, str]:
    """Return what a line is of; lines of `run.py` have no task here."""
    return line.get("task"), line["target"], line.get("seed"), line["arm"]


if __name__ == "__main__":
    raise SystemExit(main())
