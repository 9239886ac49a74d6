"""The command that plans: how narrow each layer gets, and why."""

import argparse
from pathlib import Path
from typing import Any

from pbcompress.cli.arguments import (
    MODEL_HELP,
    Answer,
    add_command,
    add_inputs,
    inputs_of,
    network_named,
    number,
)
from pbcompress.errors import CompressionError

__all__ = ["add_planning"]

BOUNDS = {
    "target": ("params", "parameters"),
    "flops": ("flops", "multiply-adds"),
    "latency": ("latency_ms", "milliseconds in ONNX Runtime on this machine"),
    "bytes": ("file_bytes", "bytes of the ONNX file"),
}


def add_planning(commands: Any) -> None:
    """Add the command."""
    plan = add_command(
        commands,
        "plan",
        _plan,
        help="how narrow every layer gets at a target, and which cannot, and why",
        description="Plan the widths of a network for one or several bounds, prove the plan, and "
        "print it. Nothing is trained.",
    )
    plan.add_argument("model", help=MODEL_HELP)
    add_inputs(plan, required=True)
    for name, (_, what) in BOUNDS.items():
        plan.add_argument(
            f"--{name}", type=number, help=f"bound on {what}: a number, or a share in (0, 1)"
        )
    plan.add_argument(
        "--pin",
        action="append",
        type=_pin,
        default=[],
        metavar="LAYER=WIDTH",
        help="a layer (name or pattern) and its channels, or a share of them; repeat for several",
    )
    plan.add_argument("--out", type=Path, help="file to write the plan to (WidthPlan.from_json)")
    plan.add_argument("--plot", help="picture to write: .svg or .png")


def _pin(text: str) -> tuple[str, int | float]:
    from pbcompress.config.widths import WidthConfig

    layer, _, width = text.rpartition("=")
    return WidthConfig(pin=((layer, number(width)),)).pin[0]  # which checks it


def _plan(arguments: argparse.Namespace) -> Answer:
    from pbcompress.config.budget import Budget
    from pbcompress.config.whole import CompressConfig
    from pbcompress.config.widths import WidthConfig
    from pbcompress.core.tensor_files import write_bytes
    from pbcompress.planning.width_plan import plan_widths

    given = {field: getattr(arguments, name) for name, (field, _) in BOUNDS.items()}
    bounds = {field: value for field, value in given.items() if value is not None}
    if not bounds:
        raise CompressionError(
            "A plan has no bound. Give at least one of --target, --flops, --latency, --bytes, e.g. "
            "--target 0.25."
        )
    model = network_named(arguments.model)
    if isinstance(model, Path):
        raise CompressionError(f"{model} is an ONNX file; a plan is made for a torch network.")
    config = CompressConfig(width=WidthConfig(pin=tuple(arguments.pin)))
    try:
        budget = Budget(**bounds)
    except ValueError as err:
        raise CompressionError(f"The bounds cannot be used: {err}") from err
    plan = plan_widths(model, inputs_of(arguments), budget, config=config)
    if arguments.out:
        write_bytes(arguments.out, plan.to_json().encode())
    if arguments.plot:
        plan.plot(arguments.plot)
    return Answer(str(plan), plan.to_dict)
