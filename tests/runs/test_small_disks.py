"""A disk that is really full, and one that is really read-only: small file systems of their own.

Root ignores the bits that forbid, and so there is a mount. Where none may be made, these tests are
skipped. Before each call the disk is filled up to a number of bytes; afterwards there is space.
"""

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pbcompress as pb
from pbcompress.cli.main import main
from pbcompress.errors import CompressionError
from tests.runs.test_faults import hidden, message_of, network, run, same, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system as Linux does"),
]
LEFT = [0, 1, 4096, 8192, 12288, 16384, 24576, 32768, 40960, 49152, 65536]
FULL, READ_ONLY = os.strerror(errno.ENOSPC), os.strerror(errno.EROFS)


def mount(*words: object) -> None:
    """Mount a file system, or skip the test."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture(params=["1m", "4m"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of its own, of a size that is soon full."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={request.param}", "none", place)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """Fill a disk up to some bytes, in whole pages."""
    filler, about = disk / "filler", os.statvfs(disk)
    filler.write_bytes(bytes(max(about.f_bavail * about.f_frsize - left, 0)))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Make a disk read-only by a mount of itself."""
    mount("--bind", disk, disk)
    mount("-o", "remount,ro,bind", disk)
    try:
        yield
    finally:
        subprocess.run(["umount", disk], check=True)


def content(folder: Path) -> dict[str, str]:
    """Return digests of all that a folder holds but its lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("filler", ".lock")
    }


def by_command(*words: object) -> None:
    err = StringIO()
    with redirect_stderr(err), redirect_stdout(StringIO()):
        code = main([str(word) for word in words])
    assert code in (0, 1)
    if code:
        assert len(err.getvalue().splitlines()) == 1
        raise CompressionError(err.getvalue())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> pb.CompressionResult:
    return run(tmp_path_factory.mktemp("small") / "run")


def shrunk(disk: Path, source: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 8))
    if not source.exists():
        source.mkdir()
        save_file(dict(net.state_dict()), source / "model.safetensors")
        (source / "tokenizer.json").write_text("x" * 5000)
    pb.shrink_files(pb.plan_widths(net.to("meta"), torch.zeros(1, 8), 0.5), source, disk / "small")


CALLS: dict[str, Callable[[pb.CompressionResult, Path, Path], object]] = {
    "report.html": lambda r, disk, _: r.report(disk / "r.html"),
    "report.md": lambda r, disk, _: r.report(disk / "r.md"),
    "all reports": lambda r, disk, _: r.write_reports(disk / "reports"),
    "save": lambda r, disk, _: r.save(disk / "saved"),
    "onnx": lambda r, disk, _: r.export_onnx(disk / "a.onnx"),
    "pt2": lambda r, disk, _: r.export_pt2(disk / "a.pt2"),
    "spec": lambda r, disk, _: r.save_spec(disk / "a.safetensors"),
    "picture": lambda r, disk, _: r.plan.plot(disk / "a.svg"),
    "package": lambda r, disk, _: r.package(disk / "package", overwrite=True),
    "shrink_files": lambda _, disk, other: shrunk(disk, other),
}


def refused(work: Callable[[], object], why: str) -> bool:
    """Tell whether a call was refused, which it may only be by a sentence that says why."""
    told = message_of(work)
    assert told is None or why in told
    return told is not None


@pytest.mark.parametrize("disk", ["1m"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_written_to_a_full_disk_is_refused_and_the_former_stays(
    name: str, result: pb.CompressionResult, disk: Path, tmp_path: Path
) -> None:
    def call() -> object:
        return CALLS[name](result, disk, tmp_path / "checkpoint")

    outcomes = []
    for left in LEFT:
        before = content(disk)
        with filled(disk, left):
            outcomes.append(refused(call, FULL))
            assert not outcomes[-1] or {**before, **content(disk)} == content(disk), left
        assert hidden(disk) == []
        call()  # the same call, with space
        if name == "shrink_files":
            for path in (disk / "small").iterdir():
                path.unlink()
    assert outcomes[0]
    assert name == "package" or not outcomes[-1]


@pytest.mark.parametrize("disk", ["1m"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_written_to_a_read_only_disk_is_refused(
    name: str, result: pb.CompressionResult, disk: Path, tmp_path: Path
) -> None:
    with read_only(disk):
        assert refused(lambda: CALLS[name](result, disk, tmp_path / "checkpoint"), READ_ONLY)
        assert list(disk.iterdir()) == []
    CALLS[name](result, disk, tmp_path / "checkpoint")


def test_a_run_on_a_full_disk_is_refused_and_goes_on_with_space(
    result: pb.CompressionResult, disk: Path
) -> None:
    outcomes, folder = [], disk / "run"
    for left in LEFT:
        with filled(disk, left):
            outcomes.append(refused(lambda: run(folder), FULL))
        assert [name for name in hidden(disk) if name != ".lock"] == []
    assert outcomes[:4] == [True] * 4
    assert same(weights(run(folder)), weights(result))
    network_again = pb.load(folder, network)
    assert same(list(network_again.state_dict().values()), weights(result))


def test_a_finished_run_stays_whole_where_nothing_can_be_written(
    result: pb.CompressionResult, disk: Path
) -> None:
    folder = disk / "run"
    run(folder)
    former = content(folder)
    for left in (0, 8192):
        with filled(disk, left):
            refused(lambda: run(folder), FULL)
            assert content(folder) == former
            assert refused(lambda: by_command("package", folder), FULL)
            assert content(folder) == former
    with read_only(disk):
        assert refused(lambda: run(folder), READ_ONLY)
        assert refused(lambda: by_command("package", folder), READ_ONLY)
        assert refused(lambda: by_command("report", folder, "--out", disk / "r.md"), READ_ONLY)
        assert same(list(pb.load(folder, network).state_dict().values()), weights(result))
    assert content(folder) == former
    assert same(weights(run(folder)), weights(result))


@pytest.mark.parametrize("disk", ["1m"], indirect=True)
def test_a_full_place_for_temporary_files_is_named(
    result: pb.CompressionResult, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    folder, x = tmp_path / "run", torch.ones(1, 4)
    for left in (0, 4096, 8192):
        with filled(disk, left):
            outcomes = [
                refused(lambda: run(folder), FULL),
                refused(lambda: pb.compare(network(), network(), x), FULL),
            ]
        assert left or outcomes == [True, True]
        assert list(disk.iterdir()) == []
    assert same(weights(run(folder)), weights(result))
