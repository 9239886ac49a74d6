"""A finished run on disk: what `compress` and `CompressionResult.save` leave in its folder.

identity.json         what decides the run, by `run_identity`
.lock                 who works in it now, by `held_folder`
state.json            cuts, dendrites and facts, by `saved_network`
weights.safetensors   the network's tensors, by `saved_network`
history.jsonl         a line for each epoch, by `save_run`
sample.safetensors    a few inputs and what torch computes of them, by `sample`
model.onnx            what ships, by `deployment`
report.{html,md,json} by `report.writing`
checkpoints/          plans and states of the trainings, by `contender_training`
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pbcompress.core.bounded_files import is_file, read_bounded
from pbcompress.core.json_documents import damage_named
from pbcompress.core.records import from_data
from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import StateMismatchError
from pbcompress.pruning.cuts import LayerCut
from pbcompress.runs.facts import RunFacts
from pbcompress.runs.sample import SAMPLE_FILE, Sample, write_sample
from pbcompress.runs.saved_network import STATE_FILE, read_state, save
from pbcompress.training.history import History

__all__ = ["read_facts", "read_run", "save_run"]

HISTORY_FILE = "history.jsonl"


def save_run(
    directory: str | Path,
    model: nn.Module,
    steps: Sequence[LayerCut],
    facts: RunFacts,
    history: History,
    sample: Sample,
) -> None:
    """Write what `load`, `read_run` and `package` need; see `saved_network.save`."""
    lines = history.to_jsonl().encode()
    write_bytes(Path(directory) / HISTORY_FILE, lines)
    save(directory, model, steps, facts, {HISTORY_FILE: hashlib.sha256(lines).hexdigest()})
    write_sample(Path(directory) / SAMPLE_FILE, sample)


def read_facts(directory: str | Path) -> RunFacts:
    """Return the facts of a saved run.

    Raises:
        StateMismatchError: The file is missing, truncated, damaged, of another kind or version, or
            holds a network alone.
    """
    return _facts_in(read_state(directory), directory)


def _facts_in(state: Mapping[str, Any], directory: str | Path) -> RunFacts:
    file, facts = Path(directory) / STATE_FILE, state.get("facts")
    if facts is None:
        raise StateMismatchError(f"{directory} holds a network without the facts of its run.")
    if not isinstance(facts, dict):
        raise StateMismatchError(f"{file} does not fit: its facts are {facts!r:.80}.")
    if state["version"] == 2:
        facts = _with_budget(facts, str(file))
    return from_data(RunFacts, facts, f"What {file} tells of its run")


def _with_budget(facts: dict[str, Any], where: str) -> dict[str, Any]:
    """Return facts of version 2, which told one count of parameters, as they are told now."""
    facts = dict(facts)
    with damage_named(where):
        target, full = facts.pop("target_params"), facts["before"]["cost"]["params"]
        is_unknown = target == full - 1  # of a run without such a bound too
    if is_unknown:
        raise StateMismatchError(
            f"{where} has version 2, whose facts do not tell what was asked for. Call compress "
            "again, in another folder; pbcompress.load still reads the network."
        )
    return {**facts, "budget": {"params": target}}


def read_run(directory: str | Path) -> tuple[RunFacts, History]:
    """Return facts and history of a saved run.

    Raises:
        StateMismatchError: As from `read_facts`, or the history is truncated or changed.
    """
    state, path = read_state(directory), Path(directory) / HISTORY_FILE
    facts = _facts_in(state, directory)
    if not is_file(path):
        return facts, History()
    try:
        return facts, _history_in(path, state.get("files"))
    except StateMismatchError as err:
        raise StateMismatchError(f"{err} Or move it away: the report then lacks it.") from err


def _history_in(path: Path, files: Any) -> History:
    """Return a history if it is the one that the state tells of; an older state tells of none."""
    lines = read_bounded(path)
    found = History.from_jsonl(lines, str(path))
    noted = files.get(path.name) if isinstance(files, dict) else files
    if noted not in (None, hashlib.sha256(lines).hexdigest()):
        raise StateMismatchError(
            f"{path} was changed since it was written: its SHA-256 is another than {STATE_FILE} "
            "says. Restore it from a copy."
        )
    return found
