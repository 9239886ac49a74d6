"""What fewer bits cost and bring: int8 by calibration, fp16, and int8 after recovery.

Small networks are trained on real data, with and without dendrites (form "full", rule "gradient",
one set from the start, the same epochs), put into their inference form and written in float32, in
fp16, in int8 with each calibration, and as `export_onnx(quantize=Int8(recover_epochs=...))`
takes it, which says which guard failed. "unequal" is the small CNN with the same function and
channels of unequal range: each channel between two layers is multiplied by exp(spread z), z
normal, and divided again by the next one. Metrics are accuracies through ONNX Runtime, speeds
medians of ratios of interleaved runs at batch 1 on one thread.

    python -m scripts.int8.run lines.jsonl --folder data
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import Loaders, load_loaders
from pbcompress.core.inputs import as_call
from pbcompress.onnx_files.network import OnnxNetwork
from pbcompress.quantization.converter import METHODS, Quantizer, weight_bits, write_fp16
from pbcompress.quantization.int8_search import CALIBRATION_SAMPLES, calibration_feeds, speedups
from pbcompress.quantization.rounding_aware import train_quantized
from scripts.lines import append_line, read_lines

SEED = 0
# Of the channels' ranges: the standard deviation of their logarithm.
SPREADS = {"unequal": 1.2, "very unequal": 1.5}
EPOCHS = 4
RECOVERY = 4
CONTROL = f"int8, minmax, {RECOVERY} epochs without rounding"
RECOVERED = f"int8, minmax, {RECOVERY} epochs of recovery"
# name: data set, arguments of the network
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mnist", {"name": "mlp"}),
    "small_cnn": ("fashion_mnist", {"name": "small_cnn", "first_stride": 2}),
    "unequal": ("fashion_mnist", {"name": "small_cnn", "first_stride": 2}),
    "very unequal": ("fashion_mnist", {"name": "small_cnn", "first_stride": 2}),
    "resnet20": ("cifar10", {"name": "resnet20", "width": 0.5}),
    "mobilenet": ("fashion_mnist", {"name": "mobilenet_small", "in_channels": 1, "width": 0.25}),
}
SAMPLES = 4_000  # of the training part


def trained(name: str, loaders: Loaders, *, dendrites: bool) -> nn.Module:
    """Return a network in its inference form."""
    torch.manual_seed(SEED)
    model = create_model(**NETWORKS[name][1])
    growth = pb.DendriteConfig(rule="gradient", at_start=True, max_sets=int(dendrites))
    recovery = pb.RecoveryConfig(epochs=EPOCHS, improvement=(-1.0,))  # the set stays
    config = pb.CompressConfig(dendrites=growth, recovery=recovery)
    pb.recover_(model, pb.Data(loaders.train, loaders.val), config=config, seed=SEED)
    fused = pb.fuse(model)
    if name in SPREADS:
        unequalize_(fused, SPREADS[name])
    return fused


def unequalize_(model: nn.Module, spread: float) -> None:
    """Give the channels between convolutions with ReLU other ranges, and keep the function."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for layer, reader in pairwise(layers):
            factor = (spread * torch.randn(len(layer.weight), generator=generator)).exp()
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            assert layer.bias is not None
            layer.bias.mul_(factor)
            reader.weight.div_(factor.view(1, -1, *[1] * (reader.weight.dim() - 2)))


class Scores:
    """Accuracies of files on the splits that decide and that report, and speeds."""

    def __init__(self, source: Path, like: Any, loaders: Loaders) -> None:
        self.float32, self.like, self.loaders = OnnxNetwork(source, like), like, loaders
        data = pb.Data(loaders.train, loaders.val)
        self.feeds = calibration_feeds(self.float32, data, pb.Task())

    def of(self, path: Path) -> dict[str, Any]:
        """Return the figures of one file."""
        network = OnnxNetwork(path, self.like)
        splits = {"val": self.loaders.val, "test": self.loaders.test}
        return {
            "bytes": path.stat().st_size,
            "speed": speedups(self.float32, [path], self.feeds[0])[0],
            **{n: pb.evaluate(network, split, pb.Task())[0] for n, split in splits.items()},
        }


def measure(name: str, folder: Path, *, dendrites: bool) -> Iterator[dict[str, Any]]:
    """Train one network, and yield the figures of each of its files."""
    options = {"batch_size": 128, "num_val": 2000, "train_limit": SAMPLES, "seed": SEED}
    loaders = load_loaders(NETWORKS[name][0], folder, **options)
    model = trained(name, loaders, dendrites=dendrites)
    x = next(iter(loaders.val))[0][:2]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        source, target = place / "float32.onnx", place / "out.onnx"
        pb.export_onnx(model, source, x)
        with torch.no_grad():
            scores = Scores(source, model(x), loaders)
        yield {"form": "float32", **scores.of(source)}
        write_fp16(source, target)
        yield {"form": "fp16", **scores.of(target)}
        quantizer = Quantizer(source, scores.feeds, place)
        for method in METHODS:
            quantizer.write(target, method=method)
            yield {"form": f"int8, {method}", **scores.of(target)}
        data = pb.Data(loaders.train, loaders.val)
        if not dendrites:
            network = recovered(model, x, data)
            yield {"form": RECOVERED, **scores.of(int8_of(network, x, data, place / "a"))}
        report = pb.export_onnx(
            model, target, x, quantize=pb.Int8(recover_epochs=RECOVERY), data=data
        )
        found = report.quantization
        assert found is not None
        facts = {"said": str(found), "failures": found.failures, "excluded": len(found.excluded)}
        yield {"form": "taken", **facts, **scores.of(target)}
        if name in SPREADS:
            config = plain_config(RECOVERY, optimizer=pb.OptimizerConfig(lr=1e-3))
            pb.recover_(model.requires_grad_(), data, config=config)
            yield {"form": CONTROL, **scores.of(int8_of(model, x, data, place / "b"))}


def plain_config(epochs: int, **choices: Any) -> pb.CompressConfig:
    """Return the choices of a training without dendrites."""
    recovery = pb.RecoveryConfig(epochs=epochs, **choices)
    return pb.CompressConfig(dendrites=pb.DendriteConfig(max_sets=0), recovery=recovery)


def recovered(model: nn.Module, x: torch.Tensor, data: pb.Data) -> nn.Module:
    """Return a copy that was trained under rounding, needed or not."""
    return train_quantized(
        model,
        as_call(x),
        data,
        pb.Task(),
        epochs=RECOVERY,
        bits=weight_bits(),
        samples=CALIBRATION_SAMPLES,
    )


def int8_of(model: nn.Module, x: torch.Tensor, data: pb.Data, folder: Path) -> Path:
    """Return the int8 file of a network by calibration alone, needed or not."""
    folder.mkdir()
    pb.export_onnx(model, folder / "float32.onnx", x)
    with torch.no_grad():
        network = OnnxNetwork(folder / "float32.onnx", model(x))
    feeds = calibration_feeds(network, data, pb.Task())
    Quantizer(folder / "float32.onnx", feeds, folder).write(folder / "int8.onnx")
    return folder / "int8.onnx"


def run(path: Path, folder: Path, names: list[str]) -> None:
    """Measure every network of some names that the file does not have yet."""
    done = {
        (line["name"], line["dendrites"]) for line in read_lines(path) if line["form"] == "taken"
    }
    jobs = [(n, d) for d in (False, True) for n in names if not (d and n in SPREADS)]
    for name, dendrites in jobs:
        if (name, dendrites) in done:
            continue
        lines = [
            {"name": name, "dendrites": dendrites, **line}
            for line in measure(name, folder, dendrites=dendrites)
        ]
        for line in lines:
            append_line(path, line)
        print(*lines, sep="\n", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", type=Path, default=Path("data"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(arguments.lines, arguments.folder, arguments.networks)


if __name__ == "__main__":
    main()
