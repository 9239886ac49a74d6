"""The report of a run, from its facts and history alone. The only module that imports jinja2."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbcompress.comparison.pictures import accuracy_chart
from pbcompress.core.markdown import as_document, as_text
from pbcompress.core.records import to_data
from pbcompress.core.tensor_files import write_bytes
from pbcompress.core.text_tables import figure, render_markdown
from pbcompress.errors import CompressionError
from pbcompress.export.onnx_export import ExportReport
from pbcompress.onnx_files.benchmark import Benchmark
from pbcompress.report.charts import correlation_chart, learning_chart, score_chart
from pbcompress.report.headline import asked_for, headline
from pbcompress.report.page import page_content
from pbcompress.report.scores import paired_sentence
from pbcompress.report.tables import before_after, dendrite_account, layer_widths, shipped_files
from pbcompress.runs.facts import RunFacts
from pbcompress.training.history import History

__all__ = [
    "REPORT_FILES",
    "deployment_sentence",
    "proof_sentence",
    "to_html",
    "to_json",
    "to_markdown",
    "write_report",
]

KIND, VERSION = "pbcompress report", 2
TEMPLATE = Path(__file__).with_name("page.html.jinja")
REPORT_FILES = ("report.json", "report.md", "report.html")

logger = logging.getLogger(__name__)


def to_json(facts: RunFacts, history: History) -> str:
    """Return facts and history as JSON."""
    data = {"kind": KIND, "version": VERSION, "facts": to_data(facts), "history": history.records}
    return json.dumps(data, indent=1)


def to_markdown(facts: RunFacts, history: History) -> str:
    """Return the report as Markdown."""
    parts = ["# Compression report"]
    parts += map(as_text, headline(facts))
    parts += [f"**{as_text(problem)}**" for problem in facts.problems]
    parts += [as_text(facts.note), render_markdown(before_after(facts))]
    account = dendrite_account(facts)
    if account:
        parts += ["## What the dendrites brought and cost", render_markdown(account)]
        parts += filter(None, [as_text(paired_sentence(facts))])
    parts += ["## Widths", render_markdown(layer_widths(facts))]
    parts += ["## Proof", as_text(deployment_sentence(facts))]
    files = shipped_files(facts)
    if files:
        parts += ["## The shipped file", as_text(file_sentence(facts)), render_markdown(files)]
    parts.append(
        f"{len(history)} epochs, {history.steps:,} optimizer steps. Asked for: "
        f"{as_text(asked_for(facts))}. Seed {facts.seed}, pbcompress {as_text(facts.pbcompress)}, "
        f"torch {as_text(facts.torch)}."
    )
    return as_document("\n\n".join(parts) + "\n")


def deployment_sentence(facts: RunFacts) -> str:
    """Return in a sentence how the exported file was proven, or why there is none."""
    if facts.deployment is None:
        return "Nothing was exported (CompressConfig.deploy is off)."
    if isinstance(facts.deployment, str):
        return f"The network could not be exported: {facts.deployment}"
    return proof_sentence(facts.deployment.proof)


def proof_sentence(proof: ExportReport) -> str:
    """Return in a sentence how an exported file was proven."""
    sizes = ", ".join(map(str, proof.batch_sizes))
    return (
        f"The ONNX file (opset {proof.opset}) was run beside torch {proof.checks} times at "
        f"batch sizes {sizes}; the largest difference of any output is "
        f"{proof.max_difference:.1e} ({proof.max_relative:.1e} of the largest output)."
    )


def file_sentence(facts: RunFacts) -> str:
    """Return when and where the numbers of the shipped files were read."""
    evidence = facts.evidence
    if evidence is None:
        return (
            "Read from the file when the run had written it; pbcompress report RUN_DIR reads it "
            "anew, and times it."
        )
    if not evidence.files:
        return "As the run noted it; the folder has no file to read."
    sentence = "Read from the files in the run's folder when this report was made."
    if isinstance(evidence.bench, Benchmark):
        return (
            f"{sentence} Times and memory are those of the machine that made it: ONNX Runtime, "
            f"{evidence.bench.threads} thread, the files in turn."
        )
    return f"{sentence} {evidence.bench}" if evidence.bench else sentence


def write_report(
    path: str | Path, facts: RunFacts, history: History, *, optional: bool = False
) -> None:
    """Write the report in the form that the file's ending names: .html, .md or .json.

    Args:
        path: The file.
        facts: See `CompressionResult.facts`.
        history: Every epoch.
        optional: Pass over HTML in silence where its packages are not installed.

    Raises:
        CompressionError: The ending is another one, the packages for HTML are not installed, or
            the file cannot be written.
    """
    file = Path(path)
    makers = {".html": to_html, ".md": to_markdown, ".json": to_json}
    if file.suffix not in makers:
        raise CompressionError(f"A report was to be written to {file}; use .html, .md or .json.")
    try:
        text = makers[file.suffix](facts, history)
    except ImportError as err:
        if optional:
            logger.info("No HTML report: %s", err)
            return
        raise CompressionError(
            f"The HTML report needs {err.name}. Install it: pip install 'pbcompress[report]'."
        ) from err
    write_bytes(file, text.encode())


def to_html(facts: RunFacts, history: History) -> str:
    """Return the report as one self-contained page: no script, and nothing from elsewhere.

    The same facts and history give the same bytes.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    content = page_content(facts, history)
    content["charts"] = _charts(facts, content)
    tables = {
        "summary": before_after(facts),
        "account": dendrite_account(facts),
        "widths": layer_widths(facts),
        "files": shipped_files(facts),
    }
    sentences = {"proof": deployment_sentence(facts), "file": file_sentence(facts)}
    page = template.render(
        facts=facts,
        history=history,
        tables=tables,
        sentences=sentences,
        figure=figure,
        **content,
    )
    return as_document(page)


def _charts(facts: RunFacts, content: Mapping[str, Any]) -> dict[str, str]:
    """Return the drawings by name; one that has nothing to show is not there."""
    charts = {}
    metric, score = facts.metric, facts.before.score
    if len(content["points"]) > 1:
        charts["accuracy"] = accuracy_chart(
            content["points"],
            title=f"{metric.name} against parameters: "
            + "; ".join(f"{p.label}, {p.params:,}, {p.score}" for p in content["points"]),
        )
    if content["curves"]:
        charts["learning"] = learning_chart(
            [entry["curve"] for entry in content["curves"]],
            original=score.val if score else None,
            higher_is_better=metric.higher_is_better,
            title=f"Validation {metric.name} by epoch: "
            + "; ".join(entry["label"] for entry in content["curves"]),
        )
    if content["correlations"]:
        charts["correlation"] = correlation_chart(
            [(entry["values"], entry["is_kept"]) for entry in content["correlations"]],
            title="Mean correlation of the dendrites by epoch: "
            + "; ".join(entry["text"] for entry in content["correlations"]),
        )
    scored = [e for e in content["correlations"] if e["scores"]]
    if scored:
        charts["scores"] = score_chart(
            [(entry["scores"], entry["is_kept"]) for entry in scored],
            title="Correlation of the nodes of each layer after each dendrite phase",
        )
    return charts
