"""Dendrites on every kind of layer, against a float64 evaluation of the formula in numpy."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbcompress import fuse, load
from pbcompress.checkpoint import save
from pbcompress.config import DendriteConfig, Form
from pbcompress.correlation import COUNT, R
from pbcompress.dendrite import (
    ACTIVATIONS,
    DendriteLayer,
    attach_dendrites_,
    dendrite_layers,
    detach_dendrites_,
)
from pbcompress.errors import CompressionError, UnsupportedLayerError
from pbcompress.forms import ChannelAffine, GroupedLinear, growable_layers, set_params
from pbcompress.geometry import LayerGeometry
from pbcompress.surgery import parameter_count

Array = np.ndarray


@dataclass(frozen=True)
class Kind:
    """A layer and the shape of an input of it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batched: bool = True

    @property
    def axis(self) -> int:
        return -1 - len(getattr(self.make(), "kernel_size", ()))


KINDS = {
    "linear": Kind(lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": Kind(lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "linear of rank 3": Kind(lambda: nn.Linear(6, 4), (5, 3, 6)),
    "linear of rank 4": Kind(lambda: nn.Linear(6, 4), (2, 3, 2, 6)),
    "linear unbatched": Kind(lambda: nn.Linear(6, 4), (6,), batched=False),
    "conv1d": Kind(lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 7)),
    "conv1d unbatched": Kind(lambda: nn.Conv1d(4, 6, 3), (4, 7), batched=False),
    "conv2d": Kind(lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 3, 5, 4)),
    "conv2d without bias": Kind(lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 3, 5, 4)),
    "conv2d pointwise": Kind(lambda: nn.Conv2d(4, 6, 1), (3, 4, 3, 2)),
    "conv2d oblong": Kind(lambda: nn.Conv2d(3, 4, (1, 3), padding=(0, 2)), (3, 3, 3, 4)),
    "conv2d strided": Kind(lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1), (3, 4, 5, 4)),
    "conv2d dilated": Kind(lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=1), (3, 3, 6, 5)),
    "conv2d grouped": Kind(lambda: nn.Conv2d(6, 4, 3, groups=2), (3, 6, 5, 4)),
    "conv2d depthwise": Kind(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 5, 4)),
    "conv2d multiplied": Kind(lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 4, 5, 4)),
    "conv2d same": Kind(lambda: nn.Conv2d(3, 4, (5, 3), padding="same"), (3, 3, 5, 4)),
    "conv2d reflect": Kind(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 3, 5, 4)
    ),
    "conv2d circular": Kind(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 3, 5, 4)
    ),
    "conv2d replicate": Kind(
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="replicate"), (3, 3, 5, 4)
    ),
    "conv2d unbatched": Kind(lambda: nn.Conv2d(3, 4, 3), (3, 5, 4), batched=False),
    "transposed 1d": Kind(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 5)),
    "transposed 2d": Kind(
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 3, 4, 3)
    ),
    "transposed grouped": Kind(
        lambda: nn.ConvTranspose2d(6, 4, (2, 3), dilation=(2, 1), groups=2, bias=False),
        (3, 6, 4, 3),
    ),
    "transposed depthwise": Kind(
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=(1, 2), groups=4), (3, 4, 3, 4)
    ),
    "transposed 3d": Kind(lambda: nn.ConvTranspose3d(2, 4, 2, stride=2), (3, 2, 2, 3, 2)),
    "conv3d": Kind(lambda: nn.Conv3d(2, 4, 2, stride=2, padding=1), (3, 2, 3, 4, 2)),
}
FORMS = get_args(Form)
RULES = ("correlation", "gradient", "hybrid")
CASES = [
    (kind, form, normed)
    for kind, form, normed in itertools.product(KINDS, FORMS, (False, True))
    if KINDS[kind].batched or not normed
]
ALL = [(*case, rule) for case in CASES for rule in RULES]


def config_of(form: str, rule: str = "correlation", **choices: object) -> DendriteConfig:
    chosen = {"activation": "tanh", "groups": 2, "rank": 2, "nodes": 3} | choices
    return DendriteConfig(form=form, rule=rule, **chosen)


def network_of(kind: str, normed: bool) -> nn.Sequential:
    layer = KINDS[kind].make()
    if not normed:
        return nn.Sequential(layer)
    norm = {-1: nn.BatchNorm1d, -2: nn.BatchNorm1d, -3: nn.BatchNorm2d, -4: nn.BatchNorm3d}
    width = LayerGeometry.of(layer).out_width
    return nn.Sequential(layer, norm[KINDS[kind].axis](width))


def inputs_of(kind: str) -> Tensor:
    return torch.randn(KINDS[kind].shape).double()


def shake(module: nn.Module) -> None:
    """Give every parameter and statistic a random value."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


def grown(kind: str, form: str, normed: bool, rule: str, sets: int, **choices: object):
    """One wrapped layer in float64 with random weights, U and V."""
    network = network_of(kind, normed).double()
    for _ in range(sets):
        attach_dendrites_(network, config_of(form, rule, **choices), seed=3)
    layer = network[0]
    shake(layer)
    return layer


# --- the reference --------------------------------------------------------------------------------


def numbers(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


def spread(layer: nn.Module, x: Array) -> Array:
    """Convolve transposed by its definition: each input adds a kernel to the output."""
    weight, dims = numbers(layer.weight), len(layer.kernel_size)
    sizes = [
        (length - 1) * step + gap * (size - 1) + 1 + more
        for length, step, gap, size, more in zip(
            x.shape[2:], layer.stride, layer.dilation, layer.kernel_size, layer.output_padding,
            strict=True,
        )
    ]  # fmt: skip
    groups, width = layer.groups, layer.out_channels
    split = weight.reshape(groups, -1, *weight.shape[1:])
    total = np.zeros((len(x), groups, width // groups, *sizes))
    read = x.reshape(len(x), groups, -1, *x.shape[2:])
    for tap in np.ndindex(*layer.kernel_size):
        window = tuple(
            slice(t * gap, t * gap + (length - 1) * step + 1, step)
            for t, gap, length, step in zip(
                tap, layer.dilation, x.shape[2:], layer.stride, strict=True
            )
        )
        total[(..., *window)] += np.einsum("ngi...,gio->ngo...", read, split[(..., *tap)])
    y = total.reshape(len(x), width, *sizes)
    cut = tuple(slice(p, n - p) for p, n in zip(layer.padding, sizes, strict=True))
    y = y[(..., *cut)]
    return y if layer.bias is None else y + numbers(layer.bias).reshape(-1, *[1] * dims)


def convolve(layer: nn.Module, x: Array) -> Array:
    """Convolve by its definition: a sum over the elements of the kernel."""
    if layer.transposed:
        return spread(layer, x)
    weight, dims = numbers(layer.weight), len(layer.kernel_size)
    sizes, steps, gaps = layer.kernel_size, layer.stride, layer.dilation
    if layer.padding == "same":
        whole = [gap * (size - 1) for gap, size in zip(gaps, sizes, strict=True)]
        padding = [(w // 2, w - w // 2) for w in whole]
    else:
        padding = [(p, p) for p in layer.padding]
    batch = x if x.ndim == dims + 2 else x[None]
    mode = {"zeros": "constant", "circular": "wrap", "replicate": "edge"}
    padded = np.pad(
        batch, [(0, 0), (0, 0), *padding], mode=mode.get(layer.padding_mode, layer.padding_mode)
    )
    out = [
        (length - gap * (size - 1) - 1) // step + 1
        for length, gap, size, step in zip(padded.shape[2:], gaps, sizes, steps, strict=True)
    ]
    groups, per_in = layer.groups, weight.shape[1]
    total = np.zeros((len(batch), groups, weight.shape[0] // groups, *out))
    split = weight.reshape(groups, -1, *weight.shape[1:])
    for tap in np.ndindex(*sizes):
        window = tuple(
            slice(t * gap, t * gap + step * (o - 1) + 1, step)
            for t, gap, step, o in zip(tap, gaps, steps, out, strict=True)
        )
        seen = padded[(..., *window)].reshape(len(batch), groups, per_in, *out)
        total += np.einsum("ngi...,goi->ngo...", seen, split[(..., *tap)])
    y = total.reshape(len(batch), -1, *out)
    if layer.bias is not None:
        y = y + numbers(layer.bias).reshape(-1, *[1] * dims)
    return y if x.ndim == dims + 2 else y[0]


def apply(module: nn.Module, x: Array, axis: int) -> Array:
    """Evaluate a map with the weights of ``module`` and nothing else of it."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = apply(part, x, axis)
        return x
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        moved = np.moveaxis(x, axis, -1)
        others = tuple(range(moved.ndim - 1))
        mean, var = numbers(module.running_mean), numbers(module.running_var)
        if module.training:
            mean, var = moved.mean(others), moved.var(others)
        unit = (moved - mean) / np.sqrt(var + module.eps)
        return np.moveaxis(unit * numbers(module.weight) + numbers(module.bias), -1, axis)
    if isinstance(module, ChannelAffine):
        moved = np.moveaxis(x, axis, -1) * numbers(module.weight) + numbers(module.bias)
        return np.moveaxis(moved, -1, axis)
    if isinstance(module, GroupedLinear):
        parts = np.split(x, module.groups, axis=-1)
        weights = numbers(module.weight)
        y = np.concatenate([p @ w for p, w in zip(parts, weights, strict=True)], -1)
        return y if module.bias is None else y + numbers(module.bias)
    if isinstance(module, nn.Linear):
        y = x @ numbers(module.weight).T
        return y if module.bias is None else y + numbers(module.bias)
    return convolve(module, x)


def activations(layer: DendriteLayer, x: Array, axis: int, sets: int | None = None) -> list[Array]:
    """Evaluate a_1 .. a_D of the formula, with tanh."""
    heard: list[Array] = []
    for d in range(layer.num_sets if sets is None else sets):
        read = apply(layer.base_layer, x, axis) if layer.config.form == "tied" else x
        z = np.moveaxis(apply(layer.dendrites[d], read, axis), axis, -1)
        for e, v in enumerate(numbers(layer.links[d])):
            z = z + v * heard[e]
        heard.append(np.tanh(z))
    return heard


def output(layer: DendriteLayer, x: Array, axis: int) -> Array:
    y = np.moveaxis(apply(layer.base_layer, x, axis), axis, -1)
    for u, a in zip(map(numbers, layer.gains), activations(layer, x, axis), strict=True):
        y = y + (a * u if u.ndim == 1 else a @ u)
    return np.moveaxis(y, -1, axis)


def test_the_lists_of_cases_are_whole() -> None:
    assert len(KINDS) == 27
    assert len(CASES) == 255
    assert len(ALL) == 765


# --- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form", "normed", "rule"), ALL)
def test_output_equals_the_formula(kind: str, form: str, normed: bool, rule: str) -> None:
    sets = 1 + ALL.index((kind, form, normed, rule)) % 3
    layer = grown(kind, form, normed, rule, sets).eval()
    x = inputs_of(kind)
    expected = output(layer, numbers(x), KINDS[kind].axis)
    np.testing.assert_allclose(numbers(layer(x)), expected, atol=1e-10)


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["linear of rank 3", "conv2d strided"])
def test_output_equals_the_formula_with_so_many_sets(kind: str, form: str, sets: int) -> None:
    layer = grown(kind, form, True, "correlation", sets).eval()
    assert [tuple(link.shape) for link in layer.links] == [(d, layer.nodes) for d in range(sets)]
    x = inputs_of(kind)
    expected = output(layer, numbers(x), KINDS[kind].axis)
    np.testing.assert_allclose(numbers(layer(x)), expected, atol=1e-10)


def test_without_cascade_no_dendrite_hears_another() -> None:
    layer = grown("linear", "full", False, "correlation", 3, cascade=False)
    assert sum(link.numel() for link in layer.links) == 0
    x = inputs_of("linear")
    np.testing.assert_allclose(numbers(layer(x)), output(layer, numbers(x), -1), atol=1e-10)


SCALAR = {
    "relu": lambda z: max(z, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
}


def test_every_activation_has_a_reference() -> None:
    assert set(SCALAR) == set(ACTIVATIONS)
    assert len(SCALAR) == 5


@pytest.mark.parametrize("name", SCALAR)
def test_activation_functions_are_the_ones_they_are_named_after(name: str) -> None:
    layer = grown("linear", "full", False, "correlation", 1, activation=name)
    x = inputs_of("linear")
    z = apply(layer.dendrites[0], numbers(x), -1)
    a = np.vectorize(SCALAR[name], otypes=[float])(z)
    expected = apply(layer.base_layer, numbers(x), -1) + a * numbers(layer.gains[0])
    np.testing.assert_allclose(numbers(layer(x)), expected, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_passes(form: str) -> None:
    layer = grown("linear", form, False, "correlation", 1)
    assert layer(torch.zeros(0, 6).double()).shape == (0, 4)


# --- attach and detach ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form", "normed"), CASES)
def test_every_further_set_leaves_outputs_bit_equal(kind: str, form: str, normed: bool) -> None:
    network = network_of(kind, normed).eval()
    x, config = inputs_of(kind).float(), config_of(form)
    shake(network)
    for _ in range(3):
        before = network(x) if not normed else network[0](x)
        attach_dendrites_(network, config)
        after = network(x) if not normed else network[0](x)
        assert torch.equal(before, after)
        for gain in network[0].gains:  # the set now there speaks before the next one comes
            nn.init.normal_(gain)


@pytest.mark.parametrize(("kind", "form", "normed"), CASES)
def test_detaching_gives_the_very_layer_back(kind: str, form: str, normed: bool) -> None:
    network = network_of(kind, normed)
    base, keys, x = network[0], list(network.state_dict()), inputs_of(kind).float()
    before = base(x)
    for _ in range(2):
        attach_dendrites_(network, config_of(form))
    detach_dendrites_(network, 2)
    assert network[0] is base
    assert list(network.state_dict()) == keys
    assert torch.equal(base(x), before)


@pytest.mark.parametrize("form", FORMS)
def test_detaching_the_newest_set_restores_the_function_before_it(form: str) -> None:
    layer = grown("conv2d", form, False, "correlation", 2)
    network, x = nn.Sequential(layer), inputs_of("conv2d")
    keys, before = list(network.state_dict()), network(x)
    attach_dendrites_(network, layer.config)
    for gain in layer.gains:
        nn.init.normal_(gain)
    for gain in layer.gains[:2]:
        nn.init.ones_(gain)
    reference = copy.deepcopy(layer)
    nn.init.zeros_(reference.gains[2])
    detach_dendrites_(network)
    assert list(network.state_dict()) == keys
    assert torch.equal(network(x), reference(x))
    assert before.shape == network(x).shape


def test_detaching_more_than_there_is_detaches_all() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    attach_dendrites_(network)
    detach_dendrites_(network, 9)
    assert not dendrite_layers(network)


@pytest.mark.parametrize("sets", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_full_dendrites_cost_what_the_paper_says(kind: str, sets: int) -> None:
    network = network_of(kind, normed=False)
    layer = network[0]
    p, c = parameter_count(layer), LayerGeometry.of(layer).out_width
    for _ in range(sets):
        attach_dendrites_(network, config_of("full"))
    assert parameter_count(network) - p == sets * p + c * sets * (sets + 1) // 2


@pytest.mark.parametrize(("kind", "form", "normed"), CASES)
@pytest.mark.parametrize("cascade", [True, False])
def test_cost_equals_the_closed_form(kind: str, form: str, normed: bool, cascade: bool) -> None:
    network = network_of(kind, normed)
    before, geometry = parameter_count(network), LayerGeometry.of(network[0])
    config = config_of(form, max_sets=3, cascade=cascade)
    for _ in range(3):
        attach_dendrites_(network, config)
    planned = set_params(geometry, geometry.out_width, geometry.in_width, config, normalized=normed)
    assert parameter_count(network) - before == planned


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_dendrites_take_the_dtype_of_their_layer(form: str, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).to(dtype)
    attach_dendrites_(network, config_of(form))
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert network.eval()(torch.randn(3, 6).to(dtype)).dtype == dtype


def test_autocast_keeps_the_dtype_of_the_output() -> None:
    network = nn.Sequential(nn.Linear(6, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = network(torch.ones(3, 6))
        attach_dendrites_(network)
        after = network(torch.ones(3, 6))
    assert before.dtype == after.dtype == torch.bfloat16
    assert torch.equal(after, before)


def test_same_seed_same_weights_and_each_set_and_layer_its_own() -> None:
    def weights(seed: int) -> list[Tensor]:
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        for _ in range(2):
            attach_dendrites_(network, seed=seed)
        return [d.weight for layer in network for d in layer.dendrites]

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first + other, 2))


def test_attaching_draws_no_random_number() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    state = torch.get_rng_state()
    attach_dendrites_(network)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_attaching_keeps_the_mode(training: bool) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(training)
    attach_dendrites_(network)
    assert {m.training for m in network.modules()} == {training}


def test_a_layer_with_two_names_grows_once_under_both() -> None:
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, nn.Tanh(), shared)
    assert attach_dendrites_(network) == ("0",)
    assert network[0] is network[2]
    detach_dendrites_(network)
    assert network[0] is shared
    assert network[2] is shared


def test_weights_travel_through_a_state_dict() -> None:
    source, target = (nn.Sequential(KINDS["conv2d"].make()) for _ in range(2))
    for network in (source, target):
        for _ in range(2):
            attach_dendrites_(network, config_of("shared"))
    shake(source)
    target.load_state_dict(source.state_dict())
    x = inputs_of("conv2d").float()
    assert torch.equal(target(x), source(x))


# --- what may grow --------------------------------------------------------------------------------


def test_a_norm_counts_only_right_behind_and_of_the_same_width() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)
    )
    assert growable_layers(network, DendriteConfig()) == {"0": True, "2": False}
    assert growable_layers(network, DendriteConfig(normalize=False)) == {"0": False, "2": False}


def test_attention_keeps_its_layers() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(encoder, nn.Linear(8, 2))
    assert set(growable_layers(network, DendriteConfig())) == {"1"}


def refused(network: nn.Module, config: DendriteConfig) -> CompressionError:
    before = {name: id(module) for name, module in network.named_modules()}
    with pytest.raises(CompressionError) as caught:
        attach_dendrites_(network, config)
    assert {name: id(module) for name, module in network.named_modules()} == before
    return caught.value


def test_a_layer_of_another_kind_is_refused_by_name() -> None:
    error = refused(nn.Sequential(nn.Linear(2, 2), nn.PReLU()), DendriteConfig(layers=("1",)))
    assert isinstance(error, UnsupportedLayerError)
    assert error.layer == "1"
    assert "PReLU" in error.reason


def test_a_pattern_that_matches_nothing_names_the_candidates() -> None:
    error = refused(nn.Sequential(nn.Linear(2, 2)), DendriteConfig(layers=("conv*",)))
    assert "Candidates: 0." in str(error)


def test_a_bare_layer_is_refused_with_a_way_out() -> None:
    assert "nn.Sequential" in str(refused(nn.Linear(2, 2), DendriteConfig()))


def test_another_form_on_top_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    attach_dendrites_(network, config_of("full"))
    assert "another DendriteConfig" in str(refused(network, config_of("shared")))


# --- the dendrite phase ---------------------------------------------------------------------------


def loss_of(y: Tensor) -> Tensor:
    """Some smooth loss whose error differs at every position."""
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return (y * weight).sin().sum() + 0.1 * (y**3).mean()


def objective(layer: DendriteLayer, x: Array, delta: Array, axis: int) -> float:
    """Evaluate -sum |r| of the newest set with the error held constant."""
    a = activations(layer, x, axis)[-1].reshape(-1, layer.nodes)
    e = np.moveaxis(delta, axis, -1).reshape(len(a), -1)
    if len(a) == 1:
        return 0.0  # one sample has no correlation
    table = np.abs(np.corrcoef(a, e, rowvar=False)[: a.shape[1], a.shape[1] :])
    return -float(table.sum() if layer.config.form == "shared" else np.trace(table))


@contextmanager
def moved(parameters: list[nn.Parameter], direction: list[Tensor], step: float) -> Iterator[None]:
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=step)
    yield
    with torch.no_grad():
        for p, k in zip(parameters, kept, strict=True):
            p.copy_(k)


def directions(parameters: list[nn.Parameter]) -> list[list[Tensor]]:
    """Three random directions in all parameters, and two single weights of each of them."""
    found = [[torch.randn_like(p) for p in parameters] for _ in range(3)]
    for index, p in enumerate(parameters):
        for place in {0, p.numel() - 1} if p.numel() else ():
            single = [torch.zeros_like(q) for q in parameters]
            single[index].view(-1)[place] = 1
            found.append(single)
    return found


@pytest.mark.parametrize(("kind", "form", "normed", "rule"), ALL)
def test_one_backward_gives_the_gradient_of_the_correlation(
    kind: str, form: str, normed: bool, rule: str
) -> None:
    layer, axis = grown(kind, form, normed, rule, 2), KINDS[kind].axis
    layer.freeze(1)
    layer.begin_candidacy()
    x = inputs_of(kind)
    loss_of(layer(x)).backward()
    layer.end_candidacy()
    with torch.no_grad():  # the candidate is not heard: the error is that of the network without it
        silent = copy.deepcopy(layer)
        silent.remove_set()
        y = silent(x)
    delta = numbers(torch.autograd.grad(loss_of(y.requires_grad_()), y)[0])
    parameters = layer.set_parameters(1)
    expected, found, h = [], [], 1e-5
    for direction in directions(parameters):
        sides = []
        for step in (h, -h):
            with moved(parameters, direction, step):
                sides.append(objective(layer, numbers(x), delta, axis))
        expected.append((sides[0] - sides[1]) / (2 * h))
        found.append(sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True)))
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=2e-6)  # h^2, rounding


def three_layers(inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sets", [1, 2])
def test_probe_passes_the_error_on_bit_equal(form: str, rule: str, sets: int) -> None:
    plain = three_layers()
    for _ in range(sets - 1):
        attach_dendrites_(plain, config_of(form, rule))
    shake(plain)
    probed, x = copy.deepcopy(plain), torch.randn(5, 2, 6, 6)
    attach_dendrites_(probed, config_of(form, rule))
    for layer in dendrite_layers(probed).values():
        nn.init.normal_(layer.links[-1])
        layer.begin_candidacy()
    for network in (plain, probed):
        network(x).logsumexp(1).sum().backward()
    gradients = dict(probed.named_parameters())
    for name, parameter in plain.named_parameters():
        twin = gradients[name if sets > 1 else rename(name, probed)].grad
        if parameter.numel():
            assert torch.equal(parameter.grad, twin), name


def rename(name: str, network: nn.Module) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.base_layer.{leaf}" if layer in dendrite_layers(network) else name


def test_a_candidate_is_heard_by_nobody() -> None:
    network, x = three_layers(), torch.randn(5, 2, 6, 6)
    before = network(x)
    attach_dendrites_(network)
    for layer in dendrite_layers(network).values():
        layer.begin_candidacy()
    assert torch.equal(network(x), before)


def test_what_follows_a_candidate_may_work_in_place() -> None:
    gradients = []
    for inplace in (False, True):
        torch.manual_seed(5)
        network = three_layers(inplace)
        attach_dendrites_(network, config_of("full"))
        for layer in dendrite_layers(network).values():
            layer.begin_candidacy()
        network(torch.ones(5, 2, 6, 6).cumsum(0)).logsumexp(1).sum().backward()
        gradients.append(
            [d.weight.grad for m in dendrite_layers(network).values() for d in m.dendrites]
        )
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_summed_and_batches_counted(form: str) -> None:
    layer = grown("conv2d", form, False, "correlation", 1)
    layer.begin_candidacy()
    total: Array | float = 0.0
    for _ in range(3):
        x = inputs_of("conv2d")
        y = layer(x)
        y.retain_grad()
        loss_of(y).backward()
        a = activations(layer, numbers(x), -3)[0].reshape(-1, layer.nodes)
        e = np.moveaxis(numbers(y.grad), -3, -1).reshape(len(a), -1)
        table = np.corrcoef(a, e, rowvar=False)[: a.shape[1], a.shape[1] :]
        total = total + (table if form == "shared" else np.diag(table))
    summed = numbers(layer.summed_scores())
    np.testing.assert_allclose(summed[R, 0], total, atol=1e-10)
    assert (summed[COUNT] == 3).all()


def test_scores_of_a_half_precision_layer_are_summed_in_float32() -> None:
    network = nn.Sequential(nn.Linear(6, 4)).bfloat16()
    attach_dendrites_(network)
    network[0].begin_candidacy()
    for _ in range(300):  # bfloat16 cannot count beyond 256
        network(torch.randn(8, 6).bfloat16()).float().square().sum().backward()
    assert (network[0].summed_scores()[COUNT] == 300).all()


def test_a_candidate_under_autocast_trains() -> None:
    network = three_layers()
    attach_dendrites_(network, config_of("full"))
    for layer in dendrite_layers(network).values():
        layer.begin_candidacy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(torch.randn(5, 2, 6, 6)).float().logsumexp(1).sum()
    loss.backward()
    for layer in dendrite_layers(network).values():
        assert layer.dendrites[0].weight.grad.any()
        assert (layer.summed_scores()[COUNT] == 1).all()


def test_a_network_can_be_copied_while_a_candidate_listens() -> None:
    network = nn.Sequential(nn.Linear(6, 4))
    attach_dendrites_(network)
    network[0].begin_candidacy()
    network(torch.randn(8, 6)).square().sum().backward()
    twin = copy.deepcopy(network)
    assert torch.equal(twin[0].summed_scores(), network[0].summed_scores())


# --- perforated or not ----------------------------------------------------------------------------

CHAINS = ["linear", "linear of rank 3", "conv1d", "conv2d strided", "conv2d depthwise", "conv3d"]


def chain(kind: str, form: str, rule: str, **choices: object) -> tuple[nn.Sequential, Tensor]:
    """A first layer without dendrites, and the wrapped one behind it."""
    layer = grown(kind, form, False, rule, 2, **choices)
    x = inputs_of(kind)
    channels = x.shape[KINDS[kind].axis]
    if KINDS[kind].axis == -1:
        first: nn.Module = nn.Linear(channels, channels)
    else:
        first = {-2: nn.Conv1d, -3: nn.Conv2d, -4: nn.Conv3d}[KINDS[kind].axis](
            channels, channels, 1
        )
    return nn.Sequential(first.double(), nn.Tanh(), layer), x


def numeric_slope(loss: Callable[[], float], parameter: nn.Parameter, direction: Tensor) -> float:
    sides, h = [], 1e-5
    for step in (h, -h):
        with moved([parameter], [direction], step):
            sides.append(loss())
    return (sides[0] - sides[1]) / (2 * h)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CHAINS)
def test_perforated_dendrites_are_constants_to_earlier_layers(kind: str, form: str) -> None:
    network, x = chain(kind, form, "correlation")
    first, layer, axis = network[0], network[2], KINDS[kind].axis
    loss_of(network(x)).backward()
    hidden = torch.tanh(first(x))
    signal = (layer(hidden) - layer.base_layer(hidden)).detach()

    def loss() -> float:
        return loss_of(layer.base_layer(torch.tanh(first(x))) + signal).item()

    direction = torch.randn_like(first.weight)
    expected = numeric_slope(loss, first.weight, direction)
    assert axis < 0
    torch.testing.assert_close(
        (first.weight.grad * direction).sum().item(), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CHAINS)
def test_unperforated_dendrites_pass_the_whole_gradient(kind: str, form: str) -> None:
    network, x = chain(kind, form, "correlation", backprop_through=True)
    first, layer, axis = network[0], network[2], KINDS[kind].axis
    loss_of(network(x)).backward()

    def loss() -> float:
        y = output(layer, np.tanh(apply(first, numbers(x), axis)), axis)
        return loss_of(torch.from_numpy(y)).item()

    direction = torch.randn_like(first.weight)
    expected = numeric_slope(loss, first.weight, direction)
    torch.testing.assert_close(
        (first.weight.grad * direction).sum().item(), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_dendrite_that_is_not_frozen_learns_by_the_task_loss(form: str, through: bool) -> None:
    network, x = chain("conv2d strided", form, "gradient", backprop_through=through)
    layer = network[2]
    loss_of(network(x)).backward()
    hidden = np.tanh(apply(network[0], numbers(x), -3))
    for index, parameter in itertools.product((0, 1), ("weight", "link", "gain")):
        if parameter == "link" and index == 0:
            continue
        tensor = {
            "weight": next(layer.dendrites[index].parameters()),
            "link": layer.links[index],
            "gain": layer.gains[index],
        }[parameter]
        direction = torch.randn_like(tensor)
        expected = numeric_slope(
            lambda: loss_of(torch.from_numpy(output(layer, hidden, -3))).item(), tensor, direction
        )
        torch.testing.assert_close(
            (tensor.grad * direction).sum().item(), expected, rtol=1e-6, atol=1e-6
        )


# --- frozen, and what U buys ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_frozen_sets_get_no_gradient_and_keep_their_statistics(form: str) -> None:
    layer = grown("conv2d", form, True, "correlation", 2).train()
    layer.freeze(1)
    frozen = {k: v.clone() for k, v in layer.dendrites[0].state_dict().items()}
    newest = {k: v.clone() for k, v in layer.dendrites[1].state_dict().items()}
    layer.train()
    loss_of(layer(inputs_of("conv2d"))).backward()
    assert all(p.grad is None for p in layer.set_parameters(0))
    assert all(torch.equal(v, frozen[k]) for k, v in layer.dendrites[0].state_dict().items())
    trained = layer.dendrites[1].state_dict()
    moved = [k for k, v in newest.items() if not torch.equal(v, trained[k])]
    assert {k.rpartition(".")[2] for k in moved} >= {"running_mean", "running_var"}


def test_thawed_sets_train_again() -> None:
    layer = grown("conv2d", "full", True, "correlation", 2)
    layer.freeze(2)
    layer.freeze(0)
    assert all(p.requires_grad for d in (0, 1) for p in layer.set_parameters(d) if p.numel())
    assert layer.dendrites[0][-1].training


@pytest.mark.parametrize("form", ["full", "grouped", "lowrank"])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d strided", "conv3d"])
def test_a_new_gain_buys_what_its_covariance_promises(kind: str, form: str) -> None:
    """With U = 0: dL/dU_c = sum delta_c a_c, which is cov_c where the mean error is zero.

    So a small step on U_c alone lowers a loss by lr * cov_c^2 to first order; the loss here is
    the squared distance to a target whose distance has mean zero in each channel.
    """
    layer, axis = grown(kind, form, False, "correlation", 1), KINDS[kind].axis
    for gain in layer.gains:
        nn.init.zeros_(gain)
    x = torch.randn(64, *KINDS[kind].shape[1:]).double()
    base = layer.base_layer(x).detach()
    others = tuple(d for d in range(base.dim()) if d != base.dim() + axis)
    delta = torch.randn_like(base)
    delta -= delta.mean(others, keepdim=True)
    target = base - delta

    def loss() -> Tensor:
        return 0.5 * (layer(x) - target).square().sum()

    before = loss()
    before.backward()
    a = activations(layer, numbers(x), axis)[0].reshape(-1, layer.nodes)
    e = np.moveaxis(numbers(delta), axis, -1).reshape(len(a), -1)
    covariance = ((a - a.mean(0)) * (e - e.mean(0))).sum(0)
    gradient = layer.gains[0].grad.clone()
    np.testing.assert_allclose(numbers(gradient), covariance, atol=1e-9)
    drops = []
    for channel in range(layer.channels):
        with torch.no_grad():
            layer.gains[0][channel] = -1e-6 * gradient[channel]
            drops.append((before - loss()).item())
            layer.gains[0].zero_()
    assert min(drops) > 0
    assert np.argsort(drops).tolist() == np.argsort(np.abs(covariance)).tolist()


def test_training_by_correlation_raises_it_on_every_node() -> None:
    torch.manual_seed(1)
    layer = grown("linear", "full", False, "correlation", 1)
    layer.begin_candidacy()
    x, target = torch.randn(200, 6).double(), torch.randn(200, 4).double()
    error = layer.base_layer(x).detach() - target
    delta = numbers(error + 2 * x[:, :4] * x[:, 2:])  # something that a dendrite can find
    start = objective_by_node(layer, numbers(x), delta)
    optimizer = torch.optim.Adam(layer.set_parameters(0), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        layer(x).backward(torch.from_numpy(delta))
        optimizer.step()
    assert (objective_by_node(layer, numbers(x), delta) > start + 0.05).all()


def objective_by_node(layer: DendriteLayer, x: Array, delta: Array) -> Array:
    a = activations(layer, x, -1)[-1]
    return np.abs(np.diag(np.corrcoef(a, delta, rowvar=False)[: a.shape[1], a.shape[1] :]))


def test_max_sets_is_no_part_of_what_a_set_is() -> None:
    network, config = nn.Sequential(nn.Linear(4, 4)), config_of("full")
    attach_dendrites_(network, config)
    attach_dendrites_(network, replace(config, max_sets=5))
    assert network[0].num_sets == 2


# --- what shares, and what cannot grow -----------------------------------------------------------


class Twice(nn.Module):
    """Calls one layer twice, and ties two others to one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(5, 5)
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.alias = self.core

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.tanh(self.core(self.embedding(tokens)))
        y: Tensor = self.head(torch.tanh(self.alias(x)))
        return y


def test_a_layer_that_is_called_twice_has_the_mean_score_of_its_calls() -> None:
    network = Twice().double()
    attach_dendrites_(network, config_of("full", layers=("core",)))
    layer = network.core
    assert network.alias is layer
    layer.begin_candidacy()
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        a = torch.tanh(layer.dendrites[0](args[0]))
        output.register_hook(lambda error: seen.append((a, error)))

    layer.register_forward_hook(watch)
    loss_of(network(torch.randint(7, (6, 4)))).backward()
    means = layer.summed_scores()[:, 0] / 2
    assert (means[COUNT] == 1).all()
    expected = [
        np.diag(
            np.corrcoef(numbers(a).reshape(-1, 5), numbers(e).reshape(-1, 5), rowvar=False)[:5, 5:]
        )
        for a, e in seen
    ]
    assert len(expected) == 2
    np.testing.assert_allclose(numbers(means[R]), np.mean(expected, 0), atol=1e-10)


def test_shared_weights_and_modules_stay_shared(tmp_path: Path) -> None:
    network, tokens = Twice(), torch.randint(7, (6, 4))
    before = network(tokens)
    assert attach_dendrites_(network) == ("core", "head")
    assert torch.equal(network(tokens), before)
    assert network.head.base_layer.weight is network.embedding.weight
    for layer in dendrite_layers(network).values():
        shake(layer.dendrites)
        for gain in layer.gains:
            nn.init.normal_(gain)
    save(tmp_path, network.eval())
    again = load(tmp_path, Twice)
    assert torch.equal(again(tokens), network(tokens))
    assert again.head.base_layer.weight is again.embedding.weight
    assert again.alias is again.core
    torch.testing.assert_close(fuse(network)(tokens), network(tokens))
    detach_dendrites_(network)
    assert torch.equal(network(tokens), before)
    assert network.head.weight is network.embedding.weight
    assert network.alias is network.core


REFUSED = {
    "lstm": (nn.LSTM(4, 4), "a LSTM sums up its gates inside one fused kernel"),
    "gru": (nn.GRU(4, 4), "a GRU sums up its gates"),
    "rnn": (nn.RNN(4, 4), "a RNN sums up its gates"),
    "lstm cell": (nn.LSTMCell(4, 4), "a LSTMCell sums up its gates"),
    "gru cell": (nn.GRUCell(4, 4), "a GRUCell sums up its gates"),
    "embedding": (nn.Embedding(4, 4), "an? Embedding looks rows up"),
    "bag": (nn.EmbeddingBag(4, 4), "a EmbeddingBag looks rows up"),
    "norm": (nn.LayerNorm(4), "a LayerNorm cannot grow"),
    "bilinear": (nn.Bilinear(4, 4, 4), "a Bilinear cannot grow"),
    "lazy": (nn.LazyLinear(4), "a LazyLinear cannot grow"),
}


def test_the_list_of_refusals_is_whole() -> None:
    assert len(REFUSED) == 10


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_grow_is_refused_by_name_with_the_reason(kind: str) -> None:
    layer, reason = REFUSED[kind]
    network = nn.ModuleDict({"strange": layer, "fc": nn.Linear(4, 4)})
    with pytest.raises(UnsupportedLayerError, match=f"'strange'.*{reason}"):
        attach_dendrites_(network, DendriteConfig(layers=("strange",)))
    assert attach_dendrites_(network) == ("fc",)


def test_output_size_is_refused_in_a_call() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(2, 2, 3, stride=2))
    attach_dendrites_(network)
    with pytest.raises(CompressionError, match="output_padding"):
        network[0](torch.zeros(1, 2, 3, 3), output_size=(8, 8))


NORMS = {
    "batch": lambda: nn.BatchNorm2d(8),
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": lambda: nn.LayerNorm([8, 3, 3]),
    "rms": lambda: nn.RMSNorm([8, 3, 3]),
    "instance": lambda: nn.InstanceNorm2d(8),
    "none": nn.Identity,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", NORMS)
def test_dendrites_grow_before_every_norm(norm: str, form: str) -> None:
    assert len(NORMS) == 6
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), NORMS[norm]()).eval(), torch.randn(2, 3, 5, 5)
    before = network(x)
    attach_dendrites_(network, config_of(form))
    assert torch.equal(network(x), before)
    assert network[0].normalized == (norm == "batch")
    shake(network)
    torch.testing.assert_close(fuse(network)(x), network(x), rtol=1e-4, atol=1e-4)


def test_layers_whose_weights_torch_reads_itself_are_refused_with_that_reason() -> None:
    network = nn.TransformerEncoderLayer(8, 2, 16)
    for name, parent in (
        ("linear1", "TransformerEncoderLayer"),
        ("self_attn.out_proj", "MultiheadAttention"),
    ):
        with pytest.raises(UnsupportedLayerError, match=f"its parent {parent} reads its weight"):
            attach_dendrites_(network, DendriteConfig(layers=(name,)))
