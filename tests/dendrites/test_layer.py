"""Dendrite layers as modules: what grows, what it costs, what shares, what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbcompress import DendriteConfig, fuse, load
from pbcompress.core.modules import parameter_count
from pbcompress.dendrites.correlation import COUNT, R
from pbcompress.dendrites.forms import growable_layers, set_params
from pbcompress.dendrites.growth import attach_dendrites_, detach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError, UnsupportedLayerError
from pbcompress.runs.saved_network import save
from pbcompress.structure.layer_geometry import LayerGeometry
from tests.support.pairwise import pairwise, pairwise_by_default
from tests.support.reference import (
    CASES,
    FORMS,
    KINDS,
    config_of,
    inputs_of,
    loss_of,
    network_of,
    numbers,
    shake,
)


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


COSTS = [(*case, cascade) for case in CASES for cascade in (True, False)]


@pytest.mark.parametrize(("kind", "form", "normed", "cascade"), pairwise_by_default(COSTS))
def test_cost_equals_the_closed_form(kind: str, form: str, normed: bool, cascade: bool) -> None:
    network = network_of(kind, normed)
    before, geometry = parameter_count(network), LayerGeometry.of(network[0])
    config = config_of(form, max_sets=3, cascade=cascade)
    for _ in range(3):
        attach_dendrites_(network, config)
    planned = set_params(geometry, geometry.out_width, geometry.in_width, config, normalized=normed)
    assert parameter_count(network) - before == planned
    assert (len(COSTS), len(pairwise(COSTS))) == (510, 135)


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


def test_other_code_reads_what_the_base_layer_holds_and_calls_none_of_its_methods() -> None:
    base = nn.Conv2d(3, 4, 3, stride=2)
    base.note = "of the user"  # type: ignore[assignment]
    network = nn.Sequential(base)
    attach_dendrites_(network)
    layer = network[0]
    assert layer.weight is base.weight
    assert layer.bias is base.bias
    for name in ("in_channels", "kernel_size", "stride", "padding_mode", "note"):
        assert getattr(layer, name) == getattr(base, name)
    assert not hasattr(layer, "reset_parameters")
    with pytest.raises(AttributeError, match="'DendriteLayer' object has no attribute 'in_feat"):
        _ = layer.in_features


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
    means = layer.pool.summed_scores()[:, 0] / 2
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
