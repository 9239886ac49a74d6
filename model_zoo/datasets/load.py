"""Load a data set by its name."""

from pathlib import Path

import torch
from torch import Tensor

from model_zoo.datasets.idx import read_idx
from model_zoo.datasets.image_dataset import ImageDataset
from model_zoo.datasets.split import stratified_split
from model_zoo.names import natural_sorted, unknown_name_error

__all__ = ["list_datasets", "load_dataset"]

# Dimensions of the image files: (N, H, W) for grey images, (N, C, H, W) for colour.
_IMAGE_NDIM = {"mnist": 3, "fashion_mnist": 3, "cifar10": 4}

_DIGITS_TEST_SIZE = 360


def list_datasets() -> list[str]:
    """List the names that :func:`load_dataset` knows.

    Example:
        >>> list_datasets()
        ['cifar10', 'digits', 'fashion_mnist', 'mnist']
    """
    return natural_sorted(["digits", *_IMAGE_NDIM])


def load_dataset(name: str, folder: str | Path = "data") -> ImageDataset:
    """Load labelled images into memory.

    ========================  ==========  ===============  ==========================
    name                      images      train / test     comes from
    ========================  ==========  ===============  ==========================
    ``digits``                1x8x8       1437 / 360       scikit-learn, no download
    ``mnist``                 1x28x28     60,000 / 10,000  ``scripts/fetch_data.py``
    ``fashion_mnist``         1x28x28     60,000 / 10,000  ``scripts/fetch_data.py``
    ``cifar10``               3x32x32     50,000 / 10,000  ``scripts/fetch_data.py``
    ========================  ==========  ===============  ==========================

    The split is the published one; ``digits`` has none, so a fixed 360 of its images, every
    class in proportion, are its test part, and its 17 grey levels are spread over 0 to 255.

    Args:
        name: One of :func:`list_datasets`.
        folder: Where ``scripts/fetch_data.py`` put its files.

    Returns:
        The data set.

    Raises:
        ValueError: There is no such data set, or a file is damaged.
        FileNotFoundError: The files are not there; the message says how to fetch them.

    Example:
        >>> digits = load_dataset("digits")
        >>> digits.train_images.shape, digits.test_images.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
    """
    if name == "digits":
        return _load_digits()
    if name not in _IMAGE_NDIM:
        raise unknown_name_error("data set", name, list_datasets())
    try:
        train_images, train_labels = _read_part(Path(folder) / name, "train", _IMAGE_NDIM[name])
        test_images, test_labels = _read_part(Path(folder) / name, "t10k", _IMAGE_NDIM[name])
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data set '{name}' is not in '{folder}': no file '{error.filename}'. "
            f"Fetch it with: python scripts/fetch_data.py {name} --folder {folder}"
        ) from error
    return ImageDataset.from_tensors(name, train_images, train_labels, test_images, test_labels)


def _read_part(folder: Path, part: str, image_ndim: int) -> tuple[Tensor, Tensor]:
    # The names are those of the MNIST files, so that a folder which has them already will do;
    # in sync with scripts/fetch_data.py.
    images = read_idx(folder / f"{part}-images-idx{image_ndim}-ubyte", ndim=image_ndim)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte", ndim=1)
    return (images if image_ndim == 4 else images.unsqueeze(1)), labels.long()


def _load_digits() -> ImageDataset:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data set 'digits' is part of scikit-learn; install it with: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = stratified_split(labels, _DIGITS_TEST_SIZE, seed=0)
    return ImageDataset.from_tensors(
        "digits", images[train], labels[train], images[test], labels[test]
    )
