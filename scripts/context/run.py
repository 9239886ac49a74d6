"""Context dendrites against width, at equal size and at equal latency.

    python -m scripts.context.run speeds.jsonl --job widths
    python -m scripts.context.run again.jsonl --job time --widths speeds.jsonl
    python -m scripts.context.run lines.jsonl --job train --widths speeds.jsonl

The first job looks for widths, which do not depend on weights; the second times what it found. At
equal size the parameters of the gates are inside the total of the control. At equal latency the
network with gates becomes narrower until it takes at most 3 % longer than the control in ONNX
Runtime (batch 1, one thread, two files in turn). The third job trains each of them from the same
trained network, with the same steps and a learning rate of its own, as `compress` does. Weights are
chosen on validation; the test split is scored once.
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
STEPS = 30  # sizes that are tried, from the target down
NEAR = 1  # sizes on each side of the one that bisection finds, which are timed too
ROUNDS, SECONDS, REPEATS = 2000, 1.0, 3


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


class Timer:
    """Times exported networks in turn with the control, two files at once."""

    def __init__(self, control: nn.Module, example: Tensor, folder: str) -> None:
        self.example, self.folder, self.count = example, Path(folder), 0
        self.control = self.exported(control)
        self.known: dict[nn.Module, float] = {}

    def exported(self, network: nn.Module) -> Session:
        """Write a network as it ships."""
        self.count += 1
        path = self.folder / f"{self.count}.onnx"
        write_onnx(pb.fuse(copy.deepcopy(network).eval()), path, self.example)
        return Session(path)

    def ratio(self, network: nn.Module) -> float:
        """Return how many times as fast as the control a network is; it is timed once."""
        if network not in self.known:
            sessions = [self.control, self.exported(network)]
            feeds = [session.feeds([self.example]) for session in sessions]
            repeats = [
                interleaved_latency(sessions, feeds, ROUNDS, time.thread_time, SECONDS)[1].ratio
                for _ in range(REPEATS)
            ]
            self.known[network] = statistics.median(repeats)
        return self.known[network]


def widths_of(name: str, folder: str, target: float, arms: Sequence[str]) -> Iterator[Line]:
    """Yield the size of each of some arms, and how fast it is."""
    torch.manual_seed(0)
    model = create_model(**TASKS[name].model).eval()
    example = next(iter(load_loaders(folder=folder, **TASKS[name].data).val))[0][:1]
    bound = int(target * pb.measure(model, example).params)
    plain = list(_narrowed(model, example, bound))
    with tempfile.TemporaryDirectory() as files:
        timer = Timer(plain[0][1], example, files)
        whole = timer.ratio(model)
        for key in arms:
            found = list(_fitting(plain, example, ARMS[key], bound))
            if ARMS[key].by_latency:
                found = _as_fast(found, timer)
            line: Line = {"task": name, "target": target, "arm": key}
            if not found:
                yield line | {"unreachable": "slower than the control even at the least width"}
                continue
            size, network = found[0]
            ratio = 1.0 if key == CONTROL else timer.ratio(network)
            cost = pb.measure(network, example)
            line |= {"width": size, "params": cost.params, "gate_params": gate_params(network)}
            yield line | {"flops": cost.flops, "speed": ratio / whole, "to control": ratio}


def timed(lines: Sequence[Line], folder: str) -> Iterator[Line]:
    """Yield lines of one task and target with their speeds measured anew."""
    name, target = lines[0]["task"], lines[0]["target"]
    torch.manual_seed(0)
    model = create_model(**TASKS[name].model).eval()
    example = next(iter(load_loaders(folder=folder, **TASKS[name].data).val))[0][:1]
    bound = int(target * pb.measure(model, example).params)
    with tempfile.TemporaryDirectory() as files:
        timer = Timer(network_of(model, example, ARMS[CONTROL], bound, 0), example, files)
        whole = timer.ratio(model)
        for line in lines:
            if "unreachable" in line:
                yield line
                continue
            network = network_of(model, example, ARMS[line["arm"]], line["width"], 0)
            assert pb.measure(network, example).params == line["params"]
            ratio = 1.0 if line["arm"] == CONTROL else timer.ratio(network)
            yield line | {"speed": ratio / whole, "to control": ratio}


def _narrowed(model: nn.Module, example: Tensor, bound: int) -> Iterator[tuple[int, nn.Module]]:
    """Yield networks without gates of falling size, none twice."""
    last = None
    for step in range(STEPS):
        size = int(bound * (1 - step / STEPS))
        try:
            network = network_of(model, example, ARMS[CONTROL], size, 0)
        except pb.TargetUnreachableError:
            return
        shapes = [p.shape for p in network.parameters()]
        if shapes != last:
            yield size, network
        last = shapes


def _fitting(
    plain: Sequence[tuple[int, nn.Module]], example: Tensor, arm: Arm, bound: int
) -> Iterator[tuple[int, nn.Module]]:
    """Yield networks with their gates that have at most so many parameters."""
    for size, small in plain:
        network = gated(small, places(small, example, arm.part))
        if pb.measure(network, example).params <= bound:
            yield size, network


def _as_fast(
    networks: Sequence[tuple[int, nn.Module]], timer: Timer
) -> Sequence[tuple[int, nn.Module]]:
    """Return those that take no longer than the control, near the largest by bisection."""
    slow, fast = -1, len(networks) - 1
    while fast - slow > 1:
        middle = (slow + fast) // 2
        is_fast = timer.ratio(networks[middle][1]) >= 1 - SLACK
        slow, fast = (slow, middle) if is_fast else (middle, fast)
    near = networks[max(0, fast - NEAR) : fast + NEAR + 1]
    return [each for each in near if timer.ratio(each[1]) >= 1 - SLACK]


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
    parser.add_argument("--job", choices=["widths", "time", "train"], default="train")
    parser.add_argument("--widths", type=Path, help="lines of the first job")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    arms = [arm for arm in ARMS if any(fnmatch(arm, own) for own in options.arms)]
    names = [name for name in TASKS if any(fnmatch(name, own) for own in options.tasks)]
    names.sort(key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    if options.job == "widths":
        for name in names:
            for target in options.targets:
                for line in widths_of(name, options.folder, target, arms):
                    append_line(options.lines, line)
        return 0
    if options.job == "time":
        for name in names:
            own = [line for line in read_lines(options.widths) if line["task"] == name]
            for line in timed(own, options.folder):
                append_line(options.lines, line)
        return 0
    planned = [
        line for line in read_lines(options.widths) if "width" in line and line["arm"] in arms
    ]
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
