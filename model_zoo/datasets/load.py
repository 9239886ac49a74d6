"""Load a data set by its name."""

from pathlib import Path

import torch
from torch import Tensor

from model_zoo.datasets.idx import read_idx
from model_zoo.datasets.image_dataset import ImageDataset, Kind
from model_zoo.datasets.split import stratified_split
from model_zoo.names import natural_sorted, unknown_name_error

__all__ = ["list_datasets", "load_dataset"]

# Dimensions of the image files: (N, H, W) for grey images, (N, C, H, W) for colour.
_IMAGE_NDIM = {"mnist": 3, "fashion_mnist": 3, "cifar10": 4}

# Series are files of shape (N, channels, steps), texts of shape (N, tokens).
_KINDS: dict[str, Kind] = {"watch": "series", "reuters_r8": "text"}
_ROW_NDIM = {"watch": 3, "reuters_r8": 2}

_TABLES = ("letter", "penbased", "satimage")  # files of shape (N, features)

_DIGITS_TEST_SIZE = 360


def list_datasets() -> list[str]:
    """List the names that :func:`load_dataset` knows.

    Example:
        >>> list_datasets()[:5]
        ['cifar10', 'digits', 'fashion_mnist', 'letter', 'mnist']
    """
    return natural_sorted(["digits", *_IMAGE_NDIM, *_KINDS, *_TABLES])


def load_dataset(name: str, folder: str | Path = "data") -> ImageDataset:
    """Load labelled images, the rows of a table, series or texts into memory.

    ========================  ==========  ===============  ==========================
    name                      images      train / test     comes from
    ========================  ==========  ===============  ==========================
    ``digits``                1x8x8       1437 / 360       scikit-learn, no download
    ``mnist``                 1x28x28     60,000 / 10,000  ``pbcompress zoo fetch``
    ``fashion_mnist``         1x28x28     60,000 / 10,000  ``pbcompress zoo fetch``
    ``cifar10``               3x32x32     50,000 / 10,000  ``pbcompress zoo fetch``
    ``letter``                16x1x1      16,000 / 4,000   ``pbcompress zoo fetch``
    ``penbased``              16x1x1      8,794 / 2,198    ``pbcompress zoo fetch``
    ``satimage``              36x1x1      5,148 / 1,287    ``pbcompress zoo fetch``
    ``watch``                 6x1x100     1,355 / 1,014    ``pbcompress zoo fetch``
    ``reuters_r8``            1x1x48      5,485 / 2,189    ``pbcompress zoo fetch``
    ========================  ==========  ===============  ==========================

    The split is the published one; ``digits`` has none, so a fixed 360 of its images, every
    class in proportion, are its test part, and its 17 grey levels are spread over 0 to 255.
    ``letter``, ``penbased`` and ``satimage`` are tables (KEEL, from UCI) without a split: a fifth
    of the rows, fixed and every class in proportion, is the test part, and each feature is a
    channel, normalised by itself.

    ``watch`` are seven shoulder exercises of ten people with a smart watch (Burns et al., 2018):
    acceleration up to 4 g and rates up to 9 rad/s in three axes, 50 a second, in 256 levels,
    windows of two seconds that do not overlap. The last four people are the test part.
    ``reuters_r8`` are news stories on eight topics, each as its first 48 words out of the 255 that
    most training stories have; 0 fills what is left.

    Args:
        name: One of :func:`list_datasets`.
        folder: Where ``pbcompress zoo fetch`` put its files.

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
    if name not in list_datasets():
        raise unknown_name_error("data set", name, list_datasets())
    try:
        if name in _TABLES:
            rows, labels = _read_part(Path(folder) / name, "all", 2)
            return _with_test_part(name, rows, labels, len(labels) // 5)
        ndim = _IMAGE_NDIM.get(name) or _ROW_NDIM[name]
        kind = _KINDS.get(name, "image")
        train, test = (_read_part(Path(folder) / name, p, ndim, kind) for p in ("train", "t10k"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data set '{name}' is not in '{folder}': no file '{error.filename}'. "
            f"Fetch it with: pbcompress zoo fetch {name} --folder {folder}"
        ) from error
    return ImageDataset.from_tensors(name, *train, *test, kind=kind)


def _read_part(
    folder: Path, part: str, image_ndim: int, kind: Kind = "image"
) -> tuple[Tensor, Tensor]:
    # The names are those of the MNIST files, so that a folder which has them already will do;
    # in sync with fetch/sources.py.
    images = read_idx(folder / f"{part}-images-idx{image_ndim}-ubyte", ndim=image_ndim)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte", ndim=1)
    if kind != "image":  # one row
        return images.reshape(len(images), -1, 1, images.shape[-1]), labels.long()
    shape = {2: (len(images), -1, 1, 1), 3: (len(images), 1, *images.shape[1:])}
    return images.reshape(shape.get(image_ndim, images.shape)), labels.long()


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
    return _with_test_part("digits", images, labels, _DIGITS_TEST_SIZE)


def _with_test_part(name: str, images: Tensor, labels: Tensor, num_test: int) -> ImageDataset:
    train, test = stratified_split(labels, num_test, seed=0)
    return ImageDataset.from_tensors(name, images[train], labels[train], images[test], labels[test])
