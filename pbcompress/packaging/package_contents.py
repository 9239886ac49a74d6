"""What goes into a package: collected from a run on disk, or exported from a network."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pbcompress.errors import StateMismatchError
from pbcompress.export.onnx_export import ExportReport
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.report.writing import proof_sentence
from pbcompress.runs.deployment import MODEL_FILE
from pbcompress.runs.facts import RunFacts
from pbcompress.runs.run_folder import read_run
from pbcompress.runs.sample import SAMPLE_FILE, Sample, read_sample
from pbcompress.training.history import History

__all__ = ["Contents", "contents_of_network", "contents_of_run"]

INT8_FILE = "model.int8.onnx"
OTHER_MODELS = "model.*.onnx"


@dataclass(frozen=True)
class Contents:
    """What goes into a package.

    Attributes:
        facts: Of the run.
        seconds: Of training and validation.
        models: ONNX files; ``model.onnx``, in float32, first.
        sample: Inputs, and the outputs of torch.
        proof: How the models were proven, in a sentence.
    """

    facts: RunFacts
    seconds: float
    models: Sequence[Path]
    sample: Sample
    proof: str


def contents_of_network(
    folder: Path,
    facts: RunFacts,
    history: History,
    sample: Sample,
    export: Callable[[Path], ExportReport],
    export_int8: Callable[[Path], ExportReport] | None = None,
) -> Contents:
    """Export a network into a folder, and return it with what is known of it.

    Args:
        folder: Takes the files.
        facts: Of the run.
        history: Of its training.
        sample: Inputs, and the outputs of torch.
        export: Writes the network to a file.
        export_int8: Writes it in 8 bits; the file is left out if these were not taken.
    """
    models = [folder / MODEL_FILE]
    proof = proof_sentence(export(models[0]))
    if export_int8 is not None:
        small = folder / INT8_FILE
        found = export_int8(small).quantization
        if found is not None and found.accepted:
            models.append(small)
        proof += f" Fewer bits: {found}."
    return Contents(facts, history.seconds, models, sample, proof)


def contents_of_run(run: Path) -> Contents:
    """Return what the folder of a run has.

    Raises:
        StateMismatchError: The run is missing or damaged, has no model or no sample, or its model
            is not the one that the run wrote.
    """
    facts, history = read_run(run)
    return Contents(
        facts=facts,
        seconds=history.seconds,
        models=_models(run, facts),
        sample=_sample(run),
        proof=proof_sentence(facts.shipped.proof)
        if facts.shipped
        else "The file was exported after the run, which does not know how it was proven.",
    )


def _models(run: Path, facts: RunFacts) -> list[Path]:
    """Return the ONNX files of a run, the float32 one first."""
    path = run / MODEL_FILE
    if not path.is_file():
        reason = f" ({facts.deployment})" if isinstance(facts.deployment, str) else ""
        raise StateMismatchError(
            f"{run} was to be packaged and has no {MODEL_FILE}{reason}. Make it: pbcompress export "
            f"{run} {path} --model package.module:function"
        )
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if facts.shipped and facts.shipped.file.sha256 != digest:
        raise StateMismatchError(
            f"{path} is not the file that the run wrote: it was changed since. Call compress again "
            "with the same run_dir, which writes it anew, and package that."
        )
    others = sorted(run.glob(OTHER_MODELS))
    for other in others:
        if metadata_of(other).get("fingerprint") != facts.fingerprint:
            raise StateMismatchError(
                f"{other} was to be packaged and does not say that it is of this run. Export it "
                "anew with result.export_onnx or pbcompress export, or move it away."
            )
    return [path, *others]


def _sample(run: Path) -> Sample:
    path = run / SAMPLE_FILE
    if not path.is_file():
        raise StateMismatchError(
            f"{run} was to be packaged and has no {SAMPLE_FILE}. Call compress again with the same "
            "run_dir: it trains nothing anew, and writes one."
        )
    return read_sample(path)
