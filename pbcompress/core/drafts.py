"""Files and folders that are there until they are done, and are swept after a kill.

A draft is locked by who writes it. A kill releases the lock, and the next who makes a draft of
the same kind in the same folder deletes what nobody holds.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pbcompress.core.file_locks import has_lock, lock
from pbcompress.errors import UnwritableError

__all__ = ["check_writable", "draft_file", "draft_folder", "sweep", "told_where"]

FILES, FOLDERS = "part", "draft"
_NAME = re.compile(r"\.(?P<of>.+)\.[0-9a-f]{8}\.(part|draft)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
ADVICE = "Free some space or choose another folder; a former file of that name is as it was."


@contextmanager
def told_where(path: Path, *, also: bool = False) -> Iterator[None]:
    """Turn an error of a full disk or a read-only file system into one that names the path.

    Args:
        path: What is written.
        also: Whether every other error of the system is one of writing too.

    Raises:
        UnwritableError: It cannot be written.
    """
    try:
        yield
    except OSError as err:
        if not also and err.errno not in _FULL:
            raise
        raise UnwritableError(
            f"{path} was to be written and could not be: {err.strerror or err}. {ADVICE}"
        ) from err


@contextmanager
def draft_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Give an empty file beside ``path`` that is gone at the end, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    while True:
        draft = path.with_name(_fresh(path.name, FILES))
        file = draft.open("wb")
        if _is_held(file.fileno(), draft):
            break
        file.close()  # swept in this very moment
    try:
        with file:
            yield draft, file
    finally:
        with suppress(OSError):
            draft.unlink()


@contextmanager
def draft_folder(
    of: str = "pbcompress", parent: Path | None = None, target: Path | None = None
) -> Iterator[Path]:
    """Give an empty folder that is gone at the end.

    Args:
        of: What it is for.
        parent: Where it is; None: where the system has temporary files.
        target: What is written by way of it, for messages.

    Raises:
        UnwritableError: It cannot be made, or the disk is full in its time.
    """
    told = target or parent or Path("A temporary folder")
    with told_where(told, also=True):
        place = Path(tempfile.gettempdir()) if parent is None else parent
        place.mkdir(parents=True, exist_ok=True)
        sweep(place, of)
        folder, held = _locked_folder(place, of)
    try:
        with told_where(told):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _locked_folder(place: Path, of: str) -> tuple[Path, int | None]:
    while True:
        folder = place / _fresh(of, FOLDERS)
        folder.mkdir(mode=0o700)
        if sys.platform == "win32":  # a folder cannot be opened there
            return folder, None
        with suppress(FileNotFoundError):
            held = os.open(folder, _FLAGS)
            if _is_held(held, folder):
                return folder, held
            os.close(held)


def check_writable(path: Path) -> None:
    """Raise unless a file can be written at a path.

    Raises:
        UnwritableError: It cannot.
    """
    with told_where(path, also=True), draft_file(path):
        pass


def sweep(folder: Path, of: str | None = None) -> None:
    """Delete the drafts in a folder that nobody holds, of one name or of all.

    Only what this user owns goes; what cannot be deleted stays.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found and of in (None, found["of"]):
                with suppress(OSError):
                    _delete_unheld(path)


def _delete_unheld(path: Path) -> None:
    about = path.lstat()
    is_folder = stat.S_ISDIR(about.st_mode)
    if not (is_folder or stat.S_ISREG(about.st_mode)):
        return
    if sys.platform == "win32":
        shutil.rmtree(path) if is_folder else path.unlink()  # fails where a file in it is open
        return
    if about.st_uid != os.getuid():
        return
    held = os.open(path, _FLAGS)
    try:
        if lock(held):
            shutil.rmtree(path) if is_folder else path.unlink()
    finally:
        os.close(held)


def _fresh(of: str, ending: str) -> str:
    return f".{of}.{secrets.token_hex(4)}.{ending}"


def _is_held(descriptor: int, path: Path) -> bool:
    """Lock a new draft, and tell whether it is still at its place."""
    if not has_lock(descriptor):
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
