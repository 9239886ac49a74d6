"""The commands that measure: measure, compare, report."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pbcompress.cli.arguments import (
    DATA_HELP,
    MODEL_HELP,
    Answer,
    add_command,
    add_inputs,
    data_named,
    inputs_of,
    network_named,
    untrained,
)
from pbcompress.errors import CompressionError

__all__ = ["add_measures"]


def add_measures(commands: Any) -> None:
    """Add the commands."""
    measure = add_command(
        commands,
        "measure",
        _measure,
        help="parameters and FLOPs of a network or an ONNX file",
        description="Count parameters and multiply-adds (1 multiply-add = 1 FLOP, batch 1).",
    )
    measure.add_argument("model", help=f"an ONNX file, or {MODEL_HELP}")
    add_inputs(measure, required=False)

    compare = add_command(
        commands,
        "compare",
        _compare,
        forms={"--markdown": "print Markdown"},
        help="two networks or ONNX files side by side",
        description="Compare size, work, speed (interleaved, one thread), memory and outputs of "
        "two networks on random inputs, and with --data their accuracy.",
    )
    compare.add_argument("before", help=f"an ONNX file, or {MODEL_HELP}")
    compare.add_argument("after", help="the same")
    add_inputs(compare, required=True)
    compare.add_argument("--data", metavar="FUNCTION", help=DATA_HELP)
    compare.add_argument("--control", help="a third network, of the size of the second")
    compare.add_argument("--plot", help="picture of all layers to write: .svg or .png")
    compare.add_argument("--plot-metric", help="picture of metric against size; needs --data")

    report = add_command(
        commands,
        "report",
        _report,
        help="write the report of a saved run",
        description="Write a report from the history of a run and its shipped files: what is said "
        "of a file is read from it anew.",
    )
    report.add_argument("run_dir", help="folder of a finished run")
    report.add_argument(
        "--out", help="report.html, .md or .json (default: RUN_DIR/report.html)", default=None
    )
    report.add_argument("--data", metavar="FUNCTION", help=DATA_HELP)


def _measure(arguments: argparse.Namespace) -> Answer:
    from pbcompress.costs.measured import measure
    from pbcompress.onnx_files.contents import measure_onnx

    model = network_named(arguments.model)
    if isinstance(model, Path):
        file = measure_onnx(model)
        return Answer(str(file), lambda: asdict(file))
    if arguments.input is None:
        raise CompressionError(
            f"{arguments.model} was to be measured, and its FLOPs depend on the input. "
            "Add --input with its shape, e.g. --input 1,3,32,32."
        )
    cost = measure(model, inputs_of(arguments))
    return Answer(str(cost), cost.to_dict)


def _compare(arguments: argparse.Namespace) -> Answer:
    from pbcompress.comparison.side_by_side import compare

    names = [arguments.before, arguments.after, *filter(None, [arguments.control])]
    networks = [network_named(name) for name in names]
    notes = [note for pair in zip(names, networks, strict=True) if (note := untrained(*pair))]
    found = compare(
        networks[0],
        networks[1],
        inputs_of(arguments),
        data=data_named(arguments.data),
        control=networks[2] if arguments.control else None,
    )
    if arguments.plot:
        found.plot(arguments.plot)
    if arguments.plot_metric:
        found.plot(arguments.plot_metric, show="accuracy")
    text = found.to_markdown() if arguments.markdown else str(found)
    return Answer("\n\n".join([*notes, text]), lambda: {**found.to_dict(), "notes": notes})


def _report(arguments: argparse.Namespace) -> Answer:
    from pbcompress.core.json_documents import damage_named
    from pbcompress.core.records import to_data
    from pbcompress.report.headline import headline
    from pbcompress.report.writing import write_report
    from pbcompress.runs.file_evidence import with_evidence
    from pbcompress.runs.run_folder import read_run

    output = Path(arguments.out or Path(arguments.run_dir) / "report.html")
    facts, history = read_run(arguments.run_dir)
    facts = with_evidence(facts, arguments.run_dir, data=data_named(arguments.data))
    with damage_named(f"What {arguments.run_dir} tells of its run", passing=(CompressionError,)):
        lines = headline(facts)
        write_report(output, facts, history)
    return Answer(
        "\n".join([*lines, *facts.problems, f"Wrote {output}."]),
        lambda: {"report": str(output), "problems": list(facts.problems), **to_data(facts)},
    )
