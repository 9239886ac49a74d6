"""The numbers of a run's report that its shipped file gives, read from the file anew."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pbcompress.comparison.scoring import estimates, file_network, predictions, split_of
from pbcompress.errors import CompressionError, first_line
from pbcompress.onnx_files.benchmark import bench
from pbcompress.runs.file_inspection import inspect_file, misfits
from pbcompress.training.task import Task

__all__ = ["with_evidence"]

MODEL_FILE = "model.onnx"
ROUNDS = 50


def with_evidence(
    facts: Mapping[str, Any],
    directory: str | Path,
    *,
    data: Any = None,
    task: Task | None = None,
) -> dict[str, Any]:
    """Return the facts of a run with every number about its files as they are now.

    ``evidence`` is added: ``files`` (an `Inspection` of every ONNX file of the folder, the shipped
    one first), ``problems`` (sentences: what does not fit the run), ``bench`` (a `Benchmark` of
    these files on this machine, or why there is none) and ``scores`` (the metric of each through
    ONNX Runtime, where data are given). Size and structure in ``deployment`` become the file's.

    Args:
        facts: Of the run; left as they are.
        directory: The folder of the run.
        data: `Data`, or batches.
        task: The metric; None is classification.

    Raises:
        StateMismatchError: A file is damaged.
        CompressionError: The metric raises, or the data do not fit.
    """
    shipped = facts["deployment"]
    paths = sorted(Path(directory).glob("*.onnx"), key=lambda path: (path.name != MODEL_FILE, path))
    files = [inspect_file(path) for path in paths]
    if not files or files[0].name != MODEL_FILE:
        problems = [f"{MODEL_FILE} is not in the folder: what is said of it is what the run noted."]
        problems = problems if isinstance(shipped, Mapping) else []
    else:
        problems = misfits(files[0], facts)
        if isinstance(shipped, Mapping):
            shipped = _renewed(shipped, asdict(files[0]))
    evidence = {
        "files": [asdict(file) for file in files],
        "problems": problems,
        "bench": _timed(paths),
        "scores": _scored(paths, data, task or Task()),
    }
    return {**facts, "deployment": shipped, "evidence": evidence}


def _renewed(shipped: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    same = ("file_bytes", "opset", "input_names", "output_names", "operations")
    proof = {**shipped["proof"], **{key: file[key] for key in same}}
    return {**shipped, "bytes_after": file["file_bytes"], "proof": proof, "file": file}


def _timed(paths: list[Path]) -> dict[str, Any] | str | None:
    if not paths:
        return None
    try:
        return bench(paths, rounds=ROUNDS).to_dict()
    except CompressionError as err:
        return f"The files were not timed: {err}"
    except Exception as err:  # what ONNX Runtime says of a graph that loads and does not run
        return f"The files were not timed, for one of them does not run: {first_line(err)}."


def _scored(paths: list[Path], data: Any, task: Task) -> list[dict[str, Any]] | None:
    if data is None or not paths:
        return None
    networks, names = [file_network(path) for path in paths], [path.name for path in paths]
    found = predictions(networks, names, split_of(data), task)
    return [asdict(estimate) for estimate in estimates(found, task)[0]]
