"""Tables of a result, made from its facts alone: no torch, no computing."""

from collections.abc import Mapping, Sequence
from typing import Any

from pbcompress.core.text_tables import Table, speed_up

__all__ = ["before_after", "dendrite_account", "is_trial_only", "layer_widths", "shipped_files"]

Facts = Mapping[str, Any]


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _kept(before: float | None, after: float | None) -> str:
    return f"{after / before:.1%}" if before and after is not None else ""


def _metric(score: Mapping[str, Any] | None, split: str) -> str:
    if not score or score[split] is None:
        return "-"
    return f"{score[split]:.4f} (n={score[f'{split}_samples']:,})"


def _change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, split: str) -> str:
    if not before or not after or before[split] is None or after[split] is None:
        return ""
    return f"{after[split] - before[split]:+.4f}"


def before_after(facts: Facts) -> Table:
    """Return the table of the original against the result."""
    before, after, metric = facts["before"], facts["after"], facts["metric"]["name"]
    rows: list[Sequence[str]] = [("", "before", "after", "after / before")]
    for label, key in (("parameters", "params"), ("FLOPs (multiply-adds)", "flops")):
        kept = _kept(before[key], after[key])
        rows.append((label, _count(before[key]), _count(after[key]), kept))
    counts = [arm.get("dispatched") for arm in (before, after)]
    second = [sum(count.values()) for count in counts if count is not None]
    if len(second) == 2:
        rows.append(("FLOPs by torch's counter", *map(_count, second), _kept(*second)))
    shipped = facts["deployment"]
    if isinstance(shipped, Mapping):
        sizes = shipped["bytes_before"], shipped["bytes_after"]
        rows.append(("ONNX file, bytes", _count(sizes[0]), _count(sizes[1]), _kept(*sizes)))
        old, new = shipped["latency_before"], shipped["latency_after"]
        rows.append(
            (
                "ONNX Runtime, median ms",
                f"{old['median']:.3f}",
                f"{new['median']:.3f}",
                speed_up(new["ratio"]),
            )
        )
    for label, split in (("val", "val"), ("test", "test")):
        scores = before["score"], after["score"]
        if scores[1] and scores[1][split] is not None:
            values = _metric(scores[0], split), _metric(scores[1], split)
            rows.append((f"{metric}, {label}", *values, _change(*scores, split)))
    return rows


def shipped_files(facts: Facts) -> Table | None:
    """Return what the shipped files are, each in a column; None where nothing was exported."""
    shipped, evidence = facts["deployment"], facts.get("evidence", {})
    files = evidence.get("files", [])
    if not files and isinstance(shipped, Mapping) and "file" in shipped:
        files = [shipped["file"]]
    if not files:
        return None
    rows: list[Sequence[str]] = [("", *(file["name"] for file in files))]
    rows.append(("SHA-256, its first digits", *(file["sha256"][:12] for file in files)))
    for label, key in (
        ("bytes", "file_bytes"),
        ("weights", "weights"),
        ("FLOPs of the graph", "flops"),
        ("peak activations, bytes", "peak_activations"),
        ("operator set", "opset"),
    ):
        rows.append((label, *(_count(file[key]) for file in files)))
    rows.append(("nodes", *(_count(sum(file["operations"].values())) for file in files)))
    timed = evidence.get("bench")
    if isinstance(timed, Mapping):
        rows += _timed_rows(timed)
    scores = evidence.get("scores")
    if scores:
        label = f"{facts['metric']['name']} in ONNX Runtime (n={scores[0]['samples']:,})"
        rows.append((label, *map(_interval, scores)))
    return rows


def _timed_rows(timed: Facts) -> list[Sequence[str]]:
    files = timed["files"]
    rows: list[Sequence[str]] = []
    for label, key in (("median", "median"), ("95th percentile", "p95")):
        rows.append((f"batch 1, {label} ms", *(f"{f['latency'][key]:.3f}" for f in files)))
    batch = timed["batch"]
    speeds = [f["throughput"] and batch * 1000 / f["throughput"]["median"] for f in files]
    rows.append((f"batch {batch}, samples a second", *map(_count, speeds)))
    rows.append(("resident memory, bytes", *(_count(f["peak_memory"]) for f in files)))
    return rows


def _interval(score: Facts) -> str:
    ends = "" if score["low"] is None else f" ({score['low']:.4f} to {score['high']:.4f})"
    return f"{score['value']:.4f}{ends}"


def layer_widths(facts: Facts) -> Table:
    """Return the width of every layer before and after, dendrites beside it."""
    rows: list[Sequence[str]] = [("layer", "kind", "before", "after", "dendrites", "note")]
    after = facts["after"]["layers"]
    for name, layer in facts["before"]["layers"].items():
        if layer["width"] is None:
            continue
        wrapped = after.get(f"{name}.base_layer")
        now = wrapped or after.get(name, layer)
        sets = f"{facts['after']['sets']} set(s)" if wrapped else ""
        note = facts["left_alone"].get(name, "")
        rows.append((name, layer["kind"], str(layer["width"]), str(now["width"]), sets, note))
    return rows


def is_trial_only(arm: Facts, facts: Facts) -> bool:
    """Tell whether an arm lost the trial and was trained no further."""
    return arm.get("trial") is None and facts["after"].get("trial") is not None


def dendrite_account(facts: Facts) -> Table | None:
    """Return what dendrites brought and cost beside width alone; None if only one was trained."""
    arms = [arm for arm in (facts["after"], facts["other"]) if arm]
    if len(arms) < 2:
        return None
    metric = facts["metric"]["name"]
    arms.sort(key=lambda arm: str(arm["name"]))  # "dendrites" before "width"
    labels = {"dendrites": "with dendrites", "width": "width alone"}
    names = [
        labels[arm["name"]] + (", trial only" if is_trial_only(arm, facts) else "") for arm in arms
    ]
    rows: list[Sequence[str]] = [("", *names)]
    rows.append(("chosen", *("yes" if arm is facts["after"] else "no" for arm in arms)))
    for label, key in (
        ("parameters", "params"),
        ("of them in dendrites", "dendrite_params"),
        ("dendrite sets", "sets"),
        ("FLOPs", "flops"),
        ("optimizer steps", "steps"),
    ):
        rows.append((label, *(_count(arm[key]) for arm in arms)))
    if facts["after"].get("trial") is not None:
        trials = [arm["score"]["val"] if arm["trial"] is None else arm["trial"] for arm in arms]
        rows.append((f"{metric}, val, after the trial", *(f"{score:.4f}" for score in trials)))
    for split in ("val", "test"):
        name = f"{metric}, {split}"
        rows.append((name, *(_metric(arm["score"], split) for arm in arms)))
    return rows
