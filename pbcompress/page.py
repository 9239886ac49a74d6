"""What the HTML report says: facts turned into words and shares. No jinja2, no drawing."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pbcompress.charts import Curve, metric_range
from pbcompress.history import History
from pbcompress.scorecard import candidates
from pbcompress.tables import compact, is_trial_only

__all__ = ["page_content"]

Facts = Mapping[str, Any]
NAMES = {"dendrites": "with dendrites", "width": "width alone"}
MANY_LAYERS = 24
COSTS = ("params", "flops")
ARROW, TIMES, MINUS = "\N{RIGHTWARDS ARROW}", "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def page_content(facts: Facts, history: History) -> dict[str, Any]:
    """Return what the template shows, charts and tables apart."""
    trained = curves(facts, history)
    return {
        "headline": _headline(facts),
        "cards": _cards(facts),
        "layers": layer_rows(facts),
        "curves": trained,
        "is_clipped": _is_clipped(trained, facts),
        "has_dendrite_phases": any(is_d for e in trained for _, _, is_d in e["curve"].phases),
        "has_restarts": any(len(entry["curve"].phases) > 1 for entry in trained),
        "verdict": verdict(facts),
        "correlations": candidates(history, facts),
        "duration": _duration(history.seconds),
        "operations": _operations(facts),
        "settings": _settings(facts["config"]),
        "notes": _notes(facts),
        "is_shrunk_only": facts["after"]["score"] is None,
    }


def _bytes(number: float) -> str:
    text = compact(number)
    return f"{text} B" if text[-1].isdigit() else f"{text[:-1]} {text[-1]}B"


def _times(before: float, after: float) -> str:
    return f"{before / after:.1f}{TIMES}"


# --- what happened, in one glance -----------------------------------------------------------------


def _headline(facts: Facts) -> dict[str, Any]:
    before, after = facts["before"]["params"], facts["after"]["params"]
    target = facts["target_params"]
    return {
        "before": f"{before:,}",
        "is_big": len(f"{before:,}{after:,}") > 13,
        "after": f"{after:,}",
        "times": f"{_times(before, after)} smaller" if after < before else "unchanged in size",
        "target": f"The target was {target:,}; {after / target:.1%} of it is used.",
    }


def _cards(facts: Facts) -> list[dict[str, Any]]:
    before, after, shipped = facts["before"], facts["after"], facts["deployment"]
    cards = [_metric_card(facts)]
    cards.append(_cost_card("Parameters", before["params"], after["params"], compact))
    if before["flops"]:
        cards.append(_cost_card("FLOPs", before["flops"], after["flops"], compact))
    if isinstance(shipped, Mapping):
        sizes = shipped["bytes_before"], shipped["bytes_after"]
        cards.append(_cost_card("ONNX file", *sizes, _bytes))
        cards.append(_speed_card(shipped["latency_before"], shipped["latency_after"]))
    return [card for card in cards if card]


def _cost_card(label: str, before: float, after: float, show: Any) -> dict[str, Any]:
    return {
        "label": label,
        "value": show(after),
        "was": f"was {show(before)}",
        "share": min(after / before, 1.0),
        "detail": f"{after / before:.1%} is left",
    }


def _speed_card(before: Facts, after: Facts) -> dict[str, Any]:
    ratio = after["ratio"]
    return {
        "label": "Speed",
        "value": f"{ratio:.2f}{TIMES}",
        "was": f"{before['median']:.3g} {ARROW} {after['median']:.3g} ms",
        "share": min(1 / ratio, 1.0),
        "detail": "as fast: slower" if ratio < 0.995 else "as fast in ONNX Runtime",
        "tone": "bad" if ratio < 0.995 else "",
    }


def _metric_card(facts: Facts) -> dict[str, Any] | None:
    """Return the test metric, or the validation metric if there was no test split."""
    old, new = facts["before"]["score"], facts["after"]["score"]
    if not new:
        return None
    split = "val" if new["test"] is None else "test"
    value, samples, name = new[split], new[f"{split}_samples"], facts["metric"]["name"]
    card: dict[str, Any] = {
        "label": f"{name}, {'validation' if split == 'val' else 'test'}",
        "value": f"{value:.4f}",
        "was": f"n = {samples:,}",
        "detail": "",
        "is_metric": True,
    }
    if not old or old[split] is None:
        return card
    delta = value - old[split]
    card["was"] = f"was {old[split]:.4f}, n = {samples:,}"
    card["detail"] = f"{delta:+.4f}".replace("-", MINUS)
    if name == "accuracy":
        card["detail"] += f" ({abs(round(delta * samples)):,} of {samples:,} samples)"
    is_better = (delta > 0) == facts["metric"]["higher_is_better"]
    is_noise = abs(delta) <= (_noise(facts, split) or 5e-5)
    card["tone"] = "" if is_noise else "good" if is_better else "bad"
    if all(0 <= number <= 1 for number in (value, old[split])):
        card["share"], card["mark"] = value, old[split]
    return card


def _noise(facts: Facts, split: str) -> float | None:
    """Return two standard errors of an accuracy; None for another metric."""
    score = facts["after"]["score"]
    if facts["metric"]["name"] != "accuracy" or not 0 <= score[split] <= 1:
        return None
    return 2 * math.sqrt(score[split] * (1 - score[split]) / max(score[f"{split}_samples"], 1))


# --- layer by layer -------------------------------------------------------------------------------


def layer_rows(facts: Facts) -> dict[str, Any]:
    """Return width, parameters and FLOPs of every layer that has a width, and of the rest.

    A layer's dendrites count in its row; the rows and the rest add up to the whole network.
    """
    before, after = facts["before"], facts["after"]
    rows = []
    for name, old in before["layers"].items():
        if old["width"] is None:
            continue
        new, dendrites = _grown(after["layers"], name, old)
        is_same = new["width"] == old["width"]
        rows.append(
            {
                "name": name or "(the network)",
                "sets": after["sets"] if dendrites else 0,
                "reason": facts["left_alone"].get(name, "") if is_same else "",
                "cells": [
                    _cell(old["width"], new["width"]),
                    *(_cell(old[key], new[key], dendrites.get(key, 0)) for key in COSTS),
                ],
            }
        )
    has_rest = _add_rest(rows, before, after)
    for column in zip(*(row["cells"] for row in rows), strict=True):
        cells = [cell for cell in column if cell]
        top = max(1, *(max(cell["before"], cell["total"]) for cell in cells))
        for cell in cells:
            cell["shares"] = {key: cell[key] / top for key in ("before", "after", "total")}
    return {
        "rows": rows,
        "is_long": len(rows) > MANY_LAYERS,
        "has_dendrites": any(row["sets"] for row in rows),
        "has_rest": has_rest,
    }


def _add_rest(rows: list[dict[str, Any]], before: Facts, after: Facts) -> bool:
    """Add what has no width (BatchNorm, pools, ...) as a last row, if it costs anything."""
    cells = []
    for column, key in enumerate(COSTS, start=1):
        old = before[key] - sum(row["cells"][column]["before"] for row in rows)
        new = after[key] - sum(row["cells"][column]["total"] for row in rows)
        cells.append(_cell(old, new))
    if not rows or not any(cell["before"] or cell["total"] for cell in cells):
        return False
    rows.append({"name": None, "sets": 0, "reason": "", "cells": [None, *cells]})
    return True


def _grown(layers: Facts, name: str, old: Facts) -> tuple[Facts, dict[str, int]]:
    """Return a layer after compression without its dendrites, and what these cost."""
    base = layers.get(f"{name}.base_layer")
    if base is None:
        return layers.get(name, old), {}
    parts = [v for k, v in layers.items() if k == name or k.startswith(f"{name}.")]
    return base, {key: sum(part[key] for part in parts) - base[key] for key in COSTS}


def _cell(before: int, after: int, dendrites: int = 0) -> dict[str, Any]:
    total, text = after + dendrites, compact(before)
    title = f"{before:,} before, {total:,} after"
    if dendrites:
        title += f", {dendrites:,} of them in dendrites"
    return {
        "before": before,
        "after": after,
        "total": total,
        "title": title,
        "text": text if before == total else f"{text} {ARROW} {compact(total)}",
    }


# --- training -------------------------------------------------------------------------------------


def curves(facts: Facts, history: History) -> list[dict[str, Any]]:
    """Return the learning curve of every network that trained, the result first."""
    found = []
    for arm in (facts["after"], facts["other"]):
        records = history.stage(arm["name"]).records if arm else []
        if not records:
            continue
        kept = _kept_epoch(arm, records)
        values = [record["metric"] for record in records]
        is_chosen = arm is facts["after"]
        best = "" if kept is None else f", kept at {values[kept]:.4f} (epoch {kept + 1})"
        found.append(
            {
                "curve": Curve(values, is_chosen, kept, _phases(records)),
                "is_chosen": is_chosen,
                "label": NAMES.get(arm["name"], arm["name"]) + best,
            }
        )
    return found


def _kept_epoch(arm: Facts, records: Sequence[Facts]) -> int | None:
    """Return the first epoch whose metric is that of the finished network."""
    for index, record in enumerate(records):
        if (
            arm["score"]
            and record["kind"] == "neuron"
            and math.isclose(record["metric"], arm["score"]["val"], rel_tol=1e-6)
        ):
            return index
    return None


def _is_clipped(trained: Sequence[Facts], facts: Facts) -> bool:
    values = [value for entry in trained for value in entry["curve"].values]
    if not values:
        return False
    low, high = metric_range(values, facts["metric"]["higher_is_better"])
    return bool(min(values) < low or max(values) > high)


def _phases(records: Sequence[Facts]) -> list[tuple[int, int, bool]]:
    phases, start = [], 0
    for (_, kind), group in groupby(records, key=lambda r: (r["phase"], r["kind"])):
        end = start + len(list(group))
        phases.append((start, end, kind == "dendrite"))
        start = end
    return phases


def verdict(facts: Facts) -> str:
    """Return in plain words whether the dendrites were worth it."""
    arms = {arm["name"]: arm for arm in (facts["after"], facts["other"]) if arm}
    grown, wide = arms.get("dendrites"), arms.get("width")
    if grown is None:
        return "No dendrites were grown."
    if wide is None or not grown["score"] or not wide["score"]:
        return (
            "The network with dendrites was the only one that was trained, so what they brought "
            "over width alone is not known."
        )
    if not grown["sets"]:
        return (
            "No set of dendrites helped on validation, so none was kept; the reserve for them was "
            "left to width."
        )
    if any(is_trial_only(arm, facts) for arm in (grown, wide)):
        return str(facts["note"])
    old, new = wide["score"]["val"], grown["score"]["val"]
    name, samples = facts["metric"]["name"], grown["score"]["val_samples"]
    gain = new - old if facts["metric"]["higher_is_better"] else old - new
    start = "won" if gain > 0 else "lost" if gain < 0 else "neither won nor lost"
    apart = ""
    if name == "accuracy" and gain:
        count = round(abs(gain) * samples)
        apart = f", a difference of {count:,} sample{'s' if count != 1 else ''}"
    steps = f"the same {grown['steps']:,}"
    if grown["steps"] != wide["steps"]:
        steps = f"{grown['steps']:,} against {wide['steps']:,}"
    return (
        f"The dendrites {start}: {name} {new:.4f} on validation (n = {samples:,}) against "
        f"{old:.4f} of width alone{apart}. The network with them has {grown['params']:,} "
        f"parameters, {grown['dendrite_params']:,} of them in dendrites, and width alone "
        f"{wide['params']:,}, after {steps} optimizer steps."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _operations(facts: Facts) -> str:
    shipped = facts["deployment"]
    if not isinstance(shipped, Mapping):
        return ""
    operations = shipped["proof"].get("operations", {})
    return ", ".join(f"{kind} {TIMES} {n}" for kind, n in operations.items())


def _settings(config: Facts) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration as groups of (name, value)."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            groups[name] = [(key, json.dumps(inner)) for key, inner in value.items()]
        else:
            groups.setdefault("general", []).append((name, json.dumps(value)))
    return sorted(groups.items(), key=lambda item: item[0] == "general")


def _notes(facts: Facts) -> list[str]:
    shapes = " and ".join(
        f" {TIMES} ".join(map(str, shape)) for shape in facts["before"]["input_shapes"].values()
    )
    notes = [
        "One FLOP is one multiply-add, counted by fvcore for one sample in eval mode"
        + (f" (input {shapes})." if shapes else "."),
        "Operations that the count leaves out: "
        f"before, {_uncounted(facts['before'])}; after, {_uncounted(facts['after'])}.",
    ]
    shipped = facts["deployment"]
    if isinstance(shipped, Mapping):
        old, new = shipped["latency_before"], shipped["latency_after"]
        notes.append(
            "Latency is that of ONNX Runtime on the CPU, one thread, batch 1. Both files ran in "
            f"turn, {new['rounds']:,} times each; the times are medians (95th percentile "
            f"{old['p95']:.3g} and {new['p95']:.3g} ms), and the speed-up is the median of the "
            "ratios of neighbouring runs, so it need not be the quotient of the medians."
        )
        notes.append("Both files were exported in their inference form, BatchNorm folded in.")
    score = facts["after"]["score"]
    if score and score["test"] is None:
        notes.append(
            "No test split was given. The validation split chose the weights, so its metric "
            "flatters the result."
        )
    elif score:
        notes.append(
            "The validation split chose weights, sets and network. The test split was scored once "
            "for each network and chose nothing."
        )
    split = "test" if score and score["test"] is not None else "val"
    noise = _noise(facts, split) if score else None
    if noise:
        notes.append(
            f"Two standard errors of an accuracy of {score[split]:.4f} at n = "
            f"{score[f'{split}_samples']:,} are {noise:.4f}: smaller differences may be chance."
        )
    return notes


def _uncounted(arm: Facts) -> str:
    operations = arm["uncounted_ops"].items()
    return ", ".join(f"{kind} {TIMES} {n}" for kind, n in operations) or "none"
