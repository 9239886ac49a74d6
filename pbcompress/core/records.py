"""Values checked by their annotations, and frozen dataclasses as JSON data and back.

The only module that imports pydantic, where it is needed first: ``import pbcompress`` stays light.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pbcompress.errors import StateMismatchError, brief

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["checked", "from_data", "read_by", "to_data", "written_by"]

T = TypeVar("T")


def checked(hint: Any, value: object) -> Any:
    """Return a value if it is what an annotation says: a bool is no number, numbers are finite.

    Raises:
        ValueError: It is not.

    Example:
        >>> checked(float, 1), checked(tuple[int, ...], (3, 4))
        (1.0, (3, 4))
        >>> checked(int, True)
        Traceback (most recent call last):
        ValueError: Input should be a valid integer
    """
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value, strict=True)
    except ValidationError as err:
        raise ValueError(err.errors()[0]["msg"]) from None


@cache
def _adapter(hint: Any) -> "TypeAdapter[Any]":
    from pydantic import ConfigDict, TypeAdapter

    finite = ConfigDict(allow_inf_nan=False)
    return TypeAdapter(hint, config=None if dataclasses.is_dataclass(hint) else finite)


def to_data(record: object) -> dict[str, Any]:
    """Return a dataclass as JSON data, from which `from_data` makes an equal one.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     widths: tuple[int, ...]
        >>> to_data(Size((3, 4)))
        {'widths': [3, 4]}
    """
    # a field of float may hold an int, of which pydantic warns
    cls: Any = type(record)
    data: dict[str, Any] = _adapter(cls).dump_python(record, mode="json", warnings=False)
    return data


def from_data(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Rebuild a dataclass from what `to_data` returned, each value checked by its annotation.

    Args:
        cls: A dataclass whose fields are plain values, tuples, mappings or further dataclasses.
        data: JSON data.
        where: What the data are, for messages.

    Raises:
        StateMismatchError: A field is missing, is unknown or is of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     widths: tuple[int, ...]
        >>> from_data(Size, {"widths": [3, 4]}, "The text")
        Size(widths=(3, 4))
        >>> from_data(Size, {"widths": ["a"]}, "The text")
        Traceback (most recent call last):
        pbcompress.errors.StateMismatchError: The text does not fit: widths.0 is 'a' ...
    """
    from pydantic import ValidationError

    if not isinstance(data, Mapping):
        raise StateMismatchError(f"{where} does not fit: it is {data!r:.80} and no object.")
    kind: Any = cls
    try:
        record: T = _adapter(kind).validate_json(json.dumps(data), strict=True, extra="forbid")
    except StateMismatchError as err:  # of a field with a codec of its own
        raise StateMismatchError(f"{where} does not fit: {brief(err, 800)}") from None
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"]))[:200] or "it"
        known = {"missing": "missing", "unexpected_keyword_argument": "a field that is not known"}
        found = known.get(first["type"], f"{first['input']!r:.80} ({brief(first['msg'], 400)})")
        raise StateMismatchError(
            f"{where} does not fit: {place} is {found}. Write it anew with this pbcompress."
        ) from None
    return record


def written_by(function: Callable[[Any], Any]) -> object:
    """Return what to put into ``Annotated`` for a field that has a codec of its own.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Annotated
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: Annotated[complex, written_by(str), read_by(complex)]
        >>> to_data(Size(1j)), from_data(Size, {"width": "1j"}, "The text")
        ({'width': '1j'}, Size(width=1j))
    """
    from pydantic import PlainSerializer

    return PlainSerializer(function)


def read_by(function: Callable[[Any], Any]) -> object:
    """Return what to put beside `written_by`, which reads what that wrote."""
    from pydantic import PlainValidator

    return PlainValidator(function)
