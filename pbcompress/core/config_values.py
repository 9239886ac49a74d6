"""What all configurations are: values checked against their annotations, and JSON."""

import dataclasses
from collections.abc import Mapping
from functools import cache, wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pbcompress.core.records import checked
from pbcompress.errors import a_few

__all__ = ["Choices", "names_of_parts"]


class Choices:
    """The base of frozen dataclasses of choices: checks each field, and turns into JSON and back.

    A field's annotation says what it takes, and in a last string of ``Annotated`` how a message
    puts that. A list becomes a tuple, and a mapping the tuple of its pairs. Where a field takes one
    of several classes, each has a ``kind``, and the name of a kind becomes a value of the class
    with its defaults.
    """

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints, defaults = _fields(kind)
        for name, hint in hints.items():
            given = getattr(self, name)
            if given is defaults[name]:
                continue
            try:
                value = checked(hint, _named(hint, _frozen(given)))
            except ValueError:
                raise ValueError(
                    f"{type(self).__name__}.{name} was given as {given!r:.200}; it must be "
                    f"{_described(hint)}."
                ) from None
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return self.kind or repr(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data from which `from_dict` makes an equal value."""
        data = {name: _plain(getattr(self, name)) for name in _hints(type(self))}
        return {"kind": self.kind, **data} if self.kind else data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a configuration; unknown names are refused, missing ones take their default."""
        hints = _hints(cls)
        if not isinstance(data, Mapping):
            raise ValueError(
                f"{cls.__name__} is made from a dict of its fields; found {data!r:.80}."
            )
        data = {name: v for name, v in data.items() if (name, v) != ("kind", cls.kind)}
        unknown = sorted(map(str, set(data) - set(hints)))
        if unknown:
            has = f"it has {', '.join(hints)}" if hints else "it has no fields"
            raise ValueError(f"{cls.__name__} has no {a_few(unknown)}; {has}.")
        return cls(**{name: _built(hints[name], value) for name, value in data.items()})


C = TypeVar("C", bound=Choices)


def names_of_parts(cls: type[C]) -> type[C]:
    """Let a configuration take the choices of its parts by their names alone.

    A part may also be given as its first choice. What is kept is the same.
    """
    own: Any = cls.__init__

    @wraps(own)
    def init(self: C, **given: Any) -> None:
        own(self, **_gathered(cls, given))

    cls.__init__ = init  # type: ignore[assignment]
    return cls


def _gathered(cls: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return choices with those of the parts in their parts."""
    hints, defaults = _fields(cls)
    kept = dict(given)
    for name, part in hints.items():
        if not isinstance(part, type) or not issubclass(part, Choices):
            continue
        names = _hints(part)
        own = {key: kept.pop(key) for key in given if key in names and key not in hints}
        value: Any = kept.get(name, defaults[name])
        if isinstance(value, str | int | float):
            own, value = {next(iter(names)): value, **own}, defaults[name]
        is_part = isinstance(value, part)  # else it is refused with the others
        if own and is_part:
            kept[name] = dataclasses.replace(value, **own)
    return kept


def _hints(cls: Any) -> dict[str, Any]:
    """Return the annotations of the fields, by name."""
    return _fields(cls)[0]


@cache
def _fields(cls: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the annotations and the defaults of the fields, by name."""
    hints = get_type_hints(cls, include_extras=True)
    fields = dataclasses.fields(cls)
    return {f.name: hints[f.name] for f in fields}, {f.name: f.default for f in fields}


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _configurations(hint: Any) -> dict[str, type[Choices]]:
    """Return the configurations that a field takes, by kind."""
    classes = [o for o in _options(hint) if isinstance(o, type) and issubclass(o, Choices)]
    return {cls.kind: cls for cls in classes}


def _named(hint: Any, value: Any) -> Any:
    """Return the value that a name stands for."""
    kinds = _configurations(hint)
    return kinds[value]() if isinstance(value, str) and value and value in kinds else value


def _built(hint: Any, value: Any) -> Any:
    """Return the configuration that JSON data describe, where a field takes one."""
    kinds = _configurations(hint)
    if "" in kinds:
        return kinds[""].from_dict(value)
    if isinstance(value, Mapping) and str(value.get("kind", "")) in kinds:
        return kinds[str(value["kind"])].from_dict(value)
    return value


def _described(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return str(hint.__metadata__[-1])
    if get_origin(hint) is Literal:
        names = list(map(repr, get_args(hint)))
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    kinds = _configurations(hint)
    if len(kinds) > 1:
        classes = ", ".join(cls.__name__ for cls in kinds.values())
        return f"one of {', '.join(map(repr, kinds))}, or a value of {classes}"
    if len(_options(hint)) > 1:
        return " or ".join(map(_described, _options(hint)))
    if hint is NoneType:
        return "None"
    return f"of type {hint.__name__ if isinstance(hint, type) else hint}"


def _frozen(value: Any) -> Any:
    """Return lists as tuples, and a mapping as the tuple of its pairs."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Choices):
        return value.to_dict()
    return list(map(_plain, value)) if isinstance(value, tuple) else value
