"""What `compress` returns: the network, and every number that was measured on the way."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbcompress.comparison.intervals import Estimate
from pbcompress.config.budget import Budget
from pbcompress.config.whole import CompressConfig
from pbcompress.core.markdown import without_controls
from pbcompress.core.text_tables import render_text
from pbcompress.core.versions import version_of
from pbcompress.costs.measured import ModelCost
from pbcompress.export.fusion import fuse
from pbcompress.export.onnx_export import ExportReport, export_onnx
from pbcompress.export.pt2 import ProgramReport, export_pt2
from pbcompress.export.spec import save_spec
from pbcompress.packaging.folder import Package, pack
from pbcompress.packaging.model_card import CardConfig
from pbcompress.packaging.package_contents import Contents, contents_of_network
from pbcompress.planning.width_plan import WidthPlan
from pbcompress.report.headline import headline
from pbcompress.report.tables import before_after, layer_widths
from pbcompress.report.writing import REPORT_FILES, write_report
from pbcompress.runs.contenders import Contender, Score
from pbcompress.runs.deployment import Deployment, file_notes
from pbcompress.runs.facts import ContenderFacts, Metric, NetworkFacts, RunFacts
from pbcompress.runs.run_folder import save_run
from pbcompress.runs.sample import Sample, sample_of
from pbcompress.training.history import History
from pbcompress.training.task import Data, Task

__all__ = ["CompressionResult"]


@dataclass(frozen=True)
class CompressionResult:
    """The compressed network and what is known of it; ``print(result)`` says it in short.

    Attributes:
        cost_before: Cost of the original.
        budget: What was asked for.
        score_before: Metric of the original; None without data.
        chosen: The network that became the result.
        other: The network beside it, if there is one: the control, or what lost the trial and was
            trained no further.
        deployment: Files and latencies, the reason why there are none, or None if not asked for.
        history: Every epoch of every network.
        config: All choices.
        task: Loss and metric.
        seed: Seed.
        note: How the result was chosen, in a sentence.
        example_inputs: Inputs of one forward pass.
        fingerprint: Identifies model, target, configuration, seed and task.
        over_control: Metric of ``model`` less that of the control on the same test samples (val
            where there is no test), with its 95 % interval; None without a control.
    """

    cost_before: ModelCost
    budget: Budget
    score_before: Score | None
    chosen: Contender
    other: Contender | None
    deployment: Deployment | str | None
    history: History
    config: CompressConfig
    task: Task
    seed: int
    note: str
    example_inputs: object
    fingerprint: str
    over_control: Estimate | None = None

    def __str__(self) -> str:
        facts = self.facts()
        tables = before_after(facts), layer_widths(facts)
        lines = [without_controls(line) for line in headline(facts)]
        note = without_controls(self.note)
        return "\n\n".join(["\n".join(lines), *map(render_text, tables), note])

    def __repr__(self) -> str:
        before, after = self.cost_before.params, self.cost_after.params
        return f"CompressionResult({before:,} -> {after:,} parameters)"

    @property
    def model(self) -> nn.Module:
        """Trained, dendrites attached, in eval mode."""
        return self.chosen.network

    @property
    def plan(self) -> WidthPlan:
        """The widths that were cut."""
        return self.chosen.plan

    @property
    def cost_after(self) -> ModelCost:
        """Cost of ``model``, dendrites included; never above what ``budget`` asks of it."""
        return self.chosen.cost

    @property
    def score_after(self) -> Score | None:
        """Metric of ``model``; None without data."""
        return self.chosen.score

    def facts(self) -> RunFacts:
        """Return everything that the report shows."""
        return RunFacts(
            pbcompress=version_of("pbcompress"),
            torch=torch.__version__,
            budget=self.budget,
            seed=self.seed,
            note=self.note,
            fingerprint=self.fingerprint,
            metric=Metric(self.task.metric_name, self.task.higher_is_better),
            config=self.config,
            before=NetworkFacts(cost=self.cost_before, score=self.score_before),
            after=ContenderFacts.of(self.chosen),
            other=ContenderFacts.of(self.other) if self.other else None,
            over_control=self.over_control,
            deployment=self.deployment,
            left_alone=self.plan.left_alone,
            planned=self.plan.shipped,
            expected_speedup=self.plan.expected_speedup,
        )

    def frozen(self) -> nn.Module:
        """Return the inference form; see `fuse`."""
        return fuse(self.model)

    def export_onnx(self, path: str | Path, **options: Any) -> ExportReport:
        """Export the inference form and prove the file equal; see `export_onnx`.

        The file says what it is: parameters, FLOPs, hash of the plan, fingerprint and metric.
        """
        notes = file_notes(
            self.cost_after, self.plan, self.fingerprint, self.task, self.score_after
        )
        options = {**options, "metadata": notes | dict(options.get("metadata", {}))}
        return export_onnx(self.frozen(), path, self.example_inputs, **options)

    def export_pt2(self, path: str | Path, **options: Any) -> ProgramReport:
        """Write the inference form as a program of torch; see `export_pt2`."""
        return export_pt2(self.frozen(), path, self.example_inputs, **options)

    def save_spec(self, path: str | Path, **options: Any) -> ProgramReport:
        """Write the inference form so that `load_spec` needs no source code; see `save_spec`."""
        return save_spec(self.frozen(), path, self.example_inputs, **options)

    def package(
        self, directory: str | Path, card: CardConfig | None = None, **options: Any
    ) -> Package:
        """Write a folder for the network's users; see `package`.

        Args:
            directory: The folder.
            card: What the run does not know of the network.
            options: Those of `package`, and ``int8=Data(...)``: also an 8-bit file, if it is worth
                shipping; see `export_onnx`.
        """
        data: Data | None = options.pop("int8", None)
        export_int8 = None
        if data is not None:
            export_int8 = partial(self.export_onnx, quantize="int8", data=data, task=self.task)

        def collect(folder: Path) -> Contents:
            parts = self.facts(), self.history, self._sample()
            return contents_of_network(folder, *parts, self.export_onnx, export_int8)

        return pack(Path(directory), collect, card, **options)

    def _sample(self) -> Sample:
        return sample_of(self.frozen(), self.example_inputs)

    def save(self, directory: str | Path) -> None:
        """Write what `load` and `package` need: structure, weights, history, and a sample."""
        plan, known = self.plan, (self.facts(), self.history, self._sample())
        save_run(directory, self.model, plan.steps, *known, plan.stated)

    def report(self, path: str | Path) -> None:
        """Write the report: HTML, Markdown or JSON by the file's ending."""
        write_report(path, self.facts(), self.history)

    def write_reports(self, directory: str | Path) -> None:
        """Write the report in all forms into a folder; HTML where its packages are installed."""
        for name in REPORT_FILES:
            write_report(Path(directory) / name, self.facts(), self.history, optional=True)
