"""The page of what dendrites cost, from the lines of `run.py`.

python -m scripts.dendrites.tables > docs/benchmarks/dendrites.md

Other lines than the packed ones are named as its argument.
"""

from collections.abc import Iterator, Sequence

from scripts.lines import Line, named_lines

INTRO = """# What dendrites cost

What dendrites cost in time and memory, as ratios of one run: medians of interleaved steps.
"""
PEER_INTRO = """
Ours as `recover_` runs them, with images in channels-last memory; the peer as its own examples do.
First weights in closed form, the default, take a time that does not grow with the epoch.
"""


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    out = [INTRO]
    trained = [line for line in lines if line["job"] == "train"]
    for group in dict.fromkeys(map(_setting, trained)):
        out += [f"## A training step: {', '.join(group)}", ""]
        out += _table(
            {
                "phase, form, sets": "case",
                "ratio to plain": "ratio",
                "that in channels-last memory": "ratio in channels last",
                "time there, torch's layout being one": "time in channels last",
                "kept for backward, ratio": "memory",
            },
            [line for line in trained if _setting(line) == group],
        )
    out += ["## A training step with linear dendrites, plain steps being one", ""]
    out += _table(
        {
            "network": "name", "one map with their layer (default)": "one map",
            "branches": "branches", "branches with norms": "branches with norms",
        },
        [
            line | {"name": ", ".join(_setting(line))}
            for line in lines
            if line["job"] == "absorbed"
        ],
    )  # fmt: skip
    out += ["## Inference: full dendrites against width of the same FLOPs", ""]
    out += _table(
        {
            "network": "name", "sets": "sets", "FLOPs ratio": "flops", "ONNX Runtime": "onnx",
            "torch, batch 1": "torch 1", "torch, batch 32": "torch 32",
        },
        [
            line | {"name": ", ".join(_setting(line)[:2])}
            for line in lines
            if line["job"] == "inference"
        ],
    )  # fmt: skip
    out += ["## How many times faster than perforatedai 3.2.9 in gradient mode", PEER_INTRO]
    out += _table(
        {
            "network": "network", "batches of an epoch": "batches", "sets": "sets",
            "neuron epoch": "neuron",
            "dendrite epoch": "dendrite", "both": "both", "dendrite epoch from memory": "memory",
            "both, from memory": "both, memory",
            "both, with first weights in closed form": "both, spectral",
            "time of a dendrite epoch from memory, plain epochs being one": "memory to plain",
        },
        [line for line in lines if line["job"] == "peer"],
    )  # fmt: skip
    return "\n".join(out)


def _setting(line: Line) -> tuple[str, str, str]:
    size = f"width {line.get('width', 1.0):g}"
    if "in_features" in line:
        size = f"{line['in_features']:,} inputs"
    return line["network"], size, f"batch {line.get('batch')}"


def _table(columns: dict[str, str], lines: Sequence[Line]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for line in lines:
        yield f"| {' | '.join(str(line.get(key, '')) for key in columns.values())} |"
    yield ""


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
