"""Exports networks as they would ship, and measures them in ONNX Runtime beside the original.

An export takes longer than everything else. So the original is exported once, and narrower
networks get their weights into its graph; the file counts where it computes what the network
computes. Any other network is exported itself.
"""

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from pbcompress.core.drafts import draft_folder
from pbcompress.core.inputs import Call, tensors_of
from pbcompress.core.modules import copy_model
from pbcompress.costs.latency_model import LayerKind, Measured
from pbcompress.costs.operator_table import Machine, this_machine
from pbcompress.export.fusion import fuse
from pbcompress.export.onnx_export import write_onnx
from pbcompress.export.translation import output_of
from pbcompress.onnx_files.contents import node_owners
from pbcompress.onnx_files.refill import Template
from pbcompress.onnx_files.session import Latency, Session, interleaved_latency, kernel_times
from pbcompress.planning.machine_probes import machine_multiples

__all__ = ["ExportBench"]

Array = np.ndarray[Any, Any]
ROUNDS, ALONE, PROFILED = 40, 20, 10
TELLING = 1e-3  # what makes weights different from each other, of 1
CLOSE = 1e-3  # outputs of a file to those of its network, of the largest
OPEN_AXES = (-2, -1, -3)  # that may follow the widths: heads, their channels, images


class ExportBench:
    """Measures networks as exported, beside the original; to be used in a ``with``.

    It is the `Bench` of a search for widths. The files lie in a folder of their own.

    Args:
        original: What every network is timed against.
        call: One sample.
        modules: Layers to tell the time of.
        threads: Threads of the runtime. With one, times are those of the thread: what other
            processes take does not count.
        as_shipped: Whether files have the size of what ships, a free batch size included. Every
            network is exported itself then, which takes longer.

    Raises:
        CompressionError: The original cannot be exported, or does not run as exported.
    """

    def __init__(
        self,
        original: nn.Module,
        call: Call,
        modules: Collection[str],
        threads: int = 1,
        *,
        as_shipped: bool = False,
    ) -> None:
        self.call, self.modules, self.threads, self.as_shipped = call, modules, threads, as_shipped
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._held = ExitStack()
        self._folder = self._held.enter_context(draft_folder())
        self._count = 0
        try:
            self._template = None if as_shipped else self._template_of(fuse(original))
            path = self.file_of(fuse(original))
            self._first = Session(path, threads)
            self._feeds = self._first.feeds(tensors_of(call))
            self._time = self._timed([self._first], ALONE)[0].median
            self.original = self._measured(path, self._time)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    @cached_property
    def machine(self) -> Machine:
        """The table of operators for this machine."""
        return this_machine()

    def measure(self, network: nn.Module) -> Measured:
        """Time a network as exported, in turn with the original.

        Its time is that of the original divided by the median ratio, so that all networks of a
        bench can be compared, even if the machine did other work too.
        """
        path = self.file_of(fuse(network))
        ratio = self._timed([self._first, Session(path, self.threads)], ROUNDS)[1].ratio
        return self._measured(path, self._time / ratio)

    def file_of(self, network: nn.Module) -> Path:
        """Return a file that computes what a fused network computes; it is there in the `with`."""
        template, path = self._template, self._path()
        for axis in OPEN_AXES:
            is_filled = template is not None and template.fill(_weights(network), path, axis)
            if is_filled and self._agrees(path, network):
                return path
        write_onnx(network, path, self.call, free_batch=self.as_shipped)
        return path

    def multiples(self, kinds: Collection[LayerKind]) -> dict[LayerKind, int]:
        """Return which multiples the runtime is fast with; measured once on a machine."""
        return machine_multiples(kinds, self.threads)

    def _timed(self, sessions: list[Session], rounds: int) -> list[Latency]:
        return interleaved_latency(sessions, [self._feeds] * len(sessions), rounds, self._clock)

    def _path(self) -> Path:
        self._count += 1
        return self._folder / f"{self._count}.onnx"

    def _template_of(self, network: nn.Module) -> Template | None:
        """Export a network once, with weights that can be told apart."""
        generator = torch.Generator().manual_seed(0)
        apart = copy_model(network)
        with torch.no_grad():
            for tensor in (*apart.parameters(), *apart.buffers()):
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.add_((TELLING * noise).to(tensor))
        path = self._path()
        write_onnx(apart, path, self.call, free_batch=False)
        return Template(path, _weights(apart))

    def _agrees(self, path: Path, network: nn.Module) -> bool:
        """Tell whether a file runs and has the outputs of a network, to what it is used for."""
        try:
            session = Session(path, self.threads, silent=True)
            found = session.run(session.feeds(tensors_of(self.call)))
        except Exception:  # a shape that does not fit: whatever the runtime makes of it
            return False
        wanted = [t.detach().cpu().numpy() for t in tensors_of(output_of(network, self.call))]
        return len(found) == len(wanted) and all(map(_close, found, wanted))

    def _measured(self, path: Path, milliseconds: float) -> Measured:
        kernels = kernel_times(path, self._feeds, PROFILED, self.threads, of=min)
        by_layer, other = _by_layer(kernels, node_owners(path, self.modules))
        scale = milliseconds / max(sum(kernels.values()), 1e-9)
        return Measured(
            file_bytes=path.stat().st_size,
            milliseconds=milliseconds,
            by_layer={name: scale * own for name, own in by_layer.items()},
            other=scale * other,
        )


def _weights(network: nn.Module) -> dict[str, Array]:
    tensors = (*network.named_parameters(), *network.named_buffers())
    return {name: t.detach().cpu().contiguous().numpy() for name, t in tensors}


def _close(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape:
        return False
    largest = float(np.abs(wanted).max(initial=0.0))
    return bool(np.allclose(found, wanted, rtol=0, atol=CLOSE * largest, equal_nan=True))


def _by_layer(
    kernels: Mapping[str, float], owners: Mapping[str, str]
) -> tuple[dict[str, float], float]:
    """Add kernels up by layer.

    The runtime names a fused node by one of its outputs, with its own suffix; one that it has put
    in (a change of layout) belongs to the layer before it.
    """
    by_layer: dict[str, float] = {}
    other, owner = 0.0, None
    for name, own in kernels.items():
        owner = owners.get(name, owners.get(name.removesuffix("_nchwc"), owner))
        if owner is None:
            other += own
        else:
            by_layer[owner] = by_layer.get(owner, 0.0) + own
    return by_layer, other
