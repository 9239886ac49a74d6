"""Labelled images in memory, and batches of them.

The usual two lines:

    >>> from model_zoo.datasets import load_dataset, make_loaders
    >>> loaders = make_loaders(load_dataset("digits"), batch_size=100)
    >>> inputs, labels = next(iter(loaders.test))
    >>> inputs.shape, labels.shape, len(loaders.test)
    (torch.Size([100, 1, 8, 8]), torch.Size([100]), 4)
"""

from model_zoo.datasets.image_dataset import ImageDataset
from model_zoo.datasets.load import list_datasets, load_dataset
from model_zoo.datasets.loaders import BatchLoader, Loaders, load_loaders, make_loaders

__all__ = [
    "BatchLoader",
    "ImageDataset",
    "Loaders",
    "list_datasets",
    "load_dataset",
    "load_loaders",
    "make_loaders",
]
