"""Coverage, exactness and speed of the width planner over torchvision, timm and Hugging Face.

``run`` plans every network of a list to half of its parameters with no hint, shrinks it, runs it
at two batch sizes, takes the gradients of a step, and rebuilds it from its plan on a fresh network.
``export`` exports the shrunk networks and holds the files against them. ``speed`` holds planning
against one graph build and step of torch-pruning, in turn; ``depth`` times it as networks get
deeper, ``memory`` what a plan takes beside the model, and ``files`` plans without weights that are
carried out on a checkpoint on disk. One JSON line per network and act; the page is made from these
lines alone, failures included.

    python -m scripts.planner.run run timm lines.jsonl
    python -m scripts.planner.run export timm lines.jsonl
    python -m scripts.planner.run speed lines.jsonl

The zoos are needed beside pbcompress; they are not among its dependencies.
"""

import argparse
import copy
import gc
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pbcompress as pb
from scripts.lines import append_line, read_lines
from scripts.planner.depth import measured
from scripts.planner.files import files_lines
from scripts.planner.memory import memory_lines
from scripts.planner.networks import Entry, hugging_face, timm_families, torchvision_classifiers

LISTS = {
    "torchvision": torchvision_classifiers,
    "timm": timm_families,
    "huggingface": hugging_face,
}
SHARE = 0.5
EXPORT_LIMIT = 30_000_000  # parameters; larger networks are not exported, which the page says
SPEED = (
    *("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vgg11_bn"),
    *("efficientnet_b0", "efficientnet_b3", "regnet_y_400mf"),
)
IMAGE = 224
REPEATS = 5


def outputs(model: torch.nn.Module, inputs: Any) -> list[Tensor]:
    """Return the float tensors of a model's output."""
    result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def check(entry: Entry) -> dict[str, Any]:
    """Plan, shrink and use one network; a failure is part of the result."""
    model = entry.make()
    line: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    start = time.perf_counter()
    try:
        plan = pb.plan_widths(model, entry.inputs(1), SHARE)
    except pb.CompressionError as err:
        return line | {"error": f"{type(err).__name__}: {err}"}
    line["seconds"] = time.perf_counter() - start
    line["share_of_target"] = plan.cost_after.params / plan.target_params
    line["left_alone"] = len(plan.left_alone)
    try:
        small = pb.shrink(model, plan)
        line["exact"] = sum(p.numel() for p in small.parameters()) == plan.cost_after.params
        again = pb.shrink(entry.make(), plan)
        again.load_state_dict(small.state_dict())
        with torch.no_grad():
            pairs = [
                zip(outputs(small, x), outputs(again, x), strict=True)
                for x in (entry.inputs(1), entry.inputs(2))
            ]
        line["replayed"] = all(torch.equal(a, b) for pair in pairs for a, b in pair)
        sum(t.sum() for t in outputs(small, entry.inputs(2))).backward()  # type: ignore[union-attr]
    except Exception as err:  # any failure of a network after its plan was proven is a finding
        line["error"] = f"{type(err).__name__}: {err}"
    return line


def exported(entry: Entry) -> dict[str, Any]:
    """Export a shrunk network and compare the file with it."""
    model = entry.make()
    if sum(p.numel() for p in model.parameters()) > EXPORT_LIMIT:
        return {"export": "too large"}
    try:
        small = pb.shrink(model, pb.plan_widths(model, entry.inputs(1), SHARE))
    except pb.CompressionError as err:
        return {"export": "no plan", "export_error": str(err)}
    with tempfile.TemporaryDirectory() as folder:
        for dynamic in ("batch", None):  # some networks fix their batch size in the code
            try:
                report = pb.export_onnx(
                    pb.fuse(small),
                    f"{folder}/model.onnx",
                    entry.inputs(1),
                    dynamic=dynamic,
                )
            except pb.ExportMismatchError as err:
                return {"export": "differs", "export_error": str(err)}
            except Exception as err:
                failure = f"{type(err).__name__}: {err}"
                continue
            return {
                "export": "any batch" if dynamic else "fixed batch",
                "parity": report.max_relative,
            }
    return {"export": "failed", "export_error": failure}


def speed(path: Path) -> None:
    """Time planning against one graph build and step of torch-pruning, in turn.

    Seconds are of the processor, which other work on the machine disturbs less than a clock's.
    """
    networks = torchvision_classifiers()
    for name in SPEED:
        model, image = networks[name].make(), torch.randn(1, 3, IMAGE, IMAGE)
        ours, theirs = [], []
        for _ in range(REPEATS):
            start = time.thread_time()
            pb.plan_widths(model, image, SHARE)
            ours.append(time.thread_time() - start)
            other = copy.deepcopy(model)
            start = time.thread_time()
            torch_pruning.pruner.BasePruner(
                other,
                (image,),
                importance=torch_pruning.importance.MagnitudeImportance(),
                pruning_ratio=1 - SHARE,
                ignored_layers=[
                    m for m in other.modules() if getattr(m, "out_features", 0) == 1000
                ],
            ).step()
            theirs.append(time.thread_time() - start)
        ratio = statistics.median(ours) / statistics.median(theirs)
        write(path, {"list": "speed", "name": name, "ratio": ratio, "repeats": REPEATS})


def write(path: Path, line: dict[str, Any]) -> None:
    """Add one line to the file, with the versions that it was made with."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    append_line(path, line | versions)
    print(line["name"], line, file=sys.stderr)


def run(names: str, path: Path, act: Callable[[Entry], dict[str, Any]]) -> None:
    """Do something to every network of a list for which the file has no line yet."""
    lines = read_lines(path)
    done = {
        line["name"] for line in lines if (line["list"], line.get("act")) == (names, act.__name__)
    }
    for entry in LISTS[names]().values():
        if entry.name not in done:
            write(path, {"list": names, "name": entry.name, "act": act.__name__, **act(entry)})
            gc.collect()


def main(argv: Sequence[str] | None = None) -> None:
    """Run a list, or time the planner."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "export"):
        runner = commands.add_parser(name)
        runner.add_argument("list", choices=LISTS)
        runner.add_argument("lines", type=Path, help="file of lines, made or added to")
    measures = {"depth": partial(measured, SHARE), "memory": memory_lines, "files": files_lines}
    for name in ("speed", *measures):
        commands.add_parser(name).add_argument("lines", type=Path)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    if arguments.command == "speed":
        speed(arguments.lines)
    elif arguments.command in measures:
        for line in measures[arguments.command]():
            write(arguments.lines, line)
    else:
        act = check if arguments.command == "run" else exported
        run(arguments.list, arguments.lines, act)


if __name__ == "__main__":
    main()
