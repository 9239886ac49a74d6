"""JSON that says what it is: a kind and a version, checked when it is read."""

import json
from typing import Any

from pbcompress.errors import StateMismatchError

__all__ = ["parse"]


def parse(text: str, kind: str, version: int, where: str) -> dict[str, Any]:
    """Return the object that ``text`` holds.

    Args:
        text: JSON with the members "kind" and "version".
        kind: The kind that is wanted.
        version: The newest version that can be read.
        where: What the text is, for messages.

    Raises:
        StateMismatchError: It is truncated, no JSON, of another kind or of a newer version.

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
    return data
