"""The folder of a run, held by one call at a time; a kill lets go of it."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pbcompress.core.drafts import sweep, told_where
from pbcompress.core.file_locks import lock
from pbcompress.errors import CompressionError

__all__ = ["held"]

LOCK_FILE = ".lock"
LINGER = 15.0  # seconds that workers of a killed process take to notice


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Hold a folder, and delete the drafts in it that a killed call left.

    Args:
        folder: Made if it is not there; None: nothing is held.

    Raises:
        UnwritableError: It cannot be written to.
        CompressionError: Another call holds it; the message says which.
    """
    if folder is None:
        yield
        return
    path, is_new = folder / LOCK_FILE, not folder.exists()
    with told_where(folder, also=True):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    try:
        for place in (folder, folder / "checkpoints"):
            sweep(place)
        yield
    finally:
        is_windows = sys.platform == "win32"  # it deletes no file that is open
        if not is_windows:
            path.unlink(missing_ok=True)  # before others can lock it: who waits makes a new one
        os.close(descriptor)
        with suppress(OSError):
            if is_windows:
                path.unlink()
            if is_new:
                folder.rmdir()  # unless something was written


def _locked(path: Path) -> int:
    """Return a lock file that is open, locked, at its place, and says who holds it."""
    until = time.monotonic() + LINGER
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _is_ours(descriptor, path):
                _sign(descriptor, path)
                return descriptor
            holder = _holder(path)
            if not _has_ended(holder) or time.monotonic() > until:
                raise CompressionError(
                    f"{path.parent} was to be the folder of this run, and {_named(holder)} works "
                    "in it. Wait until it has ended, or choose another run_dir."
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.1)


def _sign(descriptor: int, path: Path) -> None:
    """Write into a lock file who holds it."""
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(_me()).encode())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _is_ours(descriptor: int, path: Path) -> bool:
    """Lock a file, and tell whether it still is what lies at its place."""
    try:
        if not lock(descriptor):
            return False
    except OSError as err:
        raise CompressionError(
            f"{path.parent} lies on a file system without locks ({err.strerror or err}), so two "
            "runs in it could not know of each other. Choose another run_dir."
        ) from err
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _me() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "thread": threading.current_thread().name,
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _holder(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # gone, or not yet written
        return {}
    return found if isinstance(found, dict) else {}


def _has_ended(holder: dict[str, Any]) -> bool:
    """Tell whether a lock is held by nobody but workers of a process that was killed."""
    process = holder.get("process")
    if not isinstance(process, int):
        return True  # it has just begun or ended: try again
    if holder.get("host") != socket.gethostname() or sys.platform == "win32":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another call"
    who = f"process {holder.get('process')} on {holder.get('host')}"
    if holder.get("process") == os.getpid():
        who = f"the thread {holder.get('thread')!r} of this process"
    return f"{who}, since {holder.get('since')},"
