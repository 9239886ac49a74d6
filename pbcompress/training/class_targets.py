"""Whether targets are the classes of scores, and what to write where they are not."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BATCHES", "IGNORED", "Problem", "class_problem", "score_problem"]

IGNORED = -100  # the class number that cross_entropy leaves out
LABELS = (
    "Task(loss=lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()), "
    "metric=lambda o, t: ((o > 0) == (t > 0.5)).float().mean())"
)
BATCHES = "DataLoader(data_set, batch_size=64), which makes batches of its samples"
SUM = 1e-2  # of probabilities, from one; in half precision
VALUES = "Task(loss=F.mse_loss, metric=F.mse_loss, higher_is_better=False)"


class Problem(NamedTuple):
    """What is wrong with outputs and targets.

    Attributes:
        expected: What is taken.
        write: What to write instead.
    """

    expected: str
    write: str


def class_problem(
    output: Tensor, target: Tensor, *, ignored: int = IGNORED, takes_shares: bool = True
) -> Problem | None:
    """Return what is wrong with targets of class scores; None: nothing.

    Args:
        output: Scores of shape (N, classes, ...).
        target: Class numbers, int64 of shape (N, ...).
        ignored: The number of no class that may stand there.
        takes_shares: Whether there may be a float for each class instead, as in `cross_entropy`;
            whole numbers of any type pass where there may not, as comparisons take them.

    Example:
        >>> class_problem(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long)).write
        'target.squeeze(1)'
    """
    if output.dim() < 2:
        write = f"for one score each {LABELS}" if target.dim() else BATCHES
        return Problem("scores of shape (N, classes, ...)", write)
    classes, wanted = output.shape[1], (*output.shape[:1], *output.shape[2:])
    each = output.shape[1:].numel()
    if target.shape == output.shape[:1] and len(wanted) > 1 and 1 < each == max(output.shape[1:]):
        write = "Task(forward=lambda model, batch: (model(batch[0]).flatten(1), batch[1]))"
        return Problem(f"scores of shape {(len(output), each)}", write)
    given = f"class numbers of shape {tuple(wanted)}, int64 from 0 to {classes - 1}"
    if classes == 1:
        both = f"for labels {LABELS}, for values {VALUES}"
        return Problem("two class scores or more on axis 1", both)
    if target.shape == wanted:
        return _number_problem(output, target, ignored, takes_shares, given)
    if target.shape == output.shape:
        if target.is_floating_point() and takes_shares:
            return None
        write = "target.argmax(1)" if _is_one_hot(target) else f"for several labels {LABELS}"
        return Problem(given, write)
    if target.shape == (wanted[0], 1, *wanted[1:]):
        return Problem(
            given, f"target.squeeze(1){'' if target.dtype == torch.int64 else '.long()'}"
        )
    if target.shape == output.shape[:-1]:
        loss = "lambda o, t: F.cross_entropy(o.flatten(0, -2), t.flatten())"
        metric = "lambda o, t: (o.argmax(-1) == t).float().mean()"
        return Problem(f"{given} (classes on axis 1)", f"Task(loss={loss}, metric={metric})")
    if target.shape == (*wanted, classes):
        return Problem(given, "target.argmax(-1)")
    return Problem(given, "one class number for each sample and position")


def score_problem(output: Tensor, of_scores: bool) -> Problem | None:
    """Return what is wrong with class scores that a loss takes in another form; None: nothing.

    Args:
        output: Shape (N, classes, ...).
        of_scores: Whether the loss takes scores, as a cross entropy does, and not logarithms of
            probabilities.

    Example:
        >>> score_problem(torch.tensor([[0.2, 0.8]]), of_scores=True).expected
        'scores, before a softmax; these are probabilities, which sum to one'
    """
    if not len(output) or not output.is_floating_point():
        return None
    values = output.detach().float()
    if of_scores and bool((values >= 0).all()) and _are_one(values.sum(1)):
        write = "a network without softmax at its end, or Task(loss=lambda o, t: "
        return Problem(
            "scores, before a softmax; these are probabilities, which sum to one",
            f"{write}F.nll_loss(o.clamp_min(1e-7).log(), t))",
        )
    if of_scores or _are_one(values.exp().sum(1)):
        return None
    return Problem("logarithms of probabilities", "Task(loss=F.cross_entropy), which takes scores")


def _are_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < SUM).all())


def _number_problem(
    output: Tensor, target: Tensor, ignored: int, takes_shares: bool, given: str
) -> Problem | None:
    if target.is_floating_point():
        if bool((target != target.round()).any()):
            return Problem(given, f"for values {VALUES}")
        if takes_shares:
            return Problem(given, "target.long()")
    elif target.dtype not in (torch.int64, torch.uint8) and takes_shares:
        return Problem(given, "target.long()")
    kept = target[target != ignored].long()
    if not kept.numel():
        return None
    least, most, classes = int(kept.min()), int(kept.max()), output.shape[1]
    if least >= 0 and most < classes:
        return None
    write = "target - 1" if least >= 1 and most == classes else _out_of_range(ignored)
    return Problem(f"{given}; they go from {least} to {most}", write)


def _out_of_range(ignored: int) -> str:
    return (
        "a network with a score for every class, and where a number stands for no class, a loss "
        f"with ignore_index and a metric that leaves it out (it is {ignored} by default)"
    )


def _is_one_hot(target: Tensor) -> bool:
    is_whole = bool(((target == 0) | (target == 1)).all())
    return is_whole and bool((target.sum(1) == 1).all())
