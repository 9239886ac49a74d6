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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pbcompress.core.bounded_files import is_file, read_bounded
from pbcompress.core.records import from_data
from pbcompress.errors import StateMismatchError
from pbcompress.pruning.cuts import LayerCut
from pbcompress.runs.facts import RunFacts
from pbcompress.runs.sample import SAMPLE_FILE, Sample, sample_bytes
from pbcompress.runs.saved_network import STATE_FILE, WEIGHTS_FILE, check_file, read_state, save
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
    stated: Mapping[str, int] | None = None,
) -> None:
    """Write what `load`, `read_run` and `package` need; see `saved_network.save`."""
    files = {HISTORY_FILE: history.to_jsonl().encode(), SAMPLE_FILE: sample_bytes(sample)}
    save(directory, model, steps, facts, files, stated)


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
    return from_data(RunFacts, facts, f"What {file} tells of its run")


def read_run(directory: str | Path) -> tuple[RunFacts, History]:
    """Return facts and history of a saved run.

    Raises:
        StateMismatchError: As from `read_facts`, or a file of the run is truncated, was changed or
            is of another run.
    """
    state, path = read_state(directory), Path(directory) / HISTORY_FILE
    facts = _facts_in(state, directory)
    for name in (WEIGHTS_FILE, SAMPLE_FILE):
        check_file(directory, name, state)
    if not is_file(path):
        return facts, History()
    try:
        history = History.from_jsonl(read_bounded(path), str(path))
        check_file(directory, HISTORY_FILE, state)
    except StateMismatchError as err:
        raise StateMismatchError(f"{err} Or move it away: the report then lacks it.") from err
    return facts, history
