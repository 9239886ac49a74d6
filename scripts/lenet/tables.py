"""The page of LeNet-5 on MNIST, from the lines of `run.py`.

python -m scripts.lenet.tables > docs/benchmarks/lenet.md

Other lines than the packed ones are named as its argument.
"""

import statistics
from collections.abc import Iterator, Sequence

from scripts.lenet.run import JOBS
from scripts.lines import Line, named_lines
from scripts.paired import half_width

__all__ = ["PUBLISHED", "page", "params_of"]

INTRO = """# LeNet-5 on MNIST, beside published results

The network that results on structured pruning are told of: 20 and 50 channels of 5x5 kernels, 500
hidden units, {params:,} parameters. Ours is trained for 4 epochs (test error {base:.2f} %), and
each size is one call of `compress` with 10 epochs more, without augmentation. Weights are chosen on
5,000 validation images, the test split is scored once, and intervals are 95 % over {seeds} seeds.
It is the recipe `lenet5` of the zoo.

Published rows are from table 1 of Tang, Adhikari and Lin, *FLOPs as a direct optimization objective
for learning sparse neural networks* ([arXiv 1811.03060](https://arxiv.org/abs/1811.03060)), which
quotes them. "Run again" is one run by others of the method of "L0, separate"
([sparse-nn](https://github.com/ksheng-/sparse-nn)). Their parameters are counted by us from the
widths, biases included. Their multiply-adds are as quoted, with biases. The copy of the table that
we read says neither how many runs an error is of, nor the name of the row 7-13-208-16, which we
take from the order of its references.

Their third number counts single inputs of the first Linear layer. Ours is 16 for each channel
before it, because `compress` removes whole channels; that costs parameters which theirs save.
"""
# widths of two convolutions, inputs of both Linear layers; test error, %; thousand multiply-adds
PUBLISHED: dict[str, tuple[tuple[int, ...], float, int | None]] = {
    "generalized dropout": ((7, 13, 208, 16), 1.1, 254),
    "structured Bayesian pruning": ((3, 18, 284, 283), 0.9, 217),
    "Bayesian compression, GNJ": ((8, 13, 88, 13), 1.0, 290),
    "Bayesian compression, GHS": ((5, 10, 76, 16), 1.0, 158),
    "L0": ((20, 25, 45, 462), 0.9, 1300),
    "L0, separate": ((9, 18, 65, 25), 1.0, 403),
    "L0, separate, run again": ((14, 19, 36, 21), 1.27, None),
}
KERNEL, CLASSES, POSITIONS = 25, 10, 16
ORIGINAL = (20, 50, 800, 500)


def params_of(widths: tuple[int, ...]) -> int:
    """Return the parameters of a LeNet-5 of these widths."""
    first, second, flat, hidden = widths
    convs = (KERNEL + 1) * first + (KERNEL * first + 1) * second
    return convs + (flat + 1) * hidden + (hidden + 1) * CLASSES


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    bases = {line["seed"]: _error(line["base_test"]) for line in lines}
    base = statistics.mean(bases.values())
    text = INTRO.format(params=params_of(ORIGINAL), base=base, seeds=len(bases))
    rows = [
        (params_of(widths), name, widths, f"{1000 * flops:,}" if flops else "", str(error))
        for name, (widths, error, flops) in PUBLISHED.items()
    ]
    heads = ["method", "widths", "parameters", "multiply-adds", "test error, %"]
    out = [text, f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for params, name, widths, flops, error in sorted([*rows, *_ours(lines)], reverse=True):
        shown = "-".join(map(str, widths))
        out.append(f"| {name} | {shown} | {params:,} | {flops} | {error} |")
    return "\n".join([*out, ""])


def _ours(lines: Sequence[Line]) -> Iterator[tuple[int, str, tuple[int, ...], str, str]]:
    for job in JOBS:
        own = [line for line in lines if (line["allocation"], line["size"]) == job]
        if len(own) > 1:
            first, second, hidden = own[0]["widths"]
            errors = [_error(line["test"]) for line in own]
            yield (
                own[0]["params"],
                f"**ours, {job[0]} widths**",
                (first, second, POSITIONS * second, hidden),
                f"{own[0]['flops']:,}",
                f"{statistics.mean(errors):.2f} ± {half_width(errors):.2f}",
            )


def _error(accuracy: float) -> float:
    return 100 * (1 - accuracy)


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
