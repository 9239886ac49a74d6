"""The range test: what it finds where the right rate is known, and that it leaves no trace."""

import json

import pytest
import torch
from torch import nn

from pbcompress import (
    CompressConfig,
    Data,
    DendriteConfig,
    DivergedError,
    EngineConfig,
    OptimizerConfig,
    RecoveryConfig,
    Task,
    compress,
    find_lr,
    recover_,
)
from pbcompress.errors import CompressionError
from pbcompress.recovery.learning_rate import LEAST, MOST, range_test_steps
from pbcompress.training.snapshots import weights_of


def regression(curvature, samples=64, batch=64):
    """A linear regression with noise, whose loss has this curvature, and its data."""
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(samples, 8))[0] * (samples * curvature / 2) ** 0.5
    clean = x @ torch.randn(8, 1)
    y = clean + 0.3 * clean.std() * torch.randn(samples, 1)
    net = nn.Linear(8, 1, bias=False)
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    task = Task(loss=nn.functional.mse_loss, metric=nn.functional.mse_loss, higher_is_better=False)
    return net, Data(train=batches, val=batches), task


def recovery(**choices):
    optimizer = OptimizerConfig(**choices)
    return RecoveryConfig(epochs=4, optimizer=optimizer)


@pytest.mark.parametrize("curvature", [0.3, 3.0, 30.0])
def test_plain_descent_gets_a_rate_that_is_stable_and_fast(curvature):
    net, data, task = regression(curvature, batch=16)
    config = recovery(algorithm="sgd", momentum=0.0, weight_decay=0.0)
    rate = find_lr(net, data, task, config=config, steps=100)
    assert 0.03 < rate * curvature < 2  # above 2 it diverges


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_the_scale_of_a_loss_does_not_matter_to_adam(factor):
    net, data, task = regression(1.0)
    scaled = Task(
        loss=lambda output, target: factor * task.loss(output, target),
        metric=task.metric,
        higher_is_better=False,
    )
    config = recovery(algorithm="adam", weight_decay=0.0)
    rates = [find_lr(net, data, t, config=config, steps=60) for t in (task, scaled)]
    assert rates[1] == pytest.approx(rates[0], rel=1e-3)


def test_a_network_at_its_optimum_gets_no_more_than_it_bears():
    net, data, task = regression(30.0, batch=16)
    x, y = (torch.cat(parts) for parts in zip(*data.train, strict=True))
    with torch.no_grad():
        net.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    config = recovery(algorithm="sgd", momentum=0.0, weight_decay=0.0)
    assert find_lr(net, data, task, config=config, steps=100) * 30 < 2


def test_nothing_of_the_model_and_of_random_states_changes():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    batches = [(torch.randn(16, 4), torch.randint(2, (16,)))]
    before, state = weights_of(net), torch.get_rng_state()
    first = find_lr(net, Data(train=batches, val=batches))
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in weights_of(net).items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert find_lr(net, Data(train=batches, val=batches)) == first


def test_batches_of_a_step_are_taken_together():
    net, data, task = regression(1.0)
    x, y = data.train[0]
    halves = Data(train=[(x[::2], y[::2]), (x[1::2], y[1::2])], val=data.val)
    config = RecoveryConfig(epochs=4, engine=EngineConfig(accumulate=2))
    whole = find_lr(net, data, task, config=RecoveryConfig(epochs=4), steps=40)
    assert find_lr(net, halves, task, config=config, steps=40) == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    ("batches", "epochs", "steps"), [(10, 1, LEAST), (100, 20, 100), (10_000, 90, MOST)]
)
def test_a_test_takes_a_twentieth_of_the_steps(batches, epochs, steps):
    config = CompressConfig(
        dendrites=DendriteConfig(max_sets=0), recovery=RecoveryConfig(epochs=epochs)
    )
    assert range_test_steps([None] * batches, config) == steps


def test_a_loss_that_is_never_finite_is_said():
    net, data, _ = regression(1.0)
    task = Task(
        loss=lambda output, target: output.sum() * torch.inf,
        metric=nn.functional.mse_loss,
        higher_is_better=False,
    )
    with pytest.raises(DivergedError, match="loss was not finite there"):
        find_lr(net, data, task)


def test_a_split_without_batches_is_said():
    net, data, task = regression(1.0)
    with pytest.raises(CompressionError, match=r"Data\.train yielded no batch"):
        find_lr(net, Data(train=[], val=data.val), task)


def test_a_recovery_trains_at_the_rate_that_the_test_finds():
    net, data, task = regression(1.0)
    config = CompressConfig(
        dendrites=DendriteConfig(max_sets=0),
        recovery=RecoveryConfig(epochs=3, optimizer=OptimizerConfig(schedule="constant")),
    )
    rate = find_lr(net, data, task, config=config, seed=5)
    history = recover_(net, data, task, config=config, seed=5)
    assert [record["lr"] for record in history] == pytest.approx([rate] * 3)


def test_each_network_of_a_call_has_its_own_rate_and_a_resumed_call_the_same(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    batches = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(2)]
    config = CompressConfig(
        dendrites=DendriteConfig(max_price=None),
        recovery=RecoveryConfig(epochs=4, dendrite_epochs=1, thaw_epochs=0),
        deploy=False,
    )
    result = compress(
        net,
        0.5,
        data=Data(train=batches, val=batches),
        config=config,
        run_dir=tmp_path,
        control=True,
        progress=False,
    )
    files = sorted((tmp_path / "checkpoints").glob("*.lr.json"))
    rates = sorted(json.loads(file.read_text())["lr"] for file in files)
    assert len(rates) == 2
    assert result.other is not None
    assert sorted([result.chosen.lr, result.other.lr]) == rates


def near_its_optimum(scale=1.0):
    """A classifier that already knows all, so that its loss is small, and its data."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    y = (8 * scale * x[:, :4]).argmax(1)
    with torch.no_grad():
        net[0].weight[:8].copy_(torch.eye(8))
        net[0].weight[8:16].copy_(-torch.eye(8))
        net[0].bias.zero_()
        net[2].weight.zero_()
        net[2].weight[:, :4] = 8 * torch.eye(4)
        net[2].weight[:, 8:12] = -8 * torch.eye(4)
    return net, Data(train=list(zip(x.split(16), y.split(16), strict=True)), val=[(x, y)])


def test_a_network_that_is_cut_little_gets_the_usual_rate():
    """Half above a loss of next to nothing is next to nothing; the loss of chance says more."""
    net, data = near_its_optimum()
    assert find_lr(net, data, steps=60) == pytest.approx(2e-2)


def test_a_network_with_layernorm_gets_a_tenth_of_it():
    net, data = near_its_optimum()
    head = nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), *net)
    assert 1e-4 < find_lr(head, data, steps=60) < 2e-2


def test_a_loss_that_does_not_take_equal_outputs_is_borne():
    net, data = near_its_optimum()

    def loss(output, target):
        if (output[0] == output[-1]).all():
            raise RuntimeError("all samples alike")
        return nn.functional.cross_entropy(output, target)

    assert 1e-5 < find_lr(net, data, Task(loss=loss), steps=60) <= 2e-2
