"""Run and time ONNX files, whole and by kernel. The only module that imports onnxruntime."""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import Tensor

from pbcompress.core.bounded_files import is_file
from pbcompress.core.drafts import draft_folder
from pbcompress.errors import CompressionError, StateMismatchError, first_line
from pbcompress.onnx_files.bounds import graphs_within
from pbcompress.onnx_files.store import example_sizes, load, values_of

__all__ = [
    "CPU",
    "Latency",
    "Session",
    "check_providers",
    "interleaved_latency",
    "kernel_times",
    "peak_memory",
    "version",
]

Array = np.ndarray[Any, Any]
MAX_SECONDS = 4.0
MOST_SECONDS = 120.0  # of one run
GROWING = frozenset(  # what can make much of little
    ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "Loop")
)
CPU = ("CPUExecutionProvider",)
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
# A process of its own, without torch: what it holds is the runtime's and the file's.
PEAK = """
import sys
import numpy, onnxruntime
path, threads, arrays = sys.argv[1], int(sys.argv[2]), list(numpy.load(sys.argv[3]).values())
providers = sys.argv[4].split(",")
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
start = kilobytes("VmRSS")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=providers)
session.run(None, {entry.name: a for entry, a in zip(session.get_inputs(), arrays, strict=True)})
print((kilobytes("VmHWM") - start) * 1024)
"""


def version() -> str:
    """Return the version of ONNX Runtime."""
    found: str = onnxruntime.__version__
    return found


def check_providers(providers: Sequence[str]) -> None:
    """Raise unless this ONNX Runtime has some execution providers.

    Raises:
        CompressionError: It lacks one.
    """
    there = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in there]
    if missing or not providers:
        raise CompressionError(
            f"{', '.join(missing) or 'No provider'} was asked for; ONNX Runtime "
            f"{onnxruntime.__version__} has {', '.join(there)}. Use one of these, or install a "
            "package of ONNX Runtime that has the other."
        )


def _check_sizes(proto: Any, path: str | Path) -> None:
    try:
        values_of(proto)
    except ValueError as err:
        raise StateMismatchError(f"{path} cannot be run: {first_line(err)}.") from err
    except Exception:  # sizes that cannot be followed; the runtime says so, or can do without
        return


class Session:
    """An ONNX file in ONNX Runtime, by default on the CPU.

    Args:
        path: The file.
        threads: Threads within an operation.
        profile: Beginning of the name of a file for the times of all kernels; None: they are not
            taken.
        optimize: Whether the runtime may fuse and reorder.
        providers: Execution providers of the runtime, the first one preferred.
        silent: Whether the runtime writes no errors to the terminal, beside raising them.

    Raises:
        StateMismatchError: The file is missing, or cannot be trusted or run.
        CompressionError: This ONNX Runtime has no such provider.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int = 1,
        profile: Path | None = None,
        optimize: bool = True,
        providers: Sequence[str] = CPU,
        silent: bool = False,
    ) -> None:
        check_providers(providers)
        if not is_file(path):
            raise StateMismatchError(f"{path} was to be run and is not there.")
        proto = load(path)
        if any(node.op_type in GROWING for body in graphs_within(proto) for node in body.node):
            _check_sizes(proto, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4 if silent else 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=list(providers)
            )
        except Exception as err:
            raise StateMismatchError(
                f"{path} cannot be run by ONNX Runtime {onnxruntime.__version__}: "
                f"{first_line(err)}. Give a whole ONNX file."
            ) from err
        if providers[0] not in self._session.get_providers():
            raise CompressionError(
                f"{providers[0]} was asked for, and ONNX Runtime could not start it: it runs on "
                f"{', '.join(self._session.get_providers())}. Check its drivers and libraries."
            )
        self._inputs = self._session.get_inputs()
        self.input_names = [value.name for value in self._inputs]
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

    def check(self, feeds: Mapping[str, Array]) -> None:
        """Raise unless arrays have the shapes and types that the file takes.

        Raises:
            CompressionError: One has not; both are named.
        """
        for value in self._inputs:
            array, wanted = feeds[value.name], value.shape
            is_alike = len(wanted) == array.ndim and all(
                not isinstance(n, int) or n == m for n, m in zip(wanted, array.shape, strict=True)
            )
            if not is_alike or DTYPES.get(value.type, array.dtype) != array.dtype:
                raise CompressionError(
                    f"The file takes {value.name!r} as a {value.type} of shape "
                    f"({', '.join(map(str, wanted))}); a batch gave {array.dtype} of shape "
                    f"{array.shape}. Give batches like those that it was exported with."
                )

    def interface(self) -> dict[str, list[dict[str, Any]]]:
        """Return name, type and shape of the inputs and the outputs, as JSON data.

        A free axis has a name in place of a length.

        Raises:
            CompressionError: A type is not known.
        """
        sides = {"inputs": self._inputs, "outputs": self._session.get_outputs()}
        unknown = [v.type for values in sides.values() for v in values if v.type not in DTYPES]
        if unknown:
            raise CompressionError(
                f"The ONNX file takes or gives a {unknown[0]}; {', '.join(DTYPES)} are known."
            )
        return {
            side: [
                {"name": v.name, "type": np.dtype(DTYPES[v.type]).name, "shape": list(v.shape)}
                for v in values
            ]
            for side, values in sides.items()
        }

    @property
    def takes_any_batch(self) -> bool:
        """Whether the first axis of an input is free."""
        return any(v.shape and not isinstance(v.shape[0], int) for v in self._inputs)

    def random_feeds(self, batch: int) -> dict[str, Array]:
        """Return inputs of the file's shapes and types: normal numbers, zeros for whole ones.

        Raises:
            CompressionError: An axis other than the first is free and the file does not say how
                long it was in the example, or a type is not known.
        """
        generator = np.random.default_rng(0)
        sizes = example_sizes(self._session.get_modelmeta().custom_metadata_map)
        feeds: dict[str, Array] = {}
        for value in self._inputs:
            first, *others = value.shape or [1]
            others = [sizes.get(size, size) for size in others]
            shape = [first if isinstance(first, int) else batch, *others][: len(value.shape)]
            if value.type not in DTYPES or not all(isinstance(n, int) for n in shape):
                raise CompressionError(
                    f"Input {value.name!r} is a {value.type} of shape {value.shape}; random values "
                    "are made for numbers and booleans with no free axis but the first."
                )
            kind = DTYPES[value.type]
            scale = 1 if np.issubdtype(kind, np.floating) else 0
            try:
                values = generator.standard_normal(shape)
            except (MemoryError, ValueError) as err:
                raise CompressionError(
                    f"Input {value.name!r} of shape {shape} does not fit into memory. Give a file "
                    "whose inputs do."
                ) from err
            feeds[value.name] = np.asarray(scale * values, dtype=kind)
        return feeds

    def run(self, feeds: Mapping[str, Array], seconds: float = MOST_SECONDS) -> list[Array]:
        """Return all outputs.

        Raises:
            CompressionError: It takes longer than it may, as a loop without end does.
        """
        options = onnxruntime.RunOptions()
        timer = threading.Timer(seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._run(feeds, options)
        except Exception as err:
            if not options.terminate:
                raise
            raise CompressionError(
                f"A run of the ONNX file was to take at most {seconds:g} seconds and is not done. "
                "Give a smaller batch, or another file."
            ) from err
        finally:
            timer.cancel()

    def run_again(self, feeds: Mapping[str, Array]) -> None:
        """Run, for its time alone, what `run` ran before."""
        self._run(feeds, None)

    def _run(self, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        outputs: list[Array] = self._session.run(None, dict(feeds), options)
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
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, Array]],
    rounds: int = 200,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = MAX_SECONDS,
) -> list[Latency]:
    """Time several files in turn (a b a b ...), so that a drifting machine affects all equally.

    Args:
        sessions: The files; ratios are against the first.
        feeds: The input of each.
        rounds: Timed runs of each, fewer where a run is slow.
        seconds: After these no further round begins, once there are five.
        clock: Of seconds. That of the thread leaves out what other processes take, where the
            runtime has one thread.
    """
    pairs = list(zip(sessions, feeds, strict=True))
    for session, feed in pairs:
        session.run(feed)
        for _ in range(4):
            session.run_again(feed)
    times: list[list[float]] = [[] for _ in pairs]
    began = time.perf_counter()
    while len(times[0]) < rounds and (len(times[0]) < 5 or time.perf_counter() - began < seconds):
        for slot, (session, feed) in zip(times, pairs, strict=True):
            started = clock()
            session.run_again(feed)
            slot.append((clock() - started) * 1e3)
    results = []
    for slot in times:
        ratios = [a / b for a, b in zip(times[0], slot, strict=True)]
        p95 = sorted(slot)[int(0.95 * (len(slot) - 1))]
        results.append(Latency(statistics.median(slot), p95, len(slot), statistics.median(ratios)))
    return results


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
    with draft_folder() as folder:
        held = folder / "feeds.npz"
        np.savez(held, *feeds.values())  # the names may be too long, or those of its arguments
        given = [str(path), str(threads), str(held), ",".join(providers)]
        command = [sys.executable, "-P", "-c", PEAK, *given]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
            )
        except subprocess.TimeoutExpired:
            return None
    return int(done.stdout) if done.returncode == 0 else None


def kernel_times(
    path: str | Path,
    feeds: Mapping[str, Array],
    runs: int = 20,
    threads: int = 1,
    providers: Sequence[str] = CPU,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, float]:
    """Return the milliseconds that every kernel of a file takes in one run.

    Args:
        path: The file.
        feeds: Its inputs.
        runs: Timed runs.
        threads: Threads within an operation.
        providers: See `Session`.
        of: What stands for all runs; the least leaves out what other processes take.

    Returns:
        The times by the runtime's name of the node, in the order of execution.
    """
    times: dict[str, list[float]] = defaultdict(list)
    with draft_folder() as folder:
        session = Session(path, threads, profile=folder / "profile", providers=providers)
        for _ in range(runs + 1):  # the first one warms up
            session.run(feeds)
        events = json.loads(Path(session.profile()).read_text())
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            times[name].append(event["dur"] / 1e3)
    return {name: of(slot) * len(slot) / (runs + 1) for name, slot in times.items()}
