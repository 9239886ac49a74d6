"""The top of the HTML report: what happened, in one glance.

The bar of a card is what is left of the original, which is the whole track. Where there is more of
it than before, the bar is as long as that and hatched, and a line marks the original.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pbcompress.core.text_tables import compact, figure, signed_figure
from pbcompress.onnx_files.session import Latency
from pbcompress.report.headline import headline, speed
from pbcompress.report.scores import estimate_of, may_be_chance, split_shown
from pbcompress.runs.facts import RunFacts

__all__ = ["hero"]

ARROW, TIMES, MINUS = "\N{RIGHTWARDS ARROW}", "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
Card = dict[str, Any]


def hero(facts: RunFacts) -> dict[str, Any]:
    """Return the headline and the cards."""
    before, after = facts.before.cost.params, facts.after.cost.params
    found, lines = speed(facts), [line.replace("->", ARROW) for line in headline(facts)]
    is_slower = found is not None and found.is_slower
    pace = ""
    if found is not None:
        expected = "" if found.known == "measured" else "expected "
        slow = ": slower" if is_slower else ""
        pace = f"{expected}{found.shown}{TIMES} as fast{slow}"
    return {
        "headline": {
            "before": f"{before:,}",
            "after": f"{after:,}",
            "is_big": len(f"{before:,}{after:,}") > 13,
            "times": f"{before / after:.1f}{TIMES} smaller" if after < before else "no smaller",
            "pace": pace,
            "is_slower": is_slower,
            "warning": lines[0] if is_slower else "",
            "lines": lines[1:] if is_slower else lines,
        },
        "cards": list(_cards(facts)),
    }


def _cards(facts: RunFacts) -> Iterator[Card]:
    before, after, shipped = facts.before.cost, facts.after.cost, facts.shipped
    metric = _metric_card(facts)
    if metric:
        yield metric
    yield _cost_card("Parameters", before.params, after.params, compact)
    if before.flops:
        yield _cost_card("FLOPs", before.flops, after.flops, compact)
    if shipped:
        yield _cost_card("ONNX file", shipped.bytes_before, shipped.bytes_after, _bytes)
        yield _speed_card(shipped.latency_before, shipped.latency_after)


def _bytes(number: float) -> str:
    text = compact(number)
    return f"{text} B" if text[-1].isdigit() else f"{text[:-1]} {text[-1]}B"


def _left(share: float) -> Card:
    """Return the bar of a cost of which a share of the original is left, or more than all."""
    if share <= 1:
        return {"share": share, "tone": ""}
    return {"share": 1.0, "mark": 1 / share, "tone": "bad"}


def _cost_card(label: str, before: float, after: float, show: Callable[[float], str]) -> Card:
    share = after / before
    more = f"{share:.1%} of the original: more" if share > 1 else f"{share:.1%} is left"
    return {
        "label": label,
        "value": show(after),
        "was": f"was {show(before)}",
        "detail": more,
        **_left(share),
    }


def _speed_card(before: Latency, after: Latency) -> Card:
    ratio, time = after.ratio, 1 / after.ratio
    bar = _left(time)
    detail = f"as fast in ONNX Runtime: {time:.1%} of the time is left"
    if round(ratio, 2) == 1:
        bar, detail = {"share": 1.0, "tone": ""}, "just as fast"
    elif ratio < 1:
        detail = f"slower: it takes {time:.2f}{TIMES} as long"
    return {
        "label": "Speed",
        "value": f"{ratio:.2f}{TIMES}",
        "was": f"{before.median:.3g} {ARROW} {after.median:.3g} ms",
        "detail": detail,
        **bar,
    }


def _metric_card(facts: RunFacts) -> Card | None:
    """Return the test metric, or the validation metric if there was no test split."""
    split = split_shown(facts)
    new = estimate_of(facts.after, facts, split) if split else None
    if not split or not new:
        return None
    old = estimate_of(facts.before, facts, split)
    value, samples, name = new.value, new.samples, facts.metric.name
    card: Card = {
        "label": f"{name}, {'validation' if split == 'val' else 'test'}",
        "value": figure(value),
        "was": f"n = {samples:,}",
        "detail": "",
        "tone": "",
    }
    if not old:
        return card
    delta = value - old.value
    card["was"] = f"was {figure(old.value)}, n = {samples:,}"
    card["detail"] = signed_figure(delta).replace("-", MINUS)
    if name == "accuracy":
        card["detail"] += f" ({abs(round(delta * samples)):,} of {samples:,} samples)"
    is_better = (delta > 0) == facts.metric.higher_is_better
    is_noise = figure(value) == figure(old.value) or may_be_chance(old, new)
    card["tone"] = "" if is_noise else "good" if is_better else "bad"
    if all(0 <= number <= 1 for number in (value, old.value)):
        card["share"], card["mark"] = value, old.value
    return card
