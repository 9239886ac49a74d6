"""The best int8 file that calibration and a choice of nodes can make of a float32 one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.network import Feeds, OnnxNetwork
from pbcompress.onnx_files.session import Session, interleaved_latency
from pbcompress.quantization.converter import METHODS, Method, Quantizer, Scope
from pbcompress.training.loop import evaluate
from pbcompress.training.task import Data, Task, seeded_generators

__all__ = ["CALIBRATION_SAMPLES", "Int8File", "Int8Search", "calibration_feeds", "speedups"]

CALIBRATION_SAMPLES = 256


@dataclass(frozen=True)
class Int8File:
    """An int8 file, and what is known of it.

    Attributes:
        path: The file.
        scope: See `Quantizer.write`.
        method: See `Quantizer.write`.
        excluded: Nodes that stayed float32, most sensitive first.
        samples: Calibration samples.
        metric: On validation, through ONNX Runtime.
    """

    path: Path
    scope: Scope
    method: Method
    excluded: tuple[str, ...]
    samples: int
    metric: float


def speedups(
    network: OnnxNetwork, paths: list[Path], feeds: Mapping[str, np.ndarray[Any, Any]]
) -> list[float]:
    """Return how many times as fast as a network files are, in interleaved runs of one sample."""
    sessions = [network.session, *map(Session, paths)]
    if network.session.takes_any_batch:
        feeds = {name: array[:1] if array.ndim else array for name, array in feeds.items()}
    return [t.ratio for t in interleaved_latency(sessions, [feeds] * len(sessions))][1:]


class Int8Search:
    """The int8 files of one float32 file.

    Both scopes are tried. Where the metric is not good with ranges from least to largest, the
    other calibrations are tried. Where none is good, nodes go back to float32 in the order of what
    each alone does to the outputs: 1 of them, then 3, 7, 15 and so on.

    Args:
        network: The float32 file.
        source: Its path.
        folder: An empty one, for files.
        data: ``train`` calibrates, ``val`` is scored.
        task: Metric, and how a batch calls the network.
        is_good: Whether a metric is within the guard.

    Raises:
        CompressionError: A batch does not fit the file, or the library cannot prepare it.
    """

    def __init__(
        self,
        network: OnnxNetwork,
        source: Path,
        folder: Path,
        data: Data,
        task: Task,
        is_good: Callable[[float], bool],
    ) -> None:
        self.network, self.data, self.task, self.is_good = network, data, task, is_good
        self._feeds = calibration_feeds(network, data, task)
        self._quantizer = Quantizer(source, self._feeds, folder)
        self._order: tuple[str, ...] | None = None

    def best(self) -> tuple[Int8File, float]:
        """Return the fastest good file, else the one with the best metric, and its speed.

        Raises:
            CompressionError: The library could not quantise the file in either scope.
        """
        files, problem = [], None
        for scope in get_args(Scope):
            try:
                files.append(self._within(scope))
            except CompressionError as err:  # an operation that the library cannot, in one scope
                problem = err
        if not files:
            assert problem is not None
            raise problem
        speeds = speedups(self.network, [file.path for file in files], self._feeds[0])
        found = list(zip(files, speeds, strict=True))
        good = [pair for pair in found if self.is_good(pair[0].metric)]
        if good:
            return max(good, key=lambda pair: pair[1])
        return max(found, key=lambda pair: self.task.score(pair[0].metric))

    def _within(self, scope: Scope) -> Int8File:
        """Return the file with the fewest float32 nodes that is good, or the best that there is."""
        best = None
        for file in self._files(scope):
            if best is None or self.task.score(file.metric) > self.task.score(best.metric):
                best = file
            if self.is_good(file.metric):
                return file
        assert best is not None
        return best

    def _files(self, scope: Scope) -> Iterator[Int8File]:
        """Yield files from the fastest kind on: by method, then by what stays float32."""
        tried = []
        for method in METHODS:
            tried.append(self._write(scope, method, ()))
            yield tried[-1]
        method = max(tried, key=lambda file: self.task.score(file.metric)).method
        count = 1
        while count < len(self._quantizer.products):
            self._order = self._order or _by_harm(self._quantizer)
            yield self._write(scope, method, self._order[:count])
            count = 2 * count + 1

    def _write(self, scope: Scope, method: Method, excluded: tuple[str, ...]) -> Int8File:
        path = self._quantizer.folder / f"{scope}-{method}-{len(excluded)}.onnx"
        self._quantizer.write(path, scope=scope, method=method, excluded=excluded)
        samples = sum(map(_length, self._feeds))
        metric, _ = evaluate(OnnxNetwork(path, self.network.like), self.data.val, self.task)
        return Int8File(path, scope, method, excluded, samples, metric)


def calibration_feeds(network: OnnxNetwork, data: Data, task: Task) -> list[Feeds]:
    """Return the inputs of the first training batches, up to `CALIBRATION_SAMPLES`."""
    found: list[Feeds] = []
    network.seen = found
    with torch.no_grad(), seeded("calibration"), seeded_generators(data.train, 0):
        for batch in data.train:
            try:
                task.run(network, batch)
            except CompressionError as err:
                raise CompressionError(f"Data.train was to calibrate 8 bits. {err}") from err
            if sum(map(_length, found)) >= CALIBRATION_SAMPLES:
                break
    network.seen = None
    if not found:
        raise CompressionError(
            "Data.train gave no input to calibrate with: it is empty, or Task.forward did not call "
            "the network."
        )
    return found


def _length(feeds: Mapping[str, np.ndarray[Any, Any]]) -> int:
    return max((len(a) for a in feeds.values() if a.ndim), default=1)


def _by_harm(quantizer: Quantizer) -> tuple[str, ...]:
    """Return the nodes by the relative error of the outputs where each alone is int8."""
    feeds, path = quantizer.feeds[0], quantizer.folder / "single.onnx"
    exact = Session(quantizer.source).run(feeds)
    harm: dict[str, float] = {}
    for node in quantizer.products:
        quantizer.write(path, only=[node])
        harm[node] = max(
            float(np.square(a.astype(np.float64) - b).sum() / max(np.square(a).sum(), 1e-30))
            for a, b in zip(exact, Session(path).run(feeds), strict=True)
        )
    return tuple(sorted(harm, key=lambda name: -harm[name]))
