"""What all configurations are: values checked against their annotations, and JSON."""

import dataclasses
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

__all__ = ["Choices", "require"]


def require(condition: bool, config: object, name: str, wanted: str) -> None:
    """Raise ValueError that names a field, what it was given as and what is wanted."""
    if not condition:
        found = getattr(config, name)
        kind = type(config).__name__
        raise ValueError(f"{kind}.{name} was given as {found!r}; it must be {wanted}.")


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a value is what a field's annotation says; a bool is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return len(hints) == len(value) and all(map(_fits, value, hints))
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        return is_number and math.isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    return f"of type {getattr(hint, '__name__', None) if isinstance(hint, type) else hint}"


def _frozen(value: Any) -> Any:
    """Return lists as tuples, and a mapping as the tuple of its pairs."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, tuple) else value


class Choices:
    """What all configurations share: checks of types and literals, and JSON."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is tuple or isinstance(value, list):
                object.__setattr__(self, name, _frozen(value))
            require(_fits(getattr(self, name), hint), self, name, _described(hint))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data from which `from_dict` makes an equal value."""
        data: dict[str, Any] = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Choices):
                value = value.to_dict()
            data[item.name] = _plain(value)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a configuration; unknown names are refused, missing ones take their default."""
        hints = get_type_hints(cls)
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} is made from a dict of its fields; found {data!r}.")
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(hints)}."
            )
        values: dict[str, Any] = {}
        for name, value in data.items():
            hint = hints[name]
            if isinstance(hint, type) and issubclass(hint, Choices):
                value = hint.from_dict(value)
            values[name] = value
        return cls(**values)
