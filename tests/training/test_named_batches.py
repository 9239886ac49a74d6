"""Tasks of batches that are dicts: scores, targets and metrics against numpy and torch."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pbcompress import CompressionError, Task, evaluate, measure
from pbcompress.training.named_batches import micro_f1, perplexity

VOCABULARY = 7


class Scorer(nn.Module):
    """Gives scores of a shape, in an output as those of transformers."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.scores[: len(input_ids)], past_key_values=None)


@dataclass
class Case:
    """A kind of batch: shapes of scores and labels, and where classes are in the end."""

    scores: tuple[int, ...]
    labels: tuple[int, ...]
    output: tuple[int, ...]


CASES = {
    "samples": Case((4, 3), (4,), (4, 3)),
    "tokens": Case((4, 5, 3), (4, 5), (4, 3, 5)),
    "pixels": Case((4, 3, 2, 2), (4, 2, 2), (4, 3, 2, 2)),
}


@pytest.mark.parametrize("kind", CASES)
def test_classes_are_on_axis_1(kind: str) -> None:
    case = CASES[kind]
    scores, labels = torch.randn(case.scores), torch.randint(0, 3, case.labels)
    batch = {"input_ids": torch.zeros(4, 5), "labels": labels}
    output, target = Task.huggingface().run(Scorer(scores), batch)
    assert output.shape == case.output
    assert target is labels
    axis = scores.shape.index(3)
    expected = (scores.numpy().argmax(axis) == labels.numpy()).mean()
    assert Task.huggingface().metric(output, target) == pytest.approx(expected)


def test_one_score_for_each_number_is_a_regression() -> None:
    scores, labels = torch.randn(4, 1), torch.randn(4)
    batch = {"input_ids": torch.zeros(4, 2), "labels": labels}
    task = Task.huggingface("regression")
    output, target = task.run(Scorer(scores), batch)
    assert output.shape == target.shape == (4,)
    assert task.loss(output, target).item() == pytest.approx(
        np.square(scores[:, 0].numpy() - labels.numpy()).mean()
    )
    assert not task.higher_is_better


@given(st.integers(0, 10_000))
def test_micro_f1_counts_all_labels_together(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 3, generator=generator)
    labels = torch.randint(0, 2, (6, 3), generator=generator).float()
    said, holds = scores.numpy() > 0, labels.numpy() > 0
    hits, extra, missed = (said & holds).sum(), (said & ~holds).sum(), (~said & holds).sum()
    assert micro_f1(scores, labels) == pytest.approx(2 * hits / max(2 * hits + extra + missed, 1))


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_perplexity_is_of_the_tokens_that_count(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(10, 6, VOCABULARY, generator=generator)
    tokens = torch.randint(0, VOCABULARY, (10, 6), generator=generator)
    mask = torch.arange(6) < torch.randint(2, 7, (10, 1), generator=generator)

    def batch(first: int) -> dict[str, Tensor]:
        own = slice(first, first + size)
        return {"scores": scores[own], "input_ids": tokens[own], "attention_mask": mask[own].long()}

    class Known(nn.Module):
        def forward(self, scores: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return scores

    batches = [batch(i) for i in range(0, 10, size)]
    found, samples = evaluate(Known(), batches, Task.causal_lm())
    shares = torch.log_softmax(scores.double(), -1).numpy()
    losses = [
        -shares[row, place, tokens[row, place + 1]]
        for row in range(10)
        for place in range(5)
        if mask[row, place + 1]
    ]
    assert found == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert samples == 10


def test_labels_of_a_language_model_come_before_its_tokens() -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    labels = torch.tensor([[-100, -100, 3, 4]])
    batch = {"input_ids": tokens, "labels": labels}
    scores, target = Task.causal_lm().run(Scorer(torch.randn(1, 4, VOCABULARY)), batch)
    assert scores.shape == (1, VOCABULARY, 3)
    assert target.tolist() == [[-100, 3, 4]]


def test_the_metric_of_a_language_model_keeps_a_loss_for_each_token_alone() -> None:
    scores, tokens = torch.randn(2, 4, VOCABULARY), torch.randint(0, VOCABULARY, (2, 4))
    task = Task.causal_lm()
    output, target = task.scored(Scorer(scores), {"input_ids": tokens})
    expected = functional.cross_entropy(
        scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    assert torch.allclose(output, expected.view(2, 3))
    assert task.metric(output, target) == pytest.approx(expected.mean().exp().item())


def test_a_perplexity_is_finite() -> None:
    assert perplexity(torch.full((1, 2), 1e9), torch.zeros(1, 2)) < float("inf")


BATCHES: dict[str, tuple[Task, Any, nn.Module, str]] = {
    "no labels": (
        *(Task.huggingface(), {"input_ids": torch.zeros(2, 3)}, Scorer(torch.zeros(2, 3))),
        "a dict with 'labels'; found a dict with input_ids. Let the collator keep the labels",
    ),
    "a pair": (
        *(Task.huggingface(), (torch.zeros(2, 3), torch.zeros(2)), Scorer(torch.zeros(2, 3))),
        "found a tuple of 2",
    ),
    "no tokens": (
        *(Task.causal_lm(), {"words": torch.zeros(2, 3)}, Scorer(torch.zeros(2, 3))),
        "dicts with 'input_ids' were expected; found a dict with words",
    ),
    "an encoder": (
        *(Task.causal_lm(), {"input_ids": torch.zeros(2, 3)}, Scorer(torch.zeros(2, 5))),
        r"found scores \(2, 5\) and tokens \(2, 3\)",
    ),
    "no scores": (
        *(Task.causal_lm(), torch.zeros(2, 3), nn.LSTM(3, 2)),
        "was to return scores, or an output with logits; found tuple",
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_other_batches_and_models_are_refused(kind: str) -> None:
    task, batch, model, message = BATCHES[kind]
    with pytest.raises(CompressionError, match=message):
        task.run(model, batch)


def test_other_problems_are_refused() -> None:
    problem: Any = "ranking"
    with pytest.raises(CompressionError, match=r"'ranking' was asked for.*'causal_lm'"):
        Task.huggingface(problem)


def test_what_reduce_must_be_is_said() -> None:
    wrong: Any = 3
    with pytest.raises(CompressionError, match=r"Task\.reduce must be a function"):
        Task(reduce=wrong)


def test_a_cache_beside_the_outputs_is_no_part_of_a_count() -> None:
    class Cache:
        """A state that cannot be traced."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"logits": self.layer(x), "past": Cache()}

    assert measure(Model(), torch.zeros(1, 3)).flops == 6
