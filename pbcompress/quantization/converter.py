"""Int8 and fp16 files from float32 ones. The only module that imports onnxruntime's tools."""

import io
import logging
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from pbcompress.core.drafts import told_where
from pbcompress.errors import (
    CompressionError,
    StateMismatchError,
    UnwritableError,
    first_line,
)
from pbcompress.onnx_files.contents import node_names
from pbcompress.onnx_files.store import files_of, save_again

__all__ = ["METHODS", "Method", "Quantizer", "Scope", "weight_bits", "write_fp16"]

Feeds = Mapping[str, np.ndarray[Any, Any]]
Scope = Literal["products", "all"]
Method = Literal["minmax", "percentile", "entropy"]
METHODS: dict[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LEFT = Path("sym_shape_infer_temp.onnx")
FOLDED = ("Relu", "Clip")  # into the range of the product before


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The inputs of a calibration, one after the other: histograms need all values of each."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds, self._range = feeds, iter(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(self._feeds[start_index:end_index])

    def get_next(self) -> Feeds | None:
        return next(self._range, None)


class Quantizer:
    """Writes one float32 file in int8, statically: scales are fixed from real inputs.

    Weights have a scale for each output channel. Activations are unsigned on x86 and signed
    elsewhere, as their kernels want; where x86 has no VNNI, whose kernels sum without overflow,
    weights have seven bits.

    Args:
        source: The float32 file.
        feeds: Inputs whose values are typical: ranges are taken from them.
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
            _prepare(source, self._prepared)
        save_again(self._prepared)
        self.products = node_names(self._prepared, PRODUCTS)

    def write(
        self,
        target: Path,
        *,
        scope: Scope = "products",
        method: Method = "minmax",
        excluded: Collection[str] = (),
        only: Collection[str] = (),
    ) -> None:
        """Write an int8 file.

        Args:
            target: The file.
            scope: Whether convolutions and matrix products alone become int8, or every operation
                that has a kernel for it.
            method: Where the range of a value ends: at the least and largest of the feeds, where
                0.001 % are outside, or where the rounded distribution is nearest to theirs.
            excluded: Nodes that stay float32.
            only: Nodes that become int8, no other; empty: all of the scope.

        Raises:
            CompressionError: The library could not.
        """
        is_signed = not _is_x86()
        with _quiet(), _named("quantise"):
            quantize_static(
                str(self._prepared),
                str(target),
                _Reader(self.feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*PRODUCTS, *FOLDED] if scope == "products" else None,
                per_channel=True,
                reduce_range=weight_bits() < 8,
                activation_type=QuantType.QInt8 if is_signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(only) or None,
                nodes_to_exclude=list(excluded) or None,
                calibrate_method=METHODS[method],
                calibration_cache_path=self.folder / f"{scope}-{method}.json",
                extra_options={"CalibStridedMinMax": 1},  # all methods: one batch in memory
            )
        save_again(target)


def write_fp16(source: Path, target: Path) -> None:
    """Write a float32 file with its values in 16 bits, inputs and outputs still float32.

    Where a runtime has no 16-bit kernel of an operation it computes it in float32.

    Raises:
        CompressionError: The library could not.
    """
    with _quiet(), _named("convert"):
        model = OnnxModel(convert_float_to_float16(str(source), keep_io_types=True))
        model.topological_sort()  # casts were put at the end
        content = model.model.SerializeToString()
    target.write_bytes(content)
    save_again(target)


def weight_bits() -> int:
    """Return the bits of a weight for which sums of 8-bit products do not overflow here."""
    return 8 if not _is_x86() or _has_vnni() else 7


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def _has_vnni() -> bool:
    """Tell whether this machine sums 8-bit products in 32 bits; unknown is no."""
    facts = Path("/proc/cpuinfo")
    return facts.is_file() and "vnni" in facts.read_text()


def _prepare(source: Path, target: Path) -> None:
    """Write a file as the quantizer wants it, its sizes followed where that is possible.

    Where it is not, the library leaves what it got in the current folder.
    """
    if not LEFT.exists():
        try:
            return quant_pre_process(str(source), str(target))  # type: ignore[no-any-return]
        except Exception:  # sizes that it cannot follow; it can do without them
            with suppress(StateMismatchError):
                for path in files_of(LEFT):
                    path.unlink()
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's remarks, which go to two loggers and the standard output."""
    root, own, silent = logging.getLogger(), logging.getLogger("onnxruntime"), logging.NullHandler()
    was = root.disabled, own.propagate
    root.disabled, own.propagate = True, False
    own.addHandler(silent)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.disabled, own.propagate = was
        own.removeHandler(silent)


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        with told_where(Path("A file for fewer bits")):
            yield
    except UnwritableError:
        raise
    except Exception as err:
        raise CompressionError(
            f"ONNX Runtime was to {what} the file for fewer bits and could not: {first_line(err)}. "
            "Export it in float32."
        ) from err
