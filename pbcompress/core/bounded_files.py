"""Files that may come from anyone: read whole, and only where they are plain and not too large."""

import stat
from pathlib import Path

from pbcompress.errors import StateMismatchError

__all__ = ["MOST_BYTES", "is_file", "is_name", "is_there", "read_bounded"]

MOST_BYTES = 2**26  # of a text: a plan of a network of a billion parameters has a tenth of it


_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789\u00b9\u00b2\u00b3"
}


def is_name(text: str) -> bool:
    r"""Tell whether a text names a file of a folder on any system, and nothing outside of it.

    Windows has drives and streams, takes dots and blanks from the end, and opens devices by name.

    Example:
        >>> [is_name(text) for text in ("a.data", "../a", r"..\a", "C:a", "nul.data", "a.")]
        [True, False, False, False, False, False]
    """
    first = text.partition(".")[0].rstrip(" ").upper()
    is_short = 0 < len(text.encode("utf-8", "surrogatepass")) <= 255
    has_parts = any(c in "/\\:" or ord(c) < 32 for c in text)
    return is_short and not has_parts and text[-1] not in ". " and first not in _DEVICES


def is_file(path: str | Path) -> bool:
    """Tell whether a plain file is there, also of a path that the system does not take.

    Example:
        >>> is_file("a" + chr(0)), is_file("x" * 5000)
        (False, False)
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_there(path: str | Path) -> bool:
    """Tell whether anything is there, also of a path that the system does not take."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def read_bounded(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a plain file.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        StateMismatchError: It is missing, no plain file (a folder, a pipe, a device), too large, or
            cannot be read.
    """
    try:
        file = Path(path)
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise StateMismatchError(f"{path} was to be read and is no file. Give a plain file.")
        if found.st_size <= most:
            with file.open("rb") as content:
                held = content.read(most + 1)
            if len(held) <= most:
                return held
    except FileNotFoundError as err:
        raise StateMismatchError(
            f"{path} was to be read and there is no such file. Check the path, or write it first."
        ) from err
    except (OSError, ValueError) as err:  # a name that is too long, or has a NUL in it
        raise StateMismatchError(
            f"{str(path)!r:.200} was to be read and could not be: "
            f"{getattr(err, 'strerror', None) or err}. Check the path."
        ) from err
    raise StateMismatchError(
        f"{path} has more than {most:,} bytes, which no file of its kind has. Give another file."
    )
