"""Dendrite phases from memory, held to phases that pass through the network."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pbcompress import (
    CompressConfig,
    Correlation,
    DendriteConfig,
    EngineConfig,
    OptimizerConfig,
    RecoveryConfig,
)
from pbcompress.dendrites.correlation import COUNT, centred, listen
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.observation import Observed
from pbcompress.recovery.phase_cycles import cycles
from pbcompress.recovery.policy import PhaseKind
from pbcompress.recovery.recover import recover_
from pbcompress.recovery.replay import ROWS_PER_INPUT, Replay, _Held, share_rows
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.callbacks import Callback
from pbcompress.training.engine import Engine
from pbcompress.training.loop import Stepper
from pbcompress.training.task import Data, Task
from tests.support.candidates import (
    ALL_ROWS,
    FORMS,
    LAYERS,
    PLANTED,
    batches_of,
    every_dendrite,
    everything,
    grown,
    planted,
    small_net,
)
from tests.support.configs import dendrites_of, recovery_of

# torch says that it pads an even kernel by a copy
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def in_a_dendrite_phase(net, sets, candidates, seed=0):
    """Bring the newest of so many sets into a pool; the earlier ones are in the sum."""
    layer = net[0]
    for index in range(1, sets):
        nn.init.normal_(layer.gains[index - 1], generator=torch.Generator().manual_seed(index))
        layer.add_set((seed, index))
    for link in layer.links:
        nn.init.normal_(link, generator=torch.Generator().manual_seed(9))
    net.double()
    layer.begin_candidacy([(seed, "rival", rival) for rival in range(1, candidates)])
    layer.freeze(sets - 1)


def stepper(net, optimizer):
    return Stepper(Engine(), net, optimizer, recovery_of(schedule="constant"), length=1)


def pool_of(layer):
    return [
        p for branch, links in layer.candidates for p in (*branch.parameters(), links) if p.numel()
    ]


@every_dendrite
def test_a_step_on_all_rows_of_a_batch_is_the_step_through_the_network(name, form, normalized):
    make, shape = LAYERS[name]
    sets, candidates = 1 + len(name) % 3, 1 + len(form) % 2
    live = grown(make(), form, normalized, samples=0)
    in_a_dendrite_phase(live, sets, candidates)
    ((x, error),) = planted(shape, live)
    other = copy.deepcopy(live)
    for net in (live, other):
        net.train(False)
        for branch, _ in net[0].candidates:
            branch.train()
    (live(x) * error).sum().backward()
    trained, wanted = pool_of(other[0]), [p.grad for p in pool_of(live[0])]
    replay = Replay(other, Sample([(x, error)], PLANTED, 1), ALL_ROWS)
    seen = {}

    class Noted(torch.optim.SGD):
        def step(self):
            seen.update({id(p): p.grad.clone() for p in trained})

    replay.epoch(stepper(other, Noted(trained, 0.1)), steps=1, seed=(0,))
    assert len(wanted) == len(trained) > 0
    scale = max(float(w.abs().max()) for w in wanted)
    assert scale > 0
    for parameter, gradient in zip(trained, wanted, strict=True):
        torch.testing.assert_close(seen[id(parameter)], gradient, rtol=1e-7, atol=1e-10 * scale)
    scores = live[0].pool.summed_scores()
    assert bool((scores[COUNT] == 1).all())
    torch.testing.assert_close(other[0].pool.summed_scores(), scores, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("samples", "wanted"), [(0, 80), (4096, 80), (30, 30)])
def test_a_step_looks_at_as_many_rows_as_a_batch_has(samples, wanted, monkeypatch):
    net, counts = grown(nn.Conv2d(2, 3, 3, padding=1), samples=samples).double(), []
    batches = planted((2, 5, 4), net, count=3, size=4)
    in_a_dendrite_phase(net, 1, 1)

    def noted(activations, error, *args, **choices):
        counts.append(len(error.values))
        return listen(activations, error, *args, **choices)

    monkeypatch.setattr("pbcompress.recovery.replay.listen", noted)
    replay = Replay(net, Sample(batches, PLANTED, 3), ALL_ROWS)
    optimizer = torch.optim.SGD(pool_of(net[0]), 0.1)
    replay.epoch(stepper(net, optimizer), steps=7, seed=(0,))
    assert counts == [wanted] * 7


def config(replay=1.0, **choices):
    recovery = RecoveryConfig(
        epochs=2,
        dendrite_epochs=3,
        thaw_epochs=0,
        replay=replay,
        max_failures=1,
        optimizer=OptimizerConfig(lr=3e-3),
    )
    return CompressConfig(dendrites=dendrites_of(max_sets=1, **choices), recovery=recovery)


class Replays:
    """Counts the phases that ran from memory."""

    def __init__(self, monkeypatch):
        self.count = 0

        def counted(*args):
            made = Replay.within(*args)
            self.count += made is not None
            return made

        monkeypatch.setattr(
            "pbcompress.recovery.phase_trainer.Replay", SimpleNamespace(within=counted)
        )


def run(net, batches, **choices):
    return recover_(net, Data(batches, batches), config=config(**choices), seed=3)


@pytest.mark.parametrize("rule", ["correlation", "hybrid"])
def test_recovery_takes_its_dendrite_phases_from_memory(rule, monkeypatch):
    replays, passes = Replays(monkeypatch), []
    net, batches = small_net(), batches_of()
    net.register_forward_hook(lambda module, args, out: passes.append(torch.is_grad_enabled()))
    history = run(net, batches, rule=rule, initialization="random")  # which needs no pass
    dendrite = [r for r in history if r["kind"] == "dendrite"]
    assert replays.count == 1
    assert len(dendrite) == 3
    assert [r["steps"] for r in dendrite] == [4, 4, 4]  # as many as a pass takes
    assert dendrite[-1]["correlation"] > dendrite[0]["correlation"] > 0
    checks, sizes = 1, 1  # of the data before the first epoch, and of the layers
    assert sum(passes) == checks + sizes + 4 * (len(history) - 3 + 1)  # one pass for the phase


def test_a_phase_from_memory_finds_what_one_through_the_network_finds():
    batches, found = batches_of(count=16), {}
    for replay in (0.0, 1.0):
        history = run(small_net(), batches, replay=replay)
        found[replay] = [r["correlation"] for r in history if r["kind"] == "dendrite"]
        assert [r["steps"] for r in history if r["kind"] == "dendrite"] == [16] * 3
    assert found[1.0] == pytest.approx(found[0.0], rel=0.15)
    assert found[1.0] != found[0.0]


def test_the_metric_of_resting_neurons_is_taken_once():
    taken, batches = [], batches_of()

    def metric(output, target):
        taken.append(1)
        return float((output.argmax(1) == target).float().mean())

    data = Data(batches, batches)
    history = recover_(small_net(), data, Task(metric=metric), config=config(), seed=3)
    dendrite = [r["metric"] for r in history if r["kind"] == "dendrite"]
    assert len(set(dendrite)) == 1
    assert len(taken) == 1 + len(history) - len(dendrite) + 1  # one more checks the data


UNABLE = {
    "not wanted": (small_net, batches_of(), {"replay": 0.0}),
    "too little memory": (small_net, batches_of(), {"replay": 1e-7}),
    "batches without a number": (small_net, "endless", {}),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose1d(1, 2, 3), nn.Flatten(), nn.Linear(16, 2)),
        [(x[:, None], y) for x, y in batches_of()],
        {},
    ),
}


@pytest.mark.parametrize("case", UNABLE)
def test_otherwise_each_step_passes_through_the_network(case, monkeypatch):
    make, batches, choices = UNABLE[case]
    if batches == "endless":

        class Stream:
            def __iter__(self):
                return iter(batches_of())

        batches = Stream()
    replays, passes, net = Replays(monkeypatch), [], make()
    net.register_forward_hook(lambda module, args, out: passes.append(torch.is_grad_enabled()))
    history = recover_(
        net,
        Data(batches, batches_of() if make is small_net else batches),
        config=config(**choices, initialization="random"),  # which needs no pass
        seed=3,
    )
    assert replays.count == 0
    assert sum(passes) - 4 * len(history) in (1, 2)  # one checks the data, one asks for sizes


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 99)), min_size=1, max_size=6),
    st.integers(0, 9999),
)
def test_rows_are_shared_out(layers, memory):
    sizes = {str(i): size for i, (size, _) in enumerate(layers)}
    available = {str(i): rows for i, (_, rows) in enumerate(layers)}
    rows = share_rows(sizes, available, memory)
    held = sum(rows[n] * sizes[n] for n in sizes)
    assert held <= memory
    assert all(0 <= rows[n] <= available[n] for n in sizes)
    short = [n for n in sizes if rows[n] < available[n]]
    assert all(rows[n] + 1 >= rows[other] for n in short for other in sizes)  # floats round
    if short:  # nothing is left that would give one more to each of them
        assert held >= memory - 1.001 * sum(sizes[n] for n in short)


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.unused = (nn.Linear(6, 2) for _ in range(3))

    def forward(self, x):
        return self.one(x) if bool(x.sum() > 0) else self.other(x)


def test_layers_that_some_batches_or_all_do_not_reach(monkeypatch):
    torch.manual_seed(0)
    replays, seen, net = Replays(monkeypatch), {}, Halves()
    batches = [(x.abs() * (-1) ** i, y) for i, (x, y) in enumerate(batches_of())]

    class Look(Callback):
        def on_epoch(self, record):
            if record["kind"] == "dendrite":
                layers = dendrite_layers(net).items()
                seen.update({n: m.dendrites[-1].weight.clone() for n, m in layers})
                assert set(record["scores"]) == {"one", "other"}

    recover_(net, Data(batches, batches), config=config(), seed=3, callbacks=[Look()])
    fresh = Halves()
    attach_dendrites_(fresh, seed=3)
    changed = {
        n
        for n, m in dendrite_layers(fresh).items()
        if not torch.equal(seen[n], m.dendrites[-1].weight)
    }
    assert replays.count == 1
    assert changed == {"one", "other"}


def test_a_first_batch_unlike_the_others_does_not_make_rows_few(monkeypatch):
    replays = Replays(monkeypatch)
    x = torch.randn(258, 6)
    batches = [(part, part[:, 0].gt(0).long()) for part in x.split((2, 64, 64, 64, 64))]
    run(small_net(), batches)
    assert replays.count == 0


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_the_rows_of_an_epoch_are_looked_at_once(total, outputs, accumulate, start):
    layer = SimpleNamespace(config=DendriteConfig(rule=Correlation(samples=30)))
    errors = torch.zeros(total, 1)
    held = _Held(layer, Observed(errors[None], errors, (), 1.0, outputs), centred(errors, -1))
    count = min(min(30, outputs) * accumulate, total)
    cuts = [held.slice(start, step, accumulate) for step in range(total // count)]
    looked = torch.zeros(total)
    for cut in cuts:
        assert (cut.stop - cut.start, cut.step) == (count, None)
        looked[cut] += 1
    assert looked.max() == 1
    assert looked.sum() == total // count * count
    assert held.slice(start, len(cuts), accumulate) == cuts[0]


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_trains_from_memory(form, monkeypatch):
    replays = Replays(monkeypatch)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    run(net, [(x.bfloat16(), y) for x, y in batches_of()], form=form)
    assert replays.count == 1


def test_a_layer_that_reads_nothing_finite_is_left_alone(monkeypatch):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.broken = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.a(x) + torch.nan_to_num(self.broken(x * float("nan")))

    replays, net = Replays(monkeypatch), Broken()
    recovery = RecoveryConfig(dendrite_epochs=2, max_epochs=2)  # neurons would learn NaN
    choices = CompressConfig(dendrites=DendriteConfig(at_start=True), recovery=recovery)
    recover_(net, Data(batches_of(), batches_of()), config=choices)
    assert replays.count == 1
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_gradient_that_the_forward_pass_takes_is_not_that_of_the_loss(monkeypatch):
    def forward(model, batch):
        x, target = batch[0].clone().requires_grad_(), batch[1]
        output = model(x)
        (slope,) = torch.autograd.grad(output.logsumexp(1).sum(), x, create_graph=True)
        return output, (target, slope)

    def loss(output, target):
        return nn.functional.cross_entropy(output, target[0]) + target[1].square().mean()

    def metric(output, target):
        return float((output.argmax(1) == target[0]).float().mean())

    def validating(model, batch):
        with torch.enable_grad():
            return forward(model, batch)

    replays, batches = Replays(monkeypatch), batches_of()
    task = Task(loss=loss, metric=metric, forward=validating)
    history = recover_(small_net(), Data(batches, batches), task, config=config(), seed=3)
    assert replays.count == 1
    assert max(r["correlation"] for r in history if r["kind"] == "dendrite") > 0


def test_nan_in_the_data_is_said(monkeypatch):
    batches = batches_of()
    batches[1][0][3, 2] = float("nan")
    with pytest.raises(CompressionError, match=r"NaN.*batch 1 of Data\.train"):
        recover_(small_net(), Data(batches, batches_of()), config=config(at_start=True), seed=3)


def test_an_input_that_is_changed_behind_its_layer_is_refused():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 2)
            self.b.requires_grad_(False)

        def forward(self, x):
            z = torch.sigmoid(self.a(x)) + 0
            y = self.b(z)
            z.mul_(-100.0)
            return y

    for replay in (0.0, 1.0):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run(Careless(), batches_of(), replay=replay, layers=("b",))


def test_accumulated_batches_are_looked_at_together(monkeypatch):
    looked = []

    def noted(activations, error, *args, **choices):
        looked.append(len(error.values))
        return listen(activations, error, *args, **choices)

    monkeypatch.setattr("pbcompress.recovery.replay.listen", noted)
    recovery = RecoveryConfig(
        epochs=1,
        dendrite_epochs=2,
        thaw_epochs=0,
        max_failures=1,
        engine=EngineConfig(accumulate=3),
    )
    both = CompressConfig(dendrites=DendriteConfig(max_sets=1), recovery=recovery)
    batches = batches_of(count=6, size=8)
    history = recover_(small_net(), Data(batches, batches), config=both)
    assert looked == [24] * 2 * 2 * 2  # layers, steps, epochs
    assert [r["steps"] for r in history if r["kind"] == "dendrite"] == [2, 2]


def test_no_row_outlives_its_phase(monkeypatch):
    kept = []

    def within(*args):
        made = Replay.within(*args)
        kept.extend(weakref.ref(held.seen.inputs) for held in made._held)
        return made

    class Look(Callback):
        def on_epoch(self, record):
            if kept and record["kind"] == "neuron":
                assert all(reference() is None for reference in kept)

    monkeypatch.setattr("pbcompress.recovery.phase_trainer.Replay", SimpleNamespace(within=within))
    gc.disable()
    try:
        batches = batches_of()
        recover_(small_net(), Data(batches, batches), config=config(), callbacks=[Look()])
    finally:
        gc.enable()
    assert len(kept) == 2


def test_a_layer_gets_all_of_its_rows_or_512_for_each_number_that_it_reads():
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(40, 2))
    batches = [(torch.randn(64, 2, 12), torch.randint(2, (64,))) for _ in range(5)]
    growth = cycles(net, config=config(), seed=1)
    next(growth).report(0.5)
    while next(growth).kind is not PhaseKind.DENDRITE:
        growth.phase.report(0.4)
    sample = Sample(batches, Task(), 5)
    conv, head = 4 * (6 + 4), 4 * (40 + 2)
    least = ROWS_PER_INPUT * 6 * conv + 5 * 64 * head  # all rows of the head
    assert ROWS_PER_INPUT * 6 < 5 * 64 * 10
    assert ROWS_PER_INPUT * 40 > 5 * 64
    assert Replay.within(net, sample, 1.001 * least / 2**30) is not None
    assert Replay.within(net, sample, 0.999 * least / 2**30) is None
    assert Replay.within(net, sample, 0.0) is None


@pytest.mark.parametrize("times", [1, 2])
def test_what_is_held_fits_in_the_memory(times):
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            for _ in range(times):
                x = self.conv(x)
            return x

    net = Repeated()
    attach_dendrites_(net)
    net.conv.begin_candidacy()
    batches = [(torch.randn(8, 3, 24, 24), torch.randn(8, 3, 24, 24)) for _ in range(8)]
    memory = 0.003 * 2**30
    replay = Replay.within(net, Sample(batches, PLANTED, 8), 0.003)
    held = [t for own in replay._held for t in (own.seen.inputs, own.errors.values)]
    assert 0.95 * memory < sum(t.numel() * t.element_size() for t in held) <= memory


def test_only_the_candidates_change():
    net, batches = small_net(), batches_of()
    growth = cycles(net, config=config(), seed=1)
    for phase in growth:
        if phase.kind is PhaseKind.DENDRITE:
            break
        phase.report(0.5)
    before, state = everything(net), torch.get_rng_state()
    replay = Replay(net, Sample(batches, Task(), 4), dict.fromkeys("02", 10**6))
    phase.train()
    optimizer = torch.optim.AdamW(phase.parameters(), 0.01, weight_decay=0.5)
    loss, steps = replay.epoch(stepper(net, optimizer), steps=5, seed=("x",))
    after = everything(net)
    changed = {k for k, v in before.items() if torch.is_tensor(v) and not torch.equal(v, after[k])}
    assert changed == {f"{i}.dendrites.0.{p}" for i in (0, 2) for p in ("weight", "bias")}
    assert before["hooks"] == after["hooks"]
    assert before["requires"] == after["requires"]
    assert torch.equal(state, torch.get_rng_state())
    assert all(layer.watcher is None for layer in dendrite_layers(net).values())
    assert steps == 5
    wanted = torch.stack([nn.functional.cross_entropy(net.eval()(x), y) for x, y in batches]).mean()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)


class Stop(Callback):
    def __init__(self, after):
        self.left = after

    def on_epoch(self, record):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 3, 4])
def test_a_phase_from_memory_goes_on_where_it_stopped(after, tmp_path):
    batches, whole, parts = batches_of(), small_net(), small_net()
    data = Data(batches, batches)
    choices = {"config": config(candidates=2), "seed": 3}
    wanted = recover_(whole, data, **choices)
    checkpoint = Checkpoint(tmp_path / "state", "same")
    with pytest.raises(KeyboardInterrupt):
        recover_(parts, data, checkpoint=checkpoint, callbacks=[Stop(after)], **choices)
    fresh = small_net()
    history = recover_(fresh, data, checkpoint=checkpoint, **choices)
    timeless = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in h] for h in (history, wanted)
    ]
    assert timeless[0] == timeless[1]
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[key]), key


def test_a_second_set_hears_what_is_left_of_the_first():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(24, 2))
    batches = [(torch.randn(16, 2, 6), torch.randint(2, (16,))) for _ in range(3)]
    choices = DendriteConfig(rule=Correlation(node_share=0.6), max_sets=2, layers=("0",))
    recovery = RecoveryConfig(epochs=1, dendrite_epochs=2, improvement=(-1.0,), thaw_epochs=0)
    both = CompressConfig(dendrites=choices, recovery=recovery)
    history = recover_(net, Data(batches, batches), config=both, seed=0)
    assert [r["sets"] for r in history if r["kind"] == "dendrite"] == [1, 1, 2, 2]
    (layer,) = dendrite_layers(net).values()
    assert 0 < len(layer.slots[0].kept) < 4
    assert layer.links[1].shape == (1, len(layer.slots[1].kept))
    assert bool(layer.links[1].any())
