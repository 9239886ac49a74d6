"""Names of files that come from a file of somebody else stay in their folder, on every system."""

import sys
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbcompress.core.bounded_files import is_name

FOLDERS = [PureWindowsPath(f) for f in ("C:/runs/a", "//server/share/a", "a", "C:a")]
PIECES = [
    "..", ".", "/", "\\", "C:", "c:\\", "\\\\server\\share\\", "//", "\\\\?\\", "\\\\.\\", "~",
    "con", "NUL", "aux", "Com1", "lpt\u00b9", "prn", "CONIN$", ".data", " ", ":stream", "\0", "\n",
    "model.onnx", "a", "%2e%2e", "\u2215", "\uff0f",
]  # fmt: skip
OUTSIDE = [
    "", ".", "..", "../a", "a/b", "/etc/passwd", "..\\a", "a\\..\\..\\b", "C:\\a", "C:a", "c:",
    "\\\\server\\share\\a", "//server/share/a", "\\\\?\\C:\\a", "\\\\.\\pipe\\a", "\\a", "a:stream",
    "nul", "NUL", "nul.data", "con .data", "Com1.onnx.data", "lpt\u00b2", "a.", "a ", "a\0b",
    "a\nb", "x" * 256, "\u00e9" * 128,
]  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_leads_elsewhere_is_no_name(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize("text", ["model.onnx.data", "a b", ".hidden", "..a", "console", "x" * 255])
def test_plain_names_are_names(text: str) -> None:
    assert is_name(text)


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=5).map("".join))
def test_a_name_is_of_its_folder_on_windows_and_elsewhere(text: str) -> None:
    if not is_name(text):
        return
    for folder in FOLDERS:
        path = folder / text
        assert path.parent == folder
        assert path.name == text
        assert path.drive == folder.drive
        assert path.root == folder.root
        if sys.version_info < (3, 13):
            assert not path.is_reserved()
    assert (PurePosixPath("/runs") / text).parts == ("/", "runs", text)
    assert text == text.rstrip(". ")  # Windows opens "a. " as "a"
