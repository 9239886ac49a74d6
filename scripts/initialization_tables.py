"""What spectral first weights bring in accuracy, from the lines of bench_accuracy.py.

    python scripts/initialization_tables.py docs/benchmarks/initialization_accuracy.jsonl

Arms that are called "..., spectral" are compared with those of the same name without it, and with
width alone, paired by seed. The tables belong into docs/benchmarks/initialization.md.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy_tables import CONTROL, cells_of
from paired import Difference

Line = dict[str, Any]
SUFFIX = ", spectral"


def tables(lines: Sequence[Line]) -> list[str]:
    """Return both tables: a row for each task and target, a column for each arm."""
    arms = [arm for arm in dict.fromkeys(line["arm"] for line in lines) if arm.endswith(SUFFIX)]
    return [
        _table(lines, {arm: arm.removesuffix(SUFFIX) for arm in arms}),
        _table(lines, dict.fromkeys(arms, CONTROL)),
    ]


def _table(lines: Sequence[Line], controls: Mapping[str, str]) -> str:
    found = {arm: _differences(lines, arm, control) for arm, control in controls.items()}
    rows = dict.fromkeys((line["task"], line["target"]) for line in lines)
    out = [f"| task | target | {' | '.join(found)} |", f"| --- | --- |{' --- |' * len(found)}"]
    for row in rows:
        texts = " | ".join(str(own.get(row, "")) for own in found.values())
        out.append(f"| {row[0]} | {row[1]:.3g} | {texts} |")
    counts = " | ".join(_counts(list(own.values())) for own in found.values())
    return "\n".join([*out, f"| better, no difference seen, worse; mean | | {counts} |"])


def _differences(
    lines: Sequence[Line], arm: str, control: str
) -> dict[tuple[str, float], Difference]:
    cells = cells_of([line for line in lines if line["arm"] in (arm, control)], control)
    return {key[:2]: cell.against for key, cell in cells.items() if cell.against is not None}


def _counts(differences: Sequence[Difference]) -> str:
    verdicts = [difference.verdict for difference in differences]
    mean = statistics.mean(difference.mean for difference in differences)
    return f"{', '.join(str(verdicts.count(v)) for v in (1, 0, -1))}; {mean:+.2f}"


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text()
    print("\n\n".join(tables([json.loads(line) for line in text.splitlines()])))
