"""Original and result as ONNX files, side by side: size, speed, and the proof."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pbcompress.core.drafts import draft_folder
from pbcompress.core.inputs import as_call, single_sample, tensors_of
from pbcompress.costs.measured import ModelCost
from pbcompress.errors import CompressionError, ExportMismatchError, UnwritableError
from pbcompress.export.fusion import fuse
from pbcompress.export.onnx_export import ExportReport, export_onnx
from pbcompress.onnx_files.session import Latency, Session, interleaved_latency
from pbcompress.onnx_files.store import size_of
from pbcompress.planning.width_plan import WidthPlan
from pbcompress.runs.contenders import Score
from pbcompress.runs.file_inspection import Inspection, inspect_file
from pbcompress.training.task import Data, Task

__all__ = ["MODEL_FILE", "Deployment", "deploy", "file_notes"]

MODEL_FILE = "model.onnx"

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


def file_notes(
    cost: ModelCost, plan: WidthPlan, fingerprint: str, task: Task, score: Score | None = None
) -> dict[str, str]:
    """Return the texts that the file of a compressed network carries.

    Args:
        cost: Its parameters and FLOPs.
        plan: Its widths, of which the file has a hash.
        fingerprint: Identifies the run.
        task: Its metric.
        score: Its metric; None if it was not trained.
    """
    notes = {
        "params": str(cost.params),
        "flops": str(cost.flops),
        "plan": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "fingerprint": fingerprint,
        "metric": task.metric_name,
    }
    scores = {"val": score.val, "test": score.test} if score else {}
    return notes | {split: repr(value) for split, value in scores.items() if value is not None}


def deploy(
    before: nn.Module,
    after: nn.Module,
    example_inputs: object,
    path: Path | None = None,
    data: Data | None = None,
    task: Task | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Deployment | str:
    """Export both networks fused, prove the second, and time them in turn.

    Args:
        before: The original.
        after: The result.
        example_inputs: Of one forward pass.
        path: Where the result's file goes; None: it is not kept.
        data: The file is scored on ``val``, where the task runs with a file as its network.
        task: Its metric.
        metadata: Texts for the result's file.

    Returns:
        The figures, or the reason why there are none: a network that trains can still be one that
        the exporter does not take, and the result must not be lost to that.
    """
    with draft_folder() as folder:
        original = folder / "before.onnx"
        path = path or folder / "after.onnx"
        try:
            export_onnx(fuse(before), original, example_inputs)
            proof = _proven(fuse(after), path, example_inputs, data, task, metadata)
        except UnwritableError:
            raise
        except CompressionError as err:
            logger.warning("The networks could not be exported: %s", err)
            return str(err)
        sessions = [Session(original), Session(path)]
        tensors = tensors_of(single_sample(as_call(example_inputs), before))
        latencies = interleaved_latency(sessions, [s.feeds(tensors) for s in sessions])
        return Deployment(
            bytes_before=size_of(original),
            bytes_after=size_of(path),
            latency_before=latencies[0],
            latency_after=latencies[1],
            proof=proof,
            file=inspect_file(path),
        )


def _proven(
    network: nn.Module,
    path: Path,
    example_inputs: object,
    data: Data | None,
    task: Task | None,
    metadata: Mapping[str, str] | None,
) -> ExportReport:
    try:
        return export_onnx(network, path, example_inputs, data=data, task=task, metadata=metadata)
    except (ExportMismatchError, UnwritableError):
        raise
    except Exception as err:  # the task may need more of its network than calls
        if data is None:
            raise
        logger.info("The file was not scored by the task: %s", err)
        return export_onnx(network, path, example_inputs, metadata=metadata)
