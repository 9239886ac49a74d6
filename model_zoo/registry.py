"""Find a network by its name."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from model_zoo.names import natural_sorted, unknown_name_error

__all__ = ["create_model", "list_models", "register_model"]

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_model(builder: Builder) -> Builder:
    """Make a function that builds a network available under the function's name.

    Args:
        builder: Function whose arguments all have defaults, so that its name is enough.

    Returns:
        ``builder`` itself, unchanged: this is a decorator.

    Raises:
        ValueError: Another function has this name already.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(
            f"cannot register model '{name}' from {builder.__module__}: "
            f"{_BUILDERS[name].__module__} has registered it already; rename one of them"
        )
    _BUILDERS[name] = builder
    return builder


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build the network registered as ``name``.

    Weights are drawn from torch's global random generator: seed it for the same weights.

    Args:
        name: One of :func:`list_models`.
        **kwargs: Passed on to the function of that name.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        ValueError: There is no such model.

    Example:
        >>> import torch
        >>> create_model("mlp", in_features=64, hidden=(32,))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    if name not in _BUILDERS:
        raise unknown_name_error("model", name, _BUILDERS)
    return _BUILDERS[name](**kwargs)


def list_models(pattern: str = "*") -> list[str]:
    """List the names of the registered networks.

    Args:
        pattern: Shell-style pattern, case-sensitive: ``*``, ``?`` and ``[...]`` work.

    Returns:
        The matching names, digits sorted as numbers; empty if none matches.

    Example:
        >>> list_models("resnet*")
        ['resnet20', 'resnet56']
    """
    return natural_sorted(name for name in _BUILDERS if fnmatchcase(name, pattern))
