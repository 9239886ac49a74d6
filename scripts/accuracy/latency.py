"""How fast the networks of the arms are: the speed of width alone in ONNX Runtime, batch 1.

Widths of these arms do not depend on weights, so one network is timed for each task and target, in
turn with its original. A line is a task, a target and an arm.

    python -m scripts.accuracy.latency lines.jsonl --tasks 'digits*' --arms width 'width, *'
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders
from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.randomness import seeded
from pbcompress.planning.export_bench import ExportBench
from pbcompress.pruning.shrinking import shrink
from scripts.accuracy.grid import ARMS, TASKS
from scripts.accuracy.run import parser_of
from scripts.lines import append_line, read_lines

ROUNDS = 3  # a speed is the median of as many measurements


def speed(bench: ExportBench, model: torch.nn.Module, plan: pb.WidthPlan) -> float:
    """Return how many times as fast as its original a plan's network is."""
    network = shrink(model, plan)
    found = (bench.measure(network).milliseconds for _ in range(ROUNDS))
    return bench.original.milliseconds / sorted(found)[ROUNDS // 2]


def main(argv: Sequence[str] | None = None) -> int:
    """Time what is asked for and not yet there."""
    options = parser_of(__doc__, ["*"], [0.5, 0.25, 0.125], [0]).parse_args(argv)
    torch.set_num_threads(1)
    done = {(line["task"], line["target"], line["arm"]) for line in read_lines(options.lines)}
    arms = [arm for arm in ARMS if any(fnmatch(arm, pattern) for pattern in options.arms)]
    for name, task in TASKS.items():
        asked = [(name, target, arm) for target in options.targets for arm in arms]
        if not any(fnmatch(name, pattern) for pattern in options.tasks) or done.issuperset(asked):
            continue
        with seeded("latency", name):
            model = create_model(**task.model).eval()
        loaders = load_loaders(folder=options.folder, **task.data)
        example: Any = next(iter(loaders.val))[0][:1]
        with ExportBench(model, single_sample(as_call(example)), ()) as bench:
            for _, target, arm in asked:
                if (name, target, arm) not in done:
                    width = pb.WidthConfig(
                        allocation=ARMS[arm].allocation, round_to=ARMS[arm].round_to
                    )
                    plan = pb.plan_widths(model, example, target, config=width)
                    line = {
                        "task": name,
                        "target": target,
                        "arm": arm,
                        "params": plan.cost_after.params,
                        "flops": plan.cost_after.flops,
                        "speed": speed(bench, model, plan),
                    }
                    append_line(options.lines, line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
