"""Whether an int8 file is worth shipping: smaller, as good within a guard, and not slower."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pbcompress.errors import CompressionError, first_line
from pbcompress.quantization import Quantizer, Scope
from pbcompress.runtime import Session, interleaved_latency
from pbcompress.surgery import seeded, tensors_of
from pbcompress.task import Batches, Data, Task, seeded_generators
from pbcompress.training import evaluate

__all__ = ["OnnxNetwork", "Quantization", "try_int8"]

CALIBRATION_SAMPLES = 256


class OnnxNetwork(nn.Module):
    """An ONNX file as a network, so that the metric of a task is that of the file.

    Args:
        path: The file.
        like: An output of the network that was exported; gives the structure.

    Attributes:
        seen: The inputs of every call, where they are wanted.

    Example:
        >>> from pbcompress.export import export_onnx
        >>> net, x = nn.Linear(3, 2), torch.ones(4, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_onnx(net, f"{folder}/a.onnx", x)
        ...     torch.allclose(OnnxNetwork(f"{folder}/a.onnx", net(x))(x), net(x), atol=1e-6)
        True
    """

    def __init__(self, path: str | Path, like: object) -> None:
        super().__init__()
        self.session = Session(path)
        leaves, self._structure = tree_flatten(like)
        self._is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        self._others = leaves
        if sum(self._is_tensor) != len(self.session.output_names):
            raise CompressionError(
                f"The network returns a {type(like).__name__} in which {sum(self._is_tensor)} "
                f"tensors were found, and its file has {len(self.session.output_names)} outputs. "
                "Return tensors, tuples or dicts from forward."
            )
        self.seen: list[dict[str, np.ndarray[Any, Any]]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file."""
        feeds = self.session.feeds(tensors_of((args, kwargs)))
        if self.seen is not None:
            self.seen.append(feeds)
        try:
            outputs = self.session.run(feeds)
        except Exception as err:
            raise CompressionError(
                f"ONNX Runtime could not run the file on a batch: {first_line(err)}. Give batches "
                "of the shapes and types that it was exported for."
            ) from err
        found = iter(map(torch.from_numpy, outputs))
        leaves = [
            next(found) if is_tensor else other
            for is_tensor, other in zip(self._is_tensor, self._others, strict=True)
        ]
        return tree_unflatten(leaves, self._structure)


@dataclass(frozen=True)
class Quantization:
    """What int8 brought, and whether it was taken.

    Attributes:
        accepted: Whether the file is int8.
        failures: Why it is not: "size", "accuracy", "speed".
        metric_name: Of the task.
        metric_before: Validation metric of the float32 file, through ONNX Runtime.
        metric_after: Of the int8 file.
        guard: How much worse the metric may be.
        bytes_before: Size of the float32 file.
        bytes_after: Of the int8 file.
        speedup: Median of ratios of interleaved runs at batch 1, one thread: above 1 is faster.
        scope: "products": convolutions and matrix products alone are int8; "all": every operation
            that can be.
        excluded: Nodes that stayed float32, most sensitive first.
        samples: Calibration samples.
    """

    accepted: bool
    failures: tuple[str, ...]
    metric_name: str
    metric_before: float
    metric_after: float
    guard: float
    bytes_before: int
    bytes_after: int
    speedup: float
    scope: Scope
    excluded: tuple[str, ...]
    samples: int

    def __str__(self) -> str:
        verdict = "taken" if self.accepted else f"not taken ({', '.join(self.failures)})"
        return (
            f"int8 {verdict}: {self.metric_name} {self.metric_before:.4f} -> "
            f"{self.metric_after:.4f}, {self.bytes_before:,} -> {self.bytes_after:,} bytes, "
            f"{self.speedup:.2f} times as fast, {len(self.excluded)} nodes left in float32"
        )


@dataclass(frozen=True)
class _Draft:
    path: Path
    scope: Scope
    metric: float
    excluded: tuple[str, ...]


def try_int8(
    source: Path, target: Path, like: object, data: Data, task: Task, guard: float
) -> Quantization:
    """Write the int8 form of a file where it is worth it.

    Both scopes are tried. Where the metric falls by more than the guard, nodes go back to float32
    in the order of what each alone does to the outputs, as many more each time as are back
    already. Of the files within the guard the fastest is taken.

    Args:
        source: The float32 file.
        target: Written only if int8 is accepted.
        like: An output of the network.
        data: ``train`` calibrates, ``val`` is scored.
        task: Metric, and how a batch calls the network.
        guard: How much worse the metric may be, absolute, at least 0.

    Raises:
        CompressionError: A batch does not fit the file, or the library could not quantise it.
    """
    network = OnnxNetwork(source, like)
    feeds = _calibration(network, data.train, task)
    before, _ = evaluate(network, data.val, task)

    def metric_of(path: Path) -> float:
        return evaluate(OnnxNetwork(path, like), data.val, task)[0]

    def is_good(draft: _Draft) -> bool:
        return task.score(before) - task.score(draft.metric) <= guard

    with tempfile.TemporaryDirectory(prefix="pbcompress-") as name:
        quantizer = Quantizer(source, feeds, Path(name))
        drafts = [_within(is_good, quantizer, scope, metric_of) for scope in get_args(Scope)]
        sessions = [network.session, *(Session(draft.path) for draft in drafts)]
        single = {key: array[:1] if array.ndim else array for key, array in feeds[0].items()}
        speeds = [t.ratio for t in interleaved_latency(sessions, [single] * len(sessions))][1:]
        good, speed, draft = max(
            ((is_good(d), s, d) for d, s in zip(drafts, speeds, strict=True)),
            key=lambda found: found[:2],
        )
        content = draft.path.read_bytes()
    size = source.stat().st_size
    failed = {"size": len(content) >= size, "accuracy": not good, "speed": speed < 1}
    failures = tuple(reason for reason, is_true in failed.items() if is_true)
    if not failures:
        target.write_bytes(content)
    return Quantization(
        accepted=not failures,
        failures=failures,
        metric_name=task.metric_name,
        metric_before=before,
        metric_after=draft.metric,
        guard=guard,
        bytes_before=size,
        bytes_after=len(content),
        speedup=speed,
        scope=draft.scope,
        excluded=draft.excluded,
        samples=sum(_length(f) for f in feeds),
    )


def _length(feeds: Mapping[str, np.ndarray[Any, Any]]) -> int:
    return max((len(a) for a in feeds.values() if a.ndim), default=1)


def _calibration(
    network: OnnxNetwork, train: Batches, task: Task
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return the inputs of the first batches, up to `CALIBRATION_SAMPLES`."""
    found: list[dict[str, np.ndarray[Any, Any]]] = []
    network.seen = found
    with torch.no_grad(), seeded("calibration"), seeded_generators(train, 0):
        for batch in train:
            task.run(network, batch)
            if sum(map(_length, found)) >= CALIBRATION_SAMPLES:
                break
    network.seen = None
    if not found:
        raise CompressionError(
            "Data.train gave no input to calibrate with: it is empty, or Task.forward did not call "
            "the network."
        )
    return found


def _within(
    is_good: Callable[[_Draft], bool],
    quantizer: Quantizer,
    scope: Scope,
    metric_of: Callable[[Path], float],
) -> _Draft:
    """Return the file with the fewest float32 nodes that is within the guard, or the last tried."""
    path, order = quantizer.folder / f"{scope}.onnx", None
    excluded: tuple[str, ...] = ()
    while True:
        quantizer.write(path, scope=scope, excluded=excluded)
        draft = _Draft(path, scope, metric_of(path), excluded)
        if is_good(draft) or 2 * len(excluded) + 1 >= len(quantizer.products):
            return draft
        order = order or _by_harm(quantizer)
        excluded = order[: 2 * len(excluded) + 1]


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
