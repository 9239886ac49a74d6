"""First weights in closed form, against numpy, planted signals and rules over all layers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pbcompress import CompressConfig, Correlation, DendriteConfig, RecoveryConfig
from pbcompress.dendrites.growth import attach_dendrites_, detach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.recovery.candidate_inputs import patches
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.initialization import initialize_candidates_
from pbcompress.recovery.observation import observe
from pbcompress.recovery.phase_cycles import cycles
from pbcompress.recovery.policy import PhaseKind
from pbcompress.recovery.recover import recover_
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.callbacks import Callback
from pbcompress.training.task import Data, Task
from tests.support.candidates import (
    EVERY,
    FORMS,
    LAYERS,
    PLANTED,
    every_dendrite,
    everything,
    grown,
)
from tests.support.pairwise import pairwise

# torch says that it pads an even kernel by a copy
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
CONVS = [name for name in LAYERS if name.startswith("conv")]


def planted_batches(net, shape, count=6, size=64):
    """Errors that bend along one direction of each neuron, or along its own sum for "tied"."""
    branch_like = copy.deepcopy(net[0].base_layer)
    if net[0].config.form.kind != "tied":
        nn.init.normal_(branch_like.weight)
    batches = []
    for _ in range(count):
        x = torch.randn(size, *shape)
        with torch.no_grad():
            s = branch_like(x)
        bent = (s - s.mean()).square() / s.var() + torch.randn_like(s) * 0.5
        batches.append((x, bent / size))
    return batches


def correlations(net, batches):
    """Mean |r| of the newest nodes with their errors over all batches, by numpy in float64."""
    layer = net[0]
    axis = -1 - layer.dims
    with torch.no_grad():
        x = torch.cat([b for b, _ in batches])
        read = layer.base_layer(x) if layer.config.form.kind == "tied" else x
        branch = copy.deepcopy(layer.dendrites[-1]).train()
        a = torch.relu(branch(read)).movedim(axis, -1).flatten(0, -2).double().numpy()
    e = torch.cat([b for _, b in batches]).movedim(axis, -1).flatten(0, -2).double().numpy()
    a, e = a - a.mean(0), e - e.mean(0)
    a, e = a / np.maximum(a.std(0), 1e-30), e / e.std(0)
    r = a.T @ e / len(a)
    is_shared = layer.config.form.kind == "shared"
    return float(np.abs(r).mean() if is_shared else np.abs(np.diag(r)).mean())


def changed(before, after):
    def differs(one, other):
        return not torch.equal(one, other) if isinstance(one, torch.Tensor) else one != other

    assert before.keys() == after.keys()
    return {k for k in before if differs(before[k], after[k])}


def test_the_direction_is_the_planted_one_and_that_of_numpy():
    rng = np.random.default_rng(0)
    mix = np.linalg.qr(rng.normal(size=(6, 6)))[0] * np.linspace(0.5, 2, 6)
    x = (rng.normal(size=(8192, 6)) @ mix).astype(np.float32)
    planted = rng.normal(size=(3, 6))
    s = x @ planted.T
    error = ((s / s.std(0)) ** 2 * [1, -1, 1] + rng.normal(size=s.shape)).astype(np.float32)
    net = grown(nn.Linear(6, 3))
    batches = [(torch.from_numpy(x), torch.from_numpy(error))]
    initialize_candidates_(net, batches, PLANTED, rows=8192)
    found = net[0].dendrites[-1].weight.detach().double().numpy()

    x64, e64 = x.astype(np.float64), error.astype(np.float64)
    centred = x64 - x64.mean(0)
    values, vectors = np.linalg.eigh(np.cov(centred.T, bias=True))
    whiten = vectors / np.sqrt(values)
    z = centred @ whiten
    assert np.allclose(z.T @ z / len(z), np.eye(6))
    for c in range(3):
        moment = (z * (e64[:, c] - e64[:, c].mean())[:, None]).T @ z / len(z)
        eigenvalues, directions = np.linalg.eigh(moment)
        reference = whiten @ directions[:, np.abs(eigenvalues).argmax()]
        for wanted, least in ((reference, 0.9999), (planted[c], 0.99)):
            a, b = centred @ found[c], centred @ wanted
            assert abs(np.corrcoef(a, b)[0, 1]) > least


@every_dendrite
def test_every_form_of_every_layer_correlates_better_than_random_on_planted_data(
    name, form, normalized
):
    make, shape = LAYERS[name]
    net = grown(make(), form, normalized)
    batches = planted_batches(net, shape)
    before = correlations(net, batches)
    sides = initialize_candidates_(net, batches, PLANTED, rows=100_000)
    after = correlations(net, batches)
    assert sides["0"] == pytest.approx((before, after), rel=1e-3, abs=1e-5)
    assert after > before + 0.01


def test_the_lists_of_layers_and_forms_are_whole():
    assert (len(LAYERS), len(FORMS), len(CONVS)) == (11, 5, 8)
    assert (len(EVERY), len(pairwise(EVERY))) == (110, 55)


@pytest.mark.parametrize("name", CONVS)
def test_patches_are_what_the_convolution_reads(name):
    make, shape = LAYERS[name]
    conv, x = make().double(), torch.randn(3, *shape, dtype=torch.float64)
    y = conv(x).movedim(1, -1)
    places = torch.cartesian_prod(*[torch.arange(size) for size in y.shape[:-1]])
    rows = patches(conv, x, places).flatten(1)
    rows = rows.unflatten(1, (conv.groups, -1)).transpose(0, 1)
    weight = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))
    mine = (rows @ weight.mT).transpose(0, 1).flatten(1)
    if conv.bias is not None:
        mine = mine + conv.bias
    torch.testing.assert_close(mine, y.reshape(-1, y.shape[-1]), rtol=1e-12, atol=1e-12)


def test_a_convolution_without_a_batch_axis_is_observed():
    net = grown(nn.Conv1d(2, 4, 3))
    task = Task(forward=lambda m, b: (m(b[0]), b[1]), loss=PLANTED.loss, metric=PLANTED.metric)
    sample = Sample([(torch.randn(2, 8), torch.randn(4, 6))], task, 1)
    ((_, seen),) = observe(net, dendrite_layers(net), sample, 100)
    assert seen.inputs.shape == (1, 6, 6)
    assert seen.errors.shape == (6, 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("in_phase", [True, False])
def test_only_the_candidates_weights_change(training, in_phase):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(64, 3),
    ).train(training)  # fmt: skip
    data = [(torch.randn(16, 1, 6, 6), torch.randint(3, (16,))) for _ in range(3)]
    attach_dendrites_(net, DendriteConfig())
    layers = dendrite_layers(net)
    if in_phase:
        for layer in layers.values():
            layer.freeze(0)
            layer.base_layer.requires_grad_(False)
            layer.begin_candidacy()
        nn.functional.cross_entropy(net(data[0][0]), data[0][1]).backward()
        net.requires_grad_(False)
    sums = [m.pool and m.pool.summed_scores() for m in layers.values()]
    net.train(training)
    before, state = everything(net), torch.get_rng_state()
    initialize_candidates_(net, data)
    after = everything(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert changed(before, after) == {"0.dendrites.0.0.weight", "0.dendrites.0.1.bias"} | {
        "5.dendrites.0.weight",
        "5.dendrites.0.bias",
    }
    for layer, former in zip(layers.values(), sums, strict=True):
        assert (layer.pool is not None) == in_phase
        assert not in_phase or torch.equal(layer.pool.leaf.grad, former)


def test_same_seed_same_weights_and_the_function_stays():
    layer, shape = LAYERS["conv2d"][0](), LAYERS["conv2d"][1]
    nets = [grown(layer, normalized=True) for _ in range(3)]
    batches = planted_batches(nets[0], shape)
    x = batches[0][0]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        initialize_candidates_(net, batches, PLANTED, rows=500, seed=seed)
        assert torch.equal(net(x), layer(x))
    weights = [net[0].dendrites[-1][0].weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


DEGENERATE = {
    "constant inputs": lambda x, e: (torch.ones_like(x), e),
    "constant errors": lambda x, e: (x, torch.ones_like(e)),
    "no errors": lambda x, e: (x, e * 0),
    "one sample": lambda x, e: (x[:1], e[:1]),
    "two samples": lambda x, e: (x[:2], e[:2]),
    "huge inputs": lambda x, e: (x * 1e12, e * 1e-12),
    "enormous inputs": lambda x, e: (x * 1e30, e * 1e-30),
    "enormous errors": lambda x, e: (x * 1e-20, e * 1e36),
    "tiny errors": lambda x, e: (x, e * 1e-30),
    "dead inputs": lambda x, e: (x * (torch.arange(x.shape[1]) < 1).reshape(-1, 1, 1), e),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", sorted(DEGENERATE))
def test_degenerate_samples_leave_finite_weights(case, form):
    assert len(DEGENERATE) == 10
    make, shape = LAYERS["conv2d"]
    for normalized in (False, True):
        net = grown(make(), form, normalized)
        batches = [DEGENERATE[case](*batch) for batch in planted_batches(net, shape, count=1)]
        found = initialize_candidates_(net, batches, PLANTED)
        assert all(p.isfinite().all() for p in net.parameters())
        assert all(after >= before for before, after in found.values())


def test_one_sample_of_a_linear_keeps_the_random_weights():
    net = grown(nn.Linear(12, 8))
    before = everything(net)
    assert initialize_candidates_(net, [(torch.randn(1, 12), torch.randn(1, 8))], PLANTED) == {}
    assert changed(before, everything(net)) == set()


def test_rows_that_are_not_finite_are_left_out():
    net = grown(nn.Linear(12, 8))
    batches = planted_batches(net, (12,))
    mark = 1e6  # of what the network turns into NaN

    def marked(model, batch):
        inputs, errors = batch
        return model(inputs.where(inputs != mark, torch.nan)), errors

    task = Task(loss=lambda y, e: (y.nan_to_num() * e).sum(), metric=PLANTED.metric, forward=marked)
    batches[0][0][:7, 3] = mark
    ((_, seen),) = observe(net, dendrite_layers(net), Sample(batches, task, 6), 10_000)
    assert seen.inputs.isfinite().all()
    assert len(seen.errors) == 6 * 64 - 7
    initialize_candidates_(net, batches, task)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("in_the_data", "error", "said"),
    [
        (True, CompressionError, "NaN or infinity in batch 5 of Data.train"),
        (False, DivergedError, "became (-?inf|nan)"),
    ],
)
def test_a_loss_that_is_not_finite_changes_nothing(in_the_data, error, said):
    net = grown(nn.Linear(12, 8))
    batches = planted_batches(net, (12,))
    if in_the_data:
        batches[-1][0][0, 0] = float("nan")
    else:
        batches[-1] = (batches[-1][0] * 1e25, batches[-1][1] * 1e25)
    before = everything(net)
    with pytest.raises(error, match=said):
        initialize_candidates_(net, batches, PLANTED)
    assert changed(before, everything(net)) == set()


@every_dendrite
def test_a_network_in_half_precision_gets_weights_of_its_own_type(name, form, normalized):
    make, shape = LAYERS[name]
    net = grown(make(), form, normalized).bfloat16()
    batches = [(x.bfloat16(), e.bfloat16()) for x, e in planted_batches(net.float(), shape)]
    found = initialize_candidates_(net.bfloat16(), batches, PLANTED)
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in net.parameters())
    assert all(after >= before for before, after in found.values())


def test_transposed_layers_and_layers_without_error_keep_their_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.used, self.aside = (
                nn.ConvTranspose1d(2, 4, 2),
                nn.Linear(9, 3),
                nn.Linear(9, 3),
            )

        def forward(self, x):
            h = self.up(x)
            self.aside(h)
            return self.used(h).mean(1)

    net, data = Net(), [(torch.randn(32, 2, 8), torch.randint(3, (32,)))]
    attach_dendrites_(net)
    assert sorted(dendrite_layers(net)) == ["aside", "up", "used"]
    before = everything(net)
    assert list(initialize_candidates_(net, data)) == ["used"]
    names = {"used.dendrites.0.weight", "used.dendrites.0.bias"}
    assert changed(before, everything(net)) == names


def test_many_wide_layers_are_observed_in_several_passes(monkeypatch):
    monkeypatch.setattr("pbcompress.recovery.observation._ELEMENTS", 400)
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])
    attach_dendrites_(net)
    runs = []
    task = Task(
        loss=functional.cross_entropy,
        metric=PLANTED.metric,
        forward=lambda m, b: (runs.append(1), (m(b[0]), b[1]))[1],
    )
    sample = Sample([(torch.randn(200, 4), torch.randint(4, (200,)))], task, 1)
    seen = dict(observe(net, dendrite_layers(net), sample, 1000))
    assert list(seen) == [str(i) for i in range(9)]
    assert len(runs) == 3
    assert {len(o.errors) for o in seen.values()} == {100}


def test_it_refuses_what_it_cannot_begin_with():
    net = nn.Sequential(nn.Linear(12, 8))
    with pytest.raises(CompressionError, match="no dendrites"):
        initialize_candidates_(net, [], PLANTED)
    net = grown(net[0])
    with pytest.raises(CompressionError, match="no batch"):
        initialize_candidates_(net, [], PLANTED)
    with pytest.raises(ValueError, match="batches_used was given as 0"):
        initialize_candidates_(net, [], PLANTED, batches_used=0)
    net[0].gains[-1].data.fill_(1)
    with pytest.raises(CompressionError, match="adds to the output already"):
        initialize_candidates_(net, [], PLANTED)
    detach_dendrites_(net)


@pytest.mark.parametrize("candidates", [1, 2])
def test_recovery_begins_dendrite_phases_with_it_in_the_first_candidate(monkeypatch, candidates):
    seen = []

    def spy(model, *args, **kwargs):
        pools = [[copy.deepcopy(b.state_dict()) for b, _ in m.candidates] for m in
                 dendrite_layers(model).values()]  # fmt: skip
        initialize_candidates_(model, *args, **kwargs)
        for former, layer in zip(pools, dendrite_layers(model).values(), strict=True):
            now = [b.state_dict() for b, _ in layer.candidates]
            seen.append([all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(former, now)])  # noqa: B905

    monkeypatch.setattr("pbcompress.recovery.recover.initialize_candidates_", spy)
    data = Data(*[[(torch.randn(64, 4), torch.randint(2, (64,)))] for _ in range(2)])
    recovery = RecoveryConfig(epochs=1, dendrite_epochs=2, max_failures=1)
    for initialization in ("random", "spectral"):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        dendrites = DendriteConfig(
            rule=Correlation(initialization=initialization, candidates=candidates)
        )
        recover_(net, data, config=CompressConfig(dendrites=dendrites, recovery=recovery))
        assert seen == [] or initialization == "spectral"
    assert seen == [[False, True][:candidates]] * 2


def test_a_loop_of_ones_own_calls_it_in_a_phase():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    data = [(torch.randn(64, 4), torch.randint(2, (64,)))]
    config = CompressConfig(recovery=RecoveryConfig(epochs=1, dendrite_epochs=1, max_failures=1))
    for phase in cycles(net, config=config):
        if phase.kind is PhaseKind.DENDRITE:
            assert len(initialize_candidates_(net, data)) == 2
        phase.report(0.5)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_killed_run_with_it_goes_on_to_the_same_weights(tmp_path, stop):
    class Kill(Callback):
        def on_epoch(self, record):
            if not tmp_path.joinpath("killed").exists() and len(epochs) == stop:
                tmp_path.joinpath("killed").touch()
                raise KeyboardInterrupt
            epochs.append(record)

    data = Data(*[[(torch.randn(64, 4), torch.randint(2, (64,)))] for _ in range(2)])
    recovery = RecoveryConfig(epochs=1, dendrite_epochs=2, max_failures=1)
    dendrites = DendriteConfig(rule=Correlation(initialization="spectral"))
    config = CompressConfig(dendrites=dendrites, recovery=recovery)
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    whole, killed, resumed = (copy.deepcopy(base) for _ in range(3))
    recover_(whole, data, config=config)
    checkpoint, epochs = Checkpoint(tmp_path / "state", "one"), []
    with pytest.raises(KeyboardInterrupt):
        recover_(killed, data, config=config, checkpoint=checkpoint, callbacks=[Kill()])
    recover_(resumed, data, config=config, checkpoint=checkpoint)
    assert changed(whole.state_dict(), resumed.state_dict()) == set()
