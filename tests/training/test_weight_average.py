"""The moving average of weights: its value, what it leaves alone, and what a recovery keeps."""

import numpy as np
import pytest
import torch
from torch import nn

from pbcompress import Data, WeightAverage, evaluate, recover_
from pbcompress.training.task import Task
from tests.support.configs import recovery_of


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def moved(net: nn.Module) -> None:
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))


@pytest.mark.parametrize("horizon", [1, 3.5, 40, 500])
def test_it_is_the_recursion_by_its_definition(horizon: float) -> None:
    net = network().double()
    average = WeightAverage(net, horizon)
    every = max(int(horizon / 50), 1)
    wanted = net[0].weight.detach().numpy().copy()
    for step in range(1, 61):
        moved(net)
        average.update()
        if step % every == 0:
            count = step // every
            decay = min(max(1 - every / horizon, 0), count / (count + 10))
            wanted = decay * wanted + (1 - decay) * net[0].weight.detach().numpy()
    with average.applied():
        np.testing.assert_allclose(net[0].weight.detach(), wanted, rtol=1e-12)


def test_the_model_gets_its_own_weights_back_on_an_error_too() -> None:
    net = network()
    average = WeightAverage(net, 5)
    moved(net)
    average.update()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    changed: list[str] = []

    def fail() -> None:
        changed.extend(k for k, v in net.state_dict().items() if not torch.equal(v, before[k]))
        raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"), average.applied():
        fail()
    assert len(changed) == 8  # four weights and biases, two of the norm, and its statistics
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_is_frozen_and_other_buffers_are_left_alone() -> None:
    net = network()
    net[0].requires_grad_(False)
    net.register_buffer("own", torch.zeros(3))
    average = WeightAverage(net, 5)
    moved(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with average.applied():
        for name in ("0.weight", "0.bias", "own", "1.num_batches_tracked"):
            assert torch.equal(net.state_dict()[name], before[name])


def test_small_steps_are_not_lost_in_half_precision() -> None:
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.zeros_(net.weight)
    average = WeightAverage(net, 1000)
    nn.init.ones_(net.weight)
    for _ in range(10_000):
        average.update()
    with average.applied():
        assert float(net.weight.detach()) == pytest.approx(1, abs=0.01)
        assert net.weight.dtype == torch.bfloat16


def test_it_goes_on_from_its_state() -> None:
    nets = [network(), network()]
    averages = [WeightAverage(net, 20) for net in nets]
    for _ in range(7):
        torch.manual_seed(1)
        moved(nets[0])
        averages[0].update()
    nets[1].load_state_dict(nets[0].state_dict())
    averages[1].restore(averages[0].state(), averages[0].steps)
    for net, average in zip(nets, averages, strict=True):
        torch.manual_seed(2)
        moved(net)
        average.update()
    with averages[0].applied(), averages[1].applied():
        for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_horizon_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.5"):
        WeightAverage(network(), 0.5)


def data() -> Data:
    torch.manual_seed(3)
    x = torch.randn(96, 4)
    y = (x[:, :3] + 0.5 * torch.randn(96, 3)).argmax(1)
    train = list(zip(x[:64].split(16), y[:64].split(16), strict=True))
    return Data(train=train, val=[(x[64:], y[64:])])


@pytest.mark.parametrize("average", [0.0, 0.3])
def test_a_recovery_keeps_what_it_scored(average: float) -> None:
    net, splits = network(), data()
    history = recover_(net, splits, config=recovery_of(epochs=6, average=average), lengths=[6])
    best = max(record["metric"] for record in history)
    assert evaluate(net, splits.val, Task())[0] == best


def test_a_recovery_without_averages_trains_as_a_plain_loop() -> None:
    """The averages are looked at and nothing else: the training itself is the same."""
    losses = []
    for average in (0.0, 0.3):
        history = recover_(
            network(), data(), config=recovery_of(epochs=4, average=average), lengths=[4]
        )
        losses.append([record["loss"] for record in history])
    assert losses[0] == losses[1]
