"""Small texts that are kept for the next process of this user; losing them costs only time."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import CompressionError

__all__ = ["read_cached", "write_cached"]

FOLDER = "PBCOMPRESS_CACHE"  # the environment variable that names another place


def read_cached(name: str) -> str | None:
    """Return the text that was kept under a name; None where there is none to read."""
    try:
        return (_folder() / name).read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError):  # missing, damaged, or no home
        return None


def write_cached(name: str, text: str) -> None:
    """Keep a text under a name, whole or not at all; nothing happens where that cannot be done."""
    with suppress(CompressionError, RuntimeError):
        write_bytes(_folder() / name, text.encode())


def _folder() -> Path:
    """Return the folder of this user's caches, as the system has it."""
    given = os.environ.get(FOLDER)
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pbcompress"
