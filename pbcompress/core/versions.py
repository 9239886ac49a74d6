"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["version_of"]


def version_of(package: str) -> str:
    """Return the version of an installed package, "unknown" for a checkout that is not installed.

    Example:
        >>> version_of("no such package")
        'unknown'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
