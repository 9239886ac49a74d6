"""Writes an ONNX file with the axes that are to be free, and has it proven."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pbcompress.core.source_lines import line_of
from pbcompress.core.versions import version_of
from pbcompress.errors import CompressionError, ExportMismatchError, first_line
from pbcompress.export.free_axes import FreeAxis, Inputs, other_sizes
from pbcompress.export.parity import Parity, prove
from pbcompress.export.translation import fixed_line, output_of, translate
from pbcompress.onnx_files.contents import FileFacts, facts_of, write_metadata
from pbcompress.onnx_files.store import AXES, MAKER

OTHER_AXES = (
    " Where the batch is another axis of an input (a state of nn.GRU has it second), say so: "
    "pb.Example(inputs, batch_axes={...})."
)

__all__ = ["FileWriter"]


@dataclass(frozen=True)
class FileWriter:
    """Writes the files of one export, whose networks take the same inputs, and proves each.

    Attributes:
        inputs: The example.
        others: Further inputs to compare on.
        names: Of the inputs and of the outputs, where they are given.
        opset: ONNX operator set.
        metadata: Texts that a file carries.
        providers: Of ONNX Runtime, for the proof.
    """

    inputs: Inputs
    others: Sequence[Inputs]
    names: tuple[Sequence[str] | None, Sequence[str] | None]
    opset: int
    metadata: Mapping[str, str]
    providers: Sequence[str]

    def write(
        self, network: nn.Module, file: Path, free: Sequence[FreeAxis], *, is_auto: bool = False
    ) -> tuple[list[FreeAxis], FileFacts, Parity]:
        """Write a file, and return its free axes, its outside and its proof."""
        found = self._translated(network, file, free, is_auto=is_auto)
        if is_auto:
            kept = [axis for axis in found if axis.is_batch or self._is_free(network, file, axis)]
            if len(kept) < len(found):
                found = self._translated(network, file, kept, is_auto=True)
        notes = {MAKER: version_of("pbcompress"), **_sizes_note(found), **self.metadata}
        write_metadata(file, notes)
        facts = facts_of(file)  # raises where it is no valid file
        parity = prove(network, file, [self.inputs, *self.others], found, self.providers)
        return found, facts, parity

    def _is_free(self, network: nn.Module, file: Path, axis: FreeAxis) -> bool:
        """Tell whether a file follows an axis: the translation of a layer may not, and says so."""
        try:
            prove(network, file, [self.inputs], [axis], self.providers)
        except (CompressionError, ExportMismatchError):
            return False
        return True

    def _translated(
        self, network: nn.Module, file: Path, free: Sequence[FreeAxis], *, is_auto: bool
    ) -> list[FreeAxis]:
        """Write the graph, and return the axes that are free in it and in the network."""
        inputs, (input_names, output_names) = self.inputs, self.names

        def run(axes: Sequence[FreeAxis]) -> list[FreeAxis]:
            return translate(
                network,
                inputs,
                file,
                axes,
                opset=self.opset,
                input_names=input_names,
                output_names=output_names,
            )

        for axis in free if not is_auto else ():
            if not axis.is_batch:
                _check_runs(network, inputs, axis)
        found = run(free)
        if is_auto:
            kept = [a for a in found if a.is_batch or _other_sizes(network, inputs, a)[0]]
            if len(kept) < len(found):
                found = run(kept)
            return found
        there = {place for axis in found for place in axis.places}
        for axis in free:
            if not there.issuperset(axis.places):
                raise _fixed(inputs, axis, fixed_line(network, inputs, free, axis))
        return found


def _other_sizes(
    network: nn.Module, inputs: Inputs, axis: FreeAxis
) -> tuple[list[int], Exception | None]:
    return other_sizes(lambda call: output_of(network, call), inputs.call, axis)


def _check_runs(network: nn.Module, inputs: Inputs, axis: FreeAxis) -> None:
    sizes, problem = _other_sizes(network, inputs, axis)
    if not sizes and problem is not None:
        line = f"{line_of(problem) or 'one of its layers'}: {first_line(problem)}"
        raise _fixed(inputs, axis, line)


def _fixed(inputs: Inputs, axis: FreeAxis, line: str) -> CompressionError:
    where = " and ".join(f"axis {place} of {inputs.names[i]!r}" for i, place in axis.places)
    what = (
        "Pass dynamic=None if the batch size is fixed"
        if axis.is_batch
        else "Leave it out of dynamic"
    )
    return CompressionError(
        f"{axis.name!r}, {where}, was to be free in the file, and the network fixes it at "
        f"{axis.size}, at {line}. {what}, or let that line follow the shape of its input (no int() "
        "or numbers in views; adaptive pooling)."
        + (OTHER_AXES if axis.is_batch and len(inputs.tensors) > 1 else "")
    )


def _sizes_note(free: Sequence[FreeAxis]) -> dict[str, str]:
    sizes = {axis.name: axis.size for axis in free if not axis.is_batch}
    return {AXES: json.dumps(sizes)} if sizes else {}
