"""What an object is, as digests by place: functions by their code, tensors by their bytes.

Two objects with the same digests do the same, as far as can be seen. What cannot be seen is listed.
"""

import argparse
import dataclasses
import datetime
import decimal
import dis
import enum
import functools
import hashlib
import logging
import os
import re
import sys
import sysconfig
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["OF_LOADERS", "Identity", "changed_places", "identify", "identify_all"]

GLOBAL = "LOAD_GLOBAL"  # the operation by which code asks for a global
OF_LOADERS = ("sampler", "batch_sampler", "collate_fn")  # beside the data set
MOST_OBJECTS = 100_000
MOST_BYTES = 2**30
_WORDS = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice)
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, np.dtype)
_VALUES = (decimal.Decimal, datetime.date, datetime.timedelta, datetime.time, uuid.UUID, PurePath)
_HOLDERS = (SimpleNamespace, argparse.Namespace)  # of what a user put there
_FOLLOWED = (nn.Module, Dataset, DataLoader, Sampler)
_SILENT = (logging.Logger, torch.Generator)  # they decide nothing, or are seeded
_INSTALLED = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for path in (
        *(p for kind, p in sysconfig.get_paths().items() if "lib" in kind),
        str(Path(__file__).parents[1]),
    )
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What something is.

    Attributes:
        places: Digests by the place of what they are of: "loss.weight".
        unseen: Places that could not be looked into, with what is there.
    """

    places: Mapping[str, str]
    unseen: Mapping[str, str]

    def without(self, places: Mapping[str, str]) -> "Identity":
        """Return it without some places, which are unseen for the reasons given."""
        kept = {place: digest for place, digest in self.places.items() if place not in places}
        return Identity(kept, {**self.unseen, **places})


def identify(value: object, name: str = "", *, is_open: bool = False) -> Identity:
    """Return what a value is.

    Followed are containers, modules, functions with their closures and defaults, and of code that
    is not installed as a package also the globals that it names. Objects of installed packages are
    followed where they can be called or are data sets or loaders; others are known by their class,
    and unseen.

    Args:
        value: Anything.
        name: Its place.
        is_open: Whether objects of installed packages are followed too.

    Example:
        >>> one, same, other = (identify(lambda x, n=n: x + n) for n in (1, 1, 2))
        >>> one == same, one == other
        (True, False)
    """
    return identify_all({name: value}, is_open=is_open)


def identify_all(values: Mapping[str, object], *, is_open: bool = False) -> Identity:
    """Return what several values are, by their places; what they share is followed once."""
    walk = _Walk(is_open)
    for name, value in values.items():
        walk.note(name, value, root=True)
    return Identity(dict(walk.places), dict(walk.unseen))


def changed_places(one: Identity, other: Identity) -> list[str]:
    """Return the places that two identities do not share, in order."""
    names = one.places.keys() | other.places.keys()
    return sorted(n for n in names if one.places.get(n) != other.places.get(n))


def _digest(*parts: object) -> str:
    text = "\0".join(map(str, parts))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


class _Walk:
    """One walk through all that hangs on a value; every object is visited once."""

    def __init__(self, is_open: bool) -> None:
        self.places: dict[str, str] = {}
        self.unseen: dict[str, str] = {}
        self._open, self._bytes = is_open, 0
        self._seen: dict[int, tuple[str, object]] = {}  # the objects too, so that ids stay theirs

    def note(self, place: str, value: object, *, root: bool = False) -> None:
        """Note the digest of a value at its place."""
        self.places[place] = self._token(place, value, root=root)

    def _token(self, place: str, value: Any, *, root: bool = False) -> str:
        """Return a text that stands for a value; what has places of its own is noted there."""
        if isinstance(value, _WORDS) and not isinstance(value, enum.Enum):
            return _digest(type(value).__name__, repr(value))
        if isinstance(value, tuple | frozenset | set):
            return self._container(place, value)
        simple = _simple(value)
        if simple is not None:
            return simple
        if id(value) in self._seen:
            return _digest("the same as", self._seen[id(value)][0])
        if len(self._seen) >= MOST_OBJECTS:
            return self._unseen(place, value, "too much hangs on it")
        self._seen[id(value)] = place, value
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return self._array(place, value)
        if isinstance(value, Mapping | list | deque):
            return self._container(place, value)
        if isinstance(value, CodeType):
            return self._code(place, value)
        return self._object(place, value, root)

    def _unseen(self, place: str, value: object, why: str = "") -> str:
        kind = type(value).__qualname__
        if not isinstance(value, _SILENT):
            self.unseen[place] = f"{kind}, {why}" if why else kind
        return _digest("unseen", kind)

    # --- data -------------------------------------------------------------------------------------

    def _container(self, place: str, value: Any) -> str:
        kind = type(value).__qualname__
        if isinstance(value, Mapping):
            items = list(value.items())
            if items and all(isinstance(k, int) for k, _ in items) and "hook" in place:
                items = list(enumerate(value.values()))  # torch counts its hooks
            pairs = [
                _digest(self._token(place, key), self._token(f"{place}[{_shown(key)}]", item))
                for key, item in items
            ]
            return _digest("mapping", kind, *pairs)
        if isinstance(value, Set):
            return _digest("set", kind, *sorted(self._token(place, item) for item in value))
        tokens = (self._token(f"{place}[{i}]", item) for i, item in enumerate(value))
        return _digest("sequence", kind, *tokens)

    def _array(self, place: str, value: Any) -> str:
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return _digest("objects", value.shape, self._token(place, value.reshape(-1).tolist()))
        self._bytes += value.nbytes if _is_plain(value) else 0
        if not _is_plain(value):
            return self._unseen(place, value, "of a layout that has no plain bytes")
        shape = tuple(value.shape)
        if self._bytes > MOST_BYTES and not isinstance(value, nn.Parameter):
            return self._unseen(place, value, "too large to read")
        about = (str(value.dtype), isinstance(value, Tensor) and value.requires_grad)
        if isinstance(value, Tensor):
            flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            value = flat.view(torch.uint8).numpy()
        read = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return _digest("array", *about, shape, read)

    # --- code -------------------------------------------------------------------------------------

    def _code(self, place: str, code: CodeType) -> str:
        constants = [self._token(place, constant) for constant in code.co_consts]
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        numbers = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        content = code.co_code.hex(), code.co_exceptiontable.hex()
        return _digest("code", code.co_qualname, *names, *numbers, *content, *constants)

    def _function(self, place: str, function: FunctionType) -> str:
        is_own = not _is_installed(function.__module__)
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.note(f"{place}.{name}", cell.cell_contents)
            except ValueError:  # not set yet
                self.places[f"{place}.{name}"] = _digest("empty")
        for number, value in enumerate(function.__defaults__ or ()):
            self.note(f"{place}.default[{number}]", value)
        for name, value in sorted((function.__kwdefaults__ or {}).items()):
            self.note(f"{place}.{name}", value)
        if is_own:
            for name, value in _globals_named(function):
                self.note(f"{place}.{name}", value)
        token = self._code(place, code) if is_own else ""
        return _digest("function", function.__module__, function.__qualname__, token)

    def _class(self, place: str, kind: type) -> str:
        """Return what a class does: the code of those in its order that are not installed."""
        own = [base for base in kind.__mro__ if not _is_installed(base.__module__)]
        for base in own:
            if id(base) in self._seen and base is not kind:
                continue
            self._seen[id(base)] = place, base
            for name, value in sorted(vars(base).items()):
                inner = (getattr(value, n, None) for n in ("__func__", "fget", "func"))
                function = next((f for f in inner if isinstance(f, FunctionType)), value)
                is_code = isinstance(function, FunctionType)
                is_machinery = name.startswith(("__", "_abc_")) or hasattr(function, "__get__")
                if is_code or not is_machinery:
                    self.note(f"{place}<{base.__qualname__}>.{name}", function)
        return _digest("class", kind.__module__, kind.__qualname__)

    # --- objects ----------------------------------------------------------------------------------

    def _object(self, place: str, value: Any, root: bool) -> str:
        if isinstance(value, FunctionType):
            return self._function(place, value)
        if isinstance(value, type):
            return self._class(place, value)
        if isinstance(value, MethodType):
            self.note(f"{place}.__self__", value.__self__, root=True)
            return _digest("method", self._token(place, value.__func__))
        if isinstance(value, functools.partial):
            parts = (value.args, value.keywords)
            return _digest(
                "partial", self._token(place, value.func), self._token(f"{place}.given", parts)
            )
        kind = type(value)
        is_ours = not _is_installed(kind.__module__) or dataclasses.is_dataclass(kind)
        is_ours = is_ours or isinstance(value, _HOLDERS)
        is_followed = isinstance(value, _FOLLOWED) or callable(value)
        if isinstance(value, _SILENT) or not (root or self._open or is_ours or is_followed):
            return self._unseen(place, value)
        about = _digest("instance", kind.__module__, kind.__qualname__)
        if id(kind) not in self._seen:
            about = self._class(place, kind)
        return _digest(about, self._state(place, value))

    def _state(self, place: str, value: Any) -> str:
        """Note what an object holds."""
        try:
            held = _held_by(value)
        except Exception as err:
            return self._unseen(place, value, f"which raises {type(err).__name__} when it is read")
        if held is None:
            return self._unseen(place, value)
        for name, item in held.items():
            self.note(f"{place}.{name}", item)
        return _digest(*held)


def _is_plain(value: Any) -> bool:
    """Tell whether an array or tensor is bytes in memory."""
    if not isinstance(value, Tensor):
        return True
    return value.layout is torch.strided and not (
        value.is_quantized or value.is_nested or value.device.type == "meta"
    )


def _simple(value: Any) -> str | None:
    """Return a text for what needs no look inside; None for all else."""
    kind = type(value).__qualname__
    if isinstance(value, enum.Enum):
        return _digest("enum", type(value).__module__, kind, value.name)
    if isinstance(value, _NAMED):
        return _digest(kind, value)
    if isinstance(value, _VALUES):
        return _digest(kind, repr(value))
    if isinstance(value, re.Pattern):
        return _digest("pattern", value.pattern, value.flags)
    if isinstance(value, ModuleType):
        return _digest("module", value.__name__)
    if isinstance(value, BuiltinFunctionType | np.ufunc):
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, ModuleType | type):
            return _digest("builtin", getattr(value, "__module__", ""), value.__name__)
    is_script = type(value).__module__.startswith("torch.jit")
    return _digest("script", value.code) if is_script and hasattr(value, "code") else None


def _shown(key: object) -> str:
    return str(key) if isinstance(key, str | int) else type(key).__name__


def _held_by(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, or what it would be pickled as; None: it does not say."""
    kind = type(value)
    if isinstance(value, DataLoader):  # it also holds what it is in the midst of
        return {name: getattr(value, name) for name in ("dataset", *OF_LOADERS)}
    own_state = getattr(kind, "__getstate__", None)
    is_usual = own_state is getattr(object, "__getstate__", None) or isinstance(value, nn.Module)
    if own_state is not None and not is_usual:
        return {"state": value.__getstate__()}
    slots = [name for base in kind.__mro__ for name in _slots(base) if hasattr(value, name)]
    held = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
    if held or hasattr(value, "__dict__"):
        return dict(sorted(held.items()))
    if slots or any("__slots__" in vars(base) for base in kind.__mro__[:-1]):
        return held
    reduced = value.__reduce_ex__(4)
    return {"made": reduced} if isinstance(reduced, tuple) else None


def _slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    found = (names,) if isinstance(names, str) else tuple(names)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _globals_named(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals that code names, and of its own modules what it names of them."""
    codes = list(_codes_in(function.__code__))
    names = sorted({name for code in codes for name in code.co_names})
    asked = {i.argval for code in codes for i in dis.get_instructions(code) if i.opname == GLOBAL}
    for name in sorted(asked & function.__globals__.keys()):
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, ModuleType) and not _is_installed(value.__name__):
            of_module = [other for other in names if other in vars(value)]
            yield from ((f"{name}.{other}", vars(value)[other]) for other in of_module)


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Tell whether a module is of Python, of a package or of pbcompress, and no code of a user."""
    if module is None or module == "builtins":
        return True
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if module == "__main__" or found is None:
        return False
    if file is None:
        return module.partition(".")[0] in sys.builtin_module_names or found.__spec__ is not None
    return str(Path(file).resolve()).startswith(_INSTALLED)
