"""JSON that says what it is: a kind, a version and a SHA-256, read within bounds and checked.

The one reader of JSON that was written elsewhere, be it a file of its own or a text within one.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pbcompress.core.bounded_files import MOST_BYTES
from pbcompress.core.records import from_data, to_data
from pbcompress.errors import CompressionError, StateMismatchError, brief, first_line

__all__ = [
    "DIGEST",
    "check_kind",
    "damage_named",
    "decoded",
    "parse",
    "parse_record",
    "render",
    "render_record",
    "with_digest",
    "without_digest",
]

T = TypeVar("T")

MOST_DEPTH = 64
ADVICE = "Restore it from a copy, or make it anew"
DIGEST = "sha256_of_content"  # no field of a record has this name


def decoded(text: str | bytes, where: str, *, depth: int = MOST_DEPTH) -> Any:
    """Return the JSON data of a text.

    Args:
        text: JSON, at most 64 MiB of it.
        where: What the text is, for messages.
        depth: How deep lists and objects may lie in each other.

    Raises:
        StateMismatchError: It is truncated, no JSON, too long or too deep.

    Example:
        >>> decoded('{"a": [1, 2]}', "The text")
        {'a': [1, 2]}
    """
    if len(text) > MOST_BYTES:
        raise StateMismatchError(f"{where} has more than {MOST_BYTES:,} characters. Give another.")
    try:
        data = json.loads(text)
    except RecursionError:
        raise _too_deep(where, depth) from None
    except ValueError as err:
        raise StateMismatchError(
            f"{where} is truncated or no JSON ({err}). Save it again."
        ) from err
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(depth):
        held = [item.values() if isinstance(item, dict) else item for item in level]
        level = [part for parts in held for part in parts if isinstance(part, dict | list)]
    if level:
        raise _too_deep(where, depth)
    return data


def _too_deep(where: str, depth: int) -> StateMismatchError:
    return StateMismatchError(
        f"{where} has lists or objects more than {depth} deep in each other, which nothing that "
        "pbcompress writes has. Get it again from where it came from."
    )


def with_digest(data: Mapping[str, Any], others: Iterable[Any] = ()) -> dict[str, Any]:
    """Return JSON data with their SHA-256, whatever the order of the members is.

    Args:
        data: The data.
        others: Bytes beside them that it is of too.
    """
    plain = json.loads(json.dumps(data))  # as it will be read: a tuple is a list
    return {DIGEST: _digest(plain, others), **data}


def _digest(data: Mapping[str, Any], others: Iterable[Any]) -> str:
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for part in others:
        digest.update(part)
    return digest.hexdigest()


def without_digest(
    data: Mapping[str, Any], where: str, others: Iterable[Any] = ()
) -> dict[str, Any]:
    """Return what was given to `with_digest`.

    Raises:
        StateMismatchError: The SHA-256 is missing, or another.
    """
    rest = {name: value for name, value in data.items() if name != DIGEST}
    if DIGEST not in data:
        raise StateMismatchError(
            f"{where} has no SHA-256 of its content: an older pbcompress wrote it, or it was "
            "changed since. Finish with the version that wrote it, or make it anew."
        )
    if data.get(DIGEST) != _digest(rest, others):
        raise StateMismatchError(
            f"{where} was changed since it was written: its SHA-256 is another than it says. "
            "Restore it from a copy, or make it anew."
        )
    return rest


def render(data: Mapping[str, Any], kind: str, version: int) -> str:
    """Return JSON data as a text of a kind and a version, with their SHA-256; see `parse`.

    Example:
        >>> parse(render({"a": 1}, "letters", 2), "letters", 2, "The text")
        {'kind': 'letters', 'version': 2, 'a': 1}
    """
    return json.dumps(with_digest({"kind": kind, "version": version, **data}), indent=1)


def parse(
    text: str | bytes, kind: str, version: int, where: str, *, by_hand: bool = False
) -> dict[str, Any]:
    """Return the object that `render` wrote, without its SHA-256.

    Args:
        text: JSON.
        kind: The kind that is wanted.
        version: The one version that can be read.
        where: What the text is, for messages.
        by_hand: Whether somebody may have written it, without a SHA-256.

    Raises:
        StateMismatchError: It is truncated, no JSON, of another kind or version, or was changed
            since it was written.

    Example:
        >>> parse('{"kind": "a", "version": 1}', "a", 1, "The text", by_hand=True)["version"]
        1
    """
    data: dict[str, Any] = decoded(text, where)
    check_kind(data, kind, version, where)
    return data if by_hand and DIGEST not in data else without_digest(data, where)


def check_kind(data: Any, kind: str, version: int, where: str) -> None:
    """Raise unless JSON data say that they are of a kind and a version; see `parse`."""
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise StateMismatchError(f"{where} is JSON of another kind. Give a {kind}.")
    found = data.get("version")
    if type(found) is not int or found > version:
        raise StateMismatchError(
            f"{where} has version {found!r:.50}; this pbcompress reads version {version}. Update "
            "pbcompress."
        )
    if found < version:
        raise StateMismatchError(
            f"{where} has version {found}, which an older pbcompress wrote; this one reads version "
            f"{version}. Make it anew, in another folder if it is a run."
        )


def render_record(record: object, kind: str, version: int) -> str:
    """Return a dataclass as JSON of a kind and a version; see `parse_record`."""
    return render(to_data(record), kind, version)


def parse_record(cls: type[T], text: str | bytes, kind: str, version: int, where: str) -> T:
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
    data = parse(text, kind, version, where)
    return from_data(cls, {k: v for k, v in data.items() if k not in ("kind", "version")}, where)


@contextmanager
def damage_named(
    where: str, advice: str = ADVICE, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Say which file values are from that fit their types and cannot be true together.

    Around the first use of what was read, and nothing else: what goes wrong there is the file's
    fault.

    Args:
        where: The file, for messages.
        advice: What to do.
        passing: Errors that have another cause, and go through as they are.

    Example:
        >>> with damage_named("The text"):
        ...     1 // 0
        Traceback (most recent call last):
        pbcompress.errors.StateMismatchError: The text does not fit, or was changed ...
    """
    try:
        yield
    except passing:
        raise
    except CompressionError as err:
        raise StateMismatchError(f"{where} does not fit: {brief(err, 800)}") from err
    except Exception as err:
        raise StateMismatchError(
            f"{where} does not fit, or was changed ({type(err).__name__}: {first_line(err)}). "
            f"{advice}."
        ) from err
