"""Run and time ONNX files, whole and by kernel, here or in a process of their own."""

import json
import statistics
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
from pbcompress.onnx_files.apart import CPU, MOST_SECONDS, Apart, Value
from pbcompress.onnx_files.bounds import graphs_within
from pbcompress.onnx_files.store import example_sizes, load, values_of

__all__ = [
    "CPU",
    "Latency",
    "Session",
    "check_providers",
    "interleaved_latency",
    "kernel_times",
    "version",
]

Array = np.ndarray[Any, Any]
MAX_SECONDS = 4.0
GROWING = frozenset(  # what can make much of little
    ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "Loop")
)
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


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
        apart: Whether it runs in a process of its own, with bounds on time and memory, as files
            that may be anyone's must.

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
        apart: bool = False,
    ) -> None:
        check_providers(providers)
        if not is_file(path):
            raise StateMismatchError(f"{path} was to be run and is not there.")
        proto = load(path)
        if any(node.op_type in GROWING for body in graphs_within(proto) for node in body.node):
            _check_sizes(proto, path)
        self._session: Any = None
        self._apart: Apart | None = None
        begin = self._begin_apart if apart else self._begin_here
        try:
            own = begin(path, threads, profile, optimize, providers, silent)
        except Exception as err:
            raise StateMismatchError(
                f"{path} cannot be run by ONNX Runtime {onnxruntime.__version__}: "
                f"{first_line(err)}. Give a whole ONNX file."
            ) from err
        if providers[0] not in own:
            raise CompressionError(
                f"{providers[0]} was asked for, and ONNX Runtime could not start it: it runs on "
                f"{', '.join(own)}. Check its drivers and libraries."
            )
        self.input_names = [value.name for value in self._inputs]
        self.output_names = [value.name for value in self._outputs]

    def _begin_here(
        self,
        path: str | Path,
        threads: int,
        profile: Path | None,
        optimize: bool,
        providers: Sequence[str],
        silent: bool,
    ) -> list[str]:
        """Begin a session in this process, and return what computes it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4 if silent else 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        ends = session.get_inputs(), session.get_outputs()
        self._inputs, self._outputs = ([Value(v.name, v.type, v.shape) for v in e] for e in ends)
        self._texts = session.get_modelmeta().custom_metadata_map
        self._session = session
        return list(session.get_providers())

    def _begin_apart(
        self,
        path: str | Path,
        threads: int,
        profile: Path | None,
        optimize: bool,
        providers: Sequence[str],
        _: bool,
    ) -> list[str]:
        """Begin a session in a process of its own, and return what computes it."""
        apart = Apart(path, threads, optimize, providers, profile)
        self._inputs, self._outputs, self._texts = apart.inputs, apart.outputs, apart.texts
        self._apart = apart
        return apart.providers

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
        sides = {"inputs": self._inputs, "outputs": self._outputs}
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
        sizes = example_sizes(self._texts)
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

    def run(self, feeds: Mapping[str, Array], seconds: float | None = None) -> list[Array]:
        """Return all outputs.

        Raises:
            CompressionError: It takes longer than it may, as a loop without end does.
        """
        if self._apart is not None:
            return self._apart.run(feeds, seconds)
        seconds = MOST_SECONDS if seconds is None else seconds
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

    def seconds(
        self, feeds: Mapping[str, Array], clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Return how long a run takes of what `run` ran before; apart, by a clock of its own."""
        if self._apart is not None:
            return self._apart.seconds(feeds)
        started = clock()
        self._run(feeds, None)
        return clock() - started

    def _run(self, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        outputs: list[Array] = self._session.run(None, dict(feeds), options)
        return outputs

    def profile(self) -> str:
        """End the profile, and return the path of its file."""
        return str((self._apart.profile if self._apart else self._session.end_profiling)())


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
            session.seconds(feed)
    times: list[list[float]] = [[] for _ in pairs]
    began = time.perf_counter()
    while len(times[0]) < rounds and (len(times[0]) < 5 or time.perf_counter() - began < seconds):
        for slot, (session, feed) in zip(times, pairs, strict=True):
            slot.append(session.seconds(feed, clock) * 1e3)
    results = []
    for slot in times:
        ratios = [a / b for a, b in zip(times[0], slot, strict=True)]
        p95 = sorted(slot)[int(0.95 * (len(slot) - 1))]
        results.append(Latency(statistics.median(slot), p95, len(slot), statistics.median(ratios)))
    return results


def kernel_times(
    path: str | Path,
    feeds: Mapping[str, Array],
    runs: int = 20,
    threads: int = 1,
    providers: Sequence[str] = CPU,
    of: Callable[[Sequence[float]], float] = statistics.median,
    apart: bool = False,
) -> dict[str, float]:
    """Return the milliseconds that every kernel of a file takes in one run.

    Args:
        path: The file.
        feeds: Its inputs.
        runs: Timed runs.
        threads: Threads within an operation.
        providers: See `Session`.
        of: What stands for all runs; the least leaves out what other processes take.
        apart: See `Session`.

    Returns:
        The times by the runtime's name of the node, in the order of execution.
    """
    times: dict[str, list[float]] = defaultdict(list)
    with draft_folder() as folder:
        session = Session(
            path, threads, profile=folder / "profile", providers=providers, apart=apart
        )
        for _ in range(runs + 1):  # the first one warms up
            session.run(feeds)
        events = json.loads(Path(session.profile()).read_text())
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            times[name].append(event["dur"] / 1e3)
    return {name: of(slot) * len(slot) / (runs + 1) for name, slot in times.items()}
