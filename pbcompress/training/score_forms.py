"""Whether a loss of scores gets scores: what went through a sigmoid or softmax is none any more.

A loss that takes scores makes probabilities of them itself. Given probabilities it trains without
an error, and badly. The loss is watched for the functions of torch that it calls, so that one of
one's own is seen too; where a tensor comes from is read off its gradient.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pbcompress.core.modules import copy_model
from pbcompress.core.randomness import seeded
from pbcompress.training.class_targets import Problem, score_problem
from pbcompress.training.first_mistakes import refused
from pbcompress.training.task import Task

__all__ = ["refuse_probabilities"]

_OF_LABELS = (
    functional.binary_cross_entropy_with_logits,
    functional.multilabel_soft_margin_loss,
    functional.soft_margin_loss,
)
_OF_CLASSES = (functional.cross_entropy,)
_SQUASH = {"SigmoidBackward0": "sigmoid", "HardsigmoidBackward0": "hardsigmoid"}
_SOFTMAX = {"SoftmaxBackward0": "softmax"}
_MOVES = (  # elements, and leave them as they are
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Index"),
    *("Transpose", "Permute", "T", "Clone", "Alias", "ToCopy", "Unbind", "Split", "Expand"),
    *("MaskedSelect", "SplitWithSizes", "Clamp", "ClampMin", "ClampMax", "Cat", "Stack"),
)


def refuse_probabilities(
    task: Task, network: nn.Module, batch: Any, both: tuple[Any, Any], where: str
) -> None:
    """Raise where a loss takes outputs for what they are not: probabilities for scores.

    A network may return scores in training alone; that decides then.

    Args:
        task: Its loss is called, with gradients.
        network: In eval mode; a copy of it runs in training mode.
        batch: What it ran on.
        both: Its output and the target.
        where: Names the batch.
    """
    problem = _problem(task, *both)
    if problem is None:
        return
    try:
        with seeded("check"), torch.enable_grad():
            if _problem(task, *task.run(copy_model(network).train(), batch)) is None:
                return
    except Exception:  # what it returns in training is told when it is tried
        pass
    raise refused("Task.loss", task.loss, both, where, problem, None)


def _problem(task: Task, output: Any, target: Any) -> Problem | None:
    loss = task.loss
    is_module = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    if is_module or loss in (functional.cross_entropy, functional.nll_loss):
        of_scores = isinstance(loss, nn.CrossEntropyLoss) or loss is functional.cross_entropy
        has_classes = isinstance(output, Tensor) and output.dim() > 1
        found = score_problem(output, of_scores) if has_classes else None
        if found is not None:
            return found
    watch = _Watch()
    try:
        with watch, seeded("call"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told by whoever calls it in earnest
            loss(output, target)
    except Exception:  # the same
        return None
    return next(watch.problems(), None)


class _Watch(TorchFunctionMode):
    """Keeps what losses of scores are given."""

    def __init__(self) -> None:
        super().__init__()
        self._given: list[tuple[Any, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OF_LABELS + _OF_CLASSES:
            self._given.append((func, args[0] if args else kwargs["input"]))
        return func(*args, **kwargs)

    def problems(self) -> Iterator[Problem]:
        for func, scores in self._given:
            is_of_classes = func in _OF_CLASSES
            name = _made_by(scores, _SOFTMAX if is_of_classes else {**_SQUASH, **_SOFTMAX})
            if name:
                instead = "F.nll_loss(o.clamp_min(1e-7).log(), t)"
                if not is_of_classes:
                    instead = "F.binary_cross_entropy(o, t)"
                yield Problem(
                    f"scores, before a {name}; these went through one, and the loss makes "
                    "probabilities of them once more",
                    f"a network without {name} at its end, or Task(loss=lambda o, t: {instead})",
                )


def _made_by(tensor: Tensor, names: Mapping[str, str]) -> str:
    """Return which of some functions the elements of a tensor come from as they are; else ""."""
    node: Any = tensor.grad_fn
    while node is not None:
        name = node.name()
        if name in names:
            return names[name]
        if name.rstrip("0123456789").removesuffix("Backward") not in _MOVES or not (
            node.next_functions
        ):
            return ""
        node = node.next_functions[0][0]
    return ""
