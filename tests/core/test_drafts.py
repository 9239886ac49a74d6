"""Drafts: gone at the end, kept while they are held, swept after a kill; a full disk is told."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pbcompress.core.drafts import check_writable, draft_file, draft_folder, sweep, told_where
from pbcompress.core.tensor_files import write_bytes
from pbcompress.core.turns import in_turn
from pbcompress.core.user_cache import write_cached
from pbcompress.errors import CompressionError, UnwritableError

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unheld(folder: Path) -> list[Path]:
    """Make what a killed process leaves."""
    one, other = folder / ".a.json.0123abcd.part", folder / ".a.onnx.89abcdef.draft"
    one.write_bytes(b"half")
    other.mkdir()
    (other / "a.onnx").write_bytes(b"half")
    return [one, other]


def test_nothing_stays_where_all_goes_well(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.json", b"{}")
    with draft_folder("b", tmp_path) as folder:
        (folder / "c").write_text("c")
    check_writable(tmp_path / "d")
    assert names(tmp_path) == ["a.json"]


def test_the_next_write_of_the_same_name_sweeps(tmp_path: Path) -> None:
    one, other = unheld(tmp_path)
    write_bytes(tmp_path / "b.json", b"{}")
    assert one.exists()
    write_bytes(tmp_path / "a.json", b"{}")
    assert not one.exists()
    with draft_folder("a.onnx", tmp_path):
        assert not other.exists()


def test_what_is_held_is_not_swept(tmp_path: Path) -> None:
    with draft_file(tmp_path / "a") as (draft, _), draft_folder("a", tmp_path) as folder:
        sweep(tmp_path)
        assert draft.exists()
        assert folder.exists()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["a.part", ".a.part", ".a.0123abc.part", ".a.0123ABCD.part", ".0123abcd.draft", ".a.b"]
)
def test_files_of_others_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    sweep(tmp_path)
    assert names(tmp_path) == [name]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (tmp_path / ".a.0123abcd.draft").symlink_to(tmp_path / "kept")
    sweep(tmp_path)
    assert (tmp_path / "kept" / "file").read_text() == "mine"


def test_threads_that_write_and_sweep_do_not_meet(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for turn in range(20):
                write_bytes(tmp_path / "a", bytes(turn))
                sweep(tmp_path)
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_path_and_nothing_stays(number: int, tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"former")
    with pytest.raises(UnwritableError, match="a former file"), draft_folder("x", tmp_path):
        raise OSError(number, os.strerror(number))
    with pytest.raises(CompressionError, match=r"here.*could not be"), told_where(Path("here")):
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == ["a"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), draft_folder("x", tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such data")


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PBCOMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    write_cached("a", "b")


def test_threads_take_turns_and_a_forked_process_has_its_own() -> None:
    inside: list[int] = []

    @in_turn
    def work() -> None:
        inside.append(1)
        assert sum(inside) == 1
        threading.Event().wait(0.01)
        inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []


HOLDING = """
import sys, time
from pathlib import Path
from pbcompress.core.drafts import draft_file, draft_folder
with draft_file(Path(sys.argv[1]) / "a") as (_, file), draft_folder("a", Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_drafts_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sweep(tmp_path)
        assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(tmp_path)) == 2
    sweep(tmp_path)
    assert names(tmp_path) == []
