"""Two networks side by side, torch modules or ONNX files: what is known of them, and as tables."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pbcompress.comparison.intervals import Estimate
from pbcompress.comparison.pictures import Point, accuracy_picture, layer_picture
from pbcompress.core.markdown import as_document, as_text
from pbcompress.core.text_tables import render_markdown, render_text, speed_up
from pbcompress.costs.flop_counters import LayerCost, side_by_side
from pbcompress.onnx_files.session import Latency

__all__ = ["Comparison", "Side"]

COUNTERS = {"fvcore": "FLOPs, fvcore", "FlopCounterMode": "FLOPs, FlopCounterMode"}
GRAPH = "ONNX graph"
ROLES = ("before", "after", "control")


@dataclass(frozen=True)
class Side:
    """One of the networks.

    Attributes:
        name: Class of the module, or name of the file.
        is_file: Whether an ONNX file was given: then every number here is read from it.
        params: Parameters of a module (shared ones once), or weights in a file.
        flops: Multiply-adds at batch 1: as fvcore counts a module; of the convolutions and matrix
            products in a file.
        flops_by: The same by every counter that applies: "fvcore" and "FlopCounterMode" for a
            module, "ONNX graph" for the file that was given or exported.
        explanation: Why the two counts of a module differ, by operation; "" up to 2 %.
        file_bytes: Size of the ONNX file; a module is exported in its inference form.
        uncounted_ops: Operations that are not in ``flops``.
        latency: ONNX Runtime, one thread, interleaved.
        peak_activations: Most bytes of activations alive at once at batch 1, from the graph.
        peak_memory: Resident bytes that a fresh process needs for the file and one run; None where
            the system does not say.
        layers: Cost of each layer by name.
        score: The metric, where data were given.
    """

    name: str
    is_file: bool
    params: int
    flops: int
    flops_by: Mapping[str, int]
    explanation: str
    file_bytes: int
    uncounted_ops: Mapping[str, int]
    latency: Latency
    peak_activations: int
    peak_memory: int | None
    layers: Mapping[str, LayerCost]
    score: Estimate | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Side":
        """Rebuild it from JSON data."""
        rebuilt = {
            "latency": Latency(**data["latency"]),
            "layers": {name: LayerCost(**layer) for name, layer in data["layers"].items()},
            "score": data["score"] and Estimate(**data["score"]),
        }
        return cls(**{**data, **rebuilt})


@dataclass(frozen=True)
class Comparison:
    """Two networks, perhaps a control beside them, on the same inputs; ``print`` shows the table.

    Attributes:
        before: The first network.
        after: The second.
        control: Another way to the size of the second, where one was given.
        batch: Batch size of the latency: 1, or that of a file whose batch size is fixed.
        compared: Samples that the outputs of the two were compared on: those of the data, else the
            example inputs.
        max_difference: Largest absolute difference of any output; None where ``problem`` says why.
        agreement: Share of samples with the same highest output; None where there are no classes.
        problem: Why the outputs cannot be compared, else "".
        metric_name: Of the task.
        change: Metric of the second less that of the first, where data were given.
        over_control: Metric of the second less that of the control, paired in the same way.
    """

    before: Side
    after: Side
    control: Side | None
    batch: int
    compared: int
    max_difference: float | None
    agreement: float | None
    problem: str
    metric_name: str
    change: Estimate | None = None
    over_control: Estimate | None = None

    @property
    def sides(self) -> tuple[Side, ...]:
        """All networks."""
        return (self.before, self.after, *([self.control] if self.control else []))

    @property
    def labels(self) -> list[str]:
        """The networks in words: what they are here, and their names."""
        return [f"{role}: {side.name}" for role, side in zip(ROLES, self.sides, strict=False)]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table, header first."""
        table: list[tuple[str, ...]] = [("", *self.labels, "ratio")]
        table.append(self._counted("parameters", [side.params for side in self.sides]))
        for counter in (*COUNTERS, GRAPH):
            counts = [side.flops_by.get(counter) for side in self.sides]
            if any(count is not None for count in counts):
                table.append(self._counted(COUNTERS.get(counter, f"FLOPs, {counter}"), counts))
        table.append(self._counted("ONNX file, bytes", [side.file_bytes for side in self.sides]))
        medians = (f"{side.latency.median:.3f}" for side in self.sides)
        speed = speed_up(self.after.latency.ratio)
        table.append(("ONNX Runtime, median ms", *medians, speed))
        late = (f"{side.latency.p95:.3f}" for side in self.sides)
        table.append(("ONNX Runtime, 95th percentile", *late, ""))
        activations = [side.peak_activations for side in self.sides]
        table.append(self._counted("peak activations, bytes", activations))
        if any(side.peak_memory is not None for side in self.sides):
            table.append(
                self._counted("resident memory, bytes", [s.peak_memory for s in self.sides])
            )
        if self.change:
            table.append((self.metric_name, *(str(s.score) for s in self.sides), str(self.change)))
        blank = ("",) * len(self.sides[2:])
        if self.over_control:
            label = f"{self.metric_name}, after less control"
            table.append((label, "", "", *blank, str(self.over_control)))
        if self.max_difference is not None:
            gap = f"{self.max_difference:.2e}"
            table.append(("largest output difference", "", gap, *blank, ""))
        if self.agreement is not None:
            table.append(("same highest output", "", f"{self.agreement:.1%}", *blank, ""))
        return table

    @staticmethod
    def _counted(label: str, counts: list[int] | list[int | None]) -> tuple[str, ...]:
        a, b = counts[:2]
        ratio = f"{b / a:.1%}" if a and b is not None else ""
        return (label, *("-" if count is None else f"{count:,}" for count in counts), ratio)

    def notes(self) -> list[str]:
        """Return what the numbers mean, a sentence each."""
        found = [
            "One FLOP is one multiply-add, of one sample. A module's FLOPs are counted on itself, "
            "and on the graph of its inference form, in which norms are folded."
        ]
        if any(side.is_file for side in self.sides):
            found.append("The parameters of a file are its weights, norms folded in.")
        if self.batch != 1:
            found.append(f"A file whose batch size is fixed is counted at that size, {self.batch}.")
        found += [
            f"{label}: {side.explanation}"
            for label, side in zip(self.labels, self.sides, strict=True)
            if side.explanation
        ]
        found.append(
            f"ONNX Runtime with one thread at batch {self.batch}, the files in turn, "
            f"{self.before.latency.rounds} runs each; the speed is the median of the ratios."
        )
        if self.change and self.before.score:
            methods = f"{self.before.score.method}; of the change {self.change.method}"
            count = f"{self.change.samples:,} samples"
            found.append(f"{self.metric_name} on {count}, with 95 % intervals ({methods}).")
        for of, change in (("the change", self.change), ("after less control", self.over_control)):
            if change and change.p_value is not None:
                found.append(f"Exact McNemar test of {of}: p = {change.p_value:.3g}.")
        where = "the data" if self.change else "the example inputs"
        apart = self.problem and f": {self.problem}"
        found.append(f"Outputs were compared on {self.compared:,} samples of {where}{apart}.")
        return found

    def __str__(self) -> str:
        return as_document("\n".join([render_text(self.rows()), "", *self.notes()]))

    def to_markdown(self) -> str:
        """Return the table and what its numbers mean as Markdown."""
        notes = "\n".join(f"- {as_text(note)}" for note in self.notes())
        return as_document(f"{render_markdown(self.rows())}\n\n{notes}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Comparison":
        """Rebuild a comparison from `to_dict`."""
        rebuilt = {
            "before": Side.from_dict(data["before"]),
            "after": Side.from_dict(data["after"]),
            "control": data["control"] and Side.from_dict(data["control"]),
            "change": data["change"] and Estimate(**data["change"]),
            "over_control": data["over_control"] and Estimate(**data["over_control"]),
        }
        return cls(**{**data, **rebuilt})

    def layers(self) -> dict[str, tuple[LayerCost | None, LayerCost | None]]:
        """Return the layers of the two by name, dendrites with their layer; None where missing."""
        return side_by_side(self.before.layers, self.after.layers)

    def plot(self, path: str | Path, show: Literal["layers", "accuracy"] = "layers") -> None:
        """Write a picture.

        Args:
            path: A file that ends in .svg or .png.
            show: "layers": width, parameters and FLOPs of every layer before and after.
                "accuracy": the metric against parameters with its interval, the control beside it.

        Raises:
            CompressionError: The ending is another one, matplotlib is not installed, there is no
                metric to show, or the file cannot be written.
        """
        if show == "layers":
            layer_picture(self.layers(), Path(path))
        else:
            points = [
                Point(label, role, side.params, side.score)
                for label, role, side in zip(self.labels, ROLES, self.sides, strict=False)
            ]
            accuracy_picture(points, self.metric_name, Path(path))
