"""The page of what a recovery costs beside a plain loop, from the lines of `run.py`.

python -m scripts.recovery.tables > docs/benchmarks/recovery.md

Other lines than the packed ones are named as its argument.
"""

import statistics
from collections.abc import Iterator, Sequence

from scripts.lines import Line, named_lines
from scripts.recovery.run import OURS, PLAIN

INTRO = """# What a recovery costs beside a plain loop

`recover_` on a ResNet-20 with random images of CIFAR's shape in batches of 64, beside a plain loop
written by hand: CPU seconds of one thread, medians over rounds in which all arms take turns. The
machine was shared and busy, so only what stands under one commit can be compared. An epoch of the
runs has 4 steps and one batch of validation. The fixed cost is all that lies before the first epoch
and after the last one: checks of the data, the trial of channels-last memory, copies. It does not
grow with the data, so it is also given as a share of longer epochs of the faster plain loop.
"""
LENGTHS = (8, 32)  # steps of an epoch that the fixed cost is a share of


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    out = [INTRO]
    heads = ["commit", "arm", "rounds", "an epoch", "that over the best plain loop", "fixed cost"]
    heads += [f"of an epoch of {steps} steps" for steps in LENGTHS]
    out += [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for commit in dict.fromkeys(line["commit"] for line in lines):
        out += _rows(commit, [line for line in lines if line["commit"] == commit])
    return "\n".join([*out, ""])


def _rows(commit: str, lines: Sequence[Line]) -> Iterator[str]:
    best = min(_epoch(lines, arm) for arm in PLAIN)
    for arm in (*OURS, *PLAIN):
        own = _epoch(lines, arm)
        cells = [commit, arm, str(sum(line["arm"] == arm for line in lines))]
        cells += [f"{own:.2f} s", f"{own / best:.2f}"]
        if arm in OURS:
            fixed = statistics.median(line["fixed"] for line in lines if line["arm"] == arm)
            step = best / lines[0]["steps"]
            cells += [f"{fixed:.2f} s", *(f"{fixed / (step * n):.3f}" for n in LENGTHS)]
        else:
            cells += [""] * (1 + len(LENGTHS))
        yield f"| {' | '.join(cells)} |"


def _epoch(lines: Sequence[Line], arm: str) -> float:
    """Return the median epoch, the first one in a process left out: torch prepares its kernels."""
    own = [line for line in lines if line["arm"] == arm]
    warm = [line["first"] for line in own if line["round"]]
    return statistics.median([line["epoch"] for line in own] + warm)


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
