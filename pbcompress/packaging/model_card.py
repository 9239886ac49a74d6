"""The model card: what a network is, what it scores, how it was made and what its limits are.

Its head is the YAML that the Hugging Face Hub reads, its text is for people.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from pbcompress.comparison.intervals import wilson
from pbcompress.core.markdown import as_code, as_document, as_paragraphs, as_text
from pbcompress.core.text_tables import figure, render_markdown
from pbcompress.errors import CompressionError
from pbcompress.report.headline import asked_for, headline
from pbcompress.report.tables import before_after, dendrite_account, layer_widths
from pbcompress.runs.contenders import Split
from pbcompress.runs.facts import RunFacts

__all__ = ["CardConfig", "model_card", "result_sections"]

TEMPLATE = Path(__file__).with_name("shipped") / "card.md"
TAGS = ("onnx", "onnxruntime", "pytorch", "model-compression", "pruning", "pbcompress")
IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.+/-]*", re.ASCII)

PackageConfig = Mapping[str, Any]  # config.json of a package, which its runners read


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """What a model card says beyond what a run knows; every field may be left out.

    Args:
        license: Under which the network is given away, as the Hub writes it: "apache-2.0", "mit".
        task: What it does, as the Hub writes it: "image-classification".
        datasets: What it was trained on.
        tags: Further words to find it by.
        classes: Names of the outputs of a classifier, in their order.
        preprocessing: What is done to an input before the network gets it, in words.
        intended_use: What it is for, and what it is not for, in words.

    Raises:
        CompressionError: A license, task, data set or tag is no such word.

    Example:
        >>> CardConfig(license="mit", task="image-classification").license
        'mit'
    """

    license: str | None = None
    task: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    preprocessing: str | None = None
    intended_use: str | None = None

    def __post_init__(self) -> None:
        words = [self.license, self.task, *self.datasets, *self.tags]
        wrong = [word for word in words if word is not None and not IDENTIFIER.fullmatch(word)]
        if wrong:
            raise CompressionError(
                f"A model card was to say {wrong[0]!r}; licenses, tasks, data sets and tags are "
                'words of letters, digits and . + / _ -, such as "apache-2.0".'
            )


def model_card(
    facts: RunFacts, seconds: float, proof: str, config: PackageConfig, card: CardConfig
) -> str:
    """Return the README.md of a package.

    Args:
        facts: See `CompressionResult.facts`.
        seconds: Of training and validation, as far as the run knows.
        proof: How the file was proven, in a sentence.
        config: The package's ``config.json``.
        card: What the run does not know.
    """
    card_text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        head="\n".join(_yaml(_head(facts, config, card))),
        name=config["name"],
        summary=_summary(facts),
        models=render_markdown(_models(config)),
        interface=render_markdown(_interface(config)),
        classes=_classes(config),
        preprocessing=as_paragraphs(card.preprocessing or "")
        or "Not known to the run that made this. Inputs must be prepared as those of the training.",
        intended_use=as_paragraphs(card.intended_use or "")
        or "Not stated. It does what the network that it was made from does, as well as the "
        "results below say, on data like that which it was scored on.",
        scores="\n".join(f"- {as_text(_sentence(score))}" for score in _scores(facts))
        or "Nothing was scored: the network was shrunk and not trained.",
        results="\n\n".join(result_sections(facts)).replace("## Layers", "### Layers"),
        origin=_origin(facts),
        proof=f"{as_text(proof)} {_sample(config)}",
        limits="\n".join(f"- {limit}" for limit in _limits(facts, config)),
        energy=f"Not measured. Training and validation of the compression took {seconds:,.0f} s on "
        "the machine that ran it; the training of the original is not counted.",
    )
    return as_document(card_text)


def result_sections(facts: RunFacts) -> list[str]:
    """Return before and after, what dendrites brought, and the layers, in Markdown."""
    account = dendrite_account(facts)
    return [
        render_markdown(before_after(facts)),
        as_text(facts.note),
        *([render_markdown(account)] if account else []),
        "## Layers",
        render_markdown(layer_widths(facts)),
    ]


@dataclass(frozen=True)
class _Score:
    """A metric on a split."""

    metric: str
    split: str
    value: float
    samples: int

    def interval(self) -> str:
        """Return the interval in words; "" for a metric that is no share of samples."""
        if self.metric != "accuracy" or not 0 <= self.value <= 1 or not self.samples:
            return ""
        low, high = wilson(round(self.value * self.samples), self.samples)
        return f"95 % interval {figure(low)} to {figure(high)} (Wilson)"


def _scores(facts: RunFacts) -> list[_Score]:
    """Return what the result scores, test first."""
    score = facts.after.score
    if not score:
        return []
    splits: tuple[Split, ...] = ("test", "val")
    return [
        _Score(facts.metric.name, split, value, score.samples(split))
        for split in splits
        if (value := score.on(split)) is not None
    ]


def _sentence(score: _Score) -> str:
    splits = {"test": "test split, scored once", "val": "validation split, which chose the weights"}
    interval = (
        score.interval() or "no interval, because only the metric of the whole split is known"
    )
    return (
        f"{score.metric} {figure(score.value)} on {score.samples:,} samples of the "
        f"{splits[score.split]}; {interval}"
    )


def _head(facts: RunFacts, config: PackageConfig, card: CardConfig) -> dict[str, Any]:
    """Return what the Hub reads; what is not known is left out."""
    task, dataset = card.task or "other", (*card.datasets, "not stated")[0]
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": dataset, "type": dataset, "split": score.split},
            "metrics": [
                {
                    "type": score.metric,
                    "value": score.value,
                    "name": ", ".join(
                        filter(None, (score.metric, f"n = {score.samples}", score.interval()))
                    ),
                }
            ],
        }
        for score in _scores(facts)[:1]  # validation chose the weights: no result beside test
    ]
    head = {
        "license": card.license,
        "library_name": "onnx",
        "pipeline_tag": card.task,
        "tags": list(dict.fromkeys((*TAGS, *card.tags))),
        "datasets": list(card.datasets),
        "metrics": [facts.metric.name] if results else [],
        "model-index": [{"name": config["name"], "results": results}] if results else [],
    }
    return {key: value for key, value in head.items() if value}


def _yaml(data: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Return lines of YAML; texts are quoted as in JSON, which YAML reads."""
    indent, lines = "  " * depth, []
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_yaml(value, depth + 1)]
        elif isinstance(value, list):
            lines.append(f"{indent}{key}:")
            for item in value:
                inner = _yaml(item, depth + 1) if isinstance(item, Mapping) else [_scalar(item)]
                lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    text = json.dumps(value)
    # 1e-07 is a text in YAML 1.1, 1.0e-07 a number
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def _quoted(text: str) -> str:
    """Return a text as JSON and YAML read it: what is not printed in words, all else as it is."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(_yaml_character(c) for c in shown)


def _yaml_character(c: str) -> str:
    is_plain = c.isprintable() and c not in "<>&"  # so that it is no HTML where nobody reads YAML
    if is_plain:
        return c
    return f"\\u{ord(c):04x}" if ord(c) < 2**16 else f"\\U{ord(c):08x}"


def _summary(facts: RunFacts) -> str:
    about = (
        "A network in ONNX that pbcompress made from a larger one; every share and every speed is "
        "of that one. What is not known of it is said."
    )
    return "\n\n".join([*map(as_text, headline(facts)), about])


def _models(config: PackageConfig) -> Sequence[Sequence[str]]:
    header = ("file", "bytes", "largest difference from torch, on the sample", "same top-1")
    return [
        header,
        *(
            (
                as_code(name),
                f"{entry['bytes']:,}",
                f"{entry['max_difference']:.1e}",
                "-" if entry["same_top1"] is None else f"{entry['same_top1']:.0%}",
            )
            for name, entry in config["models"].items()
        ),
    ]


def _interface(config: PackageConfig) -> Sequence[Sequence[str]]:
    rows: list[Sequence[str]] = [("", "name", "type", "shape")]
    for side in ("inputs", "outputs"):
        for entry in config[side]:
            shape = " x ".join(map(str, entry["shape"])) or "a number"
            rows.append((side.removesuffix("s"), as_code(entry["name"]), entry["type"], shape))
    return rows


def _classes(config: PackageConfig) -> str:
    names = config["classes"]
    return (
        f"**Classes.** {', '.join(map(as_text, names))}."
        if names
        else "**Classes.** Their names are not known."
    )


def _origin(facts: RunFacts) -> str:
    trained = ""
    if facts.after.steps:
        trained = (
            f", then trained for {facts.after.steps:,} optimizer steps. Weights were chosen "
            "on the validation split"
        )
    return (
        f"pbcompress {as_text(facts.pbcompress)} with torch {as_text(facts.torch)}, seed "
        f"{facts.seed}: one run. Widths were planned for {as_text(asked_for(facts))}{trained}. "
        "For inference norms are folded into the layers before them."
    )


def _sample(config: PackageConfig) -> str:
    return (
        f"`sample.npz` has {config['samples']} inputs with the outputs that torch computes, and "
        "`run.py --check` compares."
    )


def _limits(facts: RunFacts, config: PackageConfig) -> list[str]:
    limits = [
        "One run with one seed. The scores hold for data like those that were scored.",
        "Other data, attacks, fairness among groups of people, and calibration were not measured.",
        "Times in the table are those of the machine that made it.",
        f"The {config['samples']} inputs in `sample.npz` are the first that the network was "
        "compressed with, usually training data: giving this folder away gives them away.",
    ]
    if len(config["models"]) > 1:
        limits.insert(1, "The scores are those of `model.onnx`, or of the same network in torch.")
    if facts.after.score is None:
        limits.insert(0, "It was shrunk and not trained: it is of no use before it is.")
    return limits
