"""What is read from a shipped ONNX file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pbcompress.onnx_files.contents import (
    facts_of,
    measure_onnx,
    metadata_of,
    peak_activation_bytes,
)

__all__ = ["Inspection", "inspect_file"]


@dataclass(frozen=True)
class Inspection:
    """One ONNX file, every number read from it.

    Attributes:
        name: Of the file.
        sha256: Of its bytes.
        file_bytes: Size on disk.
        weights: Elements of its weights; norms are folded in most files.
        flops: Multiply-adds of its convolutions and matrix products at batch 1.
        uncounted_ops: Other operations, with their number.
        peak_activations: Most bytes of activations alive at once at batch 1.
        opset: Operator set.
        input_names: Inputs.
        output_names: Outputs.
        operations: Number of nodes by operation.
        metadata: Texts that it carries.
    """

    name: str
    sha256: str
    file_bytes: int
    weights: int
    flops: int
    uncounted_ops: Mapping[str, int]
    peak_activations: int
    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    operations: Mapping[str, int]
    metadata: Mapping[str, str]


def inspect_file(path: str | Path) -> Inspection:
    """Read an ONNX file.

    Raises:
        StateMismatchError: It is missing, no ONNX file, or reads files outside of its folder.
    """
    file = Path(path)
    cost = measure_onnx(file)
    facts = facts_of(file)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Inspection(
        name=file.name,
        sha256=digest,
        file_bytes=cost.file_bytes,
        weights=cost.params,
        flops=cost.flops,
        uncounted_ops=cost.uncounted_ops,
        peak_activations=peak_activation_bytes(file),
        opset=facts.opset,
        input_names=facts.input_names,
        output_names=facts.output_names,
        operations=facts.operations,
        metadata=metadata_of(file),
    )
