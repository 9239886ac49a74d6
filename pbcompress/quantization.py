"""Int8 files from float32 ones. The only module that imports onnxruntime.quantization."""

import logging
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from pbcompress.errors import CompressionError, first_line
from pbcompress.onnxfile import node_names

__all__ = ["Quantizer", "Scope"]

Feeds = Mapping[str, np.ndarray[Any, Any]]
Scope = Literal["products", "all"]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FOLDED = ("Relu", "Clip")  # into the range of the product before


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The inputs of a calibration, once."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


class Quantizer:
    """Writes one float32 file in int8, statically: scales are fixed from real inputs.

    Weights have a scale for each output channel. Activations are unsigned on x86 and signed
    elsewhere, as their kernels want; where x86 has no VNNI, whose kernels sum without overflow,
    weights have seven bits.

    Args:
        source: The float32 file.
        feeds: Inputs whose values are typical: ranges are their least and largest.
        folder: For what lies between, and outlives this object.

    Attributes:
        products: Names of the convolutions and matrix products, in the order of the graph.

    Raises:
        CompressionError: The file cannot be prepared.

    Source:
        ONNX Runtime documentation, "Quantize ONNX models", data type selection.
    """

    def __init__(self, source: Path, feeds: Sequence[Feeds], folder: Path) -> None:
        self.source, self.feeds, self.folder = source, feeds, folder
        self._prepared = folder / "prepared.onnx"
        with _quiet(), _named("prepare"):
            quant_pre_process(str(source), str(self._prepared))
        self.products = node_names(self._prepared, PRODUCTS)

    def write(
        self,
        target: Path,
        *,
        scope: Scope = "products",
        excluded: Collection[str] = (),
        only: Collection[str] = (),
    ) -> None:
        """Write an int8 file.

        Args:
            target: The file.
            scope: Whether convolutions and matrix products alone become int8, or every operation
                that has a kernel for it.
            excluded: Nodes that stay float32.
            only: Nodes that become int8, no other; empty: all of the scope.

        Raises:
            CompressionError: The library could not.
        """
        is_signed = platform.machine().lower() not in ("x86_64", "amd64", "i686")
        with _quiet(), _named("quantise"):
            quantize_static(
                str(self._prepared),
                str(target),
                _Reader(self.feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*PRODUCTS, *FOLDED] if scope == "products" else None,
                per_channel=True,
                reduce_range=not (is_signed or _has_vnni()),
                activation_type=QuantType.QInt8 if is_signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(only) or None,
                nodes_to_exclude=list(excluded) or None,
                calibration_cache_path=self.folder / f"{scope}.json",
            )


def _has_vnni() -> bool:
    """Tell whether this machine sums 8-bit products without overflow; unknown is no."""
    facts = Path("/proc/cpuinfo")
    return facts.is_file() and "vnni" in facts.read_text()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's remarks, which go to the root logger."""
    root = logging.getLogger()
    was = root.disabled
    root.disabled = True
    try:
        yield
    finally:
        root.disabled = was


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as err:
        raise CompressionError(
            f"ONNX Runtime was to {what} the file for int8 and could not: {first_line(err)}. "
            "Calibration needs inputs of the shapes that the file takes."
        ) from err
