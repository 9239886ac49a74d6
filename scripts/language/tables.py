"""The page of the small language model, from the lines of `run.py`.

python -m scripts.language.tables > docs/benchmarks/language.md

The lines are the packed ones beside this script.
"""

import statistics
from collections.abc import Iterator, Sequence

from pbcompress.core.text_tables import render_markdown
from scripts.language.run import ARMS, TARGETS
from scripts.lines import Line, named_lines
from scripts.paired import half_width

NAMES = {
    "cut": "the cut alone",
    "fitted": "fitted without training",
    "recovered": "recovered, the default of `compress`",
    "kl": "recovered, half of the loss by KL from the original",
    "dist": "recovered, half of the loss by DIST from the original",
}
HEAD = ("parameters", "network", "seeds", "test", "times", "validation, times", "seconds")


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    originals = {line["seed"]: line["original"] for line in lines}
    params = statistics.mean(own["params"] for own in originals.values())
    test = statistics.mean(own["test"] for own in originals.values())
    text = [
        "# A language model",
        "",
        "What is left of a small language model at half and at a quarter of its parameters? A "
        "GPT-2 of two blocks, width 64, on news stories (Reuters R8, first 48 words out of the "
        "255 that most stories have). 8 epochs of training, 4 of recovery. Perplexity of the next "
        f"word on test, mean of {len(originals)} seeds; lower is better. The original has "
        f"{params:,.0f} parameters and a perplexity of {test:.2f}. *times*: of the original's, "
        "paired by seed, with 95 % intervals. Seconds are of one thread, all in one go with "
        "planning, export and its proof. Made by `scripts/language/`.",
        "",
        render_markdown([HEAD, *_rows(lines)]),
    ]
    return "\n".join(text) + "\n"


def _rows(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    for target in TARGETS:
        for arm in ARMS:
            own = [line for line in lines if (line["target"], line["arm"]) == (target, arm)]
            if own:
                yield _row(own, target, arm)


def _row(own: Sequence[Line], target: float, arm: str) -> tuple[str, ...]:
    test = statistics.mean(line["test"] for line in own)
    seconds = statistics.median(line["seconds"] for line in own)
    times = [_times(own, split) for split in ("test", "val")]
    return f"{target:.0%}", NAMES[arm], str(len(own)), f"{test:.2f}", *times, f"{seconds:.0f}"


def _times(lines: Sequence[Line], split: str) -> str:
    ratios = [line[split] / line["original"][split] for line in lines]
    if len(ratios) < 2:
        return f"{ratios[0]:.3f}"
    return f"{statistics.mean(ratios):.3f} ± {half_width(ratios):.3f}"


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
