"""The tables of latency, from the lines of `run.py`.

python -m scripts.speed.tables lines.jsonl

What stands above the tables in docs/benchmarks/latency.md is written by hand.
"""

from collections.abc import Sequence

from scripts.lines import Line, named_lines
from scripts.speed.run import SHARE


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    parts = ["# Latency in ONNX Runtime: rounding, and bounds", ""]
    parts += [f"## {SHARE:.0%} of the parameters, by rounding", ""]
    parts += ["| network | widths in multiples of | of the target | FLOP ratio | speed-up |"]
    parts += ["| --- | --- | --- | --- | --- |"]
    for r in lines:
        if r["question"] == "rounding":
            figures = r.get("error") or (
                f"{r['of_target']:.3f} | {r['flop_ratio']:.2f} | {r['speed_up']:.2f}"
            )
            parts.append(f"| {r['name']} | {r['asked']} | {figures} |")
    parts += ["", f"## {SHARE:.0%} of the latency", ""]
    parts += [
        "| network | multiple | predicted / measured | measured / bound | FLOP ratio | speed-up |"
        " speed-up / FLOP ratio | parameters kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in lines:
        if r["question"] == "bound":
            figures = r.get("error") or (
                f"{r['round_to']} | {r['predicted']:.3f} | {r['of_bound']:.3f} | "
                f"{r['flop_ratio']:.2f} | {r['speed_up']:.2f} | "
                f"{r['speed_up'] / r['flop_ratio']:.2f} | {r['params']:.1%}"
            )
            parts.append(f"| {r['name']} | {figures} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
