"""JSON that says what it is: a kind and a version, checked when it is read."""

import json
from typing import Any, TypeVar

from pbcompress.core.records import from_data, to_data
from pbcompress.errors import StateMismatchError

__all__ = ["parse", "parse_record", "render_record"]

T = TypeVar("T")


def parse(text: str, kind: str, version: int, where: str, *, oldest: int = 1) -> dict[str, Any]:
    """Return the object that ``text`` holds.

    Args:
        text: JSON with the members "kind" and "version".
        kind: The kind that is wanted.
        version: The newest version that can be read.
        where: What the text is, for messages.
        oldest: The oldest version that can be read.

    Raises:
        StateMismatchError: It is truncated, no JSON, of another kind, or of a newer version or one
            that is too old.

    Example:
        >>> parse('{"kind": "a", "version": 1}', "a", 1, "The text")["version"]
        1
    """
    try:
        data = json.loads(text)
    except ValueError as err:
        raise StateMismatchError(
            f"{where} is truncated or no JSON ({err}). Save it again."
        ) from err
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise StateMismatchError(f"{where} is JSON of another kind. Give a {kind}.")
    found = data.get("version")
    if not isinstance(found, int) or found > version:
        raise StateMismatchError(
            f"{where} has version {found}; this pbcompress reads up to {version}. "
            "Update pbcompress."
        )
    if found < oldest:
        raise StateMismatchError(
            f"{where} has version {found}, which an older pbcompress wrote; this one reads from "
            f"version {oldest} on. Make it anew, in another folder if it is a run."
        )
    return data


def render_record(record: object, kind: str, version: int) -> str:
    """Return a dataclass as JSON of a kind and a version; see `parse_record`."""
    return json.dumps({"kind": kind, "version": version, **to_data(record)}, indent=1)


def parse_record(cls: type[T], text: str, kind: str, version: int, where: str) -> T:
    """Rebuild a dataclass from what `render_record` returned.

    Args:
        cls: The dataclass.
        text: JSON.
        kind: The kind that is wanted.
        version: The one version that can be read.
        where: What the text is, for messages.

    Raises:
        StateMismatchError: As from `parse`, or a field is missing, unknown or of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: int
        >>> parse_record(Size, render_record(Size(3), "size", 2), "size", 2, "The text")
        Size(width=3)
        >>> parse_record(Size, render_record(Size(3), "size", 1), "size", 2, "The text")
        Traceback (most recent call last):
        pbcompress.errors.StateMismatchError: The text has version 1, which an older ...
    """
    data = parse(text, kind, version, where, oldest=version)
    return from_data(cls, {k: v for k, v in data.items() if k not in ("kind", "version")}, where)
