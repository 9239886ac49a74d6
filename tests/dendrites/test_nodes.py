"""Sets with a part of their nodes, and the pool that they come from."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pbcompress import (
    CompressConfig,
    DendriteConfig,
    RecoveryConfig,
    attach_dendrites_,
    cycles,
    fuse,
    load,
    measure,
)
from pbcompress.dendrites.correlation import COUNT, GAIN, SLOPE, R, node_scores
from pbcompress.dendrites.forms import GroupedLinear, set_params
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.nodes import Slots, adopt_nodes_, groups_of
from pbcompress.recovery.node_selection import accept_, selected
from pbcompress.runs.saved_network import save
from pbcompress.structure.layer_geometry import LayerGeometry
from tests.support.configs import FORMS
from tests.support.pairwise import pairwise, pairwise_by_default
from tests.support.reference import KINDS, config_of, grown, inputs_of

CASES = [
    (kind, form, normed)
    for kind, form, normed in itertools.product(KINDS, FORMS, (False, True))
    if KINDS[kind].batched or not normed
]


every_case = pytest.mark.parametrize(("kind", "form", "normed"), pairwise_by_default(CASES))


def test_the_lists_are_whole() -> None:
    assert (len(FORMS), len(KINDS), len(CASES)) == (5, 27, 255)
    assert len(pairwise(CASES)) == 135


@pytest.mark.parametrize("shape", [(6,), (0, 6), (4, 6), (2, 3, 6), (2, 0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_grouped_linear_is_a_linear_with_blocks(shape: tuple[int, ...], bias: bool) -> None:
    grouped, x = GroupedLinear(6, 4, 2, bias=bias).double(), torch.randn(shape).double()
    blocks = torch.block_diag(*grouped.weight)
    expected = functional.linear(x, blocks.T, grouped.bias)
    torch.testing.assert_close(grouped(x), expected)


def some_nodes(layer: DendriteLayer, index: int, first: int = 0) -> Tensor:
    """As many nodes of every group, or of single ones, beginning with number ``first``."""
    groups = groups_of(layer.dendrites[index])
    if groups == 1 or groups == layer.nodes:
        return torch.arange(first, layer.nodes, 2)
    return torch.arange(layer.nodes).reshape(groups, -1)[:, first::2].flatten()


def silenced(layer: DendriteLayer, kept: dict[int, Tensor]) -> DendriteLayer:
    """The whole layer, in which nodes that go neither speak nor are heard."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for index, stay in kept.items():
            gone = torch.ones(layer.nodes, dtype=torch.bool)
            gone[stay] = False
            other.gains[index][gone] = 0
            for link in list(other.links)[index + 1 :]:
                link[index, gone] = 0
    return other


@every_case
def test_a_narrowed_set_computes_what_its_nodes_computed(kind, form, normed) -> None:
    layer = grown(kind, form, normed, "correlation", 3).eval()
    x = inputs_of(kind)
    kept = {0: some_nodes(layer, 0), 2: some_nodes(layer, 2, 1)}
    expected = silenced(layer, kept)(x)
    for index, nodes in kept.items():
        layer.keep_nodes(index, nodes)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    network = nn.Sequential(layer).eval()
    torch.testing.assert_close(fuse(network)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_set_without_nodes_says_nothing_and_costs_nothing(form) -> None:
    layer = grown("conv2d", form, True, "correlation", 2).eval()
    x = inputs_of("conv2d")
    alone = copy.deepcopy(layer)
    alone.remove_set()
    layer.keep_nodes(1, torch.tensor([], dtype=torch.long))
    assert torch.equal(layer(x), alone(x))
    assert sum(p.numel() for p in layer.set_parameters(1)) + layer.gains[1].numel() == 0
    torch.testing.assert_close(fuse(nn.Sequential(layer))(x), alone(x))


def test_a_tied_dendrite_reads_a_folded_neuron_and_dead_channels_stay_silent() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    for normed in (True, False):
        grown_one = copy.deepcopy(network)
        for _ in range(2):
            attach_dendrites_(grown_one, DendriteConfig(form="tied", normalize=normed))
        for tensor in [*grown_one.parameters(), *grown_one.buffers()]:
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.3, 2)
        grown_one[1].weight.data[2] = 0
        grown_one.double().eval()
        grown_one[0].keep_nodes(1, torch.tensor([1, 2, 5]))
        x = torch.randn(4, 3, 7, 7).double()
        fused = fuse(grown_one)
        assert isinstance(fused[1], nn.Identity)
        torch.testing.assert_close(fused(x), grown_one(x), rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 8), unique=True))
def test_slots_spread_and_take_are_inverse(total, chosen) -> None:
    kept = torch.tensor(sorted(c for c in chosen if c < total), dtype=torch.long)
    slots, values = Slots(total, kept), torch.randn(2, len(kept), 3)
    whole = slots.spread(values, -2)
    assert whole.shape == (2, total, 3)
    assert torch.equal(slots.take(whole, -2), values)
    assert int((whole != 0).sum()) == values.numel()


# --- the pool -------------------------------------------------------------------------------------


@every_case
def test_every_node_keeps_its_best_candidate(kind, form, normed) -> None:
    layer = grown(kind, form, normed, "correlation", 2).eval()
    layer.double().begin_candidacy([(7, rival) for rival in (1, 2)])
    for branch, links in layer.pool.rivals:
        for tensor in [*branch.parameters(), *branch.buffers(), links]:
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.2, 1)
    sums = torch.zeros_like(layer.pool.leaf)
    sums[COUNT] = 2
    nodes = torch.arange(layer.nodes)
    best = nodes % 3 if form != "lowrank" else torch.full_like(nodes, 1)
    spread = sums[R].dim() - 2
    sums[R] = -0.1
    sums[R, best, nodes] = -0.5
    x = inputs_of(kind)
    alone = []
    for number, (branch, links) in enumerate(layer.candidates):
        single = copy.deepcopy(layer)
        single.end_candidacy()
        single.dendrites[-1] = copy.deepcopy(branch)
        single.links[-1] = nn.Parameter(links.detach().clone())
        only = (best == number).double().reshape(-1, *[1] * spread)
        single.gains[-1].data.mul_(only)
        without = copy.deepcopy(single)
        nn.init.zeros_(without.gains[-1])
        alone.append(single(x) - without(x))
    expected = without(x) + sum(alone)
    accept_({"layer": layer}, {"layer": sums})
    assert layer.pool is None
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_every_candidate_of_a_pool_gets_the_gradient_that_it_gets_alone(form) -> None:
    layer = grown("conv2d", form, False, "correlation", 1)
    layer.double().begin_candidacy([(5,)])
    (rival, _), single = layer.pool.rivals[0], copy.deepcopy(layer)
    single.dendrites[-1] = copy.deepcopy(rival)
    single.begin_candidacy()
    x = inputs_of("conv2d")
    for one in (layer, single):
        one(x).logsumexp(1).sum().backward()
    found = zip(rival.parameters(), single.dendrites[0].parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in found)
    assert torch.equal(layer.pool.summed_scores()[:, 1], single.pool.summed_scores()[:, 0])


def test_scores_of_a_leaf() -> None:
    layer = grown("linear", "full", False, "correlation", 1)
    layer.begin_candidacy()
    x, target = torch.randn(30, 6).double(), torch.randn(30, 4).double()
    y = layer(x)
    y.retain_grad()
    (0.5 * (y - target).square()).sum(1).mean().backward()
    a = torch.tanh(layer.dendrites[0](x)).detach()
    means = layer.pool.summed_scores()[:, 0]
    for c in range(4):
        r = torch.corrcoef(torch.stack([a[:, c], y.grad[:, c]]))[0, 1]
        torch.testing.assert_close(means[R, c], r)
        torch.testing.assert_close(means[GAIN, c], r * y.grad[:, c].std(correction=0))
        fit = torch.linalg.lstsq(
            torch.stack([a[:, c], torch.ones(30)], 1).double(), (target - y).detach()[:, c, None]
        ).solution[0, 0]
        torch.testing.assert_close(means[SLOPE, c], fit)
    assert (means[COUNT] == 1).all()
    torch.testing.assert_close(
        node_scores(layer.pool.summed_scores()[:COUNT]), means[R].abs()[None]
    )


# --- the selection --------------------------------------------------------------------------------

TABLE = [
    ("all fits", {"a": [3.0, 1.0], "b": [8.0]}, {"a": 2, "b": 4}, 8, {"a": [0, 1], "b": [0]}),
    ("by price", {"a": [3.0, 1.0], "b": [8.0]}, {"a": 1, "b": 4}, 1, {"a": [0], "b": []}),
    ("a gap is filled", {"a": [1.0], "b": [9.0, 8.0]}, {"a": 1, "b": 4}, 5, {"a": [0], "b": [0]}),
    ("nothing fits", {"a": [1.0]}, {"a": 2}, 1, {"a": []}),
    ("ties in order", {"a": [1.0, 1.0], "b": [1.0]}, {"a": 1, "b": 1}, 2, {"a": [0, 1], "b": []}),
]


@pytest.mark.parametrize(("values", "prices", "budget", "kept"), [t[1:] for t in TABLE])
def test_nodes_that_a_budget_is_best_spent_on(values, prices, budget, kept) -> None:
    tensors = {name: torch.tensor(v) for name, v in values.items()}
    units = {name: torch.arange(len(v))[:, None] for name, v in values.items()}
    found = selected(tensors, units, prices, budget)
    assert {name: nodes.tolist() for name, nodes in found.items()} == kept


@pytest.mark.parametrize("share", [0.05, 0.3, 0.77])
@pytest.mark.parametrize("form", FORMS)
def test_kept_nodes_stay_within_their_share(form, share) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8, 6),
    )  # fmt: skip
    config = config_of(form, node_share=share, max_sets=2)
    plain = sum(p.numel() for p in network.parameters())
    geometries = {
        n: LayerGeometry.of(m) for n, m in network.named_modules() if hasattr(m, "weight")
    }
    for number in range(2):
        attach_dendrites_(network, config, seed=number)
        layers, sums = dendrite_layers(network), {}
        for name, layer in layers.items():
            layer.begin_candidacy()
            sums[name] = torch.rand_like(layer.pool.leaf)
        accept_(layers, sums)
    reserved = sum(
        set_params(g, g.out_width, g.in_width, config, normalized=layers[n].normalized)
        for n, g in geometries.items()
        if n in layers
    )
    spent = sum(p.numel() for p in network.parameters()) - plain
    assert 0 <= spent <= reserved
    if share > 0.3 and form != "lowrank":
        assert spent >= 0.7 * reserved
    assert network(torch.randn(2, 3, 7, 7)).shape == (2, 6)


# --- in cycles ------------------------------------------------------------------------------------


def grow(model: nn.Module, config: CompressConfig, steps: int = 3) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(64, 6), torch.randn(64, 3)
    score = 0.0
    for phase in cycles(model, config=config):
        optimizer = torch.optim.Adam(phase.parameters(), 0.01)
        while not phase.done:
            phase.train()
            for _ in range(steps):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
            score += 1
            phase.report(score)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("form", FORMS)
def test_a_growth_with_pool_selection_and_first_gains_is_saved_and_exported(form, tmp_path) -> None:
    model = small()
    recovery = RecoveryConfig(epochs=1, dendrite_epochs=2)
    dendrites = config_of(
        form, candidates=3, node_share=0.5, initial_gain="least_squares", max_sets=2
    )
    grow(model, CompressConfig(dendrites=dendrites, recovery=recovery))
    layers = dendrite_layers(model)
    assert {layer.num_sets for layer in layers.values()} == {2}
    if form != "lowrank":
        assert any(kept is not None for layer in layers.values() for kept in layer.kept_nodes)
    save(tmp_path, model.eval())
    again, x = load(tmp_path, small), torch.randn(5, 6)
    assert torch.equal(again(x), model(x))
    assert measure(again, x).params == measure(model, x).params
    torch.testing.assert_close(fuse(model)(x), model(x))


def test_the_least_squares_gain_lowers_the_loss_at_once() -> None:
    losses = {}
    for first in ("zero", "least_squares"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 3))
        x = torch.randn(256, 6)
        y = model(x).detach() + torch.relu(x[:, :3] * 2)
        config = config_of("full", initial_gain=first, max_sets=1)
        attach_dendrites_(model, config)
        layer = model[0]
        layer.begin_candidacy()
        loss = 0.5 * (model(x) - y).square().sum(1).mean()
        loss.backward()
        before = loss.item()
        accept_({"0": layer}, {"0": layer.pool.summed_scores()})
        losses[first] = 0.5 * (model(x) - y).square().sum(1).mean().item()
    assert losses["zero"] == before
    assert losses["least_squares"] < 0.999 * before


def test_a_restored_growth_goes_on_as_the_one_that_was_not_stopped() -> None:
    dendrites = config_of("full", candidates=2, node_share=0.4, max_sets=2)
    config = CompressConfig(
        dendrites=dendrites, recovery=RecoveryConfig(epochs=2, dendrite_epochs=2)
    )
    x, y = torch.randn(32, 6), torch.randn(32, 3)

    def run(stop: int | None) -> list[Tensor]:
        torch.manual_seed(1)
        model = small()
        growth, score, epochs = cycles(model, config=config), 0.0, 0
        while True:
            try:
                phase = next(growth)
            except StopIteration:
                return list(model.parameters())
            phase.train()
            optimizer = torch.optim.SGD(phase.parameters(), 0.05)
            (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            score, epochs = score + 1, epochs + 1
            phase.report(score)
            if epochs == stop:
                tensors, state = growth.state()
                tensors = {k: v.clone() for k, v in tensors.items()}
                torch.manual_seed(1)
                model = small()
                growth = cycles(model, config=config)
                growth.restore(tensors, state)

    whole = run(None)
    for stop in range(1, 10):
        assert all(torch.equal(a, b) for a, b in zip(whole, run(stop), strict=True)), stop


def test_adopting_no_node_changes_nothing() -> None:
    for form in ("full", "grouped", "shared", "tied"):
        layer = grown("conv2d grouped", form, True, "correlation", 1)
        layer.begin_candidacy([(1,)])
        before = copy.deepcopy(layer.dendrites[0].state_dict())
        rival, _ = layer.pool.rivals[0]
        adopt_nodes_(layer.dendrites[0], rival, torch.zeros(layer.nodes, dtype=torch.bool))
        after = layer.dendrites[0].state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
