"""The main job on data that is embedded in scikit-learn. The only module that imports it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError
from pbcompress.pipeline import compress
from pbcompress.recovery.recover import recover_
from pbcompress.result import CompressionResult
from pbcompress.training.history import Stage
from pbcompress.training.progress import ProgressBar
from pbcompress.training.task import Data

__all__ = ["digits", "make_network", "run_demo"]

BATCH_SIZE = 64
VAL_SAMPLES = TEST_SAMPLES = 360
TARGET = 0.25
BASE_TRAINING = RecoveryConfig(epochs=8)
CONFIG = CompressConfig(recovery=RecoveryConfig(epochs=12))


@dataclass(frozen=True)
class _Batches:
    """Batches of tensors in memory; a shuffled pass takes its order from torch's random state."""

    images: Tensor
    labels: Tensor
    shuffle: bool

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH_SIZE)

    def __iter__(self):  # type: ignore[no-untyped-def]
        count = len(self.images)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for indices in torch.split(order, BATCH_SIZE):
            yield self.images[indices], self.labels[indices]


def digits() -> Data:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, in a fixed stratified split.

    Returns:
        1,077 images to train, 360 to decide and 360 to test, of shape (N, 1, 8, 8), in [-1, 1].

    Raises:
        CompressionError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as err:
        raise CompressionError(
            "The demo needs scikit-learn's digits. Install them: pip install 'pbcompress[demo]'."
        ) from err
    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(loaded.target)
    rest, test = train_test_split(
        torch.arange(len(labels)).numpy(),
        test_size=TEST_SAMPLES,
        stratify=labels.numpy(),
        random_state=0,
    )
    train, val = train_test_split(
        rest, test_size=VAL_SAMPLES, stratify=labels[rest].numpy(), random_state=0
    )
    return Data(
        train=_Batches(images[train], labels[train], shuffle=True),
        val=_Batches(images[val], labels[val], shuffle=False),
        test=_Batches(images[test], labels[test], shuffle=False),
    )


def make_network() -> nn.Module:
    """Return the demo's convolutional network, 224 thousand parameters.

    Its layers are wide and work at every pixel, so that a run is work more than calls.
    """

    def block(width_in: int, width_out: int) -> list[nn.Module]:
        conv = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(width_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 64),
        *block(64, 128),
        *block(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def run_demo(folder: str | Path, *, seed: int = 0, progress: bool = True) -> CompressionResult:
    """Train the network, compress it to 25 % of its parameters, and write it all to ``folder``."""
    data = digits()
    with seeded(seed, "demo"):
        model = make_network()
    callbacks = (ProgressBar(),) if progress else ()
    base = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=BASE_TRAINING)
    recover_(model, data, config=base, seed=seed, stage=Stage.BASE, callbacks=callbacks)
    return compress(
        model, TARGET, data=data, config=CONFIG, seed=seed, run_dir=folder, progress=progress
    )
