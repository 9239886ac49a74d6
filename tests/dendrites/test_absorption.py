"""Linear dendrites fold into their neurons: every kind of layer, and what is refused."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress import DendriteConfig, absorb_dendrites_, attach_dendrites_
from pbcompress.core.modules import copy_model, parameter_count
from pbcompress.dendrites.forms import growable_layers, set_params
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.errors import CompressionError, UnsupportedLayerError
from pbcompress.structure.layer_geometry import LayerGeometry
from tests.support.pairwise import pairwise_by_default
from tests.support.reference import FORMS, KINDS, config_of, inputs_of, network_of, shake

NORMALIZED, ANNEALED = (False, True), (False, True)
CASES = list(itertools.product(KINDS, FORMS, NORMALIZED, ANNEALED))
REFUSED = {"lowrank", "shared"}  # in layers with groups


def linear(form: str, *, annealed: bool, **choices: object) -> DendriteConfig:
    """Dendrites that are linear, or become so."""
    own = {"activation": "tanh", "annealing": 0.5} if annealed else {"activation": "linear"}
    return config_of(form, **own, **choices)


def grown(kind: str, form: str, *, normalized: bool, annealed: bool, sets: int = 2) -> nn.Module:
    """One layer with linear dendrites, in float64 and eval mode, with random weights."""
    network = nn.Sequential(KINDS[kind].make()).double()
    config = linear(form, annealed=annealed, normalize=normalized, cascade=True)
    for _ in range(sets):
        attach_dendrites_(network, config, seed=3)
    shake(network[0])
    finish_annealing(network)
    return network.eval()


def finish_annealing(network: nn.Module) -> None:
    for layer in dendrite_layers(network).values():
        for step in layer.annealing:
            step.linearity.fill_(1)


def can_fold(kind: str, form: str, *, normalized: bool) -> bool:
    layer = KINDS[kind].make()
    if form == "tied" and layer.bias is None and not normalized:
        return False
    return not (form in REFUSED and getattr(layer, "groups", 1) > 1)


@pytest.mark.parametrize(("kind", "form", "normalized", "annealed"), pairwise_by_default(CASES))
def test_the_absorbed_layer_computes_the_same(
    kind: str, form: str, normalized: bool, annealed: bool
) -> None:
    if not can_fold(kind, form, normalized=normalized):
        config = linear(form, annealed=annealed, normalize=normalized, layers=("0",))
        with pytest.raises(UnsupportedLayerError, match=r"fold|groups"):
            growable_layers(nn.Sequential(KINDS[kind].make()), config)
        return
    plain = nn.Sequential(KINDS[kind].make()).double()
    network = grown(kind, form, normalized=normalized, annealed=annealed)
    base = network[0].base_layer
    parameters = dict(base.named_parameters())
    x = inputs_of(kind)
    before = network(x)
    assert absorb_dendrites_(network) == ("0",)
    assert network[0] is base
    assert {n: id(p) for n, p in base.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    assert repr(network) == repr(plain)
    np.testing.assert_allclose(network(x).detach(), before.detach(), rtol=1e-12, atol=1e-12)


def test_all_kinds_and_forms_are_listed() -> None:
    assert (len(KINDS), len(FORMS), len(CASES)) == (27, 5, 540)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_it_is_as_good_as_rounding(kind: str, form: str) -> None:
    if not can_fold(kind, form, normalized=False):
        return
    network = grown(kind, form, normalized=False, annealed=False).float()
    x = inputs_of(kind).float()
    before = network(x)
    scale = float(before.detach().abs().max())
    absorb_dendrites_(network)
    assert float((network(x) - before).detach().abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_set_changes_no_bit(kind: str, form: str) -> None:
    network = nn.Sequential(KINDS[kind].make()).eval()
    x = inputs_of(kind).float()
    before = network(x)
    config = linear(form, annealed=False)
    if "0" in growable_layers(network, config):
        attach_dendrites_(network, config)
        assert isinstance(network[0], DendriteLayer)
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_as_the_sum_of_its_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One merged operation has the gradients of base and branches that run apart."""
    monkeypatch.setattr("pbcompress.dendrites.layer.MERGED_ROWS", 1)
    network = grown(kind, "full", normalized=False, annealed=False)
    apart = copy_model(network)
    for layer in (network[0], apart[0]):
        object.__setattr__(layer, "config", linear("full", annealed=False, rule="gradient"))
    apart[0].base_layer.register_forward_hook(lambda *_: None)  # runs base and sets apart
    x = inputs_of(kind)
    assert network[0]._runs_merged(x)
    assert not apart[0]._runs_merged(x)
    for one in (network, apart):
        one(x).square().sum().backward()
    for (name, p), q in zip(network.named_parameters(), apart.parameters(), strict=True):
        if p.numel():
            np.testing.assert_allclose(p.grad, q.grad, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_reserved_for_what_is_absorbed(kind: str, form: str) -> None:
    layer = KINDS[kind].make()
    geometry = LayerGeometry.of(layer)
    config = linear(form, annealed=True, max_sets=3)
    sizes = (geometry, geometry.out_width, geometry.in_width)
    assert set_params(*sizes, config, normalized=True) == 0


def test_a_batchnorm_network_keeps_its_layers_and_parameters() -> None:
    network = network_of("conv2d without bias", normed=True).double()
    before = parameter_count(network)
    attach_dendrites_(network, linear("full", annealed=False))
    shake(network)
    x = inputs_of("conv2d without bias")
    network.train()
    network(x)  # the norm of the branch has statistics of its own
    network.eval()
    wanted = network(x)
    absorb_dendrites_(network)
    assert parameter_count(network) == before
    np.testing.assert_allclose(network(x).detach(), wanted.detach(), rtol=1e-12, atol=1e-12)


def test_selected_nodes_are_absorbed() -> None:
    for kind, form in itertools.product(("conv2d depthwise", "conv2d", "linear"), ("full", "tied")):
        network = grown(kind, form, normalized=True, annealed=False)
        network[0].keep_nodes(0, torch.tensor([1, 3]))
        network[0].keep_nodes(1, torch.tensor([0, 1, 2]))
        x = inputs_of(kind)
        before = network(x)
        absorb_dendrites_(network)
        np.testing.assert_allclose(network(x).detach(), before.detach(), rtol=1e-12, atol=1e-12)


def test_what_is_not_linear_is_refused_and_stays() -> None:
    for config in (DendriteConfig(), DendriteConfig(annealing=0.5)):
        network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
        attach_dendrites_(network, config)
        state = {k: v.clone() for k, v in network.state_dict().items()}
        with pytest.raises(CompressionError, match=r"not linear.*annealing"):
            absorb_dendrites_(network)
        assert len(dendrite_layers(network)) == 2
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_a_layer_without_dendrites_is_named() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    attach_dendrites_(network, DendriteConfig(activation="linear", layers=("0",)))
    with pytest.raises(CompressionError, match=r"'2', which has no dendrites.*: 0"):
        absorb_dendrites_(network, ["2"])
    assert absorb_dendrites_(network, ["0"]) == ("0",)


def test_shared_weights_are_left_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    network[2].weight = network[0].weight
    assert list(growable_layers(network, DendriteConfig(activation="linear"))) == ["3"]
    with pytest.raises(UnsupportedLayerError, match="another layer has its weight"):
        growable_layers(network, DendriteConfig(activation="linear", layers=("0",)))


def test_an_optimizer_goes_on_with_the_same_parameters() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    attach_dendrites_(network, DendriteConfig(activation="linear", rule="gradient"))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    absorb_dendrites_(network)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in network.parameters()} <= held


def test_the_uncentred_norm_is_a_linear_map_at_rest() -> None:
    norm = pb.dendrites.forms.UncentredNorm(3, 1).double()
    x = torch.randn(5, 3, 7).double()
    y = norm(x)
    wanted = x.numpy() / np.sqrt((x.numpy() ** 2).mean((0, 2), keepdims=True) + norm.eps)
    np.testing.assert_allclose(y.detach(), wanted, rtol=1e-12)
    square = 0.9 + 0.1 * (x.numpy() ** 2).mean((0, 2))
    np.testing.assert_allclose(norm.running_var, square, rtol=1e-12)
    norm.eval()
    np.testing.assert_allclose(norm(2 * x).detach(), 2 * norm(x).detach(), rtol=1e-12)


# --- what else meets a layer that runs merged -----------------------------------------------------


def trained(**choices: object) -> nn.Sequential:
    """A Linear whose linear dendrites add something."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 16))
    choices = {"activation": "linear", "rule": "gradient", "normalize": False} | choices
    attach_dendrites_(network, DendriteConfig(**choices))
    nn.init.normal_(network[0].gains[0])
    return network


def test_threads_that_share_a_network_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbcompress.dendrites.layer.MERGED_ROWS", 1)
    network, x = trained(), torch.randn(32, 16)
    wanted, weight = network(x).detach(), network[0].base_layer.weight

    def run(_: int) -> bool:
        return all(torch.equal(network(x).detach(), wanted) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
    assert network[0].base_layer.weight is weight


def test_it_runs_merged_only_where_that_pays() -> None:
    network = trained()
    assert network[0]._runs_merged(torch.randn(64, 16))
    assert not network[0]._runs_merged(torch.randn(8, 16))
    with torch.no_grad():
        assert not network[0]._runs_merged(torch.randn(64, 16))
    network[0].dendrites[0].register_forward_hook(lambda *_: None)
    assert not network[0]._runs_merged(torch.randn(64, 16))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_takes_it() -> None:
    network = trained().eval()
    x = torch.randn(64, 16)
    traced = torch.jit.trace(network, x, check_trace=False)
    np.testing.assert_allclose(traced(x).detach(), network(x).detach(), rtol=1e-5, atol=1e-5)


def test_norms_of_linear_dendrites_are_measured_anew() -> None:
    network = trained(normalize=True).eval()
    norm = network[0].dendrites[0][1]
    norm.running_var.fill_(7)
    pb.reestimate_batchnorm_(network, [(torch.randn(128, 16), None)])
    assert float(norm.running_var.max()) < 5


def test_an_empty_batch_leaves_statistics() -> None:
    network = trained(normalize=True).train()
    before = network[0].dendrites[0][1].running_var.clone()
    assert network(torch.zeros(0, 16)).shape == (0, 16)
    assert torch.equal(network[0].dendrites[0][1].running_var, before)


def test_hooks_that_change_what_passes_are_refused() -> None:
    hooked = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    hooked[0].register_forward_hook(lambda _, __, out: 2 * out)
    assert list(growable_layers(hooked, DendriteConfig(activation="linear"))) == ["1"]
    network = trained()
    network[0].base_layer.register_forward_hook(lambda _, __, out: 2 * out)
    x = torch.randn(3, 16)
    before = network(x)
    with pytest.raises(CompressionError, match="hooks or a weight that is computed"):
        absorb_dendrites_(network)
    assert torch.equal(network(x), before)
    assert type(pb.fuse(network)[0]).__name__ != "Linear"


def test_a_weight_that_is_computed_is_refused() -> None:
    network = trained()
    nn.utils.parametrizations.weight_norm(network[0].base_layer)
    with pytest.raises(CompressionError, match="hooks or a weight that is computed"):
        absorb_dendrites_(network)


def test_layers_that_are_named_are_checked_too() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False))
    config = DendriteConfig(activation="linear", form="tied", normalize=False)
    with pytest.raises(UnsupportedLayerError, match="'0': it has no bias"):
        attach_dendrites_(network, config, layers={"0": False})
    assert type(network[0]) is nn.Linear


@pytest.mark.parametrize("kind", ["conv1d", "conv2d oblong", "conv3d"])
def test_the_inference_form_of_tied_dendrites_on_their_way(kind: str) -> None:
    network = nn.Sequential(KINDS[kind].make()).double()
    attach_dendrites_(network, linear("tied", annealed=True, normalize=True))
    shake(network[0])
    network[0].annealing[0].linearity.fill_(0.5)
    network.eval()
    x = inputs_of(kind)
    np.testing.assert_allclose(pb.fuse(network)(x), network(x).detach(), rtol=1e-9, atol=1e-9)
