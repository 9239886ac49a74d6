"""What a shipped ONNX file says of itself, and whether it is the file of a run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbcompress.onnx_files.contents import (
    facts_of,
    measure_onnx,
    metadata_of,
    peak_activation_bytes,
)

__all__ = ["Inspection", "inspect_file", "misfits"]


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


def misfits(found: Inspection, facts: Mapping[str, Any]) -> list[str]:
    """Return in a sentence each how a file is not the one that a run wrote.

    Args:
        found: The file.
        facts: Of the run; see `CompressionResult.facts`.
    """
    shipped = facts["deployment"]
    if not isinstance(shipped, Mapping):
        return [f"The run exported nothing, and there is a {found.name} in its folder."]
    recorded = shipped.get("file") or {
        "file_bytes": shipped["bytes_after"],
        "operations": shipped["proof"].get("operations", found.operations),
    }
    words = {
        "sha256": "SHA-256",
        "file_bytes": "bytes",
        "weights": "weights",
        "flops": "FLOPs",
        "operations": "operations",
    }
    pairs = [(word, recorded.get(key), getattr(found, key)) for key, word in words.items()]
    problems = [
        f"{found.name} is not the file that the run wrote: {word} {_shown(now)}, the run had "
        f"{_shown(then)}."
        for word, then, now in pairs
        if then is not None and then != now
    ]
    owner = found.metadata.get("fingerprint", facts["fingerprint"])
    if owner != facts["fingerprint"]:
        problems.append(f"{found.name} says that it is of another run, {owner[:12]}.")
    return problems


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{kind} x{count}" for kind, count in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value[:12]}..."
