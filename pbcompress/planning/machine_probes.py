"""Which widths ONNX Runtime is fast with on this machine: measured once, and kept.

Small networks of one kind of layer are timed at neighbouring widths. The times go to the user's
cache, by processor, version of the runtime and threads; what is missing or damaged there is
measured again.
"""

import hashlib
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pbcompress.core.drafts import draft_folder
from pbcompress.core.json_documents import parse_record, render_record
from pbcompress.core.user_cache import read_cached, write_cached
from pbcompress.costs.latency_model import PROBE_WIDTHS, LayerKind, multiple_of
from pbcompress.errors import StateMismatchError
from pbcompress.onnx_files.contents import write_probe
from pbcompress.onnx_files.session import Session, interleaved_latency, version

__all__ = ["machine_multiples"]

KINDS: tuple[LayerKind, ...] = ("convolution", "depthwise", "product")
ROUNDS = 100
RECORD, RECORD_VERSION = "pbcompress probes", 1


@dataclass(frozen=True)
class _Probes:
    """What was measured.

    Attributes:
        costs: Nanoseconds for each multiply-add, by kind of layer, in the order of the widths.
    """

    costs: Mapping[str, tuple[float, ...]]


def machine_multiples(kinds: Collection[LayerKind], threads: int) -> dict[LayerKind, int]:
    """Return the multiples that widths should have, for some kinds of layers.

    Args:
        kinds: Of the layers.
        threads: Of the runtime.
    """
    probes = _known(threads)
    if probes is None:
        probes = _Probes({kind: _costs(kind, threads) for kind in KINDS})
        write_cached(_name(threads), render_record(probes, RECORD, RECORD_VERSION))
    return {
        kind: multiple_of(dict(zip(PROBE_WIDTHS, probes.costs[kind], strict=True)))
        for kind in kinds
    }


def _known(threads: int) -> _Probes | None:
    text = read_cached(_name(threads))
    try:
        found = parse_record(_Probes, text or "", RECORD, RECORD_VERSION, "The cache")
    except StateMismatchError:
        return None
    costs = [found.costs.get(kind, ()) for kind in KINDS]
    is_whole = all(len(own) == len(PROBE_WIDTHS) and min(own) > 0 for own in costs)
    return found if is_whole else None


def _name(threads: int) -> str:
    machine = f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"
    digest = hashlib.sha256(machine.encode()).hexdigest()[:12]
    return f"probes-{digest}-onnxruntime-{version()}-{threads}.json"


def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line for line in lines if line.startswith(("model name", "CPU part"))]
    return named[0].partition(":")[2].strip() if named else platform.processor()


def _costs(kind: LayerKind, threads: int) -> tuple[float, ...]:
    sessions, feeds, works = [], [], []
    with draft_folder() as folder:
        for width in PROBE_WIDTHS.values():
            path = folder / f"{width}.onnx"
            shape, work = write_probe(path, kind, width)
            sessions.append(Session(path, threads))
            feeds.append(sessions[-1].feeds([torch.ones(shape)]))
            works.append(work)
        clock = time.thread_time if threads == 1 else time.perf_counter
        times = interleaved_latency(sessions, feeds, ROUNDS, clock)
    first = times[0].median * 1e6
    return tuple(first / time.ratio / work for time, work in zip(times, works, strict=True))
