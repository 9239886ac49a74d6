"""Rows: what candidates read, compute of it, and the errors behind them."""

import copy

import pytest
import torch
from torch import nn

from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.recovery.candidate_inputs import fan_in, map_rows, row_size
from pbcompress.recovery.initialization import initialize_candidates_
from pbcompress.recovery.observation import observe_together
from pbcompress.recovery.replay import Replay
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.task import Task
from tests.support.candidates import (
    ALL_ROWS,
    LAYERS,
    PLANTED,
    batches_of,
    every_dendrite,
    grown,
    planted,
    small_net,
)

# torch says that it pads an even kernel by a copy
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@every_dendrite
def test_a_map_of_rows_is_the_map_of_the_input(name, form, normalized):
    make, shape = LAYERS[name]
    net = grown(make(), form, normalized).double()
    ((x, error),) = planted(shape, net)
    layer, sample = net[0], Sample([(x, error)], PLANTED, 1)
    seen = observe_together(net, dendrite_layers(net), sample, ALL_ROWS)[0]["0"]
    live = copy.deepcopy(layer.dendrites[-1])
    read = layer.base_layer(x) if form == "tied" else x
    wanted = live(read).movedim(-1 - layer.dims, -1).flatten(0, -2)
    found = map_rows(layer.dendrites[-1], seen.inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for one, other in zip(layer.dendrites[-1].buffers(), live.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_errors_of_a_small_batch_count_as_those_of_the_others():
    net = grown(nn.Linear(5, 3)).double()
    x = torch.randn(12, 5, dtype=torch.double)
    error = torch.randn(12, 3, dtype=torch.double)
    batches = [(x[:8], error[:8] / 8), (x[8:], error[8:] / 4)]  # the loss is a mean over a batch
    seen = observe_together(net, dendrite_layers(net), Sample(batches, PLANTED, 2), ALL_ROWS)[0][
        "0"
    ]
    assert seen.samples == 6
    assert seen.outputs == 6
    torch.testing.assert_close(seen.errors, error / 6)


@pytest.mark.parametrize("rows", [1, 7, 40, 10**6])
@pytest.mark.parametrize("times", [1, 3])
def test_as_many_rows_are_drawn_as_are_asked_for(rows, times):
    layer = grown(nn.Linear(4, 4))[0]
    net = nn.Sequential(*[layer] * times)
    batches = [(torch.randn(5, 4), torch.randn(5, 4)) for _ in range(11)]
    found, losses = observe_together(net, {"0": layer}, Sample(batches, PLANTED, 11), {"0": rows})
    assert len(losses) == 11
    assert len(found["0"].errors) == min(rows, 11 * 5 * times)
    assert found["0"].outputs == 5 * times


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((40,) * 6, marks=pytest.mark.slow),
        (2, 60, 60, 60, 60),
        pytest.param((60, 60, 60, 3, 3, 3), marks=pytest.mark.slow),
    ],
)
def test_every_output_is_drawn_as_often_as_any_other(sizes):
    total = sum(sizes)
    x = torch.arange(float(total)).repeat(3, 1).T.split(sizes)
    net, drawn = grown(nn.Linear(3, 2)), torch.zeros(total)
    batches = [(part, torch.randn(len(part), 2)) for part in x]
    for seed in range(300):
        sample = Sample(batches, PLANTED, len(sizes), seed)
        (seen,) = observe_together(net, dendrite_layers(net), sample, {"0": 24})[0].values()
        numbers = seen.inputs[0, :, 0].long()
        assert 12 <= len(numbers) <= 24
        assert len(numbers.unique()) == len(numbers)
        drawn[numbers] += 1
    share = drawn.sum() / (300 * total)
    expected, spread = 300 * share, (300 * share * (1 - share)) ** 0.5
    of_batch = torch.stack([part.mean() for part in drawn.split(sizes)])
    half = 4.5 * spread / torch.tensor(sizes).sqrt()
    assert bool(((of_batch - expected).abs() < half).all())


def test_calls_of_a_layer_are_drawn_by_their_sizes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            large = self.conv(x)
            return large.mean((2, 3)) + self.conv(x[:, :, :2, :2] + 100).mean((2, 3))

    net = Twice()
    attach_dendrites_(net)
    batches = [(torch.randn(4, 2, 16, 16), torch.randn(4, 2)) for _ in range(10)]
    found, _ = observe_together(
        net, {"conv": net.conv}, Sample(batches, PLANTED, 10), {"conv": 999}
    )
    small = (found["conv"].inputs[0].amax(-1) > 50).sum()
    assert len(found["conv"].errors) == 999
    assert 5 < small < 30  # 4 of 260 outputs: 15.4


@pytest.mark.parametrize(("form", "wanted"), [("full", 9), ("grouped", 9), ("tied", 1)])
def test_a_node_of_a_depthwise_layer_reads_one_channel(form, wanted):
    layer = grown(nn.Conv2d(8, 8, 3, groups=8), form)[0]
    assert fan_in(layer) == wanted
    assert row_size(layer) == (8 if form == "tied" else 72)


def test_candidates_keep_no_score_of_an_observation():
    net = nn.Sequential(nn.ConvTranspose1d(1, 2, 3), nn.Flatten(), nn.Linear(16, 2))
    attach_dendrites_(net)
    for layer in dendrite_layers(net).values():
        layer.begin_candidacy()
    batches = [(x[:, None], y) for x, y in batches_of()]
    initialize_candidates_(net, batches)
    assert [layer.pool.summed_scores() for layer in dendrite_layers(net).values()] == [None, None]


def test_a_single_sample_counts_as_one():
    net = grown(nn.Linear(4, 3))
    batches = [(torch.randn(4), torch.randn(3)) for _ in range(5)]
    (seen,) = observe_together(net, dendrite_layers(net), Sample(batches, PLANTED, 5), {"0": 9})[
        0
    ].values()
    assert (seen.samples, seen.outputs, len(seen.errors)) == (1, 1, 5)


def test_an_error_on_the_way_leaves_nobody_watching():
    net = small_net()
    attach_dendrites_(net)
    broken = [*batches_of(2), (torch.randn(4, 5), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(RuntimeError):
        Replay(net, Sample(broken, Task(), 3), {"0": 9, "2": 9})
    assert all(layer.watcher is None for layer in dendrite_layers(net).values())
