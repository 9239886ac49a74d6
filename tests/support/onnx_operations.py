"""torch's table of ONNX operations, made once in a process.

torch makes it anew for every export: nearly half of the time that a small network takes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest


@contextmanager
def operations_made_once() -> Iterator[None]:
    """Give every export a copy of the first table for its opset."""
    # torch.onnx has no public way to hand a table over
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    made = cache(ONNXRegistry.from_torchlib)

    def from_torchlib(*opset: int, **named: int) -> ONNXRegistry:
        table = copy.copy(made(*opset, **named))
        table.functions = {name: list(found) for name, found in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield
