"""One call at a time in a process: what calls use, random states and torch's flags, is shared.

Threads wait for each other, so each gets what it would get alone. What draws random numbers in
other threads of the caller meanwhile is not held back.
"""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = ["in_turn", "turn"]

P = ParamSpec("P")
T = TypeVar("T")


class _Turn:
    """The lock of this process; a process that was forked has its own, which nobody holds."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.RLock()


_TURN = _Turn()


def turn() -> AbstractContextManager[bool]:
    """Return the lock that `in_turn` takes; the thread that has it may take it again."""
    return _TURN.lock


def in_turn(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function run in one thread at a time, together with all that are so marked.

    Example:
        >>> @in_turn
        ... def double(number: int) -> int:
        ...     return 2 * number
        >>> double(3)
        6
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with turn():
            return function(*args, **kwargs)

    return alone
