"""Put the files of a data set in place: by the first route that leads to the right content."""

import hashlib
import http.client
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DataSource", "FetchError", "Route", "is_complete", "store"]


class FetchError(OSError):
    """A data set could not be had; the message is one line that says why."""


@dataclass(frozen=True)
class Route:
    """One way to get a data set.

    Attributes:
        description: Where it goes, for a message.
        read: Gets the content of the files, by file name.
    """

    description: str
    read: Callable[[], Mapping[str, bytes]]


@dataclass(frozen=True)
class DataSource:
    """What a data set consists of, and the ways to get it.

    Attributes:
        sha256: Checksum of each uncompressed file, by file name. The header of an IDX file
            follows from its shape, so this is a checksum of the pixels or labels.
        routes: Ways to get the files, the preferred one first.
    """

    sha256: Mapping[str, str]
    routes: tuple[Route, ...]


# Anything that a network, a client or a damaged archive may answer with.
ROUTE_FAILURES = (
    OSError,
    EOFError,
    ImportError,
    KeyError,
    ValueError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def store(name: str, source: DataSource, folder: Path) -> None:
    """Put the files of one data set into ``folder``, unless they are there already.

    Args:
        name: What to call the data set in messages.
        source: Its checksums and routes.
        folder: Where the files belong; made if missing.

    Raises:
        FetchError: No route led to the right files; the folder is as it was.
    """
    if is_complete(folder, source.sha256):
        print(f"{name}: already in {folder}, checksums match")
        return
    reasons = []
    for route in source.routes:
        print(f"{name}: trying {route.description}")
        try:
            files = route.read()
            _check_content(files, source.sha256)
        except ROUTE_FAILURES as error:
            reason = _one_line(error)
            print(f"{name}: no luck: {reason}")
            reasons.append(f"{route.description}: {reason}")
            continue
        try:
            _write(files, folder)
        except OSError as error:
            raise FetchError(f"{name}: cannot write to {folder}: {_one_line(error)}") from error
        print(f"{name}: stored in {folder}, checksums match")
        return
    raise FetchError(f"{name}: found nowhere ({'; '.join(reasons)})")


def is_complete(folder: Path, sha256: Mapping[str, str]) -> bool:
    """Tell whether ``folder`` holds all files, each with the right checksum."""
    return all(
        (folder / name).is_file() and _sha256((folder / name).read_bytes()) == checksum
        for name, checksum in sha256.items()
    )


def _check_content(files: Mapping[str, bytes], sha256: Mapping[str, str]) -> None:
    for name, expected in sha256.items():
        found = _sha256(files[name])
        if found != expected:
            raise FetchError(
                f"{name} is not the known file: SHA-256 {found[:12]}..., "
                f"expected {expected[:12]}..."
            )


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, hence on the same disk, so that the renaming cannot stop half-way.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        for name in files:
            (Path(temporary) / name).replace(folder / name)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FetchError) else f"{type(error).__name__}: {text}"
