"""Run and time ONNX files, whole and by kernel. The only module that imports onnxruntime."""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import Tensor

from pbcompress.errors import CompressionError, StateMismatchError

__all__ = ["Latency", "Session", "interleaved_latency", "kernel_times"]

Array = np.ndarray[Any, Any]
MAX_SECONDS = 4.0


class Session:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: Threads within an operation.
        profile: Beginning of the name of a file for the times of all kernels; None: they are not
            taken.
    """

    def __init__(self, path: str | Path, threads: int = 1, profile: Path | None = None) -> None:
        if not Path(path).is_file():
            raise StateMismatchError(f"{path} was to be run and is not there.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:
            raise StateMismatchError(
                f"{path} cannot be run by ONNX Runtime {onnxruntime.__version__}: {err}. Give a "
                "whole ONNX file."
            ) from err
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def feeds(self, tensors: Sequence[Tensor]) -> dict[str, Array]:
        """Return the arrays of one run, by input name, in the order of the forward's arguments."""
        if len(tensors) != len(self.input_names):
            raise CompressionError(
                f"The ONNX file takes {len(self.input_names)} inputs "
                f"({', '.join(self.input_names)}); {len(tensors)} tensors were given."
            )
        arrays = [t.detach().cpu().contiguous().numpy() for t in tensors]
        return dict(zip(self.input_names, arrays, strict=True))

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return all outputs."""
        outputs: list[Array] = self._session.run(None, dict(feeds))
        return outputs

    def profile(self) -> str:
        """End the profile, and return the path of its file."""
        path: str = self._session.end_profiling()
        return path


@dataclass(frozen=True)
class Latency:
    """Time of one run, in milliseconds, over interleaved rounds.

    Attributes:
        median: Median.
        p95: 95th percentile.
        rounds: Number of timed runs.
        ratio: Median over the rounds of (first file's time / this file's time): above 1 is faster.
    """

    median: float
    p95: float
    rounds: int
    ratio: float


def interleaved_latency(
    sessions: Sequence[Session], feeds: Sequence[Mapping[str, Array]], rounds: int = 200
) -> list[Latency]:
    """Time several files in turn (a b a b ...), so that a drifting machine hits all alike.

    Args:
        sessions: The files; ratios are against the first.
        feeds: The input of each.
        rounds: Timed runs of each, fewer where a run is slow.
    """
    pairs = list(zip(sessions, feeds, strict=True))
    for session, feed in pairs:
        for _ in range(5):
            session.run(feed)
    times: list[list[float]] = [[] for _ in pairs]
    began = time.perf_counter()
    while len(times[0]) < rounds and (
        len(times[0]) < 5 or time.perf_counter() - began < MAX_SECONDS
    ):
        for slot, (session, feed) in zip(times, pairs, strict=True):
            started = time.perf_counter()
            session.run(feed)
            slot.append((time.perf_counter() - started) * 1e3)
    results = []
    for slot in times:
        ratios = [a / b for a, b in zip(times[0], slot, strict=True)]
        p95 = sorted(slot)[int(0.95 * (len(slot) - 1))]
        results.append(Latency(statistics.median(slot), p95, len(slot), statistics.median(ratios)))
    return results


def kernel_times(
    path: str | Path, tensors: Sequence[Tensor], runs: int = 20, threads: int = 1
) -> dict[str, float]:
    """Return the milliseconds that every kernel of a file takes in one run: the least over runs.

    What else the machine does only adds to a kernel's time.

    Args:
        path: The file.
        tensors: Its inputs, in the order of the forward's arguments.
        runs: Timed runs.
        threads: Threads within an operation.

    Returns:
        The times by the runtime's name of the node, in the order of execution.
    """
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="pbcompress-") as folder:
        session = Session(path, threads, profile=Path(folder) / "profile")
        feeds = session.feeds(tensors)
        for _ in range(runs + 1):  # the first one warms up
            session.run(feeds)
        events = json.loads(Path(session.profile()).read_text())
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            times[name].append(event["dur"] / 1e3)
    return {name: statistics.median(slot) * len(slot) / (runs + 1) for name, slot in times.items()}
