"""Times of several networks in turn: exported in float32 and int8, and in torch as they are.

All networks of a call share each round, so that what else the machine does meets all alike, and the
clock is that of the one thread, which leaves out what other processes take. Only ratios to the
first one in the same form are returned.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from pbcompress.core.inputs import Call, as_call, tensors_of
from pbcompress.export.onnx_export import write_onnx
from pbcompress.onnx_files.session import Session, interleaved_latency
from pbcompress.planning.export_bench import ExportBench
from pbcompress.quantization.converter import Quantizer
from scripts.planner.networks import Inputs

__all__ = ["FORMS", "speeds"]

SMALL, LARGE = 1, 32  # batches
FORMS = ("float32, 1", "float32, 32", "int8, 1", "int8, 32", "torch, 1")
CALIBRATION = 8  # samples: the speed of an int8 file does not hang on its scales
ROUNDS = 500

Results = dict[str, dict[str, Any]]


def speeds(
    networks: Mapping[str, nn.Module],
    inputs: Callable[[int], Inputs],
    *,
    int8: bool,
    large: bool,
    seconds: float,
) -> Results:
    """Return how many times as fast as the first network each one is, by name and form.

    Where one batch size is enough, one network is exported and the others are written into its
    graph, which is much quicker.

    Args:
        networks: The original first.
        inputs: Takes a batch size.
        int8: Whether int8 files are made too.
        large: Whether files are timed at the large batch too.
        seconds: Of timing, for each form; five rounds are run even so.

    Returns:
        ``speed`` by form and the number of ``rounds``; where a network cannot be exported, or
        not in int8, the reason under ``no_file`` or ``no_int8``.
    """
    results: Results = {name: {"speed": {}, "rounds": {}} for name in networks}
    batches = (SMALL, LARGE) if large else (SMALL,)
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="speed-")))
        if large or int8:
            files = _exported(networks, as_call(inputs(SMALL)), folder, results)
        else:
            files = _refilled(networks, as_call(inputs(SMALL)), held)
        _time_files(files, inputs, batches, "float32", seconds, results)
        if int8:
            files = _quantized(files, inputs, folder, results)
            _time_files(files, inputs, batches, "int8", seconds, results)
    runners = {n: _Eager(m, as_call(inputs(SMALL))) for n, m in networks.items()}
    _time(runners, {name: {} for name in runners}, f"torch, {SMALL}", seconds, results)
    return results


def _exported(
    networks: Mapping[str, nn.Module], call: Call, folder: Path, results: Results
) -> dict[str, Path]:
    """Write every network as it ships."""
    files = {}
    for number, (name, network) in enumerate(networks.items()):
        path = folder / f"{number}.onnx"
        try:
            write_onnx(pb.fuse(network), path, call)
        except pb.CompressionError as err:
            results[name]["no_file"] = f"{type(err).__name__}: {err}"
        else:
            files[name] = path
    return files


def _refilled(networks: Mapping[str, nn.Module], call: Call, held: ExitStack) -> dict[str, Path]:
    """Write every network as it ships for one batch size, all into the graph of the first one."""
    bench = held.enter_context(ExportBench(next(iter(networks.values())), call, ()))
    return {name: bench.file_of(pb.fuse(network)) for name, network in networks.items()}


def _quantized(
    files: Mapping[str, Path], inputs: Callable[[int], Inputs], folder: Path, results: Results
) -> dict[str, Path]:
    found = {}
    for name, path in files.items():
        place = folder / path.stem
        place.mkdir()
        session = Session(path)
        batch = CALIBRATION if session.takes_any_batch else SMALL
        try:
            feeds = session.feeds(tensors_of(as_call(inputs(batch))))
            Quantizer(path, [feeds], place).write(place / "int8.onnx")
        except pb.CompressionError as err:
            results[name]["no_int8"] = f"{type(err).__name__}: {err}"
        else:
            found[name] = place / "int8.onnx"
    return found


def _time_files(
    files: Mapping[str, Path],
    inputs: Callable[[int], Inputs],
    batches: Sequence[int],
    form: str,
    seconds: float,
    results: Results,
) -> None:
    sessions = {name: Session(path) for name, path in files.items()}
    for batch in batches:
        able = {n: s for n, s in sessions.items() if batch == SMALL or s.takes_any_batch}
        tensors = tensors_of(as_call(inputs(batch)))
        feeds = {name: session.feeds(tensors) for name, session in able.items()}
        _time(able, feeds, f"{form}, {batch}", seconds, results)


def _time(
    runners: Mapping[str, Any],
    feeds: Mapping[str, Any],
    form: str,
    seconds: float,
    results: Results,
) -> None:
    """Note the ratios to the first network, if that one is there."""
    if next(iter(results)) not in runners:
        return
    given = [feeds[name] for name in runners]
    with torch.inference_mode():
        times = interleaved_latency(
            list(runners.values()), given, ROUNDS, clock=time.thread_time, seconds=seconds
        )
    for name, latency in zip(runners, times, strict=True):
        results[name]["speed"][form] = latency.ratio
        results[name]["rounds"][form] = latency.rounds


class _Eager:
    """A network in torch, run as a session is."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        self.network, self.call = network.eval(), call

    def run(self, _: Any) -> None:
        self.network(*self.call.args, **self.call.kwargs)

    def seconds(self, _: Any, clock: Callable[[], float] = time.perf_counter) -> float:
        started = clock()
        self.run(_)
        return clock() - started
