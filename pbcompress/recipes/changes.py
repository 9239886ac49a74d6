"""The tables of a recipe: what may stand in them, and values put in from outside."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.widths import WidthConfig
from pbcompress.core.config_values import Choices
from pbcompress.errors import brief

__all__ = ["FIELDS", "changed", "check_keys", "value_of"]

FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("build", "arguments", "weights"),
    "data": ("build", "arguments"),
    "compress": (
        "target_params",
        "run_dir",
        "seed",
        "control",
        "width",
        "dendrites",
        "recovery",
    ),
    "export": ("quantize", "max_drop", "recover_epochs"),
}
TEXTS = ("model.build", "model.weights", "data.build", "compress.run_dir", "export.quantize")
MOST_TEXT = 4096  # characters of a name or path
MOST_NUMBER = 1e18
MOST_DEPTH = 16  # tables in each other, of a key
CHOICES = {
    "train": RecoveryConfig(),
    "compress.width": WidthConfig(),
    "compress.dendrites": DendriteConfig(),
    "compress.recovery": RecoveryConfig(),
}


def value_of(text: str) -> Any:
    """Return a value as TOML reads it; other text is itself.

    Example:
        >>> value_of("5"), value_of("[1, 2]"), value_of("adamw"), value_of("true")
        (5, [1, 2], 'adamw', True)
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def changed(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables with other values, by dotted key.

    Raises:
        ValueError: A key leads into something that is no table.

    Example:
        >>> changed({"train": {"epochs": 8}}, {"train.epochs": 2, "compress.seed": 1})
        {'train': {'epochs': 2}, 'compress': {'seed': 1}}
    """
    found = dict(tables)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest.count(".") > MOST_DEPTH:
            raise ValueError(f"{brief(key, 80)} is more than {MOST_DEPTH} tables deep")
        if rest:
            inner = found.get(head, {})
            if not isinstance(inner, Mapping):
                raise ValueError(
                    f"{key} cannot be set, because {head} is {inner!r:.80} and no table"
                )
            value = changed(inner, {rest: value})
        found[head] = value
    return found


def check_keys(tables: Mapping[str, Any]) -> None:
    """Check that all keys are known.

    Raises:
        ValueError: One is not; the message has the nearest that is.

    Example:
        >>> check_keys({"train": {"epoch": 2}})
        Traceback (most recent call last):
        ValueError: [train] has no key 'epoch'. Did you mean 'epochs'?
    """
    _check("", tables, (*FIELDS, "train"))
    for name, known in FIELDS.items():
        _check(name, tables.get(name, {}), known)
    _check_values(tables)
    for name, choices in CHOICES.items():
        table: Any = tables
        for part in name.split("."):
            table = table.get(part, {}) if isinstance(table, Mapping) else {}
        _check_choices(name, table, choices)


def _check_values(tables: Mapping[str, Any]) -> None:
    """Check what stands for itself; the choices of `compress` check their own."""
    for key in TEXTS:
        name, _, field = key.partition(".")
        text = tables.get(name, {}).get(field, "x")
        if not isinstance(text, str) or not 0 < len(text) <= MOST_TEXT or "\0" in text:
            raise ValueError(f"[{name}] {field} is {_told(text)}; it must be a text")
    for name in ("model", "data"):
        arguments = tables.get(name, {}).get("arguments", {})
        if not isinstance(arguments, Mapping):
            raise ValueError(f"[{name}] arguments is {_told(arguments)} and no table")
    target = tables.get("compress", {}).get("target_params", 1)
    is_number = isinstance(target, int | float) and not isinstance(target, bool)
    if not is_number or not 0 < target < MOST_NUMBER:
        raise ValueError(
            f"[compress] target_params is {_told(target)}; it must be a share between 0 and 1, or "
            "a number of parameters"
        )
    seed = tables.get("compress", {}).get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"[compress] seed is {_told(seed)}; it must be a whole number")
    control = tables.get("compress", {}).get("control", False)
    if not isinstance(control, bool):
        raise ValueError(f"[compress] control is {_told(control)}; it must be true or false")


def _told(value: object) -> str:
    """Return a value for a message; Python does not write out the longest numbers."""
    is_long = isinstance(value, int) and value.bit_length() > 512
    return "a number too large" if is_long else brief(repr(value)[:400], 80)


def _check_choices(name: str, table: Any, choices: Choices) -> None:
    _check(name, table, choices.to_dict())
    for key, value in table.items():
        inner = getattr(choices, key)
        is_own = isinstance(value, Mapping) and "kind" not in value  # which may be another one
        if is_own and isinstance(inner, Choices):
            _check_choices(f"{name}.{key}", value, inner)


def _check(name: str, table: Any, known: Iterable[str]) -> None:
    names = list(known)
    if not isinstance(table, Mapping):
        raise ValueError(f"{name} is {table!r:.80} and no table")
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            what = f"[{name}] has no key {key!r:.80}" if name else f"there is no table [{key:.80}]"
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(names)}."
            raise ValueError(f"{what}. {hint}")
