"""Plans in words and tables: what shrinks, what cannot, and why."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pbcompress.core.modules import matches
from pbcompress.core.text_tables import render_text
from pbcompress.costs.headline import Exported, Speed, bounds_of, first_lines
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import LayerCost, ModelCost
from pbcompress.errors import StateMismatchError, a_few

if TYPE_CHECKING:  # a plan prints itself
    from pbcompress.planning.width_plan import WidthPlan

__all__ = ["PlanDiff", "exported", "plan_text", "reasons_text", "speed_of", "widths_of"]

Row = tuple[str, ...]

COSTS: tuple[tuple[str, Callable[[LayerCost | ModelCost], int]], ...] = (
    ("parameters", lambda cost: cost.params),
    ("FLOPs", lambda cost: cost.flops),
)
MOST_REASONS = 6
_NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d*)(?!\d)")


def widths_of(plan: "WidthPlan") -> dict[str, tuple[int, int]]:
    """Return the width of every layer that has one, before and after."""
    after = plan.cost_after.by_layer
    return {
        name: (layer.width, width)
        for name, layer in plan.cost_before.by_layer.items()
        if layer.width is not None and (width := after[name].width) is not None
    }


def plan_text(plan: "WidthPlan") -> str:
    """Return a plan as text: size, work and speed, bounds, and a row for every layer with a width.

    Layers that are alike and differ in one number of their name share a row, whose costs are those
    of each of them.
    """
    return "\n".join([*_summary(plan), "", render_text(_table(plan))])


def speed_of(
    shipped: Shipped | None, expected: float | None, *, grows: bool = False
) -> Speed | None:
    """Return the speed of a network that was planned, or None where it is not known.

    Args:
        shipped: What was measured, dendrites included.
        expected: What a table of operators says of it without dendrites.
        grows: Whether it has dendrites, or room for some.
    """
    if shipped is not None:
        before, after = shipped.latency_before, shipped.latency_after
        return Speed(before / after, "measured", shipped.threads, before)
    note = "without dendrites" if grows else ""
    return None if expected is None else Speed(expected, "expected", note=note)


def exported(shipped: Shipped | None) -> Exported | None:
    """Return what was measured of a plan's network, if it was."""
    if shipped is None:
        return None
    return Exported(
        milliseconds=(shipped.latency_before, shipped.latency_after),
        file_bytes=(shipped.bytes_before, shipped.bytes_after),
    )


def _summary(plan: "WidthPlan") -> Iterator[str]:
    before, after, shipped = plan.cost_before, plan.cost_after, plan.shipped
    speed = speed_of(shipped, plan.expected_speedup, grows=bool(plan.grow))
    yield from first_lines(before, after, speed)
    for bound in bounds_of(plan.budget, before, after, exported(shipped)):
        yield f"bound: {bound}"
    if plan.unused:
        yield plan.unused
    if plan.grow:
        yield f"kept for dendrites: {plan.reserved_params:,} parameters of the bound"
    yield "confirmed by cutting a copy, counting its parameters and running it"
    if shipped is not None:
        yield str(shipped)


def _table(plan: "WidthPlan") -> list[Row]:
    layers, after = plan.cost_before.by_layer, plan.cost_after.by_layer
    widths, pins = widths_of(plan), plan.config.width.pin
    rows: list[tuple[str, Row]] = []
    others: Counter[str] = Counter()
    for name, layer in layers.items():
        if name not in widths:
            others += Counter(count=1)
            for unit, cost in COSTS:
                others[f"{unit} before"] += cost(layer)
                others[f"{unit} after"] += cost(after[name])
            continue
        was, now = widths[name]
        notes = [_reason(plan.left_alone.get(name, ""), was, now)]
        if was != now:
            notes += [f"pinned by {p!r}" for p, _ in pins[::-1] if matches(name, (p,))][:1]
        notes += ["with room for dendrites"] if name in plan.grow else []
        costs = [f"{cost(one):,}" for _, cost in COSTS for one in (layer, after[name])]
        widths_now = (str(was), str(now), _share(was, now))
        rows.append((name, (layer.kind, *widths_now, *costs, "; ".join(filter(None, notes)))))
    columns = [title for unit, _ in COSTS for title in (unit, "after")]
    table = [("layer", "kind", "width", "after", "kept", *columns, "note"), *_folded(rows)]
    if others:
        keys = [f"{unit} {when}" for unit, _ in COSTS for when in ("before", "after")]
        counts = [f"{others[key]:,}" for key in keys]
        table.append((f"({others['count']} without a width)", "", "", "", "", *counts, ""))
    return table


def _reason(reason: str, was: int, now: int) -> str:
    """Return why a layer keeps its width, or the part of it that could not be narrowed."""
    return reason if was == now or not reason else f"in part: {reason}"


def _share(before: float, after: float) -> str:
    return f"{after / before:.1%}" if before else "-"


def _folded(rows: Sequence[tuple[str, Row]]) -> Iterator[Row]:
    """Join rows that are equal but for one number in the name of their layer."""
    alike: dict[tuple[str, Row], dict[int, str]] = defaultdict(dict)
    keys: list[list[tuple[str, Row]]] = []
    for place, (name, cells) in enumerate(rows):
        keys.append([])
        for number in _NUMBER.finditer(name):
            for masked in _masked(name, cells[-1], number):
                keys[-1].append((masked, cells[:-1]))
                alike[masked, cells[:-1]][place] = number[0]
    done: set[int] = set()
    for place, (name, cells) in enumerate(rows):
        if place in done:
            continue
        open_rows = [(key, alike[key].keys() - done) for key in keys[place]]
        if max((len(same) for _, same in open_rows), default=0) < 2:
            yield (name, *cells)
            continue
        (masked, others), same = max(open_rows, key=lambda pair: len(pair[1]))
        done |= same
        shown = _ranges(sorted(int(alike[masked, others][p]) for p in same))
        first, note = masked.replace("\0", f"{{{shown}}}").split("\n")
        yield (first, *others, note)


def _masked(name: str, note: str, number: re.Match[str]) -> Iterator[str]:
    """Yield a name without one of its numbers, with its note, and with that without it too."""
    text = f"{name[: number.start()]}\0{name[number.end() :]}\n"
    yield text + note
    yield text + _NUMBER.sub(lambda other: "\0" if other[0] == number[0] else other[0], note)


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as runs.

    Example:
        >>> _ranges([0, 1, 2, 5])
        '0-2,5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def reasons_text(left_alone: Mapping[str, str]) -> str:
    """Return why layers keep their width, those with alike reasons together.

    Example:
        >>> reasons_text({"a.0": "it meets x in 'a.0'", "a.1": "it meets x in 'a.1'"})
        "it meets x in 'a.0' (2 layers: 'a.0', 'a.1')"
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, reason in left_alone.items():
        kinds[re.sub("'[^']*'", "", reason)].append(name)
    ranked = sorted(kinds.values(), key=len, reverse=True)
    parts = [
        f"{left_alone[names[0]]} ({_layers(len(names))}: "
        f"{a_few([name or 'the model itself' for name in names])})"
        for names in ranked[:MOST_REASONS]
    ]
    rest = sum(map(len, ranked[MOST_REASONS:]))
    return "; ".join([*parts, *([f"other reasons ({_layers(rest)})"] if rest else [])])


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


@dataclass(frozen=True)
class PlanDiff:
    """How two plans of one network differ; ``print(diff)`` shows it.

    Attributes:
        widths: For each layer whose width differs: in the original, the first and the second plan.
        channels: Layers that are as wide by both, but lose other channels.
        params: Predicted parameters of the first and the second plan.
        flops: Predicted multiply-adds of the first and the second plan.
    """

    widths: Mapping[str, tuple[int, int, int]]
    channels: tuple[str, ...]
    params: tuple[int, int]
    flops: tuple[int, int]

    @classmethod
    def between(cls, one: "WidthPlan", other: "WidthPlan") -> "PlanDiff":
        """Compare two plans; see `WidthPlan.diff`."""
        if one.cost_before != other.cost_before:
            raise StateMismatchError(
                "Two plans were to be compared, and they are of different networks or inputs: "
                f"{_network(one)}, and {_network(other)}. Compare plans of one network."
            )
        first, second = widths_of(one), widths_of(other)
        widths = {
            name: (was, now, second[name][1])
            for name, (was, now) in first.items()
            if now != second[name][1]
        }
        cuts = [{(s.layer, s.dim): s for s in plan.steps} for plan in (one, other)]
        keys = {**cuts[0], **cuts[1]}
        moved = dict.fromkeys(key[0] for key in keys if cuts[0].get(key) != cuts[1].get(key))
        return cls(
            widths=widths,
            channels=tuple(name for name in moved if name in first and name not in widths),
            params=(one.cost_after.params, other.cost_after.params),
            flops=(one.cost_after.flops, other.cost_after.flops),
        )

    def __str__(self) -> str:
        rows: list[Row] = [("", "original", "one", "other", "difference", "")]
        for (unit, _), (one, other) in zip(COSTS, (self.params, self.flops), strict=True):
            rows.append((unit, "", f"{one:,}", f"{other:,}", f"{other - one:+,}", ""))
        layers = [
            (name, (str(was), str(one), str(other), f"{other - one:+}", ""))
            for name, (was, one, other) in self.widths.items()
        ]
        text = render_text([*rows, *_folded(layers)])
        if not self.widths:
            text += "\nEvery layer has the same width in both."
        if self.channels:
            text += f"\nOther channels of the same number go in {a_few(self.channels)}."
        return text


def _network(plan: "WidthPlan") -> str:
    before = plan.cost_before
    shapes = ", ".join(f"{name}: {shape}" for name, shape in before.input_shapes.items())
    return f"{before.params:,} parameters in {_layers(len(before.by_layer))} at inputs {shapes}"
