"""The text of the HTML report: facts turned into words and shares. No jinja2, no drawing."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pbcompress.core.text_tables import figure
from pbcompress.costs.measured import ModelCost
from pbcompress.report.charts import Curve, metric_range
from pbcompress.report.dendrite_phases import candidates
from pbcompress.report.headline import asked_for
from pbcompress.report.hero import hero
from pbcompress.report.layer_table import layer_rows
from pbcompress.report.scores import (
    estimate_of,
    may_be_chance,
    paired_sentence,
    points,
    split_shown,
)
from pbcompress.report.tables import NAMES, is_trial_only
from pbcompress.runs.contenders import Score
from pbcompress.runs.facts import ContenderFacts, RunFacts
from pbcompress.training.history import History, Stage

__all__ = ["page_content"]

Record = Mapping[str, Any]
TIMES = "\N{MULTIPLICATION SIGN}"


def page_content(facts: RunFacts, history: History) -> dict[str, Any]:
    """Return what the template shows, charts and tables apart."""
    trained = curves(facts, history)
    return {
        **hero(facts),
        "layers": layer_rows(facts),
        "points": points(facts),
        "split": split_shown(facts),
        "has_intervals": any(p.score and p.score.low is not None for p in points(facts)),
        "problems": facts.problems,
        "int8": int8_sentence(facts),
        "curves": trained,
        "is_clipped": _is_clipped(trained, facts),
        "has_kept": any(entry["curve"].kept is not None for entry in trained),
        "has_dendrite_phases": any(is_d for e in trained for _, _, is_d in e["curve"].phases),
        "has_restarts": any(len(entry["curve"].phases) > 1 for entry in trained),
        "verdict": verdict(facts),
        "paired": paired_sentence(facts),
        "correlations": candidates(history, facts),
        "duration": _duration(history.seconds),
        "asked_for": asked_for(facts),
        "operations": _operations(facts),
        "settings": _settings(facts.config.to_dict()),
        "notes": _notes(facts),
        "is_shrunk_only": facts.after.score is None,
    }


# --- training -------------------------------------------------------------------------------------


def curves(facts: RunFacts, history: History) -> list[dict[str, Any]]:
    """Return the learning curve of every network that trained, the result first."""
    found = []
    for contender in facts.contenders:
        records = history.stage(contender.name).records
        if not records:
            continue
        kept = _kept_epoch(contender, records)
        values = [record["metric"] for record in records]
        is_chosen = contender is facts.after
        best = "" if kept is None else f", kept at {figure(values[kept])} (epoch {kept + 1})"
        found.append(
            {
                "curve": Curve(values, is_chosen, kept, _phases(records)),
                "is_chosen": is_chosen,
                "label": NAMES[contender.name] + best,
            }
        )
    return found


def _kept_epoch(contender: ContenderFacts, records: Sequence[Record]) -> int | None:
    """Return the first epoch whose metric is that of the finished network."""
    score = contender.score
    for index, record in enumerate(records):
        if (
            score
            and record["kind"] == "neuron"
            and math.isclose(record["metric"], score.val, rel_tol=1e-6)
        ):
            return index
    return None


def _is_clipped(trained: Sequence[Mapping[str, Any]], facts: RunFacts) -> bool:
    values = [value for entry in trained for value in entry["curve"].values]
    if not values:
        return False
    low, high = metric_range(values, facts.metric.higher_is_better)
    return bool(min(values) < low or max(values) > high)


def _phases(records: Sequence[Record]) -> list[tuple[int, int, bool]]:
    phases, start = [], 0
    for (_, kind), group in groupby(records, key=lambda r: (r["phase"], r["kind"])):
        end = start + len(list(group))
        phases.append((start, end, kind == "dendrite"))
        start = end
    return phases


def verdict(facts: RunFacts) -> str:
    """Return in plain words whether the dendrites were worth it."""
    by_name = {contender.name: contender for contender in facts.contenders}
    grown, wide = by_name.get(Stage.DENDRITES), by_name.get(Stage.WIDTH)
    if grown is None:
        return "No dendrites were grown."
    if wide is None or not grown.score or not wide.score:
        return (
            "The network with dendrites was the only one that was trained, so what they brought "
            "over width alone is not known."
        )
    if not grown.sets + grown.absorbed:
        return (
            "No set of dendrites helped on validation, so none was kept; the reserve for them was "
            "left to width."
        )
    if any(is_trial_only(one, facts) for one in (grown, wide)):
        return facts.note
    old, new = wide.score.val, grown.score.val
    name, samples = facts.metric.name, grown.score.val_samples
    gain = new - old if facts.metric.higher_is_better else old - new
    start = "won" if gain > 0 else "lost" if gain < 0 else "neither won nor lost"
    apart = ""
    if name == "accuracy" and gain:
        apart = f", a difference of {_plural(round(abs(gain) * samples), 'sample')}"
    pair = [estimate_of(one, facts, "val") for one in (grown, wide)]
    chance = ", which may be chance: the 95 % intervals meet" if may_be_chance(*pair) else ""
    steps = f"the same {grown.steps:,}"
    if grown.steps != wide.steps:
        steps = f"{grown.steps:,} against {wide.steps:,}"
    return (
        f"The dendrites {start}: {name} {figure(new)} on validation (n = {samples:,}) against "
        f"{figure(old)} of width alone{apart}{chance if gain else ''}. "
        f"{_tested(grown.score, wide.score)}The network with them has {grown.cost.params:,} "
        f"parameters, {grown.dendrite_params:,} of them in dendrites, and width alone "
        f"{wide.cost.params:,}, after {steps} optimizer steps."
    )


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' if count != 1 else ''}"


def _tested(grown: Score, wide: Score) -> str:
    if grown.test is None or wide.test is None:
        return ""
    samples = grown.test_samples
    return f"On test (n = {samples:,}) they have {figure(grown.test)} against {figure(wide.test)}. "


def int8_sentence(facts: RunFacts) -> str:
    """Return what 8 bits brought, and whether they were taken; "" where they were not tried."""
    found = facts.shipped.proof.quantization if facts.shipped else None
    if not found:
        return ""
    verdict = "was taken" if found.accepted else "was not taken"
    if found.failures:
        verdict += f", because it failed on {' and '.join(found.failures)}"
    return (
        f"Int8 {verdict}: validation {found.metric_name} {figure(found.metric_before)} in "
        f"float32 and {figure(found.metric_after)} in int8, both through ONNX Runtime (at most "
        f"{found.guard:g} worse was allowed); {found.bytes_before:,} and "
        f"{found.bytes_after:,} bytes; {found.speedup:.2f}{TIMES} as fast. "
        f"{_plural(len(found.excluded), 'node')} stayed in float32; it was calibrated on "
        f"{found.samples:,} samples."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _operations(facts: RunFacts) -> str:
    operations = facts.shipped.proof.operations if facts.shipped else {}
    return ", ".join(f"{kind} {TIMES} {n}" for kind, n in operations.items())


def _settings(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration as groups of (name, value)."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            groups[name] = list(_rows_of(value))
        else:
            groups.setdefault("general", []).append((name, json.dumps(value)))
    return sorted(groups.items(), key=lambda item: item[0] == "general")


def _rows_of(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in part.items():
        if isinstance(value, Mapping):
            yield from _rows_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value)


def _notes(facts: RunFacts) -> list[str]:
    before, after = facts.before.cost, facts.after.cost
    shapes = " and ".join(
        f" {TIMES} ".join(map(str, shape)) for shape in before.input_shapes.values()
    )
    notes = [
        "One FLOP is one multiply-add, counted by fvcore (and where it says so by torch's "
        "FlopCounterMode) for one sample in eval mode" + (f" (input {shapes})." if shapes else "."),
        "Operations that the count leaves out: "
        f"before, {_uncounted(before)}; after, {_uncounted(after)}.",
    ]
    notes += [
        f"{when}: {cost.explanation}"
        for when, cost in (("Before", before), ("After", after))
        if cost.explanation
    ]
    if facts.shipped:
        old, new = facts.shipped.latency_before, facts.shipped.latency_after
        notes.append(
            "Latency before and after is that of ONNX Runtime on the CPU of the machine that ran "
            "the compression, one thread, batch 1. Both files ran in "
            f"turn, {new.rounds:,} times each; the times are medians (95th percentile "
            f"{old.p95:.3g} and {new.p95:.3g} ms), and the speed-up is the median of the "
            "ratios of neighbouring runs, so it need not be the quotient of the medians."
        )
        notes.append("Both files were exported in their inference form, BatchNorm folded in.")
    score = facts.after.score
    if score and score.test is None:
        notes.append(
            "No test split was given. The validation split chose the weights, so its metric "
            "flatters the result."
        )
    elif score:
        notes.append(
            "The validation split chose weights, sets and network. The test split was scored once "
            "for each network and chose nothing."
        )
    shown = estimate_of(facts.after, facts, score.split) if score else None
    if shown and shown.low is not None and shown.high is not None:
        notes.append(
            f"The 95 % interval of an accuracy is Wilson's: {figure(shown.low)} to "
            f"{figure(shown.high)} for {figure(shown.value)} at n = {shown.samples:,}. It says how "
            "far other samples could move it, not how far another training could. A change is "
            "coloured only where the intervals of both networks do not meet."
        )
    return notes


def _uncounted(cost: ModelCost) -> str:
    operations = cost.uncounted_ops.items()
    return ", ".join(f"{kind} {TIMES} {n}" for kind, n in operations) or "none"
