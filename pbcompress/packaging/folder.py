"""A run as a folder for the network's users: files, runners, card, and a check."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pbcompress.core.bounded_files import read_bounded
from pbcompress.core.drafts import draft_folder, told_where
from pbcompress.core.json_documents import check_kind, decoded
from pbcompress.core.turns import in_turn
from pbcompress.errors import (
    CompressionError,
    ExportMismatchError,
    StateMismatchError,
    first_line,
)
from pbcompress.onnx_files.session import Session
from pbcompress.onnx_files.store import files_of, size_of
from pbcompress.packaging.model_card import CardConfig, model_card
from pbcompress.packaging.package_contents import Contents, contents_of_run
from pbcompress.runs.deployment import MODEL_FILE
from pbcompress.runs.sample import Sample

__all__ = ["Package", "pack", "package"]

Array = np.ndarray[Any, Any]

KIND, VERSION = "pbcompress package", 1
RUNNERS = Path(__file__).with_name("shipped")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order
MOST_TOLERANCE = 0.5  # what the runners accept
MARGIN = 2.0  # times what 8 bits were off on this machine: others round otherwise


@dataclass(frozen=True)
class Package:
    """A folder that was written.

    Attributes:
        path: The folder.
        files: Bytes by name.
        models: By file, its ``bytes``, the ``tolerance`` of its check relative to the largest
            output, and on the sample its ``max_difference`` from torch and ``same_top1``, the share
            of samples with the same highest output (None where the output is no (N, classes)).
    """

    path: str
    files: Mapping[str, int]
    models: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return (
            f"{self.path}: {', '.join(self.files)}; {sum(self.files.values()):,} bytes, checked by "
            "its own run.py --check"
        )


@in_turn
def package(
    run_dir: str | Path,
    directory: str | Path | None = None,
    card: CardConfig | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Package:
    """Write a folder from which anyone can run the network, and check that it still is the same.

    It holds the ONNX files of the run, a runner in Python (numpy and ONNX Runtime) and one in
    JavaScript (onnxruntime-web or -node), a model card in the form of the Hugging Face Hub, a
    sample of inputs with the outputs of torch, ``config.json`` and checksums. It takes its place in
    one rename, after its own ``run.py --check`` has passed in a process of its own.

    Args:
        run_dir: What ``compress(run_dir=...)`` or `CompressionResult.save` wrote, with its
            ``model.onnx``, and ``model.int8.onnx`` if there is one.
        directory: The folder to write; default: ``package`` in the run's.
        card: What the run does not know of the network: license, data sets, classes, ...
        name: Of the network, as the Hub takes it; default: the name of ``directory``, or of the
            run.
        overwrite: Whether to replace a package that is there.

    Returns:
        What was written.

    Raises:
        StateMismatchError: The run is missing or damaged, has no model or no sample, or its model
            is not the one that the run wrote.
        ExportMismatchError: A model does not compute what the network computes in torch.
        CompressionError: The folder is there, or cannot be written, or the name is none.

    Example:
        >>> import tempfile
        >>> from pbcompress import CompressConfig, compress
        >>> from torch import nn, ones
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = compress(net, 0.5, example_inputs=ones(1, 8), run_dir=f"{folder}/run")
        ...     packed = package(f"{folder}/run", f"{folder}/net", CardConfig(license="mit"))
        >>> packed.models["model.onnx"]["max_difference"] < 1e-4
        True
    """
    run = Path(run_dir)
    if directory is None:
        name, directory = name or _name_of(run), run / "package"
    return pack(
        Path(directory), lambda _: contents_of_run(run), card, name=name, overwrite=overwrite
    )


def pack(
    target: Path,
    collect: Callable[[Path], Contents],
    card: CardConfig | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Package:
    """Write the folder of `package` from what ``collect`` returns; it may write into a folder."""
    own = _name_of(target)
    card, name = card or CardConfig(), name or own
    target = target if target.name else target.absolute()
    if not NAME.fullmatch(name):
        raise CompressionError(
            f"The network was to be named {name!r}; a name is up to 96 letters, digits and . _ - "
            "and begins with a letter or digit. Pass name=."
        )
    with told_where(target, also=True):
        _put_back(target)
    home = _home(target, overwrite)
    try:
        with draft_folder("pbcompress", home, target) as folder:
            contents, draft = collect(folder), folder / "package"
            draft.mkdir()
            models = _fill(draft, contents, name, card)
            _check(draft)
            _move(draft, target)
    except OSError as err:
        raise CompressionError(
            f"The package {target} was to be written and could not be: {err.strerror or err}. Free "
            "some space or choose another folder; what was there is as it was."
        ) from err
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    return Package(str(target), sizes, models)


def _name_of(folder: Path) -> str:
    try:
        return folder.resolve().name
    except (OSError, RuntimeError, ValueError) as err:
        raise CompressionError(
            f"{str(folder)!r} was to be a folder, and is no path of one: {first_line(err)}. Choose "
            "another."
        ) from err


def _fill(
    folder: Path, contents: Contents, name: str, card: CardConfig
) -> Mapping[str, Mapping[str, Any]]:
    """Write all files of a package, and return what is known of its models."""
    arrays = _arrays(contents.sample)
    strange = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if strange:
        raise CompressionError(
            f"The package was to hold the run's sample, and its {strange[0]} is not finite. Pass "
            "example_inputs to compress on which the network gives numbers."
        )
    config = _config(contents, name, arrays, card)
    models = [part for path in contents.models for part in files_of(path)]
    for path in (*models, RUNNERS / "run.py", RUNNERS / "run.mjs"):
        shutil.copyfile(path, folder / path.name)
    (folder / "sample.npz").write_bytes(_npz(arrays))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    text = model_card(contents.facts, contents.seconds, contents.proof, config, card)
    (folder / "README.md").write_text(text, encoding="utf-8")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    sums = (f"{hashlib.sha256(files[f]).hexdigest()}  {f}\n" for f in files)
    (folder / "SHA256SUMS").write_text("".join(sums))
    return config["models"]  # type: ignore[no-any-return]


def _config(
    contents: Contents, name: str, arrays: Mapping[str, Array], card: CardConfig
) -> dict[str, Any]:
    return {
        "kind": KIND,
        "version": VERSION,
        "name": name,
        "pbcompress": contents.facts.pbcompress,
        "classes": list(card.classes) or None,
        "preprocessing": card.preprocessing,
        "samples": next((len(array) for array in arrays.values() if array.ndim), 1),
        **_measured(contents.models, arrays),
    }


def _home(target: Path, overwrite: bool) -> Path:
    """Return the nearest folder that is there; raise where the package cannot have its place."""
    home = next(path for path in target.absolute().parents if path.exists())
    if not home.is_dir():
        raise CompressionError(
            f"The package {target} was to be written, and {home} is a file. Choose another folder."
        )
    if not target.exists():
        return home
    if not overwrite:
        raise CompressionError(
            f"The package {target} was to be written and is there already. Choose another folder, "
            "or replace it: overwrite=True, --overwrite."
        )
    try:
        check_kind(decoded(read_bounded(target / "config.json"), "It"), KIND, VERSION, "It")
        is_ours = True
    except StateMismatchError:
        is_ours = False
    if not is_ours:
        raise CompressionError(
            f"{target} was to be replaced, and it is no package of pbcompress. Choose another "
            "folder, or remove that one yourself."
        )
    return home


def _arrays(sample: Sample) -> dict[str, Array]:
    return {
        f"{kind}_{i}": tensor.numpy()
        for kind, tensors in zip(("input", "output"), sample, strict=True)
        for i, tensor in enumerate(tensors)
    }


def _measured(models: Sequence[Path], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return inputs and outputs of the models, and how far each is from torch on the sample."""
    interface, found = None, {}
    for path in models:
        session = Session(path, apart=True)  # the folder may be anyone's
        interface = interface or session.interface()
        if session.interface() != interface:
            raise StateMismatchError(
                f"{path} has other inputs or outputs than {models[0].name}, so they are not the "
                "same network. Export both anew, or take one of them away."
            )
        found[path.name] = _compared(path, session, arrays)
    assert interface is not None
    return {**interface, "models": found}


def _outputs(path: Path, session: Session, arrays: Mapping[str, Array]) -> list[Array]:
    """Return what a model makes of the sample, in the number and the shapes of the sample's."""
    inputs, wanted = (
        [array for name, array in arrays.items() if name.startswith(kind)]
        for kind in ("input_", "output_")
    )
    try:
        feeds = dict(zip(session.input_names, inputs, strict=True))
        session.check(feeds)
        outputs = session.run(feeds)
        for output, array in zip(outputs, wanted, strict=True):
            if output.shape != array.shape:
                raise ValueError(f"an output has the shape {output.shape}, not {array.shape}")
    except Exception as err:
        raise StateMismatchError(
            f"{path} does not run on the sample of its run: {first_line(err)}. Export it anew."
        ) from err
    return outputs


def _compared(path: Path, session: Session, arrays: Mapping[str, Array]) -> dict[str, Any]:
    outputs = _outputs(path, session, arrays)
    gaps, relative = [0.0], [0.0]
    for i, output in enumerate(outputs):
        wanted = arrays[f"output_{i}"].astype(np.float64)
        gaps.append(float(np.abs(output - wanted).max(initial=0.0)))
        relative.append(gaps[-1] / max(float(np.abs(wanted).max(initial=0.0)), 1e-6))
    tolerance = TOLERANCE if path.name == MODEL_FILE else max(TOLERANCE, MARGIN * max(relative))
    if not max(relative) <= tolerance <= MOST_TOLERANCE:
        raise ExportMismatchError(
            f"{path} was compared with the outputs of torch that its run kept, and differs by "
            f"{max(gaps):.1e}: it is not the network of this run. Export it anew.",
            max_difference=max(gaps),
        )
    first, wanted = outputs[0], arrays["output_0"]
    is_choice = first.ndim == 2 and first.shape[1] > 1
    same = float((first.argmax(1) == wanted.argmax(1)).mean()) if is_choice else None
    return {
        "bytes": size_of(path),
        "tolerance": tolerance,
        "max_difference": max(gaps),
        "same_top1": same,
    }


def _npz(arrays: Mapping[str, Array]) -> bytes:
    """Return the bytes of numpy's archive, the same for the same arrays: without the time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _check(folder: Path) -> None:
    """Run the check of a package as its receiver would."""
    command = [sys.executable, str(folder / "run.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode != 0:
        raise CompressionError(
            f"The package was written, and its own check failed: {done.stderr.strip()[-500:]} "
            "No package was kept."
        )


def _move(draft: Path, target: Path) -> None:
    """Give a folder its place; a former one comes back if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = _former(target)
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        _put_back(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _former(target: Path) -> Path:
    """Return where a package waits while another takes its place."""
    return target.with_name(f".{target.name}.former")


def _put_back(target: Path) -> None:
    """Give a former package its place again, where a call was killed between two renames."""
    old = _former(target)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
