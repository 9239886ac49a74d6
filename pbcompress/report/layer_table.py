"""The rows of the report's table of layers: width, parameters and FLOPs, before and after."""

from collections.abc import Callable, Mapping
from typing import Any

from pbcompress.core.text_tables import compact
from pbcompress.costs.measured import LayerCost, ModelCost
from pbcompress.runs.facts import RunFacts

__all__ = ["layer_rows"]

MANY_LAYERS = 24
COSTS: tuple[Callable[[LayerCost | ModelCost], int], ...] = (
    lambda cost: cost.params,
    lambda cost: cost.flops,
)
ARROW = "\N{RIGHTWARDS ARROW}"


def layer_rows(facts: RunFacts) -> dict[str, Any]:
    """Return width, parameters and FLOPs of every layer that has a width, and of the rest.

    A layer's dendrites count in its row; the rows and the rest add up to the whole network.
    """
    before, after = facts.before.cost, facts.after.cost
    rows = []
    for name, old in before.by_layer.items():
        if old.width is None:
            continue
        new, dendrites = _grown(after.by_layer, name, old)
        width = old.width if new.width is None else new.width
        rows.append(
            {
                "name": name or "(the network)",
                "sets": facts.after.sets if dendrites else 0,
                "reason": facts.left_alone.get(name, "") if width == old.width else "",
                "cells": [
                    _cell(old.width, width),
                    *(
                        _cell(cost(old), cost(new), extra)
                        for cost, extra in zip(COSTS, dendrites or (0, 0), strict=True)
                    ),
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


def _add_rest(rows: list[dict[str, Any]], before: ModelCost, after: ModelCost) -> bool:
    """Add what has no width (BatchNorm, pools, ...) as a last row, if it costs anything."""
    cells = []
    for column, cost in enumerate(COSTS, start=1):
        old = cost(before) - sum(row["cells"][column]["before"] for row in rows)
        new = cost(after) - sum(row["cells"][column]["total"] for row in rows)
        cells.append(_cell(old, new))
    if not rows or not any(cell["before"] or cell["total"] for cell in cells):
        return False
    rows.append({"name": None, "sets": 0, "reason": "", "cells": [None, *cells]})
    return True


def _grown(
    layers: Mapping[str, LayerCost], name: str, old: LayerCost
) -> tuple[LayerCost, tuple[int, ...]]:
    """Return a layer after compression without its dendrites, and what these cost."""
    base = layers.get(f"{name}.base_layer")
    if base is None:
        return layers.get(name, old), ()
    parts = [v for k, v in layers.items() if k == name or k.startswith(f"{name}.")]
    return base, tuple(sum(map(cost, parts)) - cost(base) for cost in COSTS)


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
