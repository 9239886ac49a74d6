"""Save and load a compressed network: JSON for its structure, safetensors for its weights."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.core.bounded_files import is_file, read_bounded
from pbcompress.core.json_documents import damage_named, parse, render
from pbcompress.core.model_config import write_numbers_
from pbcompress.core.modules import shared_parameter_names
from pbcompress.core.records import from_data, to_data
from pbcompress.core.tensor_files import read_tensors, tensor_bytes, write_bytes
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError, StateMismatchError, a_few, brief
from pbcompress.pruning.cuts import LayerCut
from pbcompress.pruning.shrinking import shrink_

if TYPE_CHECKING:  # they need ONNX, which loading a network does not
    from pbcompress.runs.facts import RunFacts

__all__ = ["check_file", "load", "read_state", "save"]

KIND = "pbcompress run"
STATE_VERSION, WEIGHTS_VERSION = 5, 2  # from 5 on a state tells which files belong to it
STATE_FILE, WEIGHTS_FILE = "state.json", "weights.safetensors"
MOST_SETS = 256
OTHER_NETWORK = "Give the constructor of the network that was compressed, or save the run anew"
_OTHERS = ("kind", "version", "facts", "files")


@dataclass(frozen=True)
class _GrownLayer:
    sets: int
    normalized: bool
    frozen: int
    nodes: tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True)
class _Dendrites:
    config: Mapping[str, Any] | None
    layers: Mapping[str, _GrownLayer]


@dataclass(frozen=True)
class _Structure:
    """What `save` writes of a network beside its weights."""

    plan: tuple[tuple[str, str, int, tuple[int, ...]], ...]
    dendrites: _Dendrites
    aliases: Mapping[str, str]
    stated: Mapping[str, int] = field(default_factory=dict)


def save(
    directory: str | Path,
    model: nn.Module,
    steps: Sequence[LayerCut] = (),
    facts: "RunFacts | None" = None,
    files: Mapping[str, bytes] | None = None,
    stated: Mapping[str, int] | None = None,
) -> None:
    """Write what `load` needs: the cuts, the dendrites and the weights. Nothing is pickled.

    Args:
        directory: Made if it is not there; files of the same name are replaced one by one.
        model: The compressed network.
        steps: The cuts that made it from the user's constructor.
        facts: Of the run, for the report.
        files: Content by name of files that belong to it.
        stated: What its config states since the cuts; see `WidthPlan.stated`.

    Raises:
        CompressionError: The folder cannot be written to, or the disk is full.
    """
    folder = Path(directory)
    grown = dendrite_layers(model)
    aliases = shared_parameter_names(model)
    tensors = {k: v for k, v in model.state_dict().items() if k not in aliases}
    strange = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise CompressionError(
            f"The model keeps extra state that is no tensor ({a_few(strange)}); a run holds "
            "tensors and JSON only. Turn it into buffers."
        )
    state = {
        "plan": [step.to_list() for step in steps],
        "dendrites": {
            "config": next(iter(grown.values())).config.to_dict() if grown else None,
            "layers": {
                name: {
                    "sets": layer.num_sets,
                    "normalized": layer.normalized,
                    "frozen": layer.frozen_sets,
                    "nodes": layer.kept_nodes,
                }
                for name, layer in grown.items()
            },
        },
        "aliases": aliases,
        "stated": dict(stated or {}),
        "facts": to_data(facts) if facts else None,
    }
    weights = tensor_bytes(tensors, {"kind": KIND, "version": WEIGHTS_VERSION})
    beside = {**(files or {}), WEIGHTS_FILE: weights}
    for name, content in beside.items():
        write_bytes(folder / name, content)
    state["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in beside.items()}
    write_bytes(folder / STATE_FILE, render(state, KIND, STATE_VERSION).encode())


def read_state(directory: str | Path) -> dict[str, Any]:
    """Return the structure and facts of a saved run.

    Raises:
        StateMismatchError: The file is missing, truncated, changed since it was written, of another
            kind or another version.
    """
    path = Path(directory) / STATE_FILE
    if not is_file(path):
        raise StateMismatchError(
            f"{path} is not there. Give the folder that result.save or compress(run_dir=...) "
            "wrote; a run that was stopped has only checkpoints until the same call finishes it."
        )
    return parse(read_bounded(path), KIND, STATE_VERSION, str(path))


def check_file(directory: str | Path, name: str, state: Mapping[str, Any]) -> None:
    """Raise unless a file is the one that was written with a state; it may be missing.

    Raises:
        StateMismatchError: It is another: changed since, or of another run.
    """
    path, files = Path(directory) / name, state.get("files")
    if not is_file(path):
        return
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not isinstance(files, dict) or files.get(name) != digest:
        raise StateMismatchError(
            f"{path} does not belong to the {STATE_FILE} beside it: it was changed since, or is "
            f"of another run, for its SHA-256 is another than {STATE_FILE} says. Restore both from "
            "one copy."
        )


def load(
    directory: str | Path, make_model: Callable[[], nn.Module], *, device: str = "cpu"
) -> nn.Module:
    """Rebuild a saved network; its outputs are bit-identical on the same machine.

    Args:
        directory: What `CompressionResult.save` or ``compress(run_dir=...)`` wrote.
        make_model: Builds the original architecture; its weights are replaced.
        device: Where to put the network.

    Returns:
        The compressed network with its dendrites, in eval mode.

    Raises:
        StateMismatchError: A file is missing, truncated, damaged, of another kind, version or
            run, or ``make_model`` builds another architecture.

    Example:
        >>> import tempfile, torch
        >>> net = nn.Sequential(nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, net)
        ...     again = load(folder, lambda: nn.Sequential(nn.Linear(3, 2)))
        >>> bool(torch.equal(again(torch.ones(1, 3)), net(torch.ones(1, 3))))
        True
    """
    state, path = read_state(directory), Path(directory) / STATE_FILE
    rest = {name: value for name, value in state.items() if name not in _OTHERS}
    found = from_data(_Structure, rest, str(path))
    tensors, _ = read_tensors(Path(directory) / WEIGHTS_FILE, device)
    check_file(directory, WEIGHTS_FILE, state)
    model = make_model().to(device)
    with damage_named(str(path), OTHER_NETWORK):
        shrink_(model, [LayerCut.from_list(data) for data in found.plan])
        write_numbers_(model, found.stated)
        _grow_(model, found.dendrites)
        full = tensors | {alias: tensors[owner] for alias, owner in found.aliases.items()}
    try:
        model.load_state_dict(full)
    except RuntimeError as err:
        raise StateMismatchError(
            f"{directory} holds the weights of another architecture than make_model builds: "
            f"{brief(err, 800)}"
        ) from err
    return model.eval()


def _grow_(model: nn.Module, dendrites: _Dendrites) -> None:
    layers = dendrites.layers
    if not layers:
        return
    missing = [name for name in layers if name not in dict(model.named_modules())]
    if missing:
        raise StateMismatchError(
            f"The run has dendrites on {a_few(missing)}, which make_model does not build. Give "
            "the constructor of the network that was compressed."
        )
    counts = {count for entry in layers.values() for count in (entry.sets, len(entry.nodes))}
    if max(counts) > MOST_SETS:
        raise ValueError(f"it has {max(counts)} dendrite sets")
    if len(counts) != 1:
        raise ValueError("its layers have not the same number of dendrite sets")
    config = DendriteConfig.from_dict(dendrites.config or {})
    normalized = {name: entry.normalized for name, entry in layers.items()}
    for _ in range(counts.pop()):
        attach_dendrites_(model, config, layers=normalized)
    for name, layer in dendrite_layers(model).items():
        layer.keep_all_nodes(layers[name].nodes)
        layer.freeze(layers[name].frozen)
