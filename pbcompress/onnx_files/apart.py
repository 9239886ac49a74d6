"""An ONNX file in ONNX Runtime in a process of its own, bounded in time and memory.

The runtime looks only between two kernels whether it is to end, and takes what memory a file asks
for. So a file that may be anyone's runs in `worker`, whose time ends it in the midst of a kernel,
and whom the system gives no more memory. What it does wrong ends that process, not this one.
"""

import math
import os
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pbcompress.errors import CompressionError
from pbcompress.onnx_files.store import size_of
from pbcompress.onnx_files.worker import receive, send

__all__ = ["CPU", "MOST_SECONDS", "Apart", "Value", "peak_memory"]

Array = np.ndarray[Any, Any]
CPU = ("CPUExecutionProvider",)
MOST_SECONDS = 120.0  # of one request: a start, or a run
MOST_BYTES = 2**33  # of memory, and four times those of the file
TIMED_OUT = 1  # what the worker ends with


@dataclass(frozen=True)
class Value:
    """An input or output of a file; a free axis of the shape has a name or None."""

    name: str
    type: str
    shape: list[Any]


class Apart:
    """A file in a process of its own, which ends with this object.

    Args:
        path: The file.
        threads: Threads within an operation.
        optimize: Whether the runtime may fuse and reorder.
        providers: Execution providers. Memory is bounded where it is the CPU's alone.
        profile: Beginning of the name of a file for the times of all kernels, or None.
        first: Inputs to hold before the file is read, in its order.
        memory: Bytes that it may take; None: `MOST_BYTES` and four times the file's, and at most
            three quarters of the machine's.
        seconds: How long the start may take, and a run where it does not say; None: two minutes.

    Attributes:
        inputs: What the file takes.
        outputs: What it gives.
        texts: What it says of itself.
        providers: What computes it.

    Raises:
        CompressionError: The runtime cannot begin, within the bounds; says what it said.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int,
        optimize: bool,
        providers: Sequence[str],
        profile: Path | None = None,
        first: Sequence[Array] = (),
        memory: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self._limit = MOST_SECONDS if seconds is None else seconds
        self._held = None if not first else list(first)
        is_bounded = tuple(providers) == CPU
        more = _most_memory(path) if memory is None else memory
        script = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(more if is_bounded else 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.close = weakref.finalize(self, _end, self._process)
        if first:
            self._ask("hold", first)
        found, _ = self._ask(
            "open",
            path=str(path),
            threads=threads,
            optimize=optimize,
            providers=list(providers),
            profile=profile and str(profile),
        )
        self.inputs = [Value(*value) for value in found["inputs"]]
        self.outputs = [Value(*value) for value in found["outputs"]]
        self.texts: Mapping[str, str] = found["texts"]
        self.providers: list[str] = found["providers"]

    def run(self, feeds: Mapping[str, Array], seconds: float | None = None) -> list[Array]:
        """Return all outputs.

        Raises:
            CompressionError: It fails, or takes more time or memory than it may.
        """
        self._held = None  # what is in an array may be another than before
        self._hold(feeds)
        return self._ask("run", seconds=seconds)[1]

    def seconds(self, feeds: Mapping[str, Array]) -> float:
        """Run for the time alone: how long the runtime takes, without what is sent.

        Raises:
            CompressionError: See `run`.
        """
        self._hold(feeds)
        return float(self._ask("again")[0]["seconds"])

    def profile(self) -> str:
        """End the profile, and return the path of its file."""
        return str(self._ask("profile")[0]["path"])

    def peak(self) -> int | None:
        """Return the bytes of resident memory that the file took at most, where that is known."""
        found = self._ask("peak")[0]["bytes"]
        return None if found is None else int(found)

    def _hold(self, feeds: Mapping[str, Array]) -> None:
        """Send inputs, unless they are those that were sent last."""
        arrays = [feeds[value.name] for value in self.inputs]
        held = self._held
        if (
            held is None
            or len(held) != len(arrays)
            or any(a is not b for a, b in zip(held, arrays, strict=True))
        ):
            self._ask("hold", arrays)
            self._held = arrays

    def _ask(
        self, what: str, arrays: Sequence[Array] = (), seconds: float | None = None, **given: Any
    ) -> tuple[dict[str, Any], list[Array]]:
        limit = self._limit if seconds is None else seconds
        reads, writes = self._process.stdout, self._process.stdin
        assert reads is not None
        assert writes is not None
        try:
            send(writes, {"do": what, "limit": limit, **given}, list(arrays))
            answer, found = receive(reads)
        except (OSError, EOFError, ValueError):
            raise CompressionError(self._why(limit)) from None
        except BaseException:  # a key that interrupts: the next answer would be of this request
            self.close()
            raise
        if "error" in answer:
            words = " ".join(str(answer["error"]).split())
            raise CompressionError(words if what == "open" else f"The file does not run: {words}")
        return answer, found

    def _why(self, limit: float) -> str:
        """Return why the process is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.close()
        if self._process.returncode == TIMED_OUT:
            return (
                f"A run of the ONNX file was to take at most {limit:g} seconds and is not done. "
                "Give a smaller batch, or another file"
            )
        return (
            f"ONNX Runtime ended with {self._process.returncode} on the file, as it does where "
            "there is no more memory. Give a smaller batch, or another file"
        )


def peak_memory(
    path: str | Path,
    feeds: Mapping[str, Array],
    threads: int = 1,
    providers: Sequence[str] = CPU,
) -> int | None:
    """Return the bytes of resident memory that a file and one run of it need in a fresh process.

    What the runtime needs without a file is taken off. None where the system is not Linux or does
    not say.
    """
    try:
        apart = Apart(path, threads, True, providers, first=list(feeds.values()))
        apart.seconds(feeds)
        return apart.peak()
    except CompressionError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not sent has nobody to go to
                continue
    if process.poll() is None:
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _most_memory(path: str | Path) -> int:
    """Return the bytes that a file may take here."""
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        there = 0
    most = there * 3 // 4 if there > 0 else math.inf
    return int(min(MOST_BYTES + 4 * size_of(path), most))
