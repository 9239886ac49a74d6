"""Windows of positions: they see what the whole output has there, and all of it in turn."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pbcompress as pb
from pbcompress.dendrites.correlation import R, correlate
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.positions import Window, position_axes
from tests.support.reference import (
    CASES,
    FORMS,
    KINDS,
    config_of,
    grown,
    inputs_of,
    loss_of,
    network_of,
)

POSITIONED = [
    kind
    for kind, layer in KINDS.items()
    if layer.batched
    and not kind.startswith("transposed")
    and (len(layer.shape) > 2 or layer.axis < -1)
]
WINDOWED = [(kind, form) for kind, form, normed in CASES if kind in POSITIONED and normed]


def test_the_lists_of_windows_are_whole() -> None:
    assert len(KINDS) - len(POSITIONED) == 10  # transposed, unbatched, and Linear on rows
    assert len(WINDOWED) == len(POSITIONED) * len(FORMS) == 85


def read_by(layer: DendriteLayer, x: Tensor) -> Tensor:
    return layer.base_layer(x) if layer.config.form.kind == "tied" else x


@pytest.mark.parametrize(("kind", "form"), WINDOWED)
@pytest.mark.parametrize("first", [2, 3])
def test_a_window_computes_what_the_whole_output_has_there(
    kind: str, form: str, first: int
) -> None:
    layer = grown(kind, form, True, "correlation", 1).eval()
    read = read_by(layer, inputs_of(kind))
    whole = layer.dendrites[0](read)
    axes = position_axes(layer.base_layer, whole, layer.dims)
    assert len(axes) == whole.dim() - 2
    steps = (first, *[2] * (len(axes) - 1))
    for offsets in itertools.product(*map(range, steps)):
        if any(o >= whole.shape[axis] for o, axis in zip(offsets, axes, strict=True)):
            continue
        window = Window(axes, steps, offsets)
        torch.testing.assert_close(window.run(layer.dendrites[0], read), window.take(whole))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), axes=st.integers(1, 2), mode=st.sampled_from(["zeros", "circular"]))
def test_any_convolution_is_computed_at_any_window(data, axes: int, mode: str) -> None:
    def numbers(least: int, most: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(least, most)] * axes))

    sizes, kernel, padding = numbers(3, 12), numbers(1, 3), numbers(0, 3)
    geometry = {"stride": numbers(1, 3), "padding": padding, "dilation": numbers(1, 2)}
    conv = [nn.Conv1d, nn.Conv2d][axes - 1](2, 3, kernel, padding_mode=mode, **geometry).double()
    x = torch.randn(2, 2, *sizes).double()
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, geometry["dilation"], strict=True)]
    assume(all(n + 2 * p >= span for n, p, span in zip(sizes, padding, spans, strict=True)))
    assume(mode == "zeros" or all(p <= n for n, p in zip(sizes, padding, strict=True)))
    whole = conv(x)
    steps = data.draw(st.tuples(*(st.integers(1, n) for n in whole.shape[2:])))
    offsets = data.draw(st.tuples(*(st.integers(0, k - 1) for k in steps)))
    window = Window(tuple(range(-axes, 0)), steps, offsets)
    torch.testing.assert_close(window.run(conv, x), window.take(whole))


@given(
    batch=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    least=st.integers(0, 400),
)
def test_a_window_leaves_enough_samples_and_never_none(
    batch: int, sizes: list[int], least: int
) -> None:
    axes = tuple(range(-len(sizes), 0))
    window = Window.drawn((batch, *sizes), axes, least)
    total, steps = batch * math.prod(sizes), window.steps
    assert all(0 <= offset < k <= n for offset, k, n in zip(window.offsets, steps, sizes))  # noqa: B905
    assert window.take(torch.zeros(batch, *sizes)).numel() > 0
    assert window.is_whole or total >= least * math.prod(steps)
    able = [k for k, n in zip(steps, sizes, strict=True) if k < n]
    assert all(k <= min(able, default=k) + 2 for k in steps)  # much alike
    assert least == 0 or all(total < least * math.prod(steps) // k * (k + 1) for k in able)


def test_windows_see_every_position_equally_often() -> None:
    torch.manual_seed(0)
    seen = torch.zeros(9, 6, 6)
    for _ in range(900):
        window = Window.drawn((9, 6, 6), (-2, -1), 36)
        assert window.steps == (3, 3)
        part = window.take(seen)
        part += 1
    assert (seen[0].sum(), (seen == seen[0]).all()) == (900 * 4, True)
    assert 60 < seen.min() <= seen.max() < 140  # nine offsets, binomial around 100


def test_no_window_where_there_are_no_positions_or_no_bound() -> None:
    assert Window.drawn((10_000,), (), 10).is_whole
    assert Window.drawn((64, 32, 32), (-2, -1), 0).is_whole
    for kind, layer in KINDS.items():
        y = layer.make()(inputs_of(kind).float())
        dims = -1 - layer.axis
        assert bool(position_axes(layer.make(), y, dims)) == (kind in POSITIONED)


@pytest.mark.parametrize("kind", POSITIONED)
@pytest.mark.parametrize("form", FORMS)
def test_a_candidate_learns_and_scores_at_the_positions_of_its_window(kind: str, form: str) -> None:
    network = network_of(kind, False).double()
    attach_dendrites_(network, config_of(form, samples=1, cascade=False))
    layer = network[0]
    x = inputs_of(kind)
    layer.begin_candidacy()
    layer.freeze(0)
    state = torch.get_rng_state()
    y = network(x)
    loss_of(y).backward()

    torch.set_rng_state(state)
    window = layer.pool.window(y, position_axes(layer.base_layer, y, layer.dims))
    assert window.steps == tuple(y.shape[axis] for axis in window.axes)
    branch = layer.dendrites[0]
    a = torch.tanh(window.take(branch(read_by(layer, x).detach())))
    errors = torch.autograd.grad(loss_of(probed := y.detach().requires_grad_()), probed)[0]
    axis = KINDS[kind].axis
    r, gradient = correlate(a.detach(), window.take(errors), pairwise=form != "shared", axis=axis)
    torch.testing.assert_close(layer.pool.leaf.grad[R, 0], r)
    expected = torch.autograd.grad(a, list(branch.parameters()), gradient)
    for parameter, wanted in zip(branch.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_a_checkpointed_layer_sees_the_same_window_twice() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    x, found = torch.randn(8, 1, 12, 12).double(), []
    attach_dendrites_(net, pb.DendriteConfig(rule=pb.Correlation(samples=16)))
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        for layer in dendrite_layers(net).values():
            layer.begin_candidacy()
            layer.freeze(0)
        torch.manual_seed(4)
        for _ in range(3):  # offsets of one step must not be those of another
            run(x).square().sum().backward()
        found.append([layer.pool.summed_scores() for layer in dendrite_layers(net).values()])
    torch.testing.assert_close(found[0], found[1])


def test_a_candidate_is_not_computed_where_nothing_will_train_it() -> None:
    network = network_of("conv2d", False)
    attach_dendrites_(network, config_of("full"))
    calls = []
    network[0].begin_candidacy()
    network[0].dendrites[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(inputs_of("conv2d").float())
    assert calls == []
    network(inputs_of("conv2d").float())
    assert calls == [1]


def test_all_positions_are_the_choice_of_zero() -> None:
    layer, y = grown("conv2d", "full", False, "correlation", 1), torch.zeros(512, 4, 64, 64)
    steps = {}
    for samples in (0, 4096):
        layer.config = replace(layer.config, rule=pb.Correlation(samples=samples))
        layer.begin_candidacy()
        steps[samples] = layer.pool.window(y, position_axes(layer.base_layer, y, layer.dims)).steps
    assert steps == {0: (1, 1), 4096: (23, 22)}
