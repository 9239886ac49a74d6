"""Context dendrites against width, at equal size and at equal latency.

    python -m scripts.context.run speeds.jsonl --job widths
    python -m scripts.context.run lines.jsonl --job train --widths speeds.jsonl

The first job looks for widths, which do not depend on weights. At equal size the parameters of the
gates are inside the total of the control. At equal latency the network with gates becomes narrower
until it takes at most 3 % longer than the control in ONNX Runtime (batch 1, one thread, files timed
in turn). The second trains each of them from the same trained network, with the same steps and a
learning rate of its own, as `compress` does. Weights are chosen on validation; test is scored once.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders
from pbcompress.export.onnx_export import write_onnx
from pbcompress.onnx_files.session import Session, interleaved_latency
from scripts.accuracy.grid import TASKS
from scripts.accuracy.run import Bench, parser_of
from scripts.context.gates import gate_params, gated, places
from scripts.lines import Line, append_line, read_lines
from scripts.speed.trained import recovered

__all__ = ["ARMS", "CONTROL", "Arm"]

CONTROL = "width"
NAMES = ("watch_cnn", "r8_transformer", "fashion_resnet_1200", "digits_mobilenet")
SLACK = 0.03  # of the control's latency
STEPS = 40  # sizes that are tried, from the target down
ROUNDS, SECONDS, REPEATS = 400, 1.0, 3


@dataclass(frozen=True)
class Arm:
    """How a network of a given size is made.

    Attributes:
        part: Of the layers, the last of which have gates.
        by_latency: Whether it takes as long as the control, in place of being as large.
    """

    part: float = 0.0
    by_latency: bool = False


ARMS = {
    CONTROL: Arm(),
    "gates": Arm(1.0),
    "gates, last third": Arm(1 / 3),
    "gates, equal latency": Arm(1.0, by_latency=True),
    "gates, last third, equal latency": Arm(1 / 3, by_latency=True),
}


def network_of(model: nn.Module, example: Tensor, arm: Arm, width: int, seed: int) -> nn.Module:
    """Return a network with the widths that fit ``width`` parameters, and its gates on top."""
    small = pb.shrink(model, pb.plan_widths(model, example, width))
    return gated(small, places(small, example, arm.part), seed)


# --- widths ---------------------------------------------------------------------------------------


def widths_of(name: str, folder: str, target: float) -> Iterator[Line]:
    """Yield the size of each arm, and how fast it is."""
    torch.manual_seed(0)
    model = create_model(**TASKS[name].model).eval()
    example = next(iter(load_loaders(folder=folder, **TASKS[name].data).val))[0][:1]
    bound = int(target * pb.measure(model, example).params)
    sizes = sorted({int(bound * (1 - step / STEPS)) for step in range(STEPS)}, reverse=True)
    control = network_of(model, example, ARMS[CONTROL], bound, 0)
    found: dict[str, tuple[int, nn.Module]] = {CONTROL: (bound, control)}
    for key, arm in ARMS.items():
        if key == CONTROL:
            continue
        smaller = list(_smaller(model, example, arm, sizes, bound))
        if arm.by_latency:
            smaller = _as_fast(smaller, control, example)
        if smaller:
            found[key] = smaller[0]
    speeds = _ratios([model, *(network for _, network in found.values())], example)[1:]
    for key in ARMS:
        line: Line = {"task": name, "target": target, "arm": key}
        if key not in found:
            yield line | {"unreachable": "slower than the control even at the least width"}
            continue
        (size, network), speed = found[key], speeds[list(found).index(key)]
        cost = pb.measure(network, example)
        line |= {"width": size, "params": cost.params, "gate_params": gate_params(network)}
        yield line | {"flops": cost.flops, "speed": speed, "to control": speed / speeds[0]}


def _smaller(
    model: nn.Module, example: Tensor, arm: Arm, sizes: Sequence[int], bound: int
) -> Iterator[tuple[int, nn.Module]]:
    """Yield networks that fit the bound, the largest first, and none twice."""
    seen = set()
    for size in sizes:
        try:
            network = network_of(model, example, arm, size, 0)
        except pb.TargetUnreachableError:
            return
        params = pb.measure(network, example).params
        if params <= bound and params not in seen:
            seen.add(params)
            yield size, network


def _as_fast(
    networks: Sequence[tuple[int, nn.Module]], control: nn.Module, example: Tensor
) -> Sequence[tuple[int, nn.Module]]:
    """Return those that take no longer than the control, by bisection."""
    if not _is_fast(networks[-1][1], control, example):
        return []
    slow, fast = -1, len(networks) - 1
    while fast - slow > 1:
        middle = (slow + fast) // 2
        is_fast = _is_fast(networks[middle][1], control, example)
        slow, fast = (slow, middle) if is_fast else (middle, fast)
    return networks[fast:]


def _is_fast(network: nn.Module, control: nn.Module, example: Tensor) -> bool:
    return _ratios([control, network], example)[1] >= 1 - SLACK / 2


def _ratios(networks: Sequence[nn.Module], example: Tensor) -> list[float]:
    """Return how many times as fast as the first network each one is."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, network in enumerate(networks):
            path = Path(folder) / f"{number}.onnx"
            write_onnx(pb.fuse(copy.deepcopy(network).eval()), path, example)
            sessions.append(Session(path))
        feeds = [session.feeds([example]) for session in sessions]
        repeats = [
            interleaved_latency(sessions, feeds, ROUNDS, time.thread_time, SECONDS)
            for _ in range(REPEATS)
        ]
    return [statistics.median(one.ratio for one in own) for own in zip(*repeats, strict=True)]


# --- training -------------------------------------------------------------------------------------


def trained(bench: Bench, arm: str, width: Line) -> dict[str, Any]:
    """Train an arm, and return its line."""
    started = time.perf_counter()
    network = network_of(bench.model, bench.example, ARMS[arm], width["width"], bench.seed)
    found = recovered(bench, network)
    cost = pb.measure(network, bench.example)
    found |= {"params": cost.params, "flops": cost.flops, "sets": int(arm != CONTROL)}
    found |= {"gate_params": gate_params(network)}
    return bench.line(
        arm, width["target"], found | {"seconds": round(time.perf_counter() - started, 1)}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for and not yet there."""
    parser = parser_of(__doc__, tasks=NAMES, targets=[0.25], seeds=range(110, 113))
    parser.add_argument("--job", choices=["widths", "train"], default="train")
    parser.add_argument("--widths", type=Path, help="lines of the first job")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = [name for name in TASKS if any(fnmatch(name, own) for own in options.tasks)]
    names.sort(key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    if options.job == "widths":
        for name in names:
            for target in options.targets:
                for line in widths_of(name, options.folder, target):
                    append_line(options.lines, line)
        return 0
    planned = [line for line in read_lines(options.widths) if "width" in line]
    done = {
        (line["task"], line["target"], line["arm"], line["seed"])
        for line in read_lines(options.lines)
    }
    for name in names:
        for seed in options.seeds:
            open_ = [
                line
                for line in planned
                if line["task"] == name
                and line["target"] in options.targets
                and (name, line["target"], line["arm"], seed) not in done
            ]
            bench = Bench(name, seed, options.folder) if open_ else None
            for line in open_:
                assert bench is not None
                append_line(options.lines, trained(bench, line["arm"], line))
                print(name, seed, line["arm"], file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
