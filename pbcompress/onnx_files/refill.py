"""Other weights, and fewer of them, in the graph of a file that was exported before.

A narrower network has the graph of the original: only its weights have other shapes, and here and
there the shape that an operation is told. So it need not be exported anew to be timed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pbcompress.onnx_files.store import load, save

__all__ = ["Template"]

Array = np.ndarray[Any, Any]
INT64 = 7  # as the format numbers its types
FEW_AXES = 3


class Template:
    """A file whose weights can be replaced.

    Args:
        path: An exported file, its weights within.
        weights: Those of its network by name, no two alike: they are found again by their values.
    """

    def __init__(self, path: Path, weights: Mapping[str, Array]) -> None:
        self._proto = load(path)
        self.names = frozenset(weights)
        places: dict[tuple[tuple[int, ...], bytes], tuple[str, bool]] = {}
        for name, array in weights.items():
            if array.ndim == 2:
                places[array.shape[::-1], array.T.tobytes()] = name, True
            places[array.shape, array.tobytes()] = name, False
        self._sources = {
            tensor.name: places[key]
            for tensor in self._proto.graph.initializer
            if (key := (tuple(tensor.dims), tensor.raw_data)) in places
        }
        self._shapes = {
            node.input[1] for node in self._proto.graph.node if node.op_type == "Reshape"
        }

    def fill(self, weights: Mapping[str, Array], path: Path, free: int = -1) -> bool:
        """Write the file of a network with other weights, to be compared with it before use.

        Args:
            weights: By name.
            path: The new file.
            free: The axis, counted from the last, that is left open in a shape of more than three
                axes that is told and names no size that changes.

        Returns:
            Whether there is such a file: the network must have weights of the same names.
        """
        if self.names != weights.keys():
            return False
        proto, gone = type(self._proto)(), set[int]()
        proto.CopyFrom(self._proto)
        for tensor in proto.graph.initializer:
            if tensor.name in self._sources:
                name, turned = self._sources[tensor.name]
                array = weights[name].T if turned else weights[name]
                gone.update(a for a, b in zip(tensor.dims, array.shape, strict=True) if a != b)
                tensor.raw_data = array.tobytes()
                tensor.dims[:] = array.shape
        for tensor in proto.graph.initializer:
            if tensor.name in self._shapes and tensor.data_type == INT64 and tensor.raw_data:
                told = np.frombuffer(tensor.raw_data, np.int64)
                tensor.raw_data = _opened(told, gone, free).tobytes()
        self._regroup_(proto.graph)
        del proto.graph.value_info[:]
        save(proto, path)
        return True

    def _regroup_(self, graph: Any) -> None:
        """Give a convolution of every channel alone as many groups as it has channels."""
        before = {tensor.name: tensor.dims for tensor in self._proto.graph.initializer}
        after = {tensor.name: tensor.dims for tensor in graph.initializer}
        for node in graph.node:
            weight = node.input[1] if "Conv" in node.op_type else ""
            for attribute in node.attribute if weight in before else ():
                if attribute.name == "group" and attribute.i > 1 and before[weight][1] == 1:
                    attribute.i = attribute.i * after[weight][0] // before[weight][0]


def _opened(told: Array, gone: set[int], free: int) -> Array:
    """Return a shape in which one axis, which may have another size now, is left open."""
    shape = told.copy()
    if len(told) and -1 not in told:
        named = [axis for axis, size in enumerate(told) if size in gone]
        shape[named[-1] if named else (free if len(told) > FEW_AXES else -1)] = -1
    return shape
