"""What `recover_` costs beside a plain loop, in CPU seconds of one thread.

    python -m scripts.recovery.run lines.jsonl

A round trains copies of one network in turn: by `recover_`, with and without images in channels-
last memory, and by a plain loop in both layouts. What lies outside of epochs is timed by callbacks:
before the first epoch, and after the last one. Data are random; an epoch is short, so that what it
costs to begin shows.
"""

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import pbcompress as pb
from model_zoo import create_model
from scripts.lines import append_line

NETWORK = "resnet20"
BATCH, TRAIN, VAL = 64, 4, 1  # samples of a batch, batches of the splits
EPOCHS = 2
OURS = {"recover_": True, "recover_, torch's layout": False}
PLAIN = {
    "plain loop, channels last": torch.channels_last,
    "plain loop": torch.contiguous_format,
}


class Clock(pb.Callback):
    """Notes the time before the first epoch, and after each of them."""

    def __init__(self) -> None:
        self.times = [time.process_time()]

    def on_stage(self, stage: str, total_epochs: int) -> None:
        """Note the end of all that comes before."""
        self.times.append(time.process_time())

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Note the end of an epoch."""
        self.times.append(time.process_time())


def loader(batches: int, seed: int, *, shuffle: bool) -> DataLoader:
    """Return random images of CIFAR's shape, and classes."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH * batches, 3, 32, 32, generator=draw)
    classes = torch.randint(10, (len(images),), generator=draw)
    return DataLoader(TensorDataset(images, classes), BATCH, shuffle=shuffle)


def recovered(model: nn.Module, data: pb.Data, *, channels_last: bool) -> dict[str, float]:
    """Time a recovery by width alone."""
    engine = pb.EngineConfig(channels_last=channels_last)
    config = pb.RecoveryConfig(epochs=EPOCHS, engine=engine)
    clock = Clock()
    pb.recover_(model, data, config=config, lengths=[EPOCHS], callbacks=[clock])
    end = time.process_time()
    begun, *epochs = [after - before for before, after in itertools.pairwise(clock.times)]
    return _times(epochs) | {"fixed": begun + end - clock.times[-1]}


def plainly_trained(
    model: nn.Module, data: pb.Data, layout: torch.memory_format
) -> dict[str, float]:
    """Time the same epochs as a loop by hand, validation included."""
    model = model.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-4)
    epochs = []
    for _ in range(EPOCHS):
        started = time.process_time()
        model.train()
        for x, y in data.train:
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(model(x.contiguous(memory_format=layout)), y)
            loss.backward()
            optimizer.step()
            loss.item()
        model.eval()
        with torch.no_grad():
            outputs = [model(x.contiguous(memory_format=layout)) for x, _ in data.val]
        found, wanted = torch.cat(outputs).argmax(1), torch.cat([y for _, y in data.val])
        (found == wanted).float().mean().item()
        epochs.append(time.process_time() - started)
    return _times(epochs)


def _times(epochs: Sequence[float]) -> dict[str, float]:
    return {"first": epochs[0], "epoch": statistics.median(epochs[1:])}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all arms in turn, round by round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = create_model(NETWORK)
    data = pb.Data(loader(TRAIN, 0, shuffle=True), loader(VAL, 1, shuffle=False))
    for number in range(chosen.rounds):
        times = {
            arm: recovered(copy.deepcopy(base), data, channels_last=laid)
            for arm, laid in OURS.items()
        }
        times |= {
            arm: plainly_trained(copy.deepcopy(base), data, layout) for arm, layout in PLAIN.items()
        }
        for arm, found in times.items():
            rounded = {name: round(value, 3) for name, value in found.items()}
            line = {"network": NETWORK, "steps": TRAIN, "round": number, "arm": arm}
            append_line(chosen.lines, line | rounded)


if __name__ == "__main__":
    main()
