"""Carry out a plan on a checkpoint on disk, of which one tensor at a time is in memory."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pbcompress.core.bounded_files import read_bounded
from pbcompress.core.drafts import draft_file, told_where
from pbcompress.core.sharded_files import INDEX, Folder, Shard
from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import StateMismatchError, UnwritableError
from pbcompress.planning.width_plan import WidthPlan
from pbcompress.pruning.file_cuts import check_layers, energies_of, kept_in_files, written
from pbcompress.pruning.unit_choice import cuts_by_importance

__all__ = ["shrink_files"]

CONFIG = "config.json"
LARGEST_COPY = 2**26  # bytes of the files beside the weights: tokenizers, templates
_PASSED_OVER = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".part")


def shrink_files(plan: WidthPlan, folder: str | Path, out: str | Path) -> WidthPlan:
    """Write the shrunk checkpoint of a folder of safetensors files, shard by shard.

    The model is never in memory: each tensor is read, cut and written by itself, in the precision
    that it has. For a plan that was made on the meta device the units that stay are chosen by
    magnitude, in one more pass over the files. The new folder has the same shards, an index and
    ``config.json`` with the new widths, so that ``from_pretrained`` takes it where
    ``plan.stated`` says what to state; tokenizers and other small files are copied.

    Args:
        plan: A plan for the network of the checkpoint.
        folder: Has ``model.safetensors``, or ``model.safetensors.index.json`` and its shards; left
            as it is.
        out: Another folder, new or empty, or one in which the same call was interrupted: what was
            written whole stays, and the rest follows. The index comes last.

    Returns:
        The plan that was carried out: with the units that were chosen.

    Raises:
        StateMismatchError: A shard is missing or damaged, or the checkpoint is of another network;
            nothing was written.
        UnwritableError: The disk is full, or ``out`` holds other weights.

    Example:
        >>> import tempfile, torch
        >>> import pbcompress as pb
        >>> from safetensors.torch import save_file
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> weights = {name: t.clone() for name, t in net.state_dict().items()}
        >>> plan = pb.plan_widths(net.to("meta"), torch.zeros(1, 8), 0.5)  # no weights needed
        >>> with tempfile.TemporaryDirectory() as place:
        ...     save_file(weights, f"{place}/model.safetensors")
        ...     done = pb.shrink_files(plan, place, f"{place}/small")
        >>> done.steps[0].width_after == plan.cost_after.by_layer["0"].width
        True
    """
    source, target = Path(folder), Path(out)
    if target.resolve() == source.resolve():
        raise UnwritableError(f"{out} is the checkpoint itself. Choose another folder.")
    files = Folder.at(source)
    names = plan.names
    check_layers(files, list(plan.cost_before.by_layer), names)
    kept_in_files(files, plan.steps, names)  # before the first change
    config = _config(source, plan.stated)
    if plan.choices:
        steps = cuts_by_importance(plan.choices, energies_of(files, plan.choices, names))
        attributes = tuple(step for step in plan.steps if step.dim.startswith("@"))
        chosen = {(step.layer, step.dim) for step in steps}
        steps += tuple(s for s in attributes if (s.layer, s.dim) not in chosen)
        plan = replace(plan, solution=replace(plan.solution, steps=steps, choices=()))
    kept = kept_in_files(files, plan.steps, names)
    with told_where(target, also=True):
        target.mkdir(parents=True, exist_ok=True)
    written(files, target, kept, _mark(plan, files))
    _copy_others(source, target)
    if config is not None:
        write_bytes(target / CONFIG, json.dumps(config, indent=2).encode())
    if files.index is not None:
        write_bytes(target / INDEX, json.dumps(_index(files, target), indent=2).encode())
    return plan


def _mark(plan: WidthPlan, files: Folder) -> str:
    """Return what tells whether a shard was made by the same call from the same files."""
    digest = hashlib.sha256(json.dumps([step.to_list() for step in plan.steps]).encode())
    for shard in files.shards:
        about = shard.path.stat()
        digest.update(f"{shard.path.name} {about.st_size} {about.st_mtime_ns}".encode())
    return digest.hexdigest()


def _config(source: Path, stated: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the config of a checkpoint with the new numbers; None where it has none."""
    if not (source / CONFIG).is_file():
        return None
    try:
        config = json.loads(read_bounded(source / CONFIG))
        for path, value in stated.items():
            *inside, name = path.split(".")
            part = config
            for own in inside:
                part = part.setdefault(own, {})
            part[name] = value
    except (ValueError, TypeError, AttributeError) as err:
        raise StateMismatchError(f"{source / CONFIG} is no config: {err}. Fetch it again.") from err
    return dict(config)


def _copy_others(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        is_small = path.is_file() and path.stat().st_size <= LARGEST_COPY
        if not is_small or path.name in (CONFIG, INDEX) or path.suffix in _PASSED_OVER:
            continue
        new = target / path.name
        with told_where(new, also=True), draft_file(new) as (draft, file):
            with path.open("rb") as content:
                shutil.copyfileobj(content, file)
            file.close()
            draft.replace(new)


def _index(files: Folder, target: Path) -> dict[str, Any]:
    assert files.index is not None
    new = [
        tensor for shard in files.shards for tensor in Shard.at(target / shard.path.name).tensors
    ]
    metadata = files.index.get("metadata")
    own = dict(metadata) if isinstance(metadata, Mapping) else {}
    own["total_size"] = sum(tensor.length for tensor in new)
    return {"metadata": own, "weight_map": dict(files.index["weight_map"])}
