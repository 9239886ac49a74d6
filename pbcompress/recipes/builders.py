"""What a recipe may call, and how names of code become functions.

A recipe is a file that names code, so whoever writes it can have code run. Without further words it
may call what comes with pbcompress and the layers of torch. Everything else must be trusted by
name, by the one who runs the recipe.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

import pbcompress
from pbcompress.core.accepted_models import check_model
from pbcompress.errors import CompressionError, brief, first_line
from pbcompress.training.task import Data, Task

__all__ = [
    "CHECKOUT",
    "as_data",
    "as_model",
    "load_data",
    "load_task",
    "resolve",
    "resolve_trusted",
]

CHECKOUT = Path(pbcompress.__file__).resolve().parents[1]
ZOO = "model_zoo"
OWN = ("pbcompress.recipes.demo:digits", "pbcompress.recipes.demo:make_network")


def resolve(name: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Raises:
        CompressionError: There is no such thing.

    Example:
        >>> resolve("math:sqrt")(4.0)
        2.0
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as err:
        raise CompressionError(
            f"{name!r} was to be imported and could not be: {err}. Write package.module:function, "
            "importable from where you are."
        ) from err
    return found


def resolve_trusted(name: str, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """Import what a recipe names, if it may be called.

    That is a function or class that is defined in a package of ``trust``; in the ``model_zoo`` that
    lies beside pbcompress; one of the two builders of the demo; or a layer of ``torch.nn``. What
    is not trusted is not even imported.

    Args:
        name: ``package.module:function``.
        trust: Packages and modules, each with all that is in it.

    Raises:
        CompressionError: It may not be called, or there is no such thing.

    Example:
        >>> resolve_trusted("torch.nn:Linear").__name__
        'Linear'
        >>> resolve_trusted("os:system")
        Traceback (most recent call last):
        pbcompress.errors.CompressionError: The recipe calls 'os:system', ...
    """
    module = name.partition(":")[0]
    if name in OWN:
        return resolve(name)
    if _is_in(module, ["torch.nn"]):
        found = resolve(name)
        if inspect.isclass(found) and issubclass(found, nn.Module):
            return found
        raise _refused(name, "which is no layer")
    packages = [*trust, *([ZOO] if _is_own_zoo() else [])]
    if not _is_in(module, packages):
        raise _refused(name, "which is not trusted")
    found = resolve(name)
    is_code = inspect.isfunction(found) or inspect.isclass(found)
    if not is_code or not _is_in(found.__module__, packages):
        raise _refused(name, "which is no function or class that is defined there")
    return found


def _is_in(module: str, packages: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in packages)


def _is_own_zoo() -> bool:
    """Tell whether the zoo that would be imported is the one that lies beside pbcompress."""
    loaded = sys.modules.get(ZOO)
    spec = loaded.__spec__ if loaded is not None else find_spec(ZOO)
    origin = spec.origin if spec is not None else None
    return origin is not None and Path(origin).resolve() == CHECKOUT / ZOO / "__init__.py"


def _refused(name: str, found: str) -> CompressionError:
    package = name.partition(":")[0].partition(".")[0]
    return CompressionError(
        f"The recipe calls {name!r}, {found}. A recipe runs the code that it names: if you would "
        f"run that of its author, say so with --trust {package}, in Python with "
        f"Recipe.read(path, trust=[{package!r}])."
    )


def load_data(name: str, arguments: Mapping[str, Any]) -> Data:
    """Call ``package.module:function``, whose result has train, val and perhaps test batches.

    Raises:
        CompressionError: There is no such thing, its files cannot be read, or its result has no
            train or val.
    """
    return as_data(resolve(name), name, arguments)


def as_model(build: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call what builds a network.

    Raises:
        CompressionError: It raised, or gave something else, or a network that is not taken.
    """
    try:
        found: object = _called(build, name, arguments)
    except OSError as err:
        raise CompressionError(f"{name} was to give the network and could not: {err}") from err
    if not isinstance(found, nn.Module):
        raise CompressionError(
            f"{name} was to give the network, and gave a {type(found).__name__}. Return a module."
        )
    if any(p.is_meta for p in (*found.parameters(), *found.buffers())):
        raise CompressionError(
            f"{name} was to give the network, and gave one on the device 'meta', without numbers. "
            "Build it on the CPU."
        )
    check_model(found)
    return found


def _called(build: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return build(**arguments)
    except (CompressionError, OSError):
        raise
    except Exception as err:  # code of anybody, and arguments of a file
        raise CompressionError(
            f"{name} was called with the arguments ({brief(', '.join(arguments), 200)}) and raised "
            f"{type(err).__name__}: {first_line(err)}. Check its arguments."
        ) from err


def as_data(build: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Data:
    """Call what builds data, as `load_data` does."""
    try:
        found = _called(build, name, arguments)
    except OSError as err:
        raise CompressionError(f"{name} was to give the data and could not: {err}") from err
    missing = [split for split in ("train", "val") if not hasattr(found, split)]
    if missing:
        raise CompressionError(
            f"{name} was to give train and val batches; its {type(found).__name__} has no "
            f"{' and no '.join(missing)}. Return a Data, or an object with these attributes."
        )
    return Data(train=found.train, val=found.val, test=getattr(found, "test", None))


def load_task(name: str) -> Task:
    """Import a `Task` as ``package.module:name``.

    Raises:
        CompressionError: There is no such thing, or it is something else.
    """
    found: object = resolve(name)
    if not isinstance(found, Task):
        raise CompressionError(f"{name} was to be a Task; it is a {type(found).__name__}.")
    return found
