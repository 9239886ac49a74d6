"""Batches that are dicts with labels, as tokenizers and collators of Hugging Face make them.

A class that the labels number is on axis 1 of the scores, where torch's losses and metrics expect
it; transformers has it last.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pbcompress.errors import CompressionError
from pbcompress.training.class_targets import IGNORED

__all__ = [
    "described_batch",
    "labels_scored",
    "losses_of_tokens",
    "micro_f1",
    "next_tokens_scored",
    "perplexity",
]

LABELS = ("labels", "label")
LARGEST = 700.0  # mean loss of which there is an exponential
TOKENS, MASK = "input_ids", "attention_mask"


def labels_scored(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Run a model on a dict without its labels; return scores and labels.

    Args:
        model: Returns scores, or an output that has ``logits``.
        batch: Inputs by name, and ``labels``.

    Returns:
        Scores of shape (N, classes, ...), and labels of shape (N, ...) or (N, classes); one number
        for each label, of shape (N,), where there is one score for each.
    """
    names = [name for name in LABELS if isinstance(batch, Mapping) and name in batch]
    if not names:
        raise CompressionError(
            f"A batch was expected that is a dict with {LABELS[0]!r}; found "
            f"{described_batch(batch)}. Let the collator keep the labels, or write "
            "Task(forward=...)."
        )
    labels: Tensor = batch[names[0]]
    scores = _scores(model(**{k: v for k, v in batch.items() if k not in LABELS}))
    if scores.shape == (*labels.shape, 1) and labels.is_floating_point():
        return scores.squeeze(-1), labels
    return _classes_first(scores, labels), labels


def next_tokens_scored(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Run a causal language model; return the scores of every next token, and these tokens.

    Args:
        model: Takes ``input_ids`` by name, or tokens alone; returns scores of shape (N, T, tokens),
            or an output that has ``logits``.
        batch: Tokens of shape (N, T), or a dict with ``input_ids``; ``labels`` in it, else the
            tokens where ``attention_mask`` is not 0, are what is to be foretold.

    Returns:
        Scores of shape (N, tokens, T - 1), and targets of shape (N, T - 1), -100 where nothing is
        to be foretold.
    """
    if isinstance(batch, Tensor):
        scores, labels = _scores(model(batch)), batch
    elif isinstance(batch, Mapping) and TOKENS in batch:
        scores = _scores(model(**{k: v for k, v in batch.items() if k not in LABELS}))
        labels = next((batch[name] for name in LABELS if name in batch), batch[TOKENS])
        if labels is batch[TOKENS] and batch.get(MASK) is not None:
            labels = labels.masked_fill(batch[MASK] == 0, IGNORED)
    else:
        raise CompressionError(
            "Batches of tokens, shape (N, T), or dicts with 'input_ids' were expected; found "
            f"{described_batch(batch)}. Give one of them, or write Task(forward=...)."
        )
    if scores.shape[:-1] != labels.shape or labels.shape[1] < 2:
        raise CompressionError(
            "A causal language model gives scores of shape (N, T, tokens) for tokens of shape "
            f"(N, T), T at least 2; found scores {tuple(scores.shape)} and tokens "
            f"{tuple(labels.shape)}. Give such a model and such batches, or write "
            "Task(forward=...)."
        )
    return scores[:, :-1].movedim(-1, 1), labels[:, 1:]


def losses_of_tokens(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of every token in nats, 0 where the target is -100.

    Args:
        scores: Shape (N, tokens, T).
        targets: Shape (N, T).
    """
    return functional.cross_entropy(scores.float(), targets, reduction="none")


def perplexity(losses: Tensor, targets: Tensor) -> float:
    """Return the perplexity of a split.

    Args:
        losses: Of every token, in nats.
        targets: Of the same shape; where one is -100, nothing is counted.

    Example:
        >>> losses, targets = Tensor([[0.0, math.log(8)]]), Tensor([[-100, 7]])
        >>> round(perplexity(losses, targets), 5)
        8.0
    """
    count = int((targets != IGNORED).sum())
    return math.exp(min(losses.double().sum().item() / max(count, 1), LARGEST))


def micro_f1(scores: Tensor, labels: Tensor) -> float:
    """Return the F1 of all labels together; a score above 0 says that a label holds.

    Args:
        scores: Of any shape.
        labels: Of the same shape, 0 or 1.

    Example:
        >>> micro_f1(Tensor([[1.0, -1.0, 2.0]]), Tensor([[1.0, 1.0, 0.0]]))
        0.5
    """
    said, holds = scores > 0, labels > 0.5
    found = int((said & holds).sum())
    return 2 * found / max(int(said.sum()) + int(holds.sum()), 1)


def _scores(output: Any) -> Tensor:
    scores = getattr(output, "logits", output)
    if isinstance(scores, tuple | list) and len(scores) == 1:
        scores = scores[0]
    if not isinstance(scores, Tensor):
        raise CompressionError(
            f"The model was to return scores, or an output with logits; found "
            f"{type(output).__name__}. Write Task(forward=...) that returns (scores, labels)."
        )
    return scores


def _classes_first(scores: Tensor, labels: Tensor) -> Tensor:
    is_last = scores.dim() > 2 and scores.shape[:-1] == labels.shape
    return scores.movedim(-1, 1) if is_last else scores


def described_batch(batch: Any) -> str:
    """Return what a batch is, for messages."""
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a dict with {', '.join(map(str, batch))}"
    return f"a {kind} of {len(batch)}" if isinstance(batch, tuple | list) else f"a {kind}"
