"""An ONNX file on disk: read with suspicion, written whole or not at all.

Below the bound of its format a network is one file; above, its weights are in a second one.

A graph and weights in a second file cannot be replaced in one rename. So new weights take a name
that is free, the graph that names them is renamed over the former one, and only then do the former
weights go: a process that is killed anywhere leaves a whole file.
"""

import copy
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from pbcompress.core.bounded_files import is_file, is_name, read_bounded
from pbcompress.core.drafts import draft_folder, told_where
from pbcompress.core.json_documents import decoded
from pbcompress.errors import CompressionError, StateMismatchError, first_line
from pbcompress.onnx_files.bounds import check_extent, check_values, tensors_within

__all__ = [
    "DIGEST",
    "MAKER",
    "ONE_FILE",
    "data_file",
    "drafting",
    "files_of",
    "install",
    "load",
    "relabel",
    "save",
    "size_of",
    "values_of",
]

# Protocol buffers end at 2 GiB; 16 MiB are left for the graph.
ONE_FILE = 2**31 - 2**24
DIGEST = "sha256"  # the text of a file of ours that has it
MAKER = "pbcompress"  # the text of a file of ours that has the version; it has a SHA-256 too
AXES = "axes"  # the text of a file that has, as JSON, what `example_sizes` returns


def load(path: str | Path) -> Any:
    """Return the graph of a file; weights that are in a second file stay there.

    Raises:
        StateMismatchError: It is missing, cut off or no ONNX file, claims weights that are not
            there, or names a file outside of its own folder.
    """
    content = read_bounded(path, 2**31)
    try:
        proto = onnx.load_model_from_string(content)
        check_extent(proto)
    except Exception as err:
        raise StateMismatchError(f"{path} is no whole ONNX file: {first_line(err)}.") from err
    folder, claimed = Path(path).parent, 0
    for tensor in tensors_within(proto):
        problem, size = _problem(tensor, folder)
        claimed += size
        if problem:
            raise StateMismatchError(
                f"{path} was to be read, and its weight {tensor.name!r:.80} {problem}. Do not use "
                "this file; get a whole one from its source."
            )
    held = sum(file.stat().st_size for file in _beside(proto, folder))
    if claimed > 2 * held + 2**20:
        raise StateMismatchError(
            f"{path} was to be read, and its weights take {claimed:,} bytes of {held:,} that are "
            "beside it. Do not use this file; get a whole one from its source."
        )
    _check_digest(proto, Path(path), held > 2 * claimed + 2**20)
    return proto


def _beside(proto: Any, folder: Path) -> list[Path]:
    """Return the files that hold weights."""
    locations = [
        entry.value
        for tensor in tensors_within(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    return [folder / name for name in dict.fromkeys(locations)]


def _digest(proto: Any, folder: Path) -> str:
    """Return the SHA-256 of a graph without the note of it, and of the weights beside it."""
    plain = type(proto)()
    plain.CopyFrom(proto)
    others = [entry for entry in proto.metadata_props if entry.key != DIGEST]
    del plain.metadata_props[:]
    plain.metadata_props.extend(others)
    for tensor in tensors_within(plain):  # their file may get another name
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = ""
    digest = hashlib.sha256(plain.SerializeToString(deterministic=True))
    for file in _beside(proto, folder):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _check_digest(proto: Any, path: Path, has_more: bool) -> None:
    """Raise if a file of ours was changed; beside it may lie more than its weights (not hashed)."""
    noted = [entry.value for entry in proto.metadata_props if entry.key == DIGEST]
    is_ours = any(entry.key == MAKER for entry in proto.metadata_props)
    if (noted or is_ours) and (has_more or noted != [_digest(proto, path.parent)]):
        raise StateMismatchError(
            f"{path} was changed since it was written: its SHA-256 is "
            f"{'another than it says' if noted else 'gone'}. Get it again, or export it anew."
        )


def _problem(tensor: Any, folder: Path) -> tuple[str | None, int]:
    """Return what is wrong with where a tensor's values are, and its bytes in another file."""
    if any(size < 0 for size in tensor.dims) or tensor.data_type not in _SIZES:
        return f"has the shape {list(tensor.dims)[:16]} and the type {tensor.data_type}", 0
    wanted = math.ceil(math.prod(tensor.dims) * _SIZES[tensor.data_type])
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        held = len(tensor.raw_data)
        is_there = held == wanted if held else any(len(getattr(tensor, f)) for f in _FIELDS)
        problem = f"has {held} bytes instead of {wanted}"
        return None if is_there or not wanted else problem, 0
    noted = {entry.key: entry.value for entry in tensor.external_data}
    location = noted.get("location", "")
    file = folder / location
    if not is_name(location) or file.is_symlink():
        return f"is said to be in {location!r:.300}, which is not beside the file", 0
    if not is_file(file):
        return f"is in {location!r}, which is not there", 0
    try:
        start, length = int(noted.get("offset", 0)), int(noted.get("length", wanted))
    except ValueError:
        return "has no numbers for its place", 0
    if length != wanted or not 0 <= start <= file.stat().st_size - length:
        return f"takes {wanted} bytes, and {location!r} has fewer at its place", 0
    return None, length


def _bytes_of(name: str, kind: int) -> float:
    """Return the bytes of an element; those of two and four bits share one."""
    bits = {"INT4": 4, "FLOAT4": 4, "INT2": 2}
    packed = [size for part, size in bits.items() if part in name]
    return packed[0] / 8 if packed else float(helper.tensor_dtype_to_np_dtype(kind).itemsize)


_SIZES = {kind: _bytes_of(name, kind) for name, kind in onnx.TensorProto.DataType.items() if kind}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def save(proto: Any, path: Path) -> None:
    """Write the graph with its SHA-256; weights that are in a second file stay there."""
    noted = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, {**noted, DIGEST: _digest(proto, path.parent)})
    onnx.save(proto, str(path))


def save_again(path: Path) -> None:
    """Give a file that another tool made from ours its own SHA-256 in place of the former one."""
    save(onnx.load(str(path), load_external_data=False), path)


def example_sizes(texts: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes that the example inputs had at the free axes of a file, from its texts."""
    try:
        noted = dict(decoded(texts.get(AXES, "{}"), "The text", depth=1))
    except (TypeError, ValueError, StateMismatchError):  # somebody else's text
        return {}
    return {name: size for name, size in noted.items() if type(size) is int and size > 0}


def values_of(proto: Any) -> dict[str, tuple[list[int], int]]:
    """Return shape and type of every value at batch size 1; other free axes as in the example.

    Raises:
        ValueError: A value would take more memory than any network needs.
    """
    sizes = example_sizes({entry.key: entry.value for entry in proto.metadata_props})
    proto = copy.deepcopy(proto)
    graph = proto.graph
    for value in graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = sizes.get(axis.dim_param, 1)
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    values = {
        v.name: (
            [d.dim_value for d in v.type.tensor_type.shape.dim],
            v.type.tensor_type.elem_type,
        )
        for v in [*inferred.input, *inferred.value_info, *inferred.output]
    }
    check_values({name: (shape, _SIZES.get(kind, 1)) for name, (shape, kind) in values.items()})
    return values


def data_file(target: Path) -> Path:
    """Return where the weights of a file go if they need one of their own.

    That is ``name.onnx.data``; where it is in use by a former file, a further name, so that at no
    moment a graph is beside the weights of another one.
    """
    number, free = 2, target.with_name(f"{target.name}.data")
    while free.exists():
        free = target.with_name(f"{target.name}.{number}.data")
        number += 1
    return free


def files_of(path: str | Path) -> list[Path]:
    """Return a file, and the one that has its weights where there is one."""
    return [Path(path), *_beside(load(path), Path(path).parent)]


def size_of(path: str | Path) -> int:
    """Return the bytes of a file, and of its weights where they are beside it."""
    return sum(file.stat().st_size for file in files_of(path))


@contextmanager
def drafting(target: Path) -> Iterator[Path]:
    """Give a path for a draft of a file, in a folder of its own beside it that is then deleted.

    Raises:
        UnwritableError: The folder cannot be written to, or the disk is full.
    """
    with draft_folder(target.name, target.parent, target) as folder:
        yield folder / target.name


def install(draft: Path, target: Path) -> None:
    """Move a file, and its weights, to where they belong, in one rename of the graph.

    Args:
        draft: The file, on the file system of the target.
        target: Its place. A former file, and weights that were only its own, are replaced.

    Raises:
        UnwritableError: The folder cannot be written to; a former file is as it was.
    """
    former: list[Path] = []
    with suppress(CompressionError):  # something else may be there
        former = files_of(target)[1:] if target.is_file() else []
    weights = data_file(target)
    files = _with_weights_in(draft, weights.name)
    with told_where(target, also=True):
        try:
            for file in files:
                with file.open("rb") as content:
                    os.fsync(content.fileno())
            for file in files[1:]:
                file.replace(weights)
            draft.replace(target)
        except OSError:
            for _ in files[1:]:
                weights.unlink(missing_ok=True)
            raise
    for file in former:
        if file.name.startswith(target.name):
            file.unlink(missing_ok=True)


def _with_weights_in(draft: Path, name: str) -> list[Path]:
    """Give the weights of a draft another name, and return its files."""
    own, *others = files_of(draft)
    if others and others[0].name != name:
        proto = load(draft)
        for tensor in tensors_within(proto):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        others = [others[0].replace(draft.with_name(name))]
        save(proto, draft)
    return [own, *others]


def relabel(
    proto: Any,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    sizes: Mapping[str, str | int] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Give a graph names for its ends and sizes, and texts beside those that it has.

    Args:
        proto: Changed in place.
        inputs: New names; none: they stay.
        outputs: New names; none: they stay.
        sizes: Names or numbers for the symbols of shapes.
        notes: Texts by name.
    """
    graph = proto.graph
    ends = [*zip(graph.input, inputs, strict=False), *zip(graph.output, outputs, strict=False)]
    wanted = {value.name: name for value, name in ends if value.name != name}
    for name in set(wanted.values()) - set(wanted):  # an inner value may have this name
        wanted[name] = f"{name}_inner"
    _rename(graph, wanted)
    named = {str(old): str(new) for old, new in (sizes or {}).items()}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.HasField("dim_param"):
                _set_size(size, re.sub(r"\w+", lambda m: named.get(m[0], m[0]), size.dim_param))
    noted = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, noted | dict(notes or {}))


def _set_size(size: Any, text: str) -> None:
    if text.isdigit():
        size.dim_value = int(text)
    else:
        size.dim_param = text


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _rename(inner, names)
