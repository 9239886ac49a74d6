"""Running statistics of BatchNorm from data: exact, and nothing else moves."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pbcompress import (
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    RecoveryConfig,
    Shared,
    Task,
    compress,
    plan_widths,
    reestimate_batchnorm_,
    shrink,
)
from pbcompress.runs import contender_training


def batches_of(sizes, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (3 * torch.randn(n, *shape, generator=generator).double() + 1, torch.zeros(n).long())
        for n in sizes
    ]


class Spied(nn.Module):
    """Remembers the modes it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return x


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(0.9),
        nn.Conv2d(4, 3, 1),
        nn.BatchNorm2d(3, momentum=None),
        Spied(),
    ).double()
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.normal_()
            norm.bias.normal_()
            norm.running_mean.fill_(7)
            norm.running_var.fill_(9)
            norm.num_batches_tracked.fill_(100)
    return model


def channels_last(x):
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def reference(model, batches):
    """Return mean and variance of both norms: of numpy, one batch after the other."""
    found = {1: ([], []), 4: ([], [])}
    for x, _ in batches:
        with torch.no_grad():
            x = model[0](x).numpy()
        for index in (1, 4):
            values = channels_last(x)
            found[index][0].append(values.mean(0))
            found[index][1].append(values.var(0, ddof=1))
            norm = model[index]
            scale, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
            place = (slice(None), None, None)
            mean, var = values.mean(0)[place], values.var(0)[place]
            x = (x - mean) / np.sqrt(var + norm.eps) * scale[place] + shift[place]
            if index == 1:
                with torch.no_grad():
                    x = model[3](torch.from_numpy(x)).numpy()
    return {i: (np.mean(means, 0), np.mean(vars_, 0)) for i, (means, vars_) in found.items()}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_statistics_are_the_mean_over_batches_of_numpy(sizes, training):
    model = network().train(training)
    batches = batches_of(sizes, 2, 5, 5)
    expected = reference(model, batches)
    assert reestimate_batchnorm_(model, batches) == len(sizes)
    for index, (mean, var) in expected.items():
        np.testing.assert_allclose(model[index].running_mean.numpy(), mean, rtol=1e-12)
        np.testing.assert_allclose(model[index].running_var.numpy(), var, rtol=1e-12)


def test_only_running_statistics_change():
    model = network().train()
    model[4].eval()
    model[3].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objects = [*model.parameters(), *model.buffers()]
    reestimate_batchnorm_(model, batches_of([4, 4, 4], 2, 5, 5))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"{i}.{name}" for i in (1, 4) for name in RUNNING}
    assert [m.training for m in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.3, None)
    assert [int(model[i].num_batches_tracked) for i in (1, 4)] == [3, 3]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    now = [*model.parameters(), *model.buffers()]
    assert all(a is b for a, b in zip(objects, now, strict=True))


RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def test_all_else_runs_in_eval_mode():
    model = network().train()
    reestimate_batchnorm_(model, batches_of([4, 4], 2, 5, 5))
    assert model[5].modes == [False, False]
    assert model[5].training


def test_a_cumulative_norm_goes_on_from_the_new_mean():
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None)).double()
    first, second = batches_of([6, 6], 2)
    reestimate_batchnorm_(model, [first])
    model.train()(second[0])
    expected = np.mean([x.numpy().mean(0) for x, _ in (first, second)], 0)
    np.testing.assert_allclose(model[0].running_mean.numpy(), expected, rtol=1e-12)


def test_few_batches_are_used_and_the_seed_names_them():
    class Shuffled:
        def __iter__(self):
            for index in torch.randperm(50).tolist():
                yield torch.full((2, 1), float(index)).double(), None

    means = []
    for seed in (0, 0, 1):
        model = nn.Sequential(nn.BatchNorm1d(1)).double()
        assert reestimate_batchnorm_(model, Shuffled(), batches=3, seed=seed) == 3
        means.append(model[0].running_mean.item())
        torch.rand(1)
    assert means[0] == means[1] != means[2]


def test_the_random_state_stays():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x) + random.random() + np.random.rand()

    model = nn.Sequential(Noisy(), nn.BatchNorm1d(2)).double()
    streams = [
        (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        for _ in range(2)
        if _ == 0 or reestimate_batchnorm_(model, batches_of([4], 2))
    ]
    assert streams[0] == streams[1]


class Untouchable:
    def __iter__(self):
        raise AssertionError("these batches are not needed")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        lambda: nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)),
        lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)),
        lambda: nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2)),
    ],
    ids=["none", "no statistics", "instance", "layer and group"],
)
def test_networks_without_statistics_of_batches_are_left_alone(make):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert reestimate_batchnorm_(model, Untouchable()) == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_norm_that_no_batch_reaches_keeps_its_statistics():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "unused": nn.BatchNorm1d(2)}).double()
    model["unused"].running_mean.fill_(5)
    model["unused"].num_batches_tracked.fill_(9)
    task = Task(forward=lambda model, batch: (model["used"](batch[0]), batch[1]))
    ((x, _),) = data = batches_of([4], 2)
    reestimate_batchnorm_(model, data, task)
    torch.testing.assert_close(model["used"].running_mean, x.mean(0))
    assert model["unused"].running_mean.tolist() == [5, 5]
    assert model["unused"].num_batches_tracked == 9


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], CompressionError, "no batch"),
        (iter([]), CompressionError, "iterator"),
        ([*batches_of([4], 2, 5, 5), "text"], CompressionError, "A batch of"),
        ([*batches_of([4], 2, 5, 5), *batches_of([4], 3, 5, 5)], RuntimeError, "channels"),
        ([*batches_of([4], 2, 5, 5), *batches_of([1], 2, 3, 3)], ValueError, "more than 1"),
    ],
    ids=["empty", "iterator", "kind", "shape", "one value"],
)
def test_after_an_error_all_is_as_before(batches, error, message):
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=message):
        reestimate_batchnorm_(model, batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model[1].momentum, model[4].momentum) == (0.3, None)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("count", [0, -1])
def test_no_batches_are_refused(count):
    with pytest.raises(ValueError, match="at least 1"):
        reestimate_batchnorm_(network(), batches_of([4], 2, 5, 5), batches=count)


def test_both_arms_start_with_statistics_of_their_own(monkeypatch):
    """What is trained has the statistics that re-estimating on the shrunk network gives."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(3)]
    data = Data(train=batches, val=batches)
    started = {}
    recover = contender_training.recover_

    def spied(network, *args, stage, **others):
        begun = {k: v.clone() for k, v in network.state_dict().items()}
        started.setdefault(stage, begun)  # the winner of the trial trains on from there
        return recover(network, *args, stage=stage, **others)

    monkeypatch.setattr(contender_training, "recover_", spied)
    config = CompressConfig(
        dendrites=DendriteConfig(form=Shared(nodes=2)),
        recovery=RecoveryConfig(epochs=1, dendrite_epochs=1, max_failures=1),
        deploy=False,
    )
    result = compress(model, 0.5, data=data, config=config, device="cpu", progress=False)
    assert set(started) == {"dendrites", "width"}
    plans = {arm.name: arm.plan for arm in (result.chosen, result.other)}
    for stage, plan in plans.items():
        small = shrink(model, plan)
        cut = small[1].running_var.clone()
        assert reestimate_batchnorm_(small, data) == 3
        assert not torch.allclose(cut, small[1].running_var)
        expected = small.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in started[stage].items())


def test_statistics_of_a_shrunk_network_fit_it_again():
    """After a cut the variance of what a norm reads is another one, and is found."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    batches = [(torch.randn(64, 6), torch.zeros(64).long()) for _ in range(4)]
    reestimate_batchnorm_(model, batches)
    small = shrink(model, plan_widths(model, torch.zeros(1, 6), 0.5))

    def errors():
        with torch.no_grad():
            read = torch.cat([small[:3](x) for x, _ in batches])
        return (small[3].running_var / read.var(0) - 1).abs().max().item()

    assert errors() > 0.2
    reestimate_batchnorm_(small, batches)
    assert errors() < 0.1
