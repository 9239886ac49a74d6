"""Scripted functions of a network's code, run as the Python that they were made from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["scripts_as_python"]

_Script = torch.jit.ScriptFunction


def _nothing(name: str, inputs: Any) -> None:
    pass


@contextmanager
def scripts_as_python(unknown: Callable[[str, Any], None] = _nothing) -> Iterator[None]:
    """Run functions that `torch.jit.script` or `torch.jit.trace` made as the functions before.

    What a scripted function does with sizes cannot be seen, and what its compiler makes of it
    changes from call to call.

    Args:
        unknown: Told the name and the inputs of a function that has no Python, before it runs.

    Example:
        >>> import warnings
        >>> def half(x):
        ...     return x[: len(x) // 2]
        >>> with warnings.catch_warnings():  # torch calls scripts deprecated
        ...     warnings.simplefilter("ignore")
        ...     half = torch.jit.script(half)
        >>> with scripts_as_python():
        ...     half([1, 2, 3, 4])  # which no scripted function takes as it is
        [1, 2]
    """
    run = _Script.__call__

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        python = getattr(self, "_torchdynamo_inline", None)
        if python is not None:
            return python(*args, **kwargs)
        unknown(self.name, (args, kwargs))
        return run(self, *args, **kwargs)

    _Script.__call__ = call  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _Script.__call__ = run  # type: ignore[method-assign]
