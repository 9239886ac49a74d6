"""The page of what fewer bits cost and bring, from the lines of `run.py`.

    python -m scripts.int8.tables > docs/benchmarks/int8.md

Other lines than the packed ones are named as its argument.
"""

from collections.abc import Sequence

from scripts.int8.run import EPOCHS, NETWORKS, RECOVERY, SAMPLES, SEED, SPREADS
from scripts.lines import Line, named_lines

INTRODUCTION = f"""\
`scripts/int8/run.py` on 2026-11-25, x86 with VNNI, seed {SEED}: {SAMPLES:,} training samples,
{EPOCHS} epochs, 2,000 samples for validation and 10,000 for the test: small networks that are far
from trained to their end, one run each. Accuracies are those of the file through ONNX Runtime;
speed is the median of ratios of interleaved runs at batch 1 on one thread beside other work, above
1 is faster than float32. Bytes are those of the whole file, the exporter's notes included. The int8
rows quantise convolutions and products alone. "What ships" is the file of
`export_onnx(quantize=Int8(recover_epochs={RECOVERY}))`; the line below each table is its report.

"unequal" and "very unequal" are the small CNN with its function unchanged and the ranges of its
channels multiplied by exp(s z), z normal, s = {SPREADS["unequal"]} and {SPREADS["very unequal"]}.
They were made so that 8 bits fail: with ranges from least to largest none of the networks that were
only trained loses half a point.

A recovery trains further, and these networks gain by that alone. What the rounding adds is the
difference from the same epochs without it ("without rounding", the same rate): nothing for
"unequal", nine points for "very unequal"."""


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    jobs = dict.fromkeys((line["name"], line["dendrites"]) for line in lines)
    parts = ["# Fewer bits: int8, fp16, and int8 after recovery", "", INTRODUCTION, ""]
    for name, dendrites in jobs:
        own = [r for r in lines if (r["name"], r["dendrites"]) == (name, dendrites)]
        kind = "full dendrites" if dendrites else "no dendrites"
        parts += [f"## {name}, {NETWORKS[name][0]}, {kind}", ""]
        parts += ["| file | bytes | accuracy, val | accuracy, test | speed |"]
        parts += ["| --- | --- | --- | --- | --- |"]
        parts += [
            f"| {'what ships' if r['form'] == 'taken' else r['form']} | {r['bytes']:,} | "
            f"{r['val']:.4f} | {r['test']:.4f} | {r['speed']:.2f} |"
            for r in own
        ]
        parts += ["", f"`{next(r['said'] for r in own if r['form'] == 'taken')}`", ""]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
