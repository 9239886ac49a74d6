"""What is kept for the next process: found again, and never in the way."""

import pytest

from pbcompress.core.user_cache import read_cached, write_cached


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PBCOMPRESS_CACHE", str(tmp_path / "a" / "b"))
    return tmp_path / "a" / "b"


def test_a_text_is_found_again_and_nothing_else_is_left(folder):
    assert read_cached("x.json") is None
    write_cached("x.json", "ä 1")
    write_cached("x.json", "ä 2")
    assert read_cached("x.json") == "ä 2"
    assert [path.name for path in folder.iterdir()] == ["x.json"]


def test_what_cannot_be_read_is_not_there(folder):
    folder.mkdir(parents=True)
    (folder / "x.json").write_bytes(b"\xff\xfe\xff")
    (folder / "y.json").mkdir()
    assert read_cached("x.json") is None
    assert read_cached("y.json") is None


def test_what_cannot_be_written_is_left(tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("a file, no folder")
    monkeypatch.setenv("PBCOMPRESS_CACHE", str(taken))
    write_cached("x.json", "1")
    assert read_cached("x.json") is None
    assert taken.read_text() == "a file, no folder"
    (tmp_path / "x.json").mkdir()  # where the text should go
    monkeypatch.setenv("PBCOMPRESS_CACHE", str(tmp_path))
    write_cached("x.json", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "x.json"]


@pytest.mark.parametrize(
    ("platform", "variable", "below"),
    [("linux", "XDG_CACHE_HOME", "pbcompress"), ("win32", "LOCALAPPDATA", "pbcompress")],
)
def test_the_place_is_that_of_the_system(platform, variable, below, tmp_path, monkeypatch):
    monkeypatch.delenv("PBCOMPRESS_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    write_cached("x.json", "1")
    assert (tmp_path / below / "x.json").read_text() == "1"


def test_without_a_home_nothing_is_kept(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("PBCOMPRESS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    write_cached("x.json", "1")
    assert read_cached("x.json") is None
