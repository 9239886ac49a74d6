"""What is said first of a run, wherever it is told: in print, report, card and on the terminal."""

from pbcompress.core.text_tables import figure
from pbcompress.costs.headline import Bound, Exported, Speed, bounds_of, first_lines
from pbcompress.planning.explanation import exported, speed_of
from pbcompress.runs.facts import RunFacts

__all__ = ["asked_for", "bounds", "headline", "speed"]


def headline(facts: RunFacts) -> tuple[str, ...]:
    """Return size, work, speed and metric in a line, and each bound that was asked for in one.

    Where the result is slower than the original, a line before them says so, and what may help.
    """
    before, after = facts.before.cost, facts.after.cost
    lines = first_lines(before, after, speed(facts), _not_timed(facts), _metric(facts))
    return *(f"{line.rstrip('.')}." for line in lines), *(f"Bound: {b}." for b in bounds(facts))


def speed(facts: RunFacts) -> Speed | None:
    """Return the speed of the result, as measured or else as expected; None if it is not known."""
    shipped = facts.shipped
    if shipped is None:
        return speed_of(facts.planned, facts.expected_speedup, grows=facts.after.sets > 0)
    after = shipped.latency_after
    return Speed(after.ratio, "measured", original_ms=shipped.latency_before.median)


def bounds(facts: RunFacts) -> tuple[Bound, ...]:
    """Return the bounds that were asked for, each with what was reached."""
    measured, shipped = exported(facts.planned), facts.shipped
    if shipped is not None:
        times = shipped.latency_before.median, shipped.latency_after.median
        measured = Exported(times, (shipped.bytes_before, shipped.bytes_after))
    return bounds_of(facts.budget, facts.before.cost, facts.after.cost, measured)


def asked_for(facts: RunFacts) -> str:
    """Return the bounds that were asked for, in words."""
    return " and ".join(bound.most for bound in bounds(facts))


def _not_timed(facts: RunFacts) -> str:
    if facts.deployment is None:
        return "not timed, because nothing was exported"
    return "not timed, because it could not be exported"


def _metric(facts: RunFacts) -> str:
    score, name = facts.after.score, facts.metric.name
    if score is None:
        return f"{name} not measured, because it was only shrunk and not trained"
    old = facts.before.score.on(score.split) if facts.before.score else None
    change = figure(score.shown) if old is None else f"{figure(old)} -> {figure(score.shown)}"
    split = "test" if score.split == "test" else "validation"
    return f"{name} {change} ({split}, n={score.samples(score.split):,})"
