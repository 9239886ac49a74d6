"""Functions that remember their results, and the sizes of a traced network.

A cache takes sizes of equal value for one key: what it computed for the first of two layers, or in
a run before the trace, it would give to the second, whose sizes come from elsewhere.
"""

import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from pbcompress.structure.sizes import Size

__all__ = ["sizes_uncached"]

_Cached = functools._lru_cache_wrapper
_DATA = frozenset((bool, int, float, str, bytes, type(None), dict, list, tuple, set, OrderedDict))
_CODE = (FunctionType, type, ModuleType, CellType)  # what refers to further code
# Packages whose cached functions get no sizes of a network
_PASSED_OVER = {*sys.stdlib_module_names, "torch", "numpy", "transformers", "pbcompress"}


@contextmanager
def sizes_uncached(network: nn.Module) -> Iterator[None]:
    """Let the functions under `functools.lru_cache` that get a `Size` compute anew.

    Those are replaced that the network's code refers to: in modules of Python, in classes, in
    closures and in the attributes of the network's own modules. Without a `Size` among its
    arguments each answers from its cache, and at the end all are back.
    """
    changed: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, value in list(_cached_functions(network)):
            changed.append((owner, name, value))
            is_static = isinstance(value, staticmethod)
            function = _computing(value.__func__ if is_static else value)
            _set(owner, name, staticmethod(function) if is_static else function)
        yield
    finally:
        for owner, name, value in changed:
            _set(owner, name, value)


def _cached_functions(network: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Yield every cached function that the network's code refers to, with where it is held."""
    modules = list(network.modules())
    kinds = {kind for own in set(map(type, modules)) for kind in own.__mro__}
    waiting: list[Any] = [*modules, *(kind for kind in kinds if not _is_passed_over(kind))]
    seen = set(map(id, waiting))
    while waiting:
        owner = waiting.pop()
        for name, value in _held(owner):
            if type(value) in _DATA:
                continue
            function = value.__func__ if isinstance(value, staticmethod) else value
            if isinstance(function, _Cached):
                yield owner, name, value
            if isinstance(value, _CODE) and id(value) not in seen and not _is_passed_over(value):
                seen.add(id(value))
                waiting.append(value)


def _held(owner: Any) -> list[tuple[str, Any]]:
    """Return what a module, a class, a function or a closure refers to, by name."""
    if isinstance(owner, CellType):
        return [("cell_contents", owner.cell_contents)] if owner != CellType() else []
    found = list(vars(owner).items())
    if isinstance(owner, ModuleType):
        return found
    if isinstance(owner, FunctionType):
        found += [("", cell) for cell in owner.__closure__ or ()]
    home = None if isinstance(owner, nn.Module) else sys.modules.get(owner.__module__)
    return [*found, ("", home)]


def _is_passed_over(value: Any) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return str(name).partition(".")[0] in _PASSED_OVER


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type | CellType):
        setattr(owner, name, value)
    else:
        vars(owner)[name] = value


def _computing(cached: Any) -> Callable[..., Any]:
    """Return a cached function that computes where it is given a size."""

    @functools.wraps(cached.__wrapped__)
    def function(*args: Any, **kwargs: Any) -> Any:
        is_sized = any(isinstance(leaf, Size) for leaf in tree_leaves((args, kwargs)))
        return (cached.__wrapped__ if is_sized else cached)(*args, **kwargs)

    for name in ("cache_info", "cache_clear", "cache_parameters", "__wrapped__"):
        setattr(function, name, getattr(cached, name))
    return function
