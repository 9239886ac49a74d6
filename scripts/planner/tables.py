"""The page of the planner, from the lines of `run.py`, failures included.

python -m scripts.planner.tables > docs/benchmarks/planner.md

Other lines than the packed ones are named as its argument.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence

from scripts.lines import Line, named_lines
from scripts.planner.depth import HEADS, STAGES, WIDTH
from scripts.planner.run import EXPORT_LIMIT, IMAGE, LISTS

OUTPUT = "its width is the network's output"
FREQUENT = 10  # reasons that are listed
SAID = {
    OUTPUT: "what the network answers",
    "scales by the size of its heads": "whole heads go where there are several; here there is one",
    "meet a tensor of fixed size": "a table of positions, a mask, or the positions themselves",
    "whole heads go": "the width of heads; whole heads go there",
    "one channel": "nothing is left of it otherwise",
    "go all together": "halves that are shuffled block after block, one head, or one per group",
    "picked one by one": "an axis of queries, keys and values, or of two answers",
    "looks its rows up": "the words of a tied embedding",
    "uneven parts": "uneven parts are cut alike; here heads ask for other channels to go",
    "may read it on other inputs": "the code reads a value, and may take another path",
    "a reshape in": "halves that are shuffled block after block hang together as a whole",
    "plain number": "the number stands in the code, and would have to change with the width",
    "a size that does not follow": "sizes come from heads, or windows, of their own",
    "spatial dimension": "positions of an image are not narrowed",
}
# reasons of before, and what is done about them
MENDED = (
    "`col2im` (fold) takes whole windows",
    "`scatter`, `scatter_add`, `scatter_reduce`, `gather`, `index_put`, `index_copy` and "
    "`index_reduce` keep the positions that they are given, and let the other axes go",
    "numbers that are written where a mask holds count as element by element",
    "a channel that is picked for its shape alone may go",
    "a stream whose width the code divides by the number of its heads loses whole heads",
    "standard deviations, flips and circular padding let channels through",
    "`chunk` and `tensor_split` into uneven parts lose as many channels of each part",
)
HIT = 0.98  # of the target, from where on a network has landed


def page(lines: Sequence[Line]) -> str:
    """Return the page: a summary by list, speed, then every network."""
    merged: dict[tuple[str, str], Line] = {}
    for r in lines:
        if r["list"] in LISTS:
            merged.setdefault((r["list"], r["name"]), {}).update(r)
    networks = [r for r in merged.values() if "params" in r]
    parts = [
        "# Planner: half of the parameters, no hints",
        "",
        "Made by `scripts/planner/run.py`. *Landed*: 98 to 100 % of the target, predicted to the "
        "unit, runs at two batch sizes, trains, and is rebuilt bit-equal from its plan. *Equal*: "
        "the exported file computes what the shrunk network computes, in ONNX Runtime (of those "
        f"that were exported: up to {EXPORT_LIMIT:,} parameters). Seconds are of a shared machine, "
        "one thread, beside other work: an order of magnitude. A list takes hours when it is "
        "exported, so lines may be of neighbouring commits.",
        "",
        *_summary(networks),
        "",
        "## Planning time against torch-pruning",
        "",
        f"One plan (trace, group, importance, solve, prove) at {IMAGE} pixels, as a multiple of "
        "one graph build and step of torch-pruning; medians of interleaved runs, one thread, "
        "seconds of the processor.",
        "",
        "| network | ratio |",
        "| --- | --- |",
        *(f"| {r['name']} | {r['ratio']:.2f} |" for r in lines if r["list"] == "speed"),
        "",
        *_depth([r for r in lines if r["list"] == "depth"]),
        *_reasons(networks),
        "## Every network",
        "",
        *_details(networks),
    ]
    return "\n".join(parts) + "\n"


def _depth(lines: Sequence[Line]) -> list[str]:
    """Return the section on planning time by depth, none where it was not measured."""
    if not lines:
        return []
    rows = [
        "## Planning time by depth",
        "",
        f"Transformers of equal layers, {WIDTH} wide, {HEADS} heads: `blocks` as in ViT and GPT, "
        "`encoder` as in torch, whose heads reach through all layers. Seconds of the processor, "
        "medians of plans in turn. *Exponent*: of the seconds against the depth, from the first "
        "row of the network on.",
        "",
        f"| network | layers | seconds | exponent | {' | '.join(STAGES)} | shrink | of target |",
        "| --- " * (6 + len(STAGES)) + "|",
    ]
    first: dict[str, Line] = {}
    for r in lines:
        start = first.setdefault(r["name"], r)
        exponent = ""
        if start is not r:
            grown, deeper = r["seconds"] / start["seconds"], r["layers"] / start["layers"]
            exponent = f"{math.log(grown) / math.log(deeper):.2f}"
        seconds = [f"{r[key]:.2f}" for key in (*STAGES, "shrink")]
        row = [r["name"], f"{r['layers']}", f"{r['seconds']:.2f}", exponent, *seconds]
        rows.append("| " + " | ".join([*row, f"{r['share_of_target']:.4f}"]) + " |")
    return [*rows, ""]


def _reasons(networks: Sequence[Line]) -> list[str]:
    """Return the section on layers that keep their width, none where they were not counted."""
    layers: Counter[str] = Counter()
    where: Counter[str] = Counter()
    for r in networks:
        found = r.get("reasons") or ({OUTPUT: 1} if r.get("left_alone") == 1 else {})
        own: Counter[str] = Counter()
        for reason, count in found.items():
            own[re.sub(r"\d+ channels", "… channels", reason)] += count
        layers.update(own)
        where.update(dict.fromkeys(own, 1))
    if not any("reasons" in r for r in networks):
        return []
    rows = [
        "## Layers that keep their width",
        "",
        "What the structure of the networks says of layers that are never narrowed, over all "
        "lists; the most frequent reasons. A layer may have several. Networks whose plan left one "
        "layer alone were not looked at again: it is their output.",
        "",
        "| reason | layers | networks | mended, or why not |",
        "| --- | --- | --- | --- |",
    ]
    for reason, count in layers.most_common(FREQUENT):
        said = next((text for part, text in SAID.items() if part in reason), "")
        rows.append(f"| {reason} | {count} | {where[reason]} | {said} |")
    mended = "; ".join(MENDED)
    return [*rows, "", f"No longer there, since they are followed now: {mended}.", ""]


def _summary(networks: Sequence[Line]) -> list[str]:
    """Return a row for each list of networks."""
    rows = [
        "| list | networks | landed | median seconds | exported | equal | differ |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in LISTS:
        own = [r for r in networks if r["list"] == name]
        if own:
            seconds = statistics.median(r["seconds"] for r in own if "seconds" in r)
            skipped = ("", "too large", "no plan")
            tried = [r["export"] for r in own if r.get("export", "") not in skipped]
            counts = len(own), sum(map(_is_good, own)), f"{seconds:.2f}", len(tried)
            equal = sum(e.endswith("batch") for e in tried)
            row = [name, *counts, equal, tried.count("differs")]
            rows.append("| " + " | ".join(map(str, row)) + " |")
    return rows


def _details(networks: Sequence[Line]) -> list[str]:
    """Return a row for each network."""
    rows = [
        "| network | parameters | of the target | left alone | export | failure |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in networks:
        share = f"{r['share_of_target']:.4f}" if "share_of_target" in r else ""
        failure = r.get("error", r.get("export_error", "")).replace("|", "/")
        failure = " ".join(failure.split())[:160]
        row = [r["name"], f"{r['params']:,}", share, r.get("left_alone", "")]
        rows.append("| " + " | ".join(map(str, [*row, r.get("export", ""), failure])) + " |")
    return rows


def _is_good(line: Line) -> bool:
    """Tell whether a network landed, is as predicted and can be rebuilt from its plan."""
    is_near = HIT <= line.get("share_of_target", 0) <= 1
    return (
        is_near and line.get("exact", False) and line.get("replayed", False) and "error" not in line
    )


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
