"""Configurations from a flat list of choices, for tests that go through many of them."""

from dataclasses import fields
from typing import Any, get_args

from pbcompress import (
    DendriteConfig,
    DistillationConfig,
    EngineConfig,
    OptimizerConfig,
    RecoveryConfig,
)
from pbcompress.config.dendrites import Form, Rule

FORMS = {form.kind: form for form in get_args(Form)}
RULES = {rule.kind: rule for rule in get_args(Rule)}
SILENT = {"groups", "rank", "nodes", "samples"}  # left out for a form or rule without them
PARTS = {
    "optimizer": OptimizerConfig,
    "engine": EngineConfig,
    "distillation": DistillationConfig,
}


def _taken(choices: dict[str, Any], kind: type) -> dict[str, Any]:
    """Take the choices that are fields of ``kind``."""
    return {f.name: choices.pop(f.name) for f in fields(kind) if f.name in choices}


def dendrites_of(form: str = "full", rule: str = "correlation", **choices: Any) -> DendriteConfig:
    """Return dendrites; each choice goes to the form or rule that has a field of this name."""
    of_form, of_rule = _taken(choices, FORMS[form]), _taken(choices, RULES[rule])
    rest = {name: value for name, value in choices.items() if name not in SILENT}
    return DendriteConfig(form=FORMS[form](**of_form), rule=RULES[rule](**of_rule), **rest)


def recovery_of(**choices: Any) -> RecoveryConfig:
    """Return a recovery; each choice goes to the part that has a field of this name.

    The learning rate is given: a range test would be most of so short a training.
    """
    choices.setdefault("lr", 3e-3)
    parts = {name: kind(**_taken(choices, kind)) for name, kind in PARTS.items()}
    return RecoveryConfig(**{**parts, **choices})
