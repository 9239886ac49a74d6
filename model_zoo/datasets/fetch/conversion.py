"""Files of a data set from what others publish: IDX files, and for texts their words."""

import collections
import gzip
import hashlib
import io
import json
import math
import tarfile
from collections.abc import Mapping

import numpy as np

from model_zoo.datasets.fetch.packages import read_member
from model_zoo.datasets.fetch.storing import FetchError
from model_zoo.datasets.idx import idx_bytes

__all__ = [
    "CIFAR_PNG_FILES",
    "cifar10_of_binary",
    "cifar10_of_png",
    "reuters_of_tables",
    "table_of_rows",
    "unzipped",
    "watch_of_series",
]

CIFAR_IMAGE_SHAPE = (3, 32, 32)
CIFAR_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR_LABELS = ("train_lables.json", "test_lables.json")  # spelt so in the package
CIFAR_PNG_FILES = (*(f"{batch}.png" for batch in CIFAR_BATCHES), *CIFAR_LABELS)

WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WATCH_RANGES = (4.0, 4.0, 4.0, 9.0, 9.0, 9.0)  # g in three axes, rad/s in three axes
WATCH_STEPS = 100
WATCH_TRAIN_PEOPLE = 6  # of ten

TEXT_TOKENS = 48
TEXT_WORDS = 255


def unzipped(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Unpack files called ``NAME.gz``."""
    return {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}


def cifar10_of_binary(content: bytes) -> dict[str, bytes]:
    """Convert the binary version of CIFAR-10: records of one label and 3x32x32 pixels."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = [f"cifar-10-batches-bin/{batch}.bin" for batch in CIFAR_BATCHES]
        batches = [read_member(archive, name) for name in names]
    record = 1 + math.prod(CIFAR_IMAGE_SHAPE)
    parts = [b"".join(batches[:-1]), batches[-1]]
    rows = [np.frombuffer(part, np.uint8).reshape(-1, record) for part in parts]
    train, test = ((part[:, 1:].tobytes(), part[:, 0].tobytes()) for part in rows)
    return _cifar10_files(*train, *test)


def cifar10_of_png(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Convert `CIFAR_PNG_FILES`: images in which each row is one image, and lists of labels."""
    train_labels, test_labels = (bytes(json.loads(files[name])) for name in CIFAR_LABELS)
    pixels = [_pixels_of_png(files[f"{batch}.png"]) for batch in CIFAR_BATCHES]
    return _cifar10_files(b"".join(pixels[:-1]), train_labels, pixels[-1], test_labels)


def _pixels_of_png(png: bytes) -> bytes:
    from PIL import Image  # here, because nothing else needs it

    channels, height, width = CIFAR_IMAGE_SHAPE
    with Image.open(io.BytesIO(png)) as image:
        rows = np.asarray(image.convert("RGB"))
    return rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).tobytes()


def _cifar10_files(
    train_pixels: bytes, train_labels: bytes, test_pixels: bytes, test_labels: bytes
) -> dict[str, bytes]:
    return {
        "train-images-idx4-ubyte": idx_bytes(train_pixels, CIFAR_IMAGE_SHAPE),
        "train-labels-idx1-ubyte": idx_bytes(train_labels),
        "t10k-images-idx4-ubyte": idx_bytes(test_pixels, CIFAR_IMAGE_SHAPE),
        "t10k-labels-idx1-ubyte": idx_bytes(test_labels),
    }


def table_of_rows(content: bytes) -> dict[str, bytes]:
    """Convert a table: lines of numbers from 0 to 255, and last the class.

    Classes are counted in the order of their names.
    """
    lines = content.decode().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    features = bytes(int(cell) for row in rows for cell in row[:-1])
    names = sorted({row[-1] for row in rows})
    labels = bytes(names.index(row[-1]) for row in rows)
    return {
        "all-images-idx2-ubyte": idx_bytes(features, (len(rows[0]) - 1,)),
        "all-labels-idx1-ubyte": idx_bytes(labels),
    }


def watch_of_series(content: bytes) -> dict[str, bytes]:
    """Cut the series of a smart watch into windows, and split them by person.

    Raises:
        FetchError: It is not the known file. It holds Python objects, so that one looks first.
    """
    if hashlib.sha256(content).hexdigest() != WATCH_SHA256:
        raise FetchError("watch_dataset.npy is not the known file")
    series = np.load(io.BytesIO(content), allow_pickle=True).item()
    shape = (len(WATCH_RANGES), WATCH_STEPS)
    windows: dict[bool, list[bytes]] = {True: [], False: []}
    labels: dict[bool, list[int]] = {True: [], False: []}
    for values, label, person in zip(series["X"], series["y"], series["subject"], strict=True):
        levels = np.rint((np.clip(values / np.array(WATCH_RANGES), -1, 1) + 1) * 127.5)
        is_train = bool(person <= WATCH_TRAIN_PEOPLE)
        for start in range(0, len(levels) - WATCH_STEPS + 1, WATCH_STEPS):
            window = levels[start : start + WATCH_STEPS].T.astype(np.uint8)
            windows[is_train].append(window.tobytes())
            labels[is_train].append(int(label))
    return {
        "train-images-idx3-ubyte": idx_bytes(b"".join(windows[True]), shape),
        "train-labels-idx1-ubyte": idx_bytes(bytes(labels[True])),
        "t10k-images-idx3-ubyte": idx_bytes(b"".join(windows[False]), shape),
        "t10k-labels-idx1-ubyte": idx_bytes(bytes(labels[False])),
    }


def reuters_of_tables(train: bytes, test: bytes) -> dict[str, bytes]:
    """Convert two tables of topics and texts to tokens.

    Topics are counted in the order of their names. The words that most training texts have are the
    tokens from 1; all others are left out, and 0 fills texts that are shorter.
    """
    parts = []
    for content in (train, test):
        lines = [line for line in content.decode().split("\n")[3:] if line]  # three of header
        parts.append([line.split("\t") for line in lines])
    counts = collections.Counter(word for _, text in parts[0] for word in set(text.split()))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:TEXT_WORDS]
    places = {word: place for place, word in enumerate(ranked, start=1)}
    topics = sorted({topic for topic, _ in parts[0]})
    files = {"words.txt": "".join(f"{word}\n" for word in ranked).encode()}
    for part, rows in zip(("train", "t10k"), parts, strict=True):
        tokens = bytearray()
        for _, text in rows:
            known = bytes(places[word] for word in text.split() if word in places)
            tokens += known[:TEXT_TOKENS].ljust(TEXT_TOKENS, b"\0")
        files[f"{part}-images-idx2-ubyte"] = idx_bytes(bytes(tokens), (TEXT_TOKENS,))
        labels = bytes(topics.index(topic) for topic, _ in rows)
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    return files
