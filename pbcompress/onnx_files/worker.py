"""Runs one ONNX file for `apart`, as a process of its own that may take so much and no more.

A script without torch or pbcompress: what it holds is the runtime's and the file's. It reads
requests on its standard input, each a line of JSON that arrays may follow, and answers likewise.
"""

import faulthandler
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime

MOST_OUTPUT = 2**31  # bytes of all outputs of a run
Array = np.ndarray[Any, Any]


def send(stream: IO[bytes], head: dict[str, Any], arrays: list[Array]) -> None:
    """Write a line of JSON, and the arrays whose types and shapes stand in it."""
    kinds = [(array.dtype.str, array.shape) for array in arrays]
    stream.write(json.dumps({**head, "arrays": kinds}).encode() + b"\n")
    for array in arrays:
        stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Array]]:
    """Read what `send` wrote.

    Raises:
        EOFError: The other end is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    arrays = [np.empty(shape, kind) for kind, shape in head.pop("arrays")]
    for array in arrays:
        view, done = array.reshape(-1).view(np.uint8), 0
        while done < len(view):
            count = stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            done += count
    return head, arrays


def limit_memory(more: int) -> None:
    """Let this process take so many bytes more than it has, where the system holds it to that."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = pages * os.sysconf("SC_PAGE_SIZE") + more
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


class Worker:
    """One session, the inputs that it was given last, and the memory before it began."""

    def __init__(self) -> None:
        self._session: Any = None
        self._arrays: list[Array] = []
        self._start: int | None = None

    def hold(self, arrays: Sequence[Array] = ()) -> dict[str, Any]:
        """Keep the inputs of the next runs, in the order of the file's."""
        self._arrays = list(arrays)
        return {}

    def open(
        self, path: str, threads: int, optimize: bool, providers: list[str], profile: str | None
    ) -> dict[str, Any]:
        """Begin a session, and say what it takes and gives."""
        with suppress(OSError, StopIteration, ValueError):  # where the system does not say
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
            _kilobytes("VmHWM")
            self._start = _kilobytes("VmRSS")
        if providers[0] != "CPUExecutionProvider":
            onnxruntime.preload_dlls()  # those that torch brings, as where it is imported
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what is wrong is raised
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        sides = self._session.get_inputs(), self._session.get_outputs()
        inputs, outputs = ([[v.name, v.type, v.shape] for v in side] for side in sides)
        texts = self._session.get_modelmeta().custom_metadata_map
        own = self._session.get_providers()
        return {"inputs": inputs, "outputs": outputs, "texts": texts, "providers": own}

    def run(self) -> list[Array]:
        """Return the outputs for the inputs that are held."""
        names = [value.name for value in self._session.get_inputs()]
        found = self._session.run(None, dict(zip(names, self._arrays, strict=True)))
        if not all(isinstance(value, np.ndarray) and value.dtype.kind in "fiub" for value in found):
            raise TypeError("an output is no array of numbers")
        if sum(array.nbytes for array in found) > MOST_OUTPUT:
            raise MemoryError(f"its outputs take more than {MOST_OUTPUT:,} bytes")
        return list(found)

    def again(self) -> dict[str, Any]:
        """Run, and return the seconds alone."""
        names = [value.name for value in self._session.get_inputs()]
        feeds = dict(zip(names, self._arrays, strict=True))
        started = time.perf_counter()
        self._session.run(None, feeds)
        return {"seconds": time.perf_counter() - started}

    def profile(self) -> dict[str, Any]:
        """End the profile, and return where it is."""
        return {"path": self._session.end_profiling()}

    def peak(self) -> dict[str, Any]:
        """Return the bytes that the session took at most, or None where the system does not say."""
        bytes_ = None if self._start is None else (_kilobytes("VmHWM") - self._start) * 1024
        return {"bytes": bytes_}


def main() -> None:
    """Answer requests until the other end is gone; one that takes too long ends the process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    worker, more = Worker(), int(sys.argv[1])
    if more:
        limit_memory(more)
    while True:
        try:
            head, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return
        faulthandler.dump_traceback_later(head.pop("limit"), exit=True)  # holds in C code too
        what, given = head.pop("do"), {"arrays": arrays} if arrays else {}
        found: Any
        try:
            found = getattr(worker, what)(**head, **given)
        except Exception as err:
            found = {"error": str(err) or type(err).__name__}
        head, arrays = ({}, found) if isinstance(found, list) else (found, [])
        send(answers, head, arrays)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    try:
        main()
    except Exception:  # no memory for what is sent
        os._exit(3)
