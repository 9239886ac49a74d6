"""Validation batches that were padded to lengths of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbcompress import CompressConfig, Data, DendriteConfig, Task, recover_
from pbcompress.errors import CompressionError
from pbcompress.training.loop import evaluate
from pbcompress.training.task import accuracy
from tests.support.configs import recovery_of

F = nn.functional
C = 3


class Tagger(nn.Module):
    """Scores of tokens; of shape (N, T, C), or with the classes first."""

    def __init__(self, is_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.is_first = nn.Embedding(20, C), is_first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.table(x)
        return y.movedim(-1, 1) if self.is_first else y


def split(*shapes: tuple[int, ...], pad: int | None = None) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for shape in shapes:
        x = torch.randint(1, 20, shape, generator=generator)
        y = torch.randint(C, shape, generator=generator) + (pad == 0)
        if pad is not None:
            lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
            y = torch.where(torch.arange(shape[1]) < lengths, y, pad)
        found.append((x, y))
    return found


def by_token(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(-1) == target).float().mean()


def by_flat_token(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(0, 1).argmax(1) == target.flatten()).float().mean()


def kept(ignored: int) -> Any:
    def metric(output: Tensor, target: Tensor) -> Tensor:
        mask = target != ignored
        return (output.argmax(-1) + (ignored == 0) == target)[mask].float().mean()

    return metric


def whole_sentences(ignored: int) -> Any:
    def metric(output: Tensor, target: Tensor) -> Tensor:
        right = (output.argmax(-1) + (ignored == 0) == target) | (target == ignored)
        return right.all(1).float().mean()

    return metric


def token_by_token(model: nn.Module, data: Any, shift: int = 0, pad: int | None = None) -> float:
    """The accuracy by plain loops."""
    hits = count = 0
    for x, y in data:
        for i in range(len(x)):
            for token, label in zip(x[i].flatten(), y[i].flatten(), strict=True):
                if int(label) == pad:
                    continue
                hits += int(model.table(token).argmax()) + shift == int(label)
                count += 1
    return hits / count


LENGTHS = [(4, 9), (4, 6), (3, 7)]
SINGLE = [(1, 9), (1, 6), (1, 7), (1, 2)]


@pytest.mark.parametrize("shapes", [LENGTHS, SINGLE], ids=["batches", "one by one"])
@pytest.mark.parametrize("metric", [by_token, by_flat_token, F.cross_entropy])
def test_a_metric_of_tokens_counts_each_token_once(metric: Any, shapes: Any) -> None:
    model, data = Tagger(), split(*shapes)
    if metric is F.cross_entropy:  # which wants the classes first
        task = Task(metric=lambda o, t: metric(o.movedim(-1, 1), t), higher_is_better=False)
        both = [torch.cat([v.flatten() for v in part]) for part in zip(*data, strict=True)]
        expected = metric(model.table(both[0]), both[1]).item()
    else:
        task, expected = Task(metric=metric), token_by_token(model, data)
    value, samples = evaluate(model, data, task)
    assert value == pytest.approx(expected, rel=1e-6)
    assert samples == sum(n for n, _ in shapes)


def test_the_accuracy_of_classes_on_axis_1_counts_each_token_once() -> None:
    model, data = Tagger(is_first=True), split(*LENGTHS)
    assert evaluate(model, data, Task(metric=accuracy))[0] == pytest.approx(
        token_by_token(model, data)
    )


def test_maps_of_two_lengths_count_each_pixel_once() -> None:
    model, data = Tagger(is_first=True), split((2, 5, 4), (2, 3, 7), (1, 5, 2))
    assert evaluate(model, data, Task())[0] == pytest.approx(token_by_token(model, data))


@pytest.mark.parametrize("pad", [-100, 0, -1])
@pytest.mark.parametrize("shapes", [LENGTHS, SINGLE], ids=["batches", "one by one"])
def test_a_metric_may_leave_padding_out(pad: int, shapes: Any) -> None:
    model, data = Tagger(), split(*shapes, pad=pad)
    value, _ = evaluate(model, data, Task(metric=kept(pad)))
    assert value == pytest.approx(token_by_token(model, data, int(pad == 0), pad))


@pytest.mark.parametrize("pad", [-100, 0, -1])
@pytest.mark.parametrize("shapes", [LENGTHS, SINGLE], ids=["batches", "one by one"])
def test_a_metric_of_sentences_gets_them_padded(pad: int, shapes: Any) -> None:
    model, data = Tagger(), split(*shapes, pad=pad)
    for number in (0, 1):  # some sentences are right
        x, y = data[number]
        y[0] = torch.where(y[0] == pad, pad, model(x[:1]).argmax(-1)[0] + (pad == 0))
    metric = whole_sentences(pad)
    value, samples = evaluate(model, data, Task(metric=metric))
    expected = [
        float(metric(model(x[i : i + 1]), y[i : i + 1])) for x, y in data for i in range(len(x))
    ]
    assert 0 < value < 1
    assert value == pytest.approx(sum(expected) / len(expected))
    assert samples == len(expected)


def test_a_mask_may_go_with_the_targets() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        x, y = batch
        return {"scores": model(x)}, {"y": y.clamp(min=0), "mask": y >= 0, "names": ("a", "b")}

    def metric(output: Any, target: Any) -> Tensor:
        return (output["scores"].argmax(-1) == target["y"])[target["mask"]].float().mean()

    model, data = Tagger(), split(*LENGTHS, pad=-100)
    value, _ = evaluate(model, data, Task(metric=metric, forward=forward))
    assert value == pytest.approx(token_by_token(model, data, 0, -100))


def test_values_of_tokens_are_scored() -> None:
    model, data = Tagger(), split(*LENGTHS)
    task = Task(metric=lambda o, t: (o[..., 0] - t).abs().mean())
    expected = torch.cat([(model(x)[..., 0] - y).abs().flatten() for x, y in data]).mean()
    assert evaluate(model, data, task)[0] == pytest.approx(expected.item())


def test_a_metric_that_no_way_keeps_is_refused_with_what_to_do() -> None:
    def first_of_sentence(output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(-1) == target).float().mean(1).max()

    match = r"\(4, 9\) in one batch and .*one long sample.*leave out"
    with pytest.raises(CompressionError, match=match):
        evaluate(Tagger(), split(*LENGTHS), Task(metric=first_of_sentence))


def test_batches_of_different_lengths_train_and_are_scored() -> None:
    model, data = Tagger(), split(*LENGTHS)
    task = Task(loss=lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), metric=by_token)
    recovery = recovery_of(epochs=2)
    config = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery)
    history = recover_(model, Data(data, data), task, config=config)
    assert max(record["metric"] for record in history) == pytest.approx(token_by_token(model, data))
