"""Rows of both networks: the same samples and positions, drawn anew where they are not kept."""

import torch
from torch import nn

from pbcompress.compensation.readers import Reader
from pbcompress.compensation.sweeps import HELD_OUT, Sweeps
from pbcompress.compensation.views import OutputView
from tests.support.nets import Net

X = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(2))
WHY = {"reader": "the two networks do not call it alike"}


def once(net, x):
    return net.reader(x)


def sweeps_of(whole, left, max_bytes=2**20, batches=3):
    networks = [Net(forward, reader=nn.Conv2d(3, 2, 3)).eval() for forward in (whole, left)]
    networks[1].load_state_dict(networks[0].state_dict())
    views = {"reader": OutputView(Reader("reader", "weight", 1, {}), networks[1].reader)}
    forwards = [lambda net: net(X)] * batches
    return Sweeps(*networks, views, {"reader": "reader"}, forwards, max_bytes)


def rows_of(sweeps):
    seen = []
    sweeps.sweep(["reader"], lambda *row: seen.append(row))
    return seen


def test_features_times_weights_are_the_targets_and_a_quarter_is_held_out():
    sweeps = sweeps_of(once, once)
    seen = rows_of(sweeps)
    assert len(seen) == 3
    layer = sweeps.left.reader
    for name, x, t, is_held in seen:
        assert name == "reader"
        found = torch.einsum("rgf,tf->rgt", x, layer.weight.flatten(1)) + layer.bias
        assert torch.allclose(found, t, atol=1e-5)
        assert is_held.sum() * HELD_OUT == len(x) == 8 * 9
    assert sweeps.refused == {}


def test_rows_that_are_not_kept_are_drawn_again():
    kept, drawn = sweeps_of(once, once), sweeps_of(once, once, max_bytes=0)
    assert len(kept.kept) == 3
    assert drawn.kept == {}
    assert [x.shape for _, x, _, _ in rows_of(kept)] == [x.shape for _, x, _, _ in rows_of(drawn)]


def test_a_layer_that_the_networks_call_differently_is_refused():
    assert sweeps_of(lambda net, x: net.reader(x) + net.reader(x), once).refused == WHY
    fewer = sweeps_of(once, lambda net, x: net.reader(x[:2]))
    assert fewer.refused == {}
    assert rows_of(fewer) == []
    assert fewer.refused == WHY


def test_a_layer_that_is_not_called_is_refused():
    silent = sweeps_of(lambda net, x: x, lambda net, x: x)
    assert silent.refused == {"reader": "the forward pass does not call it as a layer"}
