"""Dendrites against another evaluation of their mathematics, for every kind, form and rule."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbcompress.dendrites.correlation import COUNT, R
from pbcompress.dendrites.growth import attach_dendrites_, detach_dendrites_
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.signals import ACTIVATIONS
from tests.support.pairwise import pairwise, pairwise_by_default
from tests.support.reference import (
    ALL,
    CASES,
    FORMS,
    KINDS,
    Array,
    activations,
    apply,
    config_of,
    grown,
    inputs_of,
    loss_of,
    network_of,
    numbers,
    output,
    shake,
)

every_case = pytest.mark.parametrize(("kind", "form", "normed"), pairwise_by_default(CASES))
every_rule = pytest.mark.parametrize(("kind", "form", "normed", "rule"), pairwise_by_default(ALL))
SCORED_RULES = ("correlation", "hybrid")  # those with a dendrite phase
SCORED = [(*case, rule) for case in CASES for rule in SCORED_RULES]


def test_the_lists_of_cases_are_whole() -> None:
    assert len(KINDS) == 27
    assert (len(CASES), len(pairwise(CASES))) == (255, 135)
    assert (len(ALL), len(pairwise(ALL))) == (765, 135)
    assert (len(SCORED), len(pairwise(SCORED))) == (510, 135)


# --- forward --------------------------------------------------------------------------------------


@every_rule
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
    "linear": lambda z: z,
}


def test_every_activation_has_a_reference() -> None:
    assert set(SCALAR) == set(ACTIVATIONS)
    assert len(SCALAR) == 6


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


# --- attached and detached ------------------------------------------------------------------------


@every_case
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


@every_case
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


# --- the dendrite phase ---------------------------------------------------------------------------


def objective(layer: DendriteLayer, x: Array, delta: Array, axis: int) -> float:
    """Evaluate -sum |r| of the newest set with the error held constant."""
    a = activations(layer, x, axis)[-1].reshape(-1, layer.nodes)
    e = np.moveaxis(delta, axis, -1).reshape(len(a), -1)
    if len(a) == 1:
        return 0.0  # one sample has no correlation
    table = np.abs(np.corrcoef(a, e, rowvar=False)[: a.shape[1], a.shape[1] :])
    return -float(table.sum() if layer.config.form.kind == "shared" else np.trace(table))


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


@pytest.mark.parametrize(("kind", "form", "normed", "rule"), pairwise_by_default(SCORED))
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
@pytest.mark.parametrize("rule", SCORED_RULES)
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sets", [1, 2])
def test_what_follows_a_candidate_may_work_in_place(form: str, sets: int, activation: str) -> None:
    outcomes = []
    for inplace in (False, True):
        torch.manual_seed(5)
        network = three_layers(inplace)
        for number in range(sets):
            attach_dendrites_(network, config_of(form, activation=activation), seed=number)
        shake(network)
        for layer in dendrite_layers(network).values():
            layer.freeze(sets - 1)
            layer.begin_candidacy()
        network(torch.randn(5, 2, 6, 6)).logsumexp(1).sum().backward()
        found = [p.grad for p in network.parameters() if p.grad is not None]
        outcomes.append(found + [m.pool.summed_scores() for m in dendrite_layers(network).values()])
        assert len(found) >= 6 + 3
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


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
    summed = numbers(layer.pool.summed_scores())
    np.testing.assert_allclose(summed[R, 0], total, atol=1e-10)
    assert (summed[COUNT] == 3).all()


def test_scores_of_a_half_precision_layer_are_summed_in_float32() -> None:
    network = nn.Sequential(nn.Linear(6, 4)).bfloat16()
    attach_dendrites_(network)
    network[0].begin_candidacy()
    for _ in range(300):  # bfloat16 cannot count beyond 256
        network(torch.randn(8, 6).bfloat16()).float().square().sum().backward()
    assert (network[0].pool.summed_scores()[COUNT] == 300).all()


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
        assert (layer.pool.summed_scores()[COUNT] == 1).all()


def test_a_network_can_be_copied_while_a_candidate_listens() -> None:
    network = nn.Sequential(nn.Linear(6, 4))
    attach_dendrites_(network)
    network[0].begin_candidacy()
    network(torch.randn(8, 6)).square().sum().backward()
    twin = copy.deepcopy(network)
    assert torch.equal(twin[0].pool.summed_scores(), network[0].pool.summed_scores())


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
