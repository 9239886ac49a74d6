"""Cut data in memory into batches.

torch's ``DataLoader`` collects samples one by one. The images here are in memory already, so a
whole batch is one indexing operation, many times faster for small images.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from model_zoo.datasets.augment import random_crop_and_flip
from model_zoo.datasets.image_dataset import ImageDataset, Kind
from model_zoo.datasets.load import load_dataset
from model_zoo.datasets.split import stratified_split

__all__ = ["BatchLoader", "Loaders", "load_loaders", "make_loaders"]


class BatchLoader:
    """Batches of normalised images, as often as wanted.

    Every iteration passes over all samples once; the last batch may be smaller, none is dropped.
    Images stay uint8 in memory and are normalised batch by batch.

    Args:
        images: uint8 of shape ``(N, C, H, W)``.
        labels: int64 of shape ``(N,)``.
        mean: Mean of each channel, where 255 counts as 1.0.
        std: Standard deviation of each channel, positive.
        batch_size: Samples in each batch, at least 1.
        shuffle: Take a new order from torch's global random generator for every iteration, so
            that seeding torch before an epoch fixes its order.
        augment: Crop and flip at random, also from torch's global generator.
        kind: What a batch is; see `ImageDataset`.

    Raises:
        ValueError: ``batch_size`` is below 1, or there are not as many labels as images.

    Example:
        >>> images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
        >>> loader = BatchLoader(images, torch.arange(5), mean=[0.5], std=[0.25], batch_size=2)
        >>> [labels.tolist() for inputs, labels in loader]
        [[0, 1], [2, 3], [4]]
        >>> next(iter(loader))[0].unique()
        tensor([-2.])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 128,
        shuffle: bool = False,
        augment: bool = False,
        kind: Kind = "image",
    ) -> None:
        """Keep the data as it is; the class says what the arguments mean."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(images) != len(labels):
            raise ValueError(f"got {len(images)} images but {len(labels)} labels")
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.kind = kind
        # (x / 255 - mean) / std as one multiplication and one addition
        self._scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1))
        self._shift = -(torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1)

    def to(self, device: torch.device) -> Self:
        """Return a loader of the same batches whose data, and so its batches, are on ``device``."""
        moved = copy.copy(self)
        for name in ("images", "labels", "_scale", "_shift"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    @property
    def num_samples(self) -> int:
        """Number of samples in one pass."""
        return len(self.labels)

    def __len__(self) -> int:
        """Return the number of batches in one pass."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs, float32, or int64 of a text, and labels, int64 ``(B,)``."""
        order = torch.randperm if self.shuffle else torch.arange
        places = order(self.num_samples).to(self.images.device)
        for chosen in torch.split(places, self.batch_size):
            images = self.images[chosen]
            if self.augment:
                images = random_crop_and_flip(images)
            if self.kind == "text":
                yield images.flatten(1).long(), self.labels[chosen]
                continue
            inputs = images.float().mul_(self._scale).add_(self._shift)
            yield inputs.squeeze(2) if self.kind == "series" else inputs, self.labels[chosen]


@dataclass(frozen=True)
class Loaders:
    """The three parts of a data set.

    Attributes:
        train: Shuffled anew for every pass, augmented if so asked.
        val: Held out of the training part, in fixed order; for choices made during training.
        test: The test part, in fixed order; for the number to report.
    """

    train: BatchLoader
    val: BatchLoader
    test: BatchLoader


def make_loaders(
    dataset: ImageDataset,
    batch_size: int = 128,
    *,
    num_val: int | None = None,
    train_limit: int | None = None,
    augment: bool = False,
    seed: int = 0,
) -> Loaders:
    """Make loaders for training, validation and test.

    The validation part is taken out of the training part, every class in proportion. It depends
    on ``num_val`` and ``seed`` only, and not on ``train_limit``.

    Args:
        dataset: Images and labels.
        batch_size: Samples in each batch, at least 1.
        num_val: Samples for validation, at least 1 and fewer than the training part has; a tenth
            of it if left out.
        train_limit: Keep at most this many of the other training samples, at least 1, every class
            in proportion; all if left out.
        augment: Crop and flip the training images at random. Flips suit neither digits nor text.
        seed: Names the split. The order of the training samples is not its business: seed torch
            for that.

    Returns:
        The loaders; only ``test`` shares memory with ``dataset``.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> from model_zoo.datasets import load_dataset
        >>> loaders = make_loaders(load_dataset("digits"), num_val=137, train_limit=500)
        >>> loaders.train.num_samples, loaders.val.num_samples, loaders.test.num_samples
        (500, 137, 360)
    """
    num_available = len(dataset.train_labels)
    if num_val is None:
        num_val = max(1, num_available // 10)
    if not 1 <= num_val < num_available:
        raise ValueError(
            f"num_val must be at least 1 and below the {num_available} training samples of "
            f"{dataset.name}, got {num_val}"
        )
    if train_limit is not None and train_limit < 1:
        raise ValueError(f"train_limit must be at least 1, got {train_limit}")

    train, val = stratified_split(dataset.train_labels, num_val, seed=seed)
    if train_limit is not None and train_limit < len(train):
        _, kept = stratified_split(dataset.train_labels[train], train_limit, seed=seed)
        train = train[kept]

    def loader(images: Tensor, labels: Tensor, *, is_train: bool) -> BatchLoader:
        return BatchLoader(
            images,
            labels,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=batch_size,
            shuffle=is_train,
            augment=is_train and augment,
            kind=dataset.kind,
        )

    images, labels = dataset.train_images, dataset.train_labels
    return Loaders(
        train=loader(images[train], labels[train], is_train=True),
        val=loader(images[val], labels[val], is_train=False),
        test=loader(dataset.test_images, dataset.test_labels, is_train=False),
    )


def load_loaders(name: str, folder: str | Path = "data", **options: Any) -> Loaders:
    """Load a data set and batch it; one call for recipes.

    Args:
        name: Data set, see `list_datasets`.
        folder: Where `pbcompress zoo fetch` put it.
        **options: Those of `make_loaders`.

    Example:
        >>> len(load_loaders("digits", batch_size=360).test)
        1
    """
    return make_loaders(load_dataset(name, folder), **options)
