"""The data type: labelled images with a fixed training and test part."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

__all__ = ["ImageDataset", "Kind"]

Kind = Literal["image", "series", "text"]


# Comparing tensors gives tensors, so two data sets are equal only if they are the same one.
@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images in memory, with a fixed test part.

    Series and texts are kept as images too, of one row: a channel for each thing measured, or the
    one channel of the tokens.

    Attributes:
        name: What the data set is called.
        train_images: uint8 of shape ``(N, C, H, W)``, 0 to 255.
        train_labels: int64 of shape ``(N,)``, 0 to ``num_classes - 1``.
        test_images: As ``train_images``, with its own ``N``.
        test_labels: As ``train_labels``, with its own ``N``.
        mean: Mean of each channel over the training part, where 255 counts as 1.0.
        std: Standard deviation likewise, positive.
        num_classes: Number of classes.
        kind: What a batch is: "image" ``(B, C, H, W)``, normalised; "series" ``(B, C, W)``,
            normalised; "text" ``(B, W)``, whole numbers.

    Raises:
        ValueError: A tensor has another dtype or shape, a label is out of range, or ``mean`` and
            ``std`` do not fit the channels.
    """

    name: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    kind: Kind = "image"

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        self._check_part("train", self.train_images, self.train_labels)
        self._check_part("test", self.test_images, self.test_labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: training images are {tuple(self.train_images.shape[1:])} "
                f"but test images {tuple(self.test_images.shape[1:])}"
            )
        channels = self.image_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"{self.name}: images have {channels} channels, mean has {len(self.mean)} values "
                f"and std {len(self.std)}"
            )
        if self.kind != "image" and self.image_shape[1] != 1:
            raise ValueError(
                f"{self.name}: a {self.kind} has one row, got {self.image_shape[1]} rows"
            )
        if min(self.std) <= 0:
            raise ValueError(f"{self.name}: std must be positive, got {self.std}")

    @classmethod
    def from_tensors(
        cls,
        name: str,
        train_images: Tensor,
        train_labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        kind: Kind = "image",
    ) -> "ImageDataset":
        """Build a data set and measure mean, std and the number of classes from its training part.

        Args:
            name: What the data set is called.
            train_images: uint8 of shape ``(N, C, H, W)``.
            train_labels: int64 of shape ``(N,)``; the largest one tells the number of classes.
            test_images: As ``train_images``.
            test_labels: As ``train_labels``.
            kind: What a batch is; see the class.

        Returns:
            The data set; the tensors are shared, not copied.

        Raises:
            ValueError: The tensors do not make a data set; see the class.

        Example:
            >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
            >>> labels = torch.tensor([0, 1])
            >>> ImageDataset.from_tensors("black or white", images, labels, images, labels).mean
            (0.5,)
        """
        mean, std = _channel_statistics(train_images)
        return cls(
            name=name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            mean=mean,
            std=std,
            num_classes=int(train_labels.max()) + 1,
            kind=kind,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def _check_part(self, part: str, images: Tensor, labels: Tensor) -> None:
        where = f"{self.name}, {part} part"
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"{where}: images must be uint8 of shape (N, C, H, W), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"{where}: labels must be int64 of shape ({len(images)},), "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        if not len(images):
            raise ValueError(f"{where}: no images")
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"{where}: labels must lie in 0 to {self.num_classes - 1}, "
                f"got {int(labels.min())} to {int(labels.max())}"
            )


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # A histogram of the 256 levels gives the exact sums without a float copy of the images.
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(dim=1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = share @ levels
        means.append(float(mean))
        stds.append(float((share @ (levels - mean).square()).sqrt()))
    return tuple(means), tuple(stds)
