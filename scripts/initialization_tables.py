"""What spectral first weights bring in accuracy, from the lines of bench_accuracy.py.

    python scripts/initialization_tables.py docs/benchmarks/initialization_accuracy.jsonl

Each arm that is called "..., spectral" is compared with the one of the same name without it, paired
by seed. The table belongs into docs/benchmarks/initialization.md.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accuracy_tables import Cell, cells_of

SUFFIX = ", spectral"


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return the table: a row for each task and target, a column for each pair of arms."""
    lines = list(lines)
    pairs = [a for a in dict.fromkeys(line["arm"] for line in lines) if a + SUFFIX in _arms(lines)]
    found: dict[str, dict[tuple[str, float], Cell]] = {}
    for arm in pairs:
        own = [line for line in lines if line["arm"] in (arm, arm + SUFFIX)]
        cells = cells_of(own, arm)
        found[arm] = {key[:2]: cell for key, cell in cells.items() if key[2] != arm}
    rows = list(dict.fromkeys((line["task"], line["target"]) for line in lines))
    out = [f"| task | target | {' | '.join(pairs)} |", f"| --- | --- |{' --- |' * len(pairs)}"]
    for task, target in rows:
        texts = [_text(found[arm].get((task, target))) for arm in pairs]
        out.append(f"| {task} | {target:.3g} | {' | '.join(texts)} |")
    return "\n".join([*out, f"| better, no difference seen, worse | | {_counts(found)} |"])


def _arms(lines: Iterable[dict[str, Any]]) -> set[str]:
    return {line["arm"] for line in lines}


def _text(cell: Cell | None) -> str:
    if cell is None or cell.against is None:
        return ""
    mark = {1: " better", 0: "", -1: " worse"}[cell.against.verdict]
    return f"{cell.against.mean:+.2f} ± {cell.against.half:.2f}{mark}"


def _counts(found: dict[str, dict[tuple[str, float], Cell]]) -> str:
    texts = []
    for cells in found.values():
        own = [cell.against for cell in cells.values() if cell.against is not None]
        verdicts = [difference.verdict for difference in own]
        mean = statistics.mean(difference.mean for difference in own)
        counts = ", ".join(str(verdicts.count(v)) for v in (1, 0, -1))
        texts.append(f"{counts}; {mean:+.2f} in the mean")
    return " | ".join(texts)


if __name__ == "__main__":
    print(table(map(json.loads, Path(sys.argv[1]).read_text().splitlines())))
