"""How fast is what ships: networks of half and a quarter of the parameters, timed as exported.

For each network and target every way to choose widths (`arms.py`) makes its network once. All of
them are then timed in turn with the original, on one thread: in ONNX Runtime in float32 and int8
at batches of 1 and 32, and in torch at a batch of 1. Ratios to the original in the same form are
noted. torch-pruning gets the default's number of parameters, as near as it can; where that is not
within 1 %, the default is planned once more at torch-pruning's own size.

    python -m scripts.speed.run lines.jsonl
    python -m scripts.speed.run lines.jsonl --networks 'resnet*' --targets 0.5 --int8 'resnet??'

What the file has is passed over, so that a run that was stopped goes on. torchvision, timm and
transformers are needed beside pbcompress; they are not among its dependencies.
"""

import argparse
import gc
import platform
import sys
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from pbcompress.onnx_files.session import version
from scripts.lines import append_line, read_lines
from scripts.planner.networks import Entry
from scripts.speed.arms import ARMS, Maker
from scripts.speed.networks import networks
from scripts.speed.timing import speeds

TARGETS = (0.5, 0.25)
ORIGINAL = "original"
SECONDS = 20.0


def lines_of(
    entry: Entry, target: float, arms: Sequence[str], *, int8: bool, large: bool, seconds: float
) -> list[dict[str, Any]]:
    """Return a line for each arm of a network, all timed in one run; failures are lines too."""
    original = entry.make()
    inputs = entry.inputs(1)
    base = pb.measure(original, inputs)
    maker = Maker(original, inputs)
    made: dict[str, nn.Module] = {ORIGINAL: original}
    lines = {arm: {"network": entry.name, "target": target, "arm": arm} for arm in arms}
    for arm, line in lines.items():
        try:
            made[arm] = maker.network(arm, target)
        except Exception as err:  # what an arm cannot do is a finding
            line["none"] = f"{type(err).__name__}: {' '.join(str(err).split())}"
        else:
            cost = pb.measure(made[arm], inputs)
            line |= {"params": cost.params, "flops": cost.flops}
        line["base"] = {"params": base.params, "flops": base.flops}
    found = speeds(made, entry.inputs, int8=int8, large=large, seconds=seconds)
    return [line | found.get(arm, {}) for arm, line in lines.items()]


def run(options: argparse.Namespace) -> None:
    """Append the lines of all that is asked for and not yet there."""
    done = {key_of(line) for line in read_lines(options.lines)}
    facts = {
        "torch": torch.__version__,
        "onnxruntime": version(),
        "machine": platform.machine(),
        "seconds": options.seconds,
    }
    for name, entry in networks().items():
        if not _is_among(name, options.networks):
            continue
        for target in options.targets:
            asked = [arm for arm in ARMS if _is_among(arm, options.arms)]
            arms = [arm for arm in asked if (name, target, arm) not in done]
            if not arms:
                continue
            forms = {form: _is_among(name, getattr(options, form)) for form in ("int8", "large")}
            for line in lines_of(entry, target, arms, **forms, seconds=options.seconds):
                append_line(options.lines, line | facts)
                print(line, file=sys.stderr)
            gc.collect()


def key_of(line: dict[str, Any]) -> tuple[str | None, float, str]:
    """Return what a line is of; lines of `trained.py` have no network here."""
    return line.get("network"), line["target"], line["arm"]


def _is_among(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--networks", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--arms", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--int8", nargs="*", default=["*"], help="networks to time in int8 too")
    parser.add_argument("--large", nargs="*", default=["*"], help="to time at batch 32 too")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing, for each form")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
