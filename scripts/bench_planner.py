"""Coverage and speed of the width planner over networks of torchvision, timm and Hugging Face.

Every network is planned to half of its parameters with no hint, shrunk, run at two batch sizes,
trained for one step, and rebuilt from its plan on a fresh network. One JSON line per network; the
table is made from these lines alone, failures included.

    python scripts/bench_planner.py run timm lines.jsonl
    python scripts/bench_planner.py table lines.jsonl > docs/benchmarks/planner.md

The zoos are needed beside pbcompress; they are not among its dependencies.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from planner_lists import Entry, hugging_face, timm_families, torchvision_classifiers
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pbcompress as pb

LISTS = {
    "torchvision": torchvision_classifiers,
    "timm": timm_families,
    "huggingface": hugging_face,
}
SHARE = 0.5
HIT = 0.98


def outputs(model: torch.nn.Module, inputs: Any) -> list[Tensor]:
    """Return the float tensors of a model's output."""
    result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def check(entry: Entry) -> dict[str, Any]:
    """Plan, shrink and use one network; a failure is part of the result."""
    line: dict[str, Any] = {"name": entry.name, "torch": torch.__version__}
    model = entry.make()
    line["params"] = sum(p.numel() for p in model.parameters())
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


def run(names: str, path: Path) -> None:
    """Check every network of a list that the file does not have yet."""
    done = {line["name"] for line in read(path)} if path.exists() else set()
    for entry in LISTS[names]().values():
        if entry.name in done:
            continue
        line = {"list": names, **check(entry)}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            line["name"], line.get("share_of_target"), line.get("error", "")[:80], file=sys.stderr
        )


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file."""
    return [json.loads(text) for text in path.read_text().splitlines()]


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return the page: a summary by list, then every network."""
    rows = list(lines)
    parts = ["# Planner: half of the parameters, no hints", ""]
    parts += ["| list | networks | 98 to 100 % of the target, exact, replayed | median seconds |"]
    parts += ["| --- | --- | --- | --- |"]
    for name in LISTS:
        own = [r for r in rows if r["list"] == name]
        if own:
            good = sum(is_good(r) for r in own)
            seconds = statistics.median(r["seconds"] for r in own if "seconds" in r)
            parts.append(f"| {name} | {len(own)} | {good} | {seconds:.2f} |")
    parts += ["", "| network | parameters | of the target | left alone | failure |"]
    parts += ["| --- | --- | --- | --- | --- |"]
    for r in rows:
        share = f"{r['share_of_target']:.4f}" if "share_of_target" in r else ""
        failure = r.get("error", "").replace("|", "/")[:160]
        parts.append(
            f"| {r['name']} | {r['params']:,} | {share} | {r.get('left_alone', '')} | {failure} |"
        )
    return "\n".join(parts)


def is_good(line: dict[str, Any]) -> bool:
    """Tell whether a network landed, is as predicted and can be rebuilt from its plan."""
    is_near = HIT <= line.get("share_of_target", 0) <= 1
    return (
        is_near and line.get("exact", False) and line.get("replayed", False) and "error" not in line
    )


def main() -> None:
    """Run a list, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("list", choices=LISTS)
    runner.add_argument("file", type=Path)
    printer = commands.add_parser("table")
    printer.add_argument("file", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.command == "run":
        run(arguments.list, arguments.file)
    else:
        print(table(read(arguments.file)))


if __name__ == "__main__":
    main()
