"""ResNet-56 on CIFAR-10 with 2, 4 and 8 times fewer parameters, on a GPU, in pieces.

    pbcompress zoo fetch cifar10 && python -m scripts.gpu.image_parts cifar10 parts
    python -m scripts.gpu.run parts state lines.jsonl --minutes 9        # again, until it says done

The first call tries every path in small (`smoke.py`) and tells which fail; then cells are run.
Every epoch is saved under `state`, so a piece that ends, by its minutes or by force, is resumed by
the same call. A cell is one line: the original of its seed, trained once; then an arm by
`pbcompress.compress`. All arms take the same epochs; weights are chosen on 5,000 validation images,
and the test images are scored once. Images, their crops and flips are on the device, the forward
pass is in bf16, and convolutions run in channels_last.

It has run on a CPU only, in small (`tests/scripts/test_gpu.py`): it was not yet tried on a GPU.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import BatchLoader, make_loaders
from pbcompress.core.randomness import seeded
from pbcompress.recovery.checkpoint import Checkpoint
from scripts.accuracy.run import facts_of
from scripts.gpu import smoke
from scripts.gpu.image_parts import read_parts
from scripts.lines import append_line, read_lines

OFF = pb.DendriteConfig(max_sets=0)
CHEAP = pb.DendriteConfig.cheap()
TARGETS = (0.5, 0.25, 0.125)
# dendrites, and the share of the loss from the original's scores
ARMS = {
    "width": (OFF, 0.0),
    "width, distilled": (OFF, 0.5),
    "auto": (CHEAP, 0.0),
    "auto, distilled": (CHEAP, 0.5),
}


class PieceOverError(Exception):
    """The minutes of this piece are over; all is saved."""


class Clock(pb.Callback):
    """Ends a training between two epochs, once its minutes are over."""

    def __init__(self, minutes: float) -> None:
        """Start now."""
        self._end = time.monotonic() + 60 * minutes

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Raise `PieceOverError` after the last minute."""
        if time.monotonic() > self._end:
            raise PieceOverError


class ChannelsLast:
    """Batches of another loader in channels_last."""

    def __init__(self, loader: BatchLoader) -> None:
        """Take the batches of ``loader``."""
        self._loader = loader

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)

    def __iter__(self) -> Any:
        """Yield inputs and labels."""
        for inputs, labels in self._loader:
            yield inputs.contiguous(memory_format=torch.channels_last), labels


@dataclass(frozen=True)
class Setting:
    """What is trained, and for how long.

    Attributes:
        model: Arguments of `create_model`.
        epochs: Of every arm.
        base_epochs: Of the original.
        num_val: Images held out for choices.
        batch_size: Images of a step.
    """

    model: dict[str, Any]
    epochs: int = 120
    base_epochs: int = 160
    num_val: int = 5000
    batch_size: int = 128

    def recovery(self, epochs: int, lr: float, distillation: float = 0.0) -> pb.RecoveryConfig:
        """Return how weights are trained: as CIFAR ResNets usually are."""
        sgd = pb.OptimizerConfig(algorithm="sgd", lr=lr, weight_decay=5e-4, warmup=0.05)
        shared = pb.DistillationConfig(share=distillation)
        return pb.RecoveryConfig(epochs=epochs, optimizer=sgd, distillation=shared)


def half_precision(device: torch.device) -> Callable[[nn.Module, Any], tuple[Tensor, Tensor]]:
    """Return a forward pass in bf16 on a GPU, and in full precision elsewhere."""

    def context() -> AbstractContextManager[Any]:
        is_cuda = device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if is_cuda else nullcontext()

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        with context():
            outputs = model(inputs)
        return outputs.float(), labels

    return forward


class Run:
    """One seed: its data and its original."""

    def __init__(
        self, parts: Path, state: Path, setting: Setting, seed: int, device: torch.device
    ) -> None:
        """Read the data onto the device."""
        self.setting, self.seed, self.device = setting, seed, device
        self.folder = state / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        dataset = read_parts(parts)
        loaders = make_loaders(
            dataset, setting.batch_size, num_val=setting.num_val, augment=True, seed=seed
        )
        own = (loaders.train, loaders.val, loaders.test)
        self.data = pb.Data(*(ChannelsLast(loader.to(device)) for loader in own))
        self.task = pb.Task(forward=half_precision(device))

    def original(self, clock: Clock) -> tuple[nn.Module, dict[str, Any]]:
        """Return the trained original and its scores."""
        with seeded("gpu", self.seed):
            model = create_model(**self.setting.model)
        model = model.to(self.device, memory_format=torch.channels_last)
        recovery = self.setting.recovery(self.setting.base_epochs, lr=0.1)
        config = pb.CompressConfig(dendrites=OFF, recovery=recovery)
        saved = Checkpoint(self.folder / "original.safetensors", f"original-{self.setting}")
        pb.recover_(
            model, self.data, self.task,
            config=config, seed=self.seed, callbacks=[clock], checkpoint=saved,
            lengths=[self.setting.base_epochs],
        )  # fmt: skip
        facts = self.folder / "original.json"
        if not facts.is_file():  # test is scored once
            assert self.data.test is not None
            splits = {"val": self.data.val, "test": self.data.test}
            scores = {n: pb.evaluate(model, split, self.task)[0] for n, split in splits.items()}
            facts.write_text(json.dumps(scores))
        found: dict[str, Any] = json.loads(facts.read_text())
        return model, found

    def cell(self, arm: str, target: float, clock: Clock) -> dict[str, Any]:
        """Return the line of one arm."""
        model, scores = self.original(clock)
        dendrites, distillation = ARMS[arm]
        recovery = self.setting.recovery(self.setting.epochs, lr=0.05, distillation=distillation)
        config = pb.CompressConfig(dendrites=dendrites, recovery=recovery, deploy=False)
        result = pb.compress(
            model, target,
            data=self.data, task=self.task, config=config, seed=self.seed, progress=False,
            run_dir=self.folder / f"{arm}-{target:g}".replace(", ", "-"), callbacks=[clock],
        )  # fmt: skip
        about = {"task": "cifar10_resnet56", "target": target, "arm": arm, "seed": self.seed}
        rest = {
            "base": scores | {"params": result.cost_before.params},
            "config": config.to_dict(),
            "epochs": self.setting.epochs,
            "torch": torch.__version__,
            "machine": _name_of(self.device),
        }
        return about | facts_of(result) | rest


def try_paths(told: Path) -> None:
    """Try every path in small, once, and say what became of it; a fault does not end the run."""
    if told.is_file():
        return
    told.parent.mkdir(parents=True, exist_ok=True)
    for line in smoke.run(_device()):
        print(f"{line['path']}: {line['error'] or 'ok'}", flush=True)
        append_line(told, line)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run(
    parts: Path,
    state: Path,
    lines: Path,
    cells: Sequence[tuple[int, float, str]],
    setting: Setting,
    minutes: float,
) -> bool:
    """Run cells (seed, target, arm) that have no line yet; tell whether all are done."""
    device = _device()
    clock = Clock(minutes)
    done = {(line["seed"], line["target"], line["arm"]) for line in read_lines(lines)}
    for seed in dict.fromkeys(seed for seed, *_ in cells):
        own = [(target, arm) for s, target, arm in cells if s == seed]
        own = [cell for cell in own if (seed, *cell) not in done]
        if not own:
            continue
        seed_run = Run(parts, state, setting, seed, device)
        for target, arm in own:
            try:
                line = seed_run.cell(arm, target, clock)
            except PieceOverError:
                return False
            append_line(lines, line)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one piece."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", type=Path, help="folder that image_parts.py wrote")
    parser.add_argument("state", type=Path, help="folder to keep the state of trainings in")
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--minutes", type=float, default=9, help="begin no epoch after these")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    parser.add_argument("--epochs", type=int, default=Setting.epochs)
    parser.add_argument("--base-epochs", type=int, default=Setting.base_epochs)
    options = parser.parse_args(argv)
    cells = [(s, t, a) for s in options.seeds for t in options.targets for a in options.arms]
    setting = Setting({"name": "resnet56"}, options.epochs, options.base_epochs)
    try_paths(options.state / "smoke.jsonl")
    is_done = run(options.parts, options.state, options.lines, cells, setting, options.minutes)
    print("done" if is_done else "more is left: call again")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
