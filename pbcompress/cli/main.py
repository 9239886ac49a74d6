"""The command line. Thin: each command calls public functions and returns what they found."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import pbcompress
from pbcompress.cli.arguments import code_of_this_folder
from pbcompress.cli.completion import add_completion
from pbcompress.cli.jobs import add_jobs
from pbcompress.cli.measuring import add_measures
from pbcompress.cli.outputs import add_outputs
from pbcompress.cli.planning import add_planning
from pbcompress.cli.sweeping import add_sweeping
from pbcompress.cli.zoo import add_zoo
from pbcompress.core.markdown import as_document
from pbcompress.errors import CompressionError

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it worked, 1 if the job failed (one line on the standard error stream says why).
        Wrong usage exits with 2.
    """
    arguments = make_parser().parse_args(argv)
    try:
        with code_of_this_folder(arguments):
            answer = arguments.run(arguments)
    except CompressionError as err:
        print(f"pbcompress: {as_document(str(err))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pbcompress: stopped; the same command goes on with its run_dir", file=sys.stderr)
        return 1
    _show(json.dumps(answer.facts(), indent=1) if arguments.json else answer.text)
    return 0


def _show(text: str) -> None:
    """Print a text; whoever reads it may stop early, as head does."""
    try:
        print(as_document(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it needs no torch."""
    parser = argparse.ArgumentParser(
        prog="pbcompress",
        description="Make a trained PyTorch network as small as you ask, win its accuracy back, "
        "and export it to ONNX, proven equal.",
        epilog="Try: pbcompress demo. Exit codes: 0 it worked, 1 the job failed and one line says "
        "why, 2 wrong usage.",
    )
    parser.add_argument(
        "--version", action="version", version=f"pbcompress {pbcompress.__version__}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_jobs(commands)
    add_sweeping(commands)
    add_zoo(commands)
    add_planning(commands)
    add_measures(commands)
    add_outputs(commands)
    add_completion(commands, make_parser)
    return parser
