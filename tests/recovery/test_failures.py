"""A recovery that fails leaves no gradients, and numbers that are none are found in every batch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbcompress import (
    Callback,
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    DivergedError,
    RecoveryConfig,
    Task,
    evaluate,
    recover_,
    reestimate_batchnorm_,
)

CONFIG = CompressConfig(
    dendrites=DendriteConfig(max_sets=1), recovery=RecoveryConfig(epochs=2, dendrite_epochs=1)
)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers)


def batches(count: int = 4, bad: int | None = None, value: float = math.inf) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    found = [
        (torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]
    if bad is not None:
        found[bad][0][3, 2] = value
    return found


def has_gradients(model: nn.Module) -> bool:
    return any(p.grad is not None for p in model.parameters())


class Stop(Callback):
    def __init__(self, epoch: int) -> None:
        self.left = epoch

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", range(4))
def test_a_stopped_recovery_leaves_no_gradients(epoch: int) -> None:
    model = network()
    with pytest.raises(KeyboardInterrupt):
        recover_(model, Data(batches(), batches()), config=CONFIG, callbacks=[Stop(epoch)])
    assert not has_gradients(model)


def test_a_recovery_leaves_no_gradients() -> None:
    model = network()
    recover_(model, Data(batches(), batches()), config=CONFIG)
    assert not has_gradients(model)


# one call checks the task, four give the loss of equal outputs, 24 test rates, then it trains
@pytest.mark.parametrize("call", [7, 9, 13, 31])
def test_a_loss_that_raises_leaves_no_gradients(call: int) -> None:
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(output, target)

    model = network()
    with pytest.raises(ZeroDivisionError):
        recover_(model, Data(batches(), batches()), Task(loss=loss), config=CONFIG)
    assert not has_gradients(model)


def test_a_divergence_leaves_no_gradients() -> None:
    model = network()
    first = next(model.parameters()).detach().clone()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        has_trained = not torch.equal(next(model.parameters()), first)
        return nn.functional.cross_entropy(output, target) * (math.inf if has_trained else 1.0)

    with pytest.raises(DivergedError):
        recover_(model, Data(batches(), batches()), Task(loss=loss), config=CONFIG)
    assert not has_gradients(model)


def test_what_is_refused_before_it_begins_leaves_gradients_alone() -> None:
    model = network()
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(CompressionError):
        recover_(model, Data([], batches()), config=CONFIG)
    assert has_gradients(model)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("bad", [1, 3])
def test_a_number_that_is_none_in_a_later_batch_is_named(bad: int, value: float) -> None:
    with pytest.raises(CompressionError, match=f"batch {bad} of the split"):
        evaluate(network(), batches(bad=bad, value=value), Task())
    with pytest.raises(CompressionError, match=f"batch {bad} of Data.train"):
        recover_(network(), Data(batches(bad=bad, value=value), batches()), config=CONFIG)
    with pytest.raises(CompressionError, match=f"batch {bad} of Data.val"):
        recover_(network(), Data(batches(), batches(bad=bad, value=value)), config=CONFIG)
    with pytest.raises(CompressionError, match=f"batch {bad} of Data.train"):
        reestimate_batchnorm_(network(), Data(batches(bad=bad, value=value), batches()), Task())
