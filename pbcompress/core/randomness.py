"""A random stream by name, and the former state given back."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(*seed: int | str) -> Iterator[None]:
    """Seed Python, NumPy and torch (CPU and CUDA), and give their former states back at the end.

    Args:
        seed: Values that together name the random stream, e.g. ``(0, "neuron", 3)``.

    Example:
        >>> with seeded(1, "a"):
        ...     first = torch.rand(2)
        >>> with seeded(1, "a"):
        ...     bool(torch.equal(first, torch.rand(2)))
        True
    """
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    value = random.Random(repr(seed)).getrandbits(32)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(value)
            random.seed(value)
            if numpy:
                numpy.random.seed(value)
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
