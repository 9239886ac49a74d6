"""The report of a run, from its facts and history alone. The only module that imports jinja2."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbcompress.comparison.pictures import accuracy_chart
from pbcompress.core.tensor_files import write_bytes
from pbcompress.core.text_tables import render_markdown
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.report.charts import correlation_chart, learning_chart, score_chart
from pbcompress.report.page import page_content
from pbcompress.report.scores import paired_sentence
from pbcompress.report.tables import before_after, dendrite_account, layer_widths, shipped_files
from pbcompress.runs.run_state import read_state
from pbcompress.training.history import History

__all__ = [
    "REPORT_FILES",
    "proof_sentence",
    "read_run",
    "to_html",
    "to_json",
    "to_markdown",
    "write_report",
]

TEMPLATE = Path(__file__).with_name("page.html.jinja")
REPORT_FILES = ("report.json", "report.md", "report.html")

logger = logging.getLogger(__name__)


def read_run(directory: str | Path) -> tuple[dict[str, Any], History]:
    """Return facts and history of a saved run.

    Raises:
        StateMismatchError: A file is missing, truncated, of another kind or of a newer version.
    """
    state = read_state(directory)
    if "facts" not in state:
        raise StateMismatchError(f"{directory} holds a network without the facts of its run.")
    path = Path(directory) / "history.jsonl"
    if not path.is_file():
        return state["facts"], History()
    try:
        return state["facts"], History.from_jsonl(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise StateMismatchError(
            f"{path} is truncated or no JSON ({err}). Delete it for a report without the training."
        ) from err


def to_json(facts: Mapping[str, Any], history: History) -> str:
    """Return facts and history as JSON."""
    return json.dumps({**facts, "history": history.records}, indent=1)


def to_markdown(facts: Mapping[str, Any], history: History) -> str:
    """Return the report as Markdown."""
    parts = ["# Compression report"]
    parts += [f"**{problem}**" for problem in facts.get("evidence", {}).get("problems", [])]
    parts += [facts["note"], render_markdown(before_after(facts))]
    account = dendrite_account(facts)
    if account:
        parts += ["## What the dendrites brought and cost", render_markdown(account)]
        parts += filter(None, [paired_sentence(facts)])
    parts += ["## Widths", render_markdown(layer_widths(facts)), "## Proof", proof_sentence(facts)]
    files = shipped_files(facts)
    if files:
        parts += ["## The shipped file", file_sentence(facts), render_markdown(files)]
    parts.append(
        f"{len(history)} epochs, {history.steps:,} optimizer steps. Target "
        f"{facts['target_params']:,} parameters, seed {facts['seed']}, pbcompress "
        f"{facts['pbcompress']}, torch {facts['torch']}."
    )
    return "\n\n".join(parts) + "\n"


def proof_sentence(facts: Mapping[str, Any]) -> str:
    """Return in a sentence how the exported file was proven, or why there is none."""
    shipped = facts["deployment"]
    if shipped is None:
        return "Nothing was exported (CompressConfig.deploy is off)."
    if isinstance(shipped, str):
        return f"The network could not be exported: {shipped}"
    proof = shipped["proof"]
    sizes = ", ".join(map(str, proof["batch_sizes"]))
    return (
        f"The ONNX file (opset {proof['opset']}) was run beside torch {proof['checks']} times at "
        f"batch sizes {sizes}; the largest difference of any output is "
        f"{proof['max_difference']:.1e} ({proof['max_relative']:.1e} of the largest output)."
    )


def file_sentence(facts: Mapping[str, Any]) -> str:
    """Return when and where the numbers of the shipped files were read."""
    evidence = facts.get("evidence")
    if evidence is None:
        return (
            "Read from the file when the run had written it; pbcompress report RUN_DIR reads it "
            "anew, and times it."
        )
    if not evidence["files"]:
        return "As the run noted it; the folder has no file to read."
    sentence = "Read from the files in the run's folder when this report was made."
    timed = evidence["bench"]
    if isinstance(timed, str):
        return f"{sentence} {timed}"
    return (
        f"{sentence} Times and memory are those of the machine that made it: ONNX Runtime, "
        f"{timed['threads']} thread, the files in turn."
        if timed
        else sentence
    )


def write_report(
    path: str | Path, facts: Mapping[str, Any], history: History, *, optional: bool = False
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


def to_html(facts: Mapping[str, Any], history: History) -> str:
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
    sentences = {"proof": proof_sentence(facts), "file": file_sentence(facts)}
    return template.render(
        facts=facts, history=history, tables=tables, sentences=sentences, **content
    )


def _charts(facts: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str]:
    """Return the drawings by name; one that has nothing to show is not there."""
    charts = {}
    metric, score = facts["metric"], facts["before"]["score"]
    if len(content["points"]) > 1:
        charts["accuracy"] = accuracy_chart(
            content["points"],
            title=f"{metric['name']} against parameters: "
            + "; ".join(f"{p.label}, {p.params:,}, {p.score}" for p in content["points"]),
        )
    if content["curves"]:
        charts["learning"] = learning_chart(
            [entry["curve"] for entry in content["curves"]],
            original=score["val"] if score else None,
            higher_is_better=metric["higher_is_better"],
            title=f"Validation {metric['name']} by epoch: "
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
