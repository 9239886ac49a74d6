"""How the candidates of each dendrite phase scored, and what their set brought."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pbcompress.core.text_tables import figure
from pbcompress.runs.facts import Metric, RunFacts
from pbcompress.training.history import History, Stage

__all__ = ["candidates"]

ARROW = "\N{RIGHTWARDS ARROW}"

Record = Mapping[str, Any]


def candidates(history: History, facts: RunFacts) -> list[dict[str, Any]]:
    """Return one entry for each dendrite phase, in order.

    Entries have ``values`` (mean |r| by epoch), ``scores`` (by layer, the deciles of |r| over its
    nodes after the last epoch), ``is_kept``, and as words ``text``, ``fate``, ``brought`` (the best
    metric before and after, "" where it is not known) and ``nodes`` (how many of a selection stay).
    """
    grown = [contender for contender in facts.contenders if contender.name is Stage.DENDRITES]
    records = history.stage(Stage.DENDRITES)
    phases = [list(group) for _, group in groupby(records, key=lambda record: record["phase"])]
    learned = [p for p in phases if p[0]["kind"] == "dendrite" and "correlation" in p[-1]]
    found = []
    for number, phase in enumerate(learned):
        sets, later = phase[0]["sets"], [other[0]["sets"] for other in learned[number + 1 :]]
        is_kept = (
            bool(grown)
            and sets <= grown[0].sets + grown[0].absorbed
            and all(s > sets for s in later)
        )
        values = [record["correlation"] for record in phase]
        place = phases.index(phase)
        found.append(
            {
                "values": values,
                "text": f"{values[0]:.3f} {ARROW} {values[-1]:.3f}",
                "fate": "kept" if is_kept else "taken out again",
                "is_kept": is_kept,
                "scores": phase[-1].get("scores", {}),
                "brought": _brought(phases[:place], phases[place + 1 : place + 2], facts.metric),
                "nodes": _nodes(phases[place + 1 : place + 2]),
            }
        )
    return found


def _brought(
    before: Sequence[Sequence[Record]], after: Sequence[Sequence[Record]], metric: Metric
) -> str:
    best = max if metric.higher_is_better else min
    scores = [
        [r["metric"] for phase in part for r in phase if r["kind"] == "neuron"]
        for part in (before, after)
    ]
    if not all(scores):
        return ""
    return f"{metric.name} {figure(best(scores[0]))} {ARROW} {figure(best(scores[1]))}"


def _nodes(after: Sequence[Sequence[Record]]) -> str:
    nodes = after[0][0].get("nodes", {}) if after else {}
    stay, whole = (sum(counts[i] for counts in nodes.values()) for i in (0, 1))
    return f"{stay:,} of {whole:,} nodes stayed" if stay < whole else ""
