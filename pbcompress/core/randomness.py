"""A random stream by name, and the former state given back."""

import operator
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import torch

from pbcompress.core.turns import turn
from pbcompress.errors import CompressionError

__all__ = ["seeded", "whole_seed"]


def whole_seed(seed: SupportsIndex) -> int:
    """Return a seed as an int: an integer of NumPy or torch names the same stream and is JSON.

    Raises:
        CompressionError: It is no whole number.

    Example:
        >>> whole_seed(torch.tensor(3))
        3
    """
    try:
        return int(operator.index(seed))
    except TypeError as err:
        raise CompressionError(f"seed was given as {seed!r}. Give a whole number.") from err


@contextmanager
def seeded(*seed: SupportsIndex | str) -> Iterator[None]:
    """Seed Python, NumPy and torch (CPU and CUDA), and give their former states back at the end.

    The states are those of the process, so one thread at a time is in here; see `turns`.

    Args:
        seed: Values that together name the random stream, e.g. ``(0, "neuron", 3)``.

    Example:
        >>> with seeded(1, "a"):
        ...     first = torch.rand(2)
        >>> with seeded(1, "a"):
        ...     bool(torch.equal(first, torch.rand(2)))
        True
    """
    with turn(), _seeded(seed):
        yield


@contextmanager
def _seeded(seed: tuple[SupportsIndex | str, ...]) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    name = tuple(part if isinstance(part, str) else whole_seed(part) for part in seed)
    value = random.Random(repr(name)).getrandbits(32)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            _seed_torch(value)
            random.seed(value)
            if numpy:
                numpy.random.seed(value)
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def _seed_torch(value: int) -> None:
    """Seed torch; where there is no accelerator, without the stack trace that waits for one."""
    if torch.accelerator.is_available():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
