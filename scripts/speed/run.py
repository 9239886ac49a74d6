"""Latency of shrunk networks in ONNX Runtime: what rounding brings, and what a bound reaches.

Two questions for each network, on this machine (one thread, batch 1):

- "rounding": half of the parameters with widths in multiples of 1, 8 and 16. How much faster than
  the original is the exported network, and how much of the FLOP ratio is that?
- "bound": `Budget(latency_ms=0.5)`. How near is the prediction to what is then measured, and how
  near is that to the bound?

Ratios alone are noted: two networks timed in turn share what else the machine does.

    python -m scripts.speed.run lines.jsonl
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from pbcompress.core.inputs import as_call
from pbcompress.planning.export_bench import ExportBench
from scripts.lines import append_line, read_lines
from scripts.planner.networks import torchvision_classifiers

MULTIPLES = (1, 8, 16)
SHARE = 0.5


def _transformer() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768
    )
    return ViTForImageClassification(config).eval()


def networks() -> dict[str, tuple[Callable[[], nn.Module], Any]]:
    """Return what to build and its inputs, by name."""
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    small = image[..., :32, :32].clone()
    found: dict[str, tuple[Callable[[], nn.Module], Any]] = {
        name: (partial(create_model, name, num_classes=10, in_channels=3), small)
        for name in ("resnet20", "resnet56", "mobilenet_small")
    }
    entries = torchvision_classifiers()
    found |= {name: (entries[name].make, image) for name in ("mobilenet_v2", "resnet18")}
    return found | {"vit": (_transformer, {"pixel_values": image})}


def rounding(model: nn.Module, inputs: Any, multiple: int) -> dict[str, Any]:
    """Shrink with one multiple, and time the result beside the original."""
    config = pb.CompressConfig(width=pb.WidthConfig(allocation="uniform", round_to=multiple))
    plan = pb.plan_widths(model, inputs, SHARE, config=config)
    with ExportBench(model, as_call(inputs), ()) as bench:
        after = bench.measure(pb.shrink(model, plan))
        speed = bench.original.milliseconds / after.milliseconds
    return {
        "round_to": multiple,
        "of_target": plan.cost_after.params / plan.target_params,
        "flop_ratio": plan.cost_before.flops / plan.cost_after.flops,
        "speed_up": speed,
    }


def bound(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Ask for a share of the original's latency."""
    config = pb.CompressConfig(width=pb.WidthConfig(allocation="uniform"))
    plan = pb.plan_widths(model, inputs, pb.Budget(latency_ms=SHARE), config=config)
    shipped = plan.shipped
    assert shipped is not None
    assert shipped.latency_predicted is not None
    return {
        "round_to": shipped.round_to,
        "predicted": shipped.latency_predicted / shipped.latency_after,
        "of_bound": shipped.latency_after / (SHARE * shipped.latency_before),
        "flop_ratio": plan.cost_before.flops / plan.cost_after.flops,
        "speed_up": shipped.latency_before / shipped.latency_after,
        "params": plan.cost_after.params / plan.cost_before.params,
    }


def run(path: Path) -> None:
    """Measure every network that the file does not have yet."""
    done = {(line["name"], line["question"], line["asked"]) for line in read_lines(path)}
    for name, (make, inputs) in networks().items():
        jobs: list[tuple[str, int | None]] = [("rounding", m) for m in MULTIPLES]
        for question, asked in [*jobs, ("bound", None)]:
            if (name, question, asked) in done:
                continue
            model = make().eval()
            line: dict[str, Any] = {"name": name, "question": question, "asked": asked}
            try:
                found = bound(model, inputs) if asked is None else rounding(model, inputs, asked)
            except pb.CompressionError as err:  # a failure is part of the result
                found = {"error": f"{type(err).__name__}: {err}"}
            append_line(path, line | found)
            print(line | found, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    run(arguments.lines)


if __name__ == "__main__":
    main()
