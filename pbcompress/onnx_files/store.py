"""An ONNX file on disk: read with suspicion, written whole or not at all.

Below the bound of its format a network is one file; above, its weights are in a second one.

A graph and weights in a second file cannot be replaced in one rename. So new weights take a name
that is free, the graph that names them is renamed over the former one, and only then do the former
weights go: a process that is killed anywhere leaves a whole file.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from pbcompress.core.drafts import draft_folder, told_where
from pbcompress.errors import CompressionError, StateMismatchError, first_line

__all__ = [
    "ONE_FILE",
    "data_file",
    "drafting",
    "files_of",
    "install",
    "load",
    "relabel",
    "save",
    "size_of",
]

# Protocol buffers end at 2 GiB; 16 MiB are left for the graph.
ONE_FILE = 2**31 - 2**24
AXES = "axes"  # the text of a file that has, as JSON, what `example_sizes` returns


def load(path: str | Path) -> Any:
    """Return the graph of a file; weights that are in a second file stay there.

    Raises:
        StateMismatchError: It is missing, cut off or no ONNX file, claims weights that are not
            there, or names a file outside of its own folder.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as err:
        raise StateMismatchError(f"{path} is no whole ONNX file: {first_line(err)}.") from err
    for tensor in _tensors(proto.graph):
        problem = _problem(tensor, Path(path).parent)
        if problem:
            raise StateMismatchError(
                f"{path} was to be read, and its weight {tensor.name!r} {problem}. Do not use this "
                "file; get a whole one from its source."
            )
    return proto


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors of a graph and of the graphs within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _tensors(inner)


def _problem(tensor: Any, folder: Path) -> str | None:
    """Return what is wrong with where a tensor says that its values are."""
    if any(size < 0 for size in tensor.dims) or tensor.data_type not in _SIZES:
        return f"has the shape {list(tensor.dims)} and the type {tensor.data_type}"
    wanted = math.ceil(math.prod(tensor.dims) * _SIZES[tensor.data_type])
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        held = len(tensor.raw_data)
        is_there = held == wanted if held else any(len(getattr(tensor, f)) for f in _FIELDS)
        return None if is_there or not wanted else f"has {held} bytes instead of {wanted}"
    noted = {entry.key: entry.value for entry in tensor.external_data}
    location = noted.get("location", "")
    file = folder / location
    is_inside = file.resolve().parent == folder.resolve() and not Path(location).is_absolute()
    if not location or not is_inside or file.is_symlink():
        return f"is said to be in {location!r}, which is not beside the file"
    if not file.is_file():
        return f"is in {location!r}, which is not there"
    try:
        start, length = int(noted.get("offset", 0)), int(noted.get("length", wanted))
    except ValueError:
        return "has no numbers for its place"
    if length != wanted or not 0 <= start <= file.stat().st_size - length:
        return f"takes {wanted} bytes, and {location!r} has fewer at its place"
    return None


def _bytes_of(name: str, kind: int) -> float:
    """Return the bytes of an element; those of two and four bits share one."""
    bits = {"INT4": 4, "FLOAT4": 4, "INT2": 2}
    packed = [size for part, size in bits.items() if part in name]
    return packed[0] / 8 if packed else float(helper.tensor_dtype_to_np_dtype(kind).itemsize)


_SIZES = {kind: _bytes_of(name, kind) for name, kind in onnx.TensorProto.DataType.items() if kind}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def save(proto: Any, path: Path) -> None:
    """Write the graph; weights that are in a second file stay there."""
    onnx.save(proto, str(path))


def example_sizes(texts: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes that the example inputs had at the free axes of a file, from its texts."""
    try:
        noted = dict(json.loads(texts.get(AXES, "{}")))
    except (TypeError, ValueError):  # somebody else's text
        return {}
    return {name: size for name, size in noted.items() if isinstance(size, int) and size > 0}


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
    proto, own = load(path), Path(path)
    locations = [
        entry.value
        for tensor in _tensors(proto.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    return [own, *(own.with_name(name) for name in dict.fromkeys(locations))]


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
        for tensor in _tensors(proto.graph):
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
