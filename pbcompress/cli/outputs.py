"""The commands that write or time files: export, bench, package."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbcompress.cli.arguments import MODEL_HELP, Answer, add_command, inputs_of
from pbcompress.cli.packaging import add_package
from pbcompress.errors import CompressionError

if TYPE_CHECKING:
    from pbcompress.quantization.precisions import Fp16, Int8

__all__ = ["add_outputs"]


def add_outputs(commands: Any) -> None:
    """Add the commands."""
    _add_bench(commands)
    _add_export(commands)
    add_package(commands)


def _add_bench(commands: Any) -> None:
    bench = add_command(
        commands,
        "bench",
        _bench,
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


def _add_export(commands: Any) -> None:
    export = add_command(
        commands,
        "export",
        _export,
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


def _export(arguments: argparse.Namespace) -> Answer:
    from pbcompress.export.fusion import fuse
    from pbcompress.export.onnx_export import export_onnx
    from pbcompress.onnx_files.contents import metadata_of
    from pbcompress.onnx_files.store import AXES
    from pbcompress.recipes.builders import load_data, load_task, resolve
    from pbcompress.runs.run_folder import read_facts
    from pbcompress.runs.saved_network import load

    facts = read_facts(arguments.run_dir)
    shapes = facts.before.cost.input_shapes
    model = load(arguments.run_dir, resolve(arguments.model))
    arguments.input = list(shapes.values())
    tensors = inputs_of(arguments)
    named = not all(name.isdigit() for name in shapes)
    inputs: object = dict(zip(shapes, tensors, strict=True)) if named else tensors
    own, owner = Path(arguments.run_dir) / "model.onnx", {"fingerprint": facts.fingerprint}
    notes = metadata_of(own) if own.is_file() else owner
    notes = notes if owner.items() <= notes.items() else owner
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
    return Answer(str(report), report.to_dict)


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


def _bench(arguments: argparse.Namespace) -> Answer:
    from pbcompress.onnx_files.benchmark import bench

    found = bench(
        arguments.files,
        threads=arguments.threads,
        batch=arguments.batch,
        rounds=arguments.rounds,
        profile=arguments.profile,
        provider=arguments.provider,
    )
    return Answer(str(found), found.to_dict)
