"""Every way to run the steps gives the training that plain torch gives."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pbcompress import (
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    EngineConfig,
    Task,
    cycles,
    recover_,
)
from pbcompress.dendrites.correlation import COUNT, R
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.recovery.policy import PhaseKind
from pbcompress.training.distillation import make_objective
from pbcompress.training.engine import Engine, choose_device, make_engine
from pbcompress.training.loop import Stepper, train_epoch
from tests.support.configs import recovery_of

RULES = ("correlation", "hybrid", "gradient")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def data(batch: int = 8, count: int = 4) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch * count, 1, 4, 4, generator=generator)
    y = (x.mean((1, 2, 3)) * 9).long() % 3
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    return Data(train=batches, val=batches)


def config(rule: str = "correlation", **recovery: object) -> CompressConfig:
    chosen = {"epochs": 2, "dendrite_epochs": 2, "max_failures": 1, "improvement": (0.0,)}
    chosen["replay"] = 0.0  # what is tested is a phase that passes through the network
    return CompressConfig(
        dendrites=DendriteConfig(rule=rule, max_sets=1),
        recovery=recovery_of(**chosen | recovery),
    )


def trained(choices: CompressConfig, batches: Data | None = None) -> tuple[nn.Module, list[float]]:
    model = network()
    history = recover_(model, batches or data(), config=choices)
    assert {record["kind"] for record in history} >= {"neuron"}
    return model, [record["loss"] for record in history]


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_trains_close_to_full_precision(rule: str) -> None:
    _, full = trained(config(rule))
    model, mixed = trained(config(rule, precision="bf16"))
    assert len(full) == len(mixed)
    torch.testing.assert_close(torch.tensor(mixed), torch.tensor(full), rtol=0.05, atol=0.05)
    assert full != mixed
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_float16_with_a_loss_scale_trains_close_to_full_precision(rule: str) -> None:
    sgd = {"algorithm": "sgd", "lr": 0.02, "dendrite_lr": 0.02}  # unlike adam it sees a scale
    _, full = trained(config(rule, **sgd))
    _, mixed = trained(config(rule, precision="fp16", **sgd))
    torch.testing.assert_close(torch.tensor(mixed), torch.tensor(full), rtol=0.05, atol=0.05)
    assert full != mixed


@pytest.mark.parametrize("rule", RULES)
def test_a_scaled_loss_gives_candidates_the_same_steps_and_scores(rule: str) -> None:
    """A loop of one's own with a GradScaler, against one without."""
    found = []
    for scale in (1.0, 1024.0):
        model, scores = network().double(), 0.0
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for phase in cycles(model, config=config(rule)):
            optimizer = torch.optim.SGD(phase.parameters(), 0.05)
            while not phase.done:
                phase.train()
                for x, y in data().train:
                    phase.set_loss_scale(scaler.get_scale() if scale > 1 else 1.0)
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x.double()), y)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                scores += 1
                phase.report(scores)
        found.append([p.detach() for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_batch_whose_error_overflows_is_no_score_and_tells_the_scaler() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    attach_dendrites_(model)
    layer, x = model[0], torch.randn(16, 4)
    layer.begin_candidacy()
    for factor in (1.0, float("inf"), 1.0):
        layer.zero_grad()
        y = layer(x)
        y.backward(torch.linspace(-1, 1, 48).reshape(16, 3) * factor)
        is_finite = all(p.grad.isfinite().all() for p in layer.dendrites.parameters())
        assert is_finite == (factor == 1.0)
    scores = layer.pool.summed_scores()
    assert (scores[COUNT] == 2).all()
    assert scores.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", [2, 3, 4])
def test_accumulated_batches_make_the_step_of_a_large_one_in_neuron_phases(
    rule: str, group: int
) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    whole, task = data(), Task()
    batches = [(x.double(), y) for x, y in whole.train]
    engine, taken = Engine(), []
    for choices, split in (
        (recovery_of(schedule="constant", accumulate=group), batches),
        (recovery_of(schedule="constant"), joined(batches, group)),
    ):
        model = copy.deepcopy(linear)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        _, steps = train_epoch(
            Stepper(engine, model, optimizer, choices, length=1),
            split,
            make_objective(task, choices.distillation, None),
            seed=(0,),
        )
        taken.append((steps, list(model.parameters())))
    assert taken[0][0] == taken[1][0] == -(-4 // group)
    if 4 % group == 0:
        for a, b in zip(taken[0][1], taken[1][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    trained(config(rule, accumulate=group))


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("rule", RULES)
def test_a_shorter_group_is_divided_by_what_it_has(rule: str, precision: str) -> None:
    """In every kind of phase: three batches of which each step would take four."""
    whole = data()
    three = Data(train=whole.train[:3], val=whole.val)
    found = []
    for group in (3, 4):
        model, _ = trained(config(rule, precision=precision, accumulate=group), three)
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def joined(batches: list[tuple[Tensor, Tensor]], group: int) -> list[tuple[Tensor, Tensor]]:
    parts = [batches[i : i + group] for i in range(0, len(batches), group)]
    return [(torch.cat([x for x, _ in p]), torch.cat([y for _, y in p])) for p in parts]


def test_accumulated_candidates_get_the_mean_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).double()
    attach_dendrites_(model)
    layer = model[0]
    x, error = torch.randn(2, 16, 4).double(), torch.randn(2, 16, 3).double()
    gradients = []
    for part in (0, 1):
        layer.begin_candidacy()
        layer.zero_grad()
        layer(x[part]).backward(error[part])
        gradients.append([p.grad.clone() for p in layer.dendrites.parameters()])
        if part == 0:
            direction = layer.pool.leaf.grad.clone()
    layer.begin_candidacy()
    layer.zero_grad()
    layer.pool.loss_scale = 0.5
    for part in (0, 1):
        layer(x[part]).backward(0.5 * error[part])
    found = [p.grad for p in layer.dendrites.parameters()]
    scores = layer.pool.summed_scores()
    same = (direction[R, 0].sign() * (scores[R, 0] - direction[R, 0]).sign()) > 0
    for (a, b), mean in zip(zip(*gradients, strict=True), found, strict=True):
        torch.testing.assert_close(((a + b) / 2)[same], mean[same], rtol=1e-10, atol=1e-12)
    assert same.any()


# torch itself makes an instance while it compiles, and 2.9 looks at gradients that are none
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "rule", ["correlation", *(pytest.param(rule, marks=pytest.mark.slow) for rule in RULES[1:])]
)
def test_a_compiled_network_trains_as_the_plain_one(rule: str, monkeypatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="aot_eager"))
    torch.set_default_dtype(torch.float64)  # rounding is then far below what a fault does
    try:
        _, plain = trained(config(rule))
        _, fast = trained(config(rule, compile=True))
    finally:
        torch.set_default_dtype(torch.float32)
        torch._dynamo.reset()
    assert len(plain) == len(fast)
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=1e-6, atol=0)


class Checkpointed(nn.Module):
    """Runs its body without keeping activations; None: keeps them."""

    def __init__(self, body: nn.Module, reentrant: bool | None) -> None:
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.body(x)
        if self.reentrant:
            x = x.clone().requires_grad_()
        y: Tensor = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return y


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("replay", [0.0, 1.0])
def test_activation_checkpointing_changes_nothing(
    rule: str, reentrant: bool, replay: float
) -> None:
    losses = []
    for how in (None, reentrant):
        body = network()
        del body[1]  # a BatchNorm would take in every batch twice
        model = nn.Sequential(Checkpointed(body, how))
        history = recover_(model, data(), config=config(rule, replay=replay))
        losses.append(torch.tensor([record["loss"] for record in history]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_clipping_bounds_the_step(rule: str) -> None:
    sgd = {"algorithm": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "warmup": 0.0}
    model = network()
    before = copy.deepcopy(model.state_dict())
    recover_(
        model, data(count=1), config=config(rule, max_grad_norm=1e-3, epochs=1, max_epochs=1, **sgd)
    )
    moved = [(p - before[n]).norm() for n, p in model.named_parameters() if n in before]
    assert 0 < torch.stack(moved).norm() <= 1.001e-3


@pytest.mark.parametrize(
    "kind", [PhaseKind.NEURON, pytest.param(PhaseKind.DENDRITE, marks=pytest.mark.slow)]
)
def test_nothing_outlives_a_step(kind: PhaseKind) -> None:
    model = network()
    growth = cycles(model, config=config("correlation", epochs=1))
    phase = next(growth)
    while phase.kind is not kind or phase.sets == 0:
        phase.report(len(growth.log))
        phase = next(growth)
    phase.train()
    optimizer = torch.optim.SGD(phase.parameters(), 1e-4)
    (x, y), counts = data().train[0], []
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for step in range(500):
        optimizer.zero_grad(set_to_none=True)
        out = model(x)
        graph = weakref.ref(out)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
        del out, loss
        assert graph() is None
        if step in (10, 499):
            gc.collect()
            counts.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert counts[1] <= counts[0]  # what former tests left may go meanwhile
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"accumulate": 2}])
def test_features_are_learnt_from_a_teacher_in_every_engine(how: dict[str, object]) -> None:
    losses = []
    for choices in ({}, how):
        model, teacher = network(), network()
        nn.init.normal_(teacher[4].weight)
        history = recover_(model, data(), teacher=teacher, config=config(features=0.1, **choices))
        losses.append(history.records[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_an_engine_that_is_not_there_leaves_sets_that_wait_for_training(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightning.fabric", None)
    model = network()
    attach_dendrites_(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompressionError, match=r"pbcompress\[engine\]"):
        recover_(model, data(), config=config(precision="bf16"))
    assert list(model.state_dict()) == list(before)


def test_without_lightning_mixed_precision_is_refused_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightning.fabric", None)
    with pytest.raises(CompressionError, match=r"pbcompress\[engine\]"):
        make_engine(network(), EngineConfig(precision="bf16"))
    assert type(make_engine(network(), EngineConfig())) is Engine


@pytest.mark.parametrize("asked", [None, "cuda", torch.device("cuda")])
def test_each_of_several_processes_has_the_gpu_of_its_number(asked, monkeypatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    assert choose_device(asked) == torch.device("cuda", 3)


def test_the_layers_of_the_network_have_dendrites_to_train() -> None:
    model = network()
    attach_dendrites_(model)
    assert len(dendrite_layers(model)) == 3
