"""The numbers of a run's report that its shipped file gives, read from the file anew."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pbcompress.comparison.intervals import Estimate
from pbcompress.comparison.scoring import estimates, file_network, predictions, split_of
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.benchmark import Benchmark, bench
from pbcompress.onnx_files.contents import FileFacts
from pbcompress.runs.deployment import MODEL_FILE, Deployment
from pbcompress.runs.facts import FileEvidence, RunFacts
from pbcompress.runs.file_inspection import Inspection, inspect_file
from pbcompress.training.task import Task

__all__ = ["misfits", "with_evidence"]

ROUNDS = 50


def with_evidence(
    facts: RunFacts, directory: str | Path, *, data: Any = None, task: Task | None = None
) -> RunFacts:
    """Return the facts of a run with every number about its files as they are now.

    ``evidence`` is added; size and structure in ``deployment`` become the file's.

    Args:
        facts: Of the run.
        directory: The folder of the run.
        data: `Data`, or batches; the files are scored on them.
        task: The metric; None is classification.

    Raises:
        StateMismatchError: A file is damaged.
        CompressionError: The metric raises, or the data do not fit.
    """
    shipped = facts.shipped
    paths = sorted(Path(directory).glob("*.onnx"), key=lambda path: (path.name != MODEL_FILE, path))
    files = tuple(map(inspect_file, paths))
    problems: tuple[str, ...] = ()
    if files and files[0].name == MODEL_FILE:
        problems = misfits(files[0], facts)
        shipped = _renewed(shipped, files[0]) if shipped else None
    elif shipped:
        problems = (
            f"{MODEL_FILE} is not in the folder: what is said of it is what the run noted.",
        )
    evidence = FileEvidence(files, problems, _timed(paths), _scored(paths, data, task or Task()))
    return replace(facts, deployment=shipped or facts.deployment, evidence=evidence)


def misfits(found: Inspection, facts: RunFacts) -> tuple[str, ...]:
    """Return each difference of a file from what its run wrote, as a sentence."""
    if facts.shipped is None:
        return (f"The run exported nothing, and there is a {found.name} in its folder.",)
    ran = facts.shipped.file
    pairs: list[tuple[str, object, object]] = [
        ("SHA-256", ran.sha256, found.sha256),
        ("bytes", ran.file_bytes, found.file_bytes),
        ("weights", ran.weights, found.weights),
        ("FLOPs", ran.flops, found.flops),
        ("operations", ran.operations, found.operations),
    ]
    problems = [
        f"{found.name} is not the file that the run wrote: {word} {_shown(now)}, the run had "
        f"{_shown(then)}."
        for word, then, now in pairs
        if then != now
    ]
    owner = found.metadata.get("fingerprint", facts.fingerprint)
    if owner != facts.fingerprint:
        problems.append(f"{found.name} says that it is of another run, {owner[:12]}.")
    return tuple(problems)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{kind} x{count}" for kind, count in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{str(value)[:12]}..."


def _renewed(shipped: Deployment, file: Inspection) -> Deployment:
    proof = replace(
        shipped.proof,
        file_bytes=file.file_bytes,
        file=FileFacts(file.opset, file.input_names, file.output_names, file.operations),
    )
    return replace(shipped, bytes_after=file.file_bytes, proof=proof, file=file)


def _timed(paths: list[Path]) -> Benchmark | str | None:
    if not paths:
        return None
    try:
        return bench(paths, rounds=ROUNDS)
    except CompressionError as err:
        return f"The files were not timed: {err}"


def _scored(paths: list[Path], data: Any, task: Task) -> tuple[Estimate, ...] | None:
    if data is None or not paths:
        return None
    networks, names = [file_network(path) for path in paths], [path.name for path in paths]
    found = predictions(networks, names, split_of(data), task)
    return tuple(estimates(found, task)[0])
