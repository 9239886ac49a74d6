"""Every path of a training on a device, in small: what a GPU's first minute is for.

    python -m scripts.gpu.smoke            # on CUDA where there is one

A path is one call of the toolkit on a small network and a task that it can learn. Each must end,
leave all tensors on the device, and learn more than chance; those that fold dendrites away must
ship a plain network. One line tells of each; the exit status is 1 if one failed.
"""

import argparse
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.core.randomness import seeded
from pbcompress.dendrites.layer import dendrite_layers

CHANCE = 0.25  # of four classes


def network() -> nn.Module:
    """Return a small network with a convolution, a norm, dropout and Linear layers."""
    with seeded("smoke"):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4),
        )  # fmt: skip


def data_of(device: torch.device) -> pb.Data:
    """Return batches on the device; the class is the brightest of four rows."""
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(12, 64, 1, 8, 8, generator=generator)
    ys = xs[:, :, 0, :4].mean(-1).argmax(-1)
    batches = [(x.to(device), y.to(device)) for x, y in zip(xs, ys, strict=True)]
    return pb.Data(batches[:8], batches[8:10], batches[10:])


def compressed(
    device: torch.device, *, dendrites: Any = None, deploy: bool = False, **recovery: Any
) -> pb.CompressionResult:
    """Return what `compress` makes of the network, and check it."""
    choices: dict[str, Any] = {} if dendrites is None else {"dendrites": dendrites}
    own = {"epochs": 4, "dendrite_epochs": 2} | recovery
    config = pb.CompressConfig(recovery=pb.RecoveryConfig(**own), deploy=deploy, **choices)
    result = pb.compress(
        network(), 0.5, data=data_of(device), config=config, device=device, progress=False
    )
    kinds = {tensor.device.type for tensor in result.model.state_dict().values()}
    assert kinds == {device.type}, f"tensors are on {kinds}"
    assert result.score_after is not None
    assert result.score_after.val > CHANCE, f"{result.score_after.val:.3f} on validation"
    if dendrites is not None and dendrites.is_absorbed:
        assert not dendrite_layers(result.model), "dendrites were not absorbed"
    return result


def fitted(device: torch.device) -> None:
    """Fit a cut network without labels."""
    inputs = [x for x, _ in data_of(device).train]
    result = pb.compress(network(), 0.5, data=inputs, device=device, progress=False)
    assert all(bool(t.isfinite().all()) for t in result.model.parameters())


def in_eight_bits(device: torch.device) -> None:
    """Export with a training under rounding."""
    model, data = compressed(device).model, data_of(device)
    with tempfile.TemporaryDirectory() as folder:
        pb.export_onnx(
            model, Path(folder) / "small.onnx", data.val[0][0][:1],  # type: ignore[index]
            data=data, quantize=pb.Int8(max_drop=1.0, recover_epochs=1),
        )  # fmt: skip


def own_loop(device: torch.device) -> None:
    """Grow in a loop of one's own, with a scaled loss in half precision."""
    model, data = network().to(device), data_of(device)
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(rule="hybrid"),
        recovery=pb.RecoveryConfig(epochs=1, dendrite_epochs=1),
    )
    for phase in pb.cycles(model, config=config):
        optimizer = torch.optim.AdamW(phase.parameters(), 1e-2)
        phase.train()
        for x, y in data.train:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss: Tensor = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        phase.report(pb.evaluate(model, data.val, pb.Task())[0])


def _grown(**choices: Any) -> Callable[[torch.device], Any]:
    return lambda device: compressed(device, dendrites=pb.DendriteConfig(**choices))


def _trained(**choices: Any) -> Callable[[torch.device], Any]:
    return lambda device: compressed(device, **choices)


PATHS: dict[str, Callable[[torch.device], Any]] = {
    "width": _trained(deploy=True),
    "correlation": _grown(rule=pb.Correlation(candidates=2), share=0.5),
    "correlation, no memory": lambda device: compressed(
        device, dendrites=pb.DendriteConfig(share=0.5), replay=0.0
    ),
    "absorbed after correlation": _grown(rule="hybrid", annealing=0.5),
    "absorbed linear": _grown(rule="gradient", activation="linear", at_start=True),
    "distilled": _trained(distillation=pb.DistillationConfig(share=0.5, features=0.1)),
    "distilled by relations": _trained(distillation=pb.DistillationConfig(share=0.5, loss="dist")),
    "accumulated": _trained(engine=pb.EngineConfig(accumulate=2)),
    "bf16": _trained(engine=pb.EngineConfig(precision="bf16")),
    "compiled": _trained(engine=pb.EngineConfig(compile=True)),
    "inputs alone": fitted,
    "int8": in_eight_bits,
    "own loop": own_loop,
}


def run(device: torch.device, names: Sequence[str] = tuple(PATHS)) -> Iterator[dict[str, Any]]:
    """Yield what became of each path: its seconds, and the end of the error if it failed."""
    for name in names:
        started, error = time.perf_counter(), None
        try:
            PATHS[name](device)
        except Exception:
            error = traceback.format_exc(limit=-3)
        yield {"path": name, "seconds": round(time.perf_counter() - started, 1), "error": error}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every path once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=usual)
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=list(PATHS))
    options = parser.parse_args(argv)
    failed = 0
    for found in run(torch.device(options.device), options.paths):
        print(f"{found['path']}: {found['error'] or 'ok'} ({found['seconds']} s)", flush=True)
        failed += found["error"] is not None
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
