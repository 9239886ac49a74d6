"""Where the original, the result and the control stand: the metric with its interval, by size."""

from pbcompress.comparison.intervals import Estimate, wilson
from pbcompress.comparison.pictures import Point
from pbcompress.core.text_tables import signed_figure
from pbcompress.report.tables import NAMES, is_trial_only
from pbcompress.runs.contenders import Split
from pbcompress.runs.facts import NetworkFacts, RunFacts

__all__ = ["estimate_of", "may_be_chance", "paired_sentence", "points", "split_shown"]


def split_shown(facts: RunFacts) -> Split | None:
    """Return which split a run is judged by: "test", else "val"; None without data."""
    return facts.after.score.split if facts.after.score else None


def estimate_of(network: NetworkFacts, facts: RunFacts, split: Split) -> Estimate | None:
    """Return a network's metric on a split; an accuracy of samples with Wilson's interval.

    None where it was not measured.
    """
    score = network.score
    value = score.on(split) if score else None
    if score is None or value is None:
        return None
    samples = score.samples(split)
    hits = value * samples
    is_share = facts.metric.name == "accuracy" and samples > 0 and 0 <= value <= 1
    if not is_share or abs(hits - round(hits)) > 0.01:
        return Estimate(value, samples, None, None, "no interval: no share of the samples")
    return Estimate(value, samples, *wilson(round(hits), samples), "Wilson")


def may_be_chance(a: Estimate | None, b: Estimate | None) -> bool:
    """Tell whether the intervals of two networks meet; False where there are none."""
    return a is not None and b is not None and a.meets(b)


def paired_sentence(facts: RunFacts) -> str:
    """Return how far the result is from the control on the same samples; "" without a control."""
    change = facts.over_control
    if change is None:
        return ""
    split = "validation" if split_shown(facts) == "val" else "test"
    start = (
        f"The {split} {facts.metric.name} of the result less that of the control is "
        f"{signed_figure(change.value)}"
    )
    if change.low is None or change.high is None:
        return f"{start} ({change.method})."
    tested = "" if change.p_value is None else f"; exact McNemar test, p = {change.p_value:.3g}"
    chance = ", so it may be chance" if change.low <= 0 <= change.high else ""
    return (
        f"{start} on the same {change.samples:,} samples, with a 95 % interval of "
        f"{signed_figure(change.low)} to {signed_figure(change.high)}{chance} "
        f"({change.method}{tested})."
    )


def points(facts: RunFacts) -> list[Point]:
    """Return the networks in the picture of metric against size, those without a metric left out.

    What lost a trial and was trained no further is no control.
    """
    split = split_shown(facts)
    if split is None:
        return []
    after, other = facts.after, facts.other
    networks: list[tuple[str, str, NetworkFacts]] = [("original", "before", facts.before)]
    networks.append((f"result, {NAMES[after.name]}", "after", after))
    if other and not is_trial_only(other, facts):
        networks.append((f"control, {NAMES[other.name]}", "control", other))
    found = [
        Point(label, role, network.cost.params, estimate_of(network, facts, split))
        for label, role, network in networks
    ]
    return [point for point in found if point.score]
