"""Where the original, the result and the control stand: the metric with its interval, by size."""

from collections.abc import Mapping
from typing import Any

from pbcompress.comparison.intervals import Estimate, wilson
from pbcompress.comparison.pictures import Point
from pbcompress.report.tables import is_trial_only

__all__ = ["NAMES", "estimate_of", "may_be_chance", "paired_sentence", "points", "split_shown"]

Facts = Mapping[str, Any]
NAMES = {"dendrites": "with dendrites", "width": "width alone"}


def split_shown(facts: Facts) -> str | None:
    """Return which split a run is judged by: "test", else "val"; None without data."""
    score = facts["after"]["score"]
    if not score:
        return None
    return "val" if score["test"] is None else "test"


def estimate_of(arm: Facts, facts: Facts, split: str) -> Estimate | None:
    """Return a network's metric on a split; an accuracy of samples with Wilson's interval.

    None where it was not measured.
    """
    score = arm["score"]
    if not score or score[split] is None:
        return None
    value, samples = score[split], score[f"{split}_samples"]
    hits = value * samples
    is_share = facts["metric"]["name"] == "accuracy" and samples > 0 and 0 <= value <= 1
    if not is_share or abs(hits - round(hits)) > 0.01:
        return Estimate(value, samples, None, None, "no interval: no share of the samples")
    return Estimate(value, samples, *wilson(round(hits), samples), "Wilson")


def may_be_chance(a: Estimate | None, b: Estimate | None) -> bool:
    """Tell whether the intervals of two networks meet; False where there are none."""
    return a is not None and b is not None and a.meets(b)


def paired_sentence(facts: Facts) -> str:
    """Return how far the result is from the control on the same samples; "" without a control."""
    if not facts.get("over_control"):
        return ""
    change = Estimate(**facts["over_control"])
    split = "validation" if split_shown(facts) == "val" else "test"
    start = (
        f"The {split} {facts['metric']['name']} of the result less that of the control is "
        f"{change.value:+.4f}"
    )
    if change.low is None or change.high is None:
        return f"{start} ({change.method})."
    tested = "" if change.p_value is None else f"; exact McNemar test, p = {change.p_value:.3g}"
    chance = ", so it may be chance" if change.low <= 0 <= change.high else ""
    return (
        f"{start} on the same {change.samples:,} samples, with a 95 % interval of "
        f"{change.low:+.4f} to {change.high:+.4f}{chance} ({change.method}{tested})."
    )


def points(facts: Facts) -> list[Point]:
    """Return the networks in the picture of metric against size, those without a metric left out.

    What lost a trial and was trained no further is no control.
    """
    split = split_shown(facts)
    if split is None:
        return []
    arms = [("original", "before", facts["before"])]
    name = NAMES.get(facts["after"]["name"], facts["after"]["name"])
    arms.append((f"result, {name}", "after", facts["after"]))
    other = facts["other"]
    if other and not is_trial_only(other, facts):
        name = NAMES.get(other["name"], other["name"])
        arms.append((f"control, {name}", "control", other))
    found = [
        Point(label, role, arm["params"], estimate_of(arm, facts, split))
        for label, role, arm in arms
    ]
    return [point for point in found if point.score]
