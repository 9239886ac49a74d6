"""What ONNX files cost on this machine: time at two batch sizes, memory, and by operation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pbcompress.core.text_tables import render_text
from pbcompress.core.turns import in_turn
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.apart import peak_memory
from pbcompress.onnx_files.contents import measure_onnx, peak_activation_bytes
from pbcompress.onnx_files.session import (
    CPU,
    Latency,
    Session,
    interleaved_latency,
    kernel_times,
)

__all__ = ["Benchmark", "FileBenchmark", "bench"]


@dataclass(frozen=True)
class FileBenchmark:
    """One file.

    Attributes:
        name: Of the file.
        params: Weights.
        file_bytes: Size on disk.
        batch: Samples of a small run: 1, or what the file fixes; what follows is of such runs.
        flops: Multiply-adds.
        latency: Milliseconds of a run; ``ratio`` above 1 is faster than the first file.
        throughput: The same at the throughput batch; None where the file's batch size is fixed.
        peak_memory: Bytes of resident memory that a fresh process needs for the file and one run,
            beyond the runtime itself; None where the system does not say.
        peak_activations: Most bytes of activations that are alive at once, read from the graph,
            every result in a place of its own.
        kernels: Milliseconds by node, where a profile was asked for.
    """

    name: str
    params: int
    file_bytes: int
    batch: int
    flops: int
    latency: Latency
    throughput: Latency | None
    peak_memory: int | None
    peak_activations: int
    kernels: Mapping[str, float]


@dataclass(frozen=True)
class Benchmark:
    """Files that were run in turn.

    Attributes:
        files: In the order given.
        threads: Threads within an operation.
        batch: The throughput batch.
        provider: What computed, by the runtime's name.
    """

    files: tuple[FileBenchmark, ...]
    threads: int
    batch: int
    provider: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        small = [file.batch for file in self.files]
        label = "small batch" if set(small) != {1} else "batch 1"
        rows = [
            ("", *(file.name for file in self.files)),
            ("weights", *(f"{file.params:,}" for file in self.files)),
            ("FLOPs (multiply-adds)", *(f"{file.flops:,}" for file in self.files)),
            ("file, bytes", *(f"{file.file_bytes:,}" for file in self.files)),
            ("small batch, samples", *map(str, small)),
            *_time_rows(label, [file.latency for file in self.files], small),
            *_time_rows(
                f"batch {self.batch}",
                [file.throughput for file in self.files],
                [self.batch] * len(small),
            ),
            ("peak memory, bytes", *(_bytes(file.peak_memory) for file in self.files)),
            ("peak activations, bytes", *(f"{file.peak_activations:,}" for file in self.files)),
        ]
        text = f"{render_text(rows)}\n\n{self.threads} thread(s), {self.provider}, runs in turn"
        for file in self.files:
            slowest = sorted(file.kernels.items(), key=lambda item: -item[1])
            if slowest:
                total = sum(file.kernels.values())
                text += f"\n\n{file.name}: {total:.3f} ms in {len(slowest)} nodes, the slowest are"
                text += "".join(f"\n  {ms:8.3f} ms  {node}" for node, ms in slowest[:10])
        return text


def _time_rows(
    label: str, times: Sequence[Latency | None], batches: Sequence[int]
) -> list[tuple[str, ...]]:
    def row(name: str, show: Callable[[Latency, int], str]) -> tuple[str, ...]:
        pairs = zip(times, batches, strict=True)
        return (f"{label}, {name}", *("-" if t is None else show(t, n) for t, n in pairs))

    return [
        row("p50 ms", lambda t, _: f"{t.median:.3f}"),
        row("p95 ms", lambda t, _: f"{t.p95:.3f}"),
        row("samples/s", lambda t, n: f"{n * 1000 / t.median:,.0f}"),
        row("speed against the first", lambda t, n: f"{t.ratio * n / batches[0]:.2f}x"),
    ]


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


@in_turn
def bench(
    paths: Sequence[str | Path],
    *,
    threads: int = 1,
    batch: int = 32,
    rounds: int = 200,
    profile: bool = False,
    provider: str = CPU[0],
) -> Benchmark:
    """Run ONNX files in turn on random inputs, after a warm-up.

    Args:
        paths: One or more files that take any batch size, or a fixed one.
        threads: Threads within an operation, at least 1.
        batch: Batch size of the throughput runs, at least 1.
        rounds: Timed runs of each, at least 5; fewer where a run is slow.
        profile: Whether to time every node as well.
        provider: What computes, by the runtime's name, e.g. "CUDAExecutionProvider".

    Returns:
        Times, sizes and memory.

    Raises:
        StateMismatchError: A file is missing or cannot be run.
        CompressionError: An argument is out of range, an axis other than the first is free, or
            this runtime does not have the provider.

    Example:
        >>> import tempfile, torch
        >>> from pbcompress import export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_onnx(torch.nn.Linear(4, 2), f"{folder}/a.onnx", torch.zeros(1, 4))
        ...     found = bench([f"{folder}/a.onnx"], rounds=5)
        >>> found.files[0].params, found.files[0].peak_activations
        (10, 24)
    """
    if not paths or min(threads, batch) < 1 or rounds < 5:
        raise CompressionError(
            f"bench takes one file or more, threads and batch from 1 and rounds from 5; found "
            f"{len(paths)} files, threads={threads}, batch={batch}, rounds={rounds}."
        )
    costs = [measure_onnx(path) for path in paths]
    providers = tuple(dict.fromkeys([provider, *CPU]))  # the CPU takes what another cannot
    sessions = [Session(path, threads, providers=providers, apart=True) for path in paths]
    singles = [session.random_feeds(1) for session in sessions]
    for path, feeds in zip(paths, singles, strict=True):
        for name, array in feeds.items():
            if not array.size:
                raise CompressionError(
                    f"{path} was to be timed, and its input {name!r} has the shape {array.shape}, "
                    "which holds nothing. Give a file that takes at least one sample."
                )
    latencies = interleaved_latency(sessions, singles, rounds)
    free = [session for session in sessions if session.takes_any_batch]
    many = interleaved_latency(free, [s.random_feeds(batch) for s in free], rounds) if free else []
    by_session = dict(zip(map(id, free), many, strict=True))
    files = [
        FileBenchmark(
            name=Path(path).name,
            params=cost.params,
            file_bytes=cost.file_bytes,
            batch=max((len(a) for a in feeds.values() if a.ndim), default=1),
            flops=cost.flops,
            latency=latency,
            throughput=by_session.get(id(session)),
            peak_memory=peak_memory(path, feeds, threads, providers),
            peak_activations=peak_activation_bytes(path),
            kernels=kernel_times(path, feeds, 20, threads, providers, apart=True)
            if profile
            else {},
        )
        for path, cost, session, feeds, latency in zip(
            paths, costs, sessions, singles, latencies, strict=True
        )
    ]
    return Benchmark(tuple(files), threads, batch, provider)
