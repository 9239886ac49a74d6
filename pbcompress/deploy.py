"""Original and result as ONNX files, side by side: size, speed, and the proof."""

import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pbcompress.errors import CompressionError
from pbcompress.export import ExportReport, export_onnx
from pbcompress.fuse import fuse
from pbcompress.inspection import Inspection, inspect_file
from pbcompress.runtime import Latency, Session, interleaved_latency
from pbcompress.surgery import (
    as_call,
    single_sample,
    tensors_of,
)

__all__ = ["Deployment", "deploy"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployment:
    """What shipping both networks would mean.

    Attributes:
        bytes_before: Size of the original's ONNX file.
        bytes_after: Size of the result's.
        latency_before: ONNX Runtime on the CPU, one thread, batch 1.
        latency_after: The same; its ``ratio`` is the speed-up, over interleaved runs.
        proof: The export of the result.
        file: The result's file, as it is read.
    """

    bytes_before: int
    bytes_after: int
    latency_before: Latency
    latency_after: Latency
    proof: ExportReport
    file: Inspection

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def deploy(
    before: nn.Module, after: nn.Module, example_inputs: object, path: Path
) -> Deployment | str:
    """Export both networks fused, prove the second, and time them in turn.

    Returns:
        The figures, or the reason why there are none: a network that trains can still be one that
        the exporter does not take, and that must not cost the user her result.
    """
    with tempfile.TemporaryDirectory(prefix="pbcompress-") as folder:
        original = Path(folder) / "before.onnx"
        try:
            export_onnx(fuse(before), original, example_inputs)
            proof = export_onnx(fuse(after), path, example_inputs)
        except CompressionError as err:
            logger.warning("The networks could not be exported: %s", err)
            return str(err)
        sessions = [Session(original), Session(path)]
        tensors = tensors_of(single_sample(as_call(example_inputs)))
        latencies = interleaved_latency(sessions, [s.feeds(tensors) for s in sessions])
        return Deployment(
            bytes_before=original.stat().st_size,
            bytes_after=path.stat().st_size,
            latency_before=latencies[0],
            latency_after=latencies[1],
            proof=proof,
            file=inspect_file(path),
        )
