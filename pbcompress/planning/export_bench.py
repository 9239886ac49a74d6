"""Exports networks as they would ship, and measures them in ONNX Runtime beside the original."""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import nn

from pbcompress.core.inputs import Call, tensors_of
from pbcompress.costs.latency_model import PROBE_WIDTHS, LayerKind, Measured, Rounding
from pbcompress.export.fusion import fuse
from pbcompress.export.onnx_export import write_onnx
from pbcompress.onnx_files.contents import node_owners, write_probe
from pbcompress.onnx_files.session import Session, interleaved_latency, kernel_times

__all__ = ["ExportBench"]

ROUNDS = 100
PROBE_ROUNDS = 100


class ExportBench:
    """Measures networks as exported, beside the original; to be used in a ``with``.

    It is the `Bench` of a search for widths. The files lie in a folder of their own.

    Args:
        original: What every network is timed against.
        call: One sample.
        modules: Layers to tell the time of.
        threads: Threads of the runtime.

    Raises:
        CompressionError: The original cannot be exported, or does not run as exported.
    """

    def __init__(
        self, original: nn.Module, call: Call, modules: Collection[str], threads: int = 1
    ) -> None:
        self.call, self.modules, self.threads = call, modules, threads
        self._folder = tempfile.TemporaryDirectory(prefix="pbcompress-")
        self._count = 0
        try:
            path = self._export(original)
            self._first = Session(path, threads)
            self._feeds = self._first.feeds(tensors_of(call))
            self._time = interleaved_latency([self._first], [self._feeds], ROUNDS)[0].median
            self.original = self._measured(path, self._time)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def measure(self, network: nn.Module) -> Measured:
        """Export a network and time it in turn with the original.

        Its time is that of the original divided by the median ratio, so that all networks of a
        bench can be compared, even if the machine did other work too.
        """
        path = self._export(network)
        sessions = [self._first, Session(path, self.threads)]
        feeds = [self._feeds, sessions[1].feeds(tensors_of(self.call))]
        ratio = interleaved_latency(sessions, feeds, ROUNDS)[1].ratio
        return self._measured(path, self._time / ratio)

    def roundings(self, kinds: Collection[LayerKind]) -> dict[LayerKind, Rounding]:
        """Measure, for some kinds of layers, which widths the runtime is fast with."""
        return {kind: self._rounding(kind) for kind in kinds}

    def _rounding(self, kind: LayerKind) -> Rounding:
        sessions, feeds, works = [], [], []
        for width in PROBE_WIDTHS.values():
            path = Path(self._folder.name) / f"{kind}-{width}.onnx"
            shape, work = write_probe(path, kind, width)
            sessions.append(Session(path, self.threads))
            feeds.append(sessions[-1].feeds([torch.ones(shape)]))
            works.append(work)
        times = interleaved_latency(sessions, feeds, PROBE_ROUNDS)
        return Rounding.of(
            {m: 1 / time.ratio for m, time in zip(PROBE_WIDTHS, times, strict=True)},
            dict(zip(PROBE_WIDTHS, works, strict=True)),
        )

    def _export(self, network: nn.Module) -> Path:
        path = Path(self._folder.name) / f"{self._count}.onnx"
        self._count += 1
        write_onnx(fuse(network), path, self.call)
        return path

    def _measured(self, path: Path, milliseconds: float) -> Measured:
        tensors = tensors_of(self.call)
        kernels = kernel_times(path, Session(path).feeds(tensors), threads=self.threads)
        by_layer, other = _by_layer(kernels, node_owners(path, self.modules))
        scale = milliseconds / max(sum(kernels.values()), 1e-9)
        return Measured(
            file_bytes=path.stat().st_size,
            milliseconds=milliseconds,
            by_layer={name: scale * own for name, own in by_layer.items()},
            other=scale * other,
        )


def _by_layer(
    kernels: Mapping[str, float], owners: Mapping[str, str]
) -> tuple[dict[str, float], float]:
    """Add kernels up by layer.

    The runtime names a fused node by one of its outputs, with its own suffix; one that it has put
    in (a change of layout) belongs to the layer before it.
    """
    by_layer: dict[str, float] = {}
    other, owner = 0.0, None
    for name, time in kernels.items():
        owner = owners.get(name, owners.get(name.removesuffix("_nchwc"), owner))
        if owner is None:
            other += time
        else:
            by_layer[owner] = by_layer.get(owner, 0.0) + time
    return by_layer, other
