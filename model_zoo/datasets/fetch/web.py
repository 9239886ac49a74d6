"""Files from the web."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["from_web"]

CONNECT_TIMEOUT_S = 10


def from_web(base_url: str, md5: Mapping[str, str]) -> dict[str, bytes]:
    """Download the files that lie under an address.

    Args:
        base_url: The address, without a slash at its end.
        md5: Checksum of each file as it lies there, by file name.

    Returns:
        The content of each file, by file name.

    Raises:
        OSError: The address cannot be reached.
        ValueError: A file is not the known one.
    """
    import pooch  # here, so that packages do without

    downloader = pooch.HTTPDownloader(timeout=CONNECT_TIMEOUT_S)
    registry = {name: f"md5:{checksum}" for name, checksum in md5.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = pooch.create(path=folder, base_url=f"{base_url}/", registry=registry)
        paths = {name: Path(files.fetch(name, downloader=downloader)) for name in md5}
        return {name: path.read_bytes() for name, path in paths.items()}
