"""An optimizer whose state goes through tensors and JSON steps on bit by bit."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from pbcompress import CompressConfig, DendriteConfig
from pbcompress.errors import CompressionError
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.recover import recover_
from pbcompress.recovery.saved_optimizer import optimizer_state, restore_optimizer_
from pbcompress.training.callbacks import Callback
from pbcompress.training.task import Data
from tests.support.configs import recovery_of


class Slowing(torch.optim.Optimizer):
    """Counts its steps in the group, as Prodigy and schedule-free do."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.05, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                p.sub_(group["lr"] / (1 + 0.5 * group["k"]) * p.grad)


class Counting(torch.optim.SGD):
    """Counts its steps in plain numbers: of its own, and of each parameter; and keeps float64."""

    def __init__(self, params):
        super().__init__(params, lr=0.05)
        self.calls, self.sums = 0, {"loss": [0.5], "best": math.inf}

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        self.sums["loss"].append(1 / self.calls)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["n"] = state.get("n", 0) + 1
            total = state.get("total", torch.zeros_like(p, dtype=torch.float64))
            state["total"] = total + p.grad.double() / 3
            p.sub_((state["total"] * 0.05 / (state["n"] * self.calls)).float())


class Scheduled(torch.optim.Adam):
    """Has a scheduler of its own."""

    def __init__(self, params, make):
        super().__init__(params, lr=0.05)
        self.scheduler = make(self)

    def step(self, closure=None):
        super().step()
        self.scheduler.step()


class Lookahead(torch.optim.Optimizer):
    """Steps another optimizer, whose groups it shares, and goes halfway to its weights."""

    def __init__(self, params):
        self.fast = torch.optim.Adam(params, lr=0.05)
        super().__init__(self.fast.param_groups, {})
        self.param_groups = self.fast.param_groups
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        self.fast.step()
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.clone())
            if self.count % 2 == 0:
                slow += 0.5 * (p - slow)
                p.copy_(slow)


optim = torch.optim
MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.05),
    "amsgrad": lambda p: optim.Adam(p, lr=0.05, amsgrad=True),
    "adam, a rate in a tensor": lambda p: optim.Adam(p, lr=torch.tensor(0.05), foreach=False),
    "adamw": lambda p: optim.AdamW(p, lr=0.05),
    "adamax": lambda p: optim.Adamax(p, lr=0.05),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "asgd": lambda p: optim.ASGD(p, lr=0.05),
    "nadam": lambda p: optim.NAdam(p, lr=0.05),
    "radam": lambda p: optim.RAdam(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.05, momentum=0.5, centered=True),
    "rprop": lambda p: optim.Rprop(p, lr=0.05),
    "a tensor as rate": lambda p: optim.Adam(p, lr=torch.tensor(0.01)),
    "two groups": lambda p: optim.AdamW([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.01),
    "numbers in groups": Slowing,
    "numbers in the state": Counting,
    "one inside": Lookahead,
    "cosine": lambda p: Scheduled(p, lambda o: lr_scheduler.CosineAnnealingLR(o, 9)),
    "steps": lambda p: Scheduled(p, lambda o: lr_scheduler.MultiStepLR(o, [2, 4])),
    "one cycle": lambda p: Scheduled(p, lambda o: lr_scheduler.OneCycleLR(o, 0.1, 40)),
    "by a function": lambda p: Scheduled(
        p, lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n))
    ),
    "in turn": lambda p: Scheduled(
        p,
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ),
}
OTHERS = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}  # closures, sparse gradients, matrices alone


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def steps(model, optimizer, start, stop):
    for n in range(start, stop):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(n))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long()).backward()
        optimizer.step()


def test_every_optimizer_of_torch_is_there():
    kinds = {
        n for n, v in vars(optim).items() if isinstance(v, type) and issubclass(v, optim.Optimizer)
    }
    tried = {type(make(list(network().parameters()))).__name__ for make in MAKERS.values()}
    assert kinds - OTHERS <= tried
    assert len(MAKERS) == 25


@pytest.mark.parametrize("name", MAKERS)
def test_it_steps_on_bit_by_bit(name):
    model = network()
    optimizer = MAKERS[name](list(model.parameters()))
    steps(model, optimizer, 0, 5)
    tensors, rest = optimizer_state(optimizer)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    other = copy.deepcopy(network())
    other.load_state_dict(model.state_dict())
    again = MAKERS[name](list(other.parameters()))
    restore_optimizer_(again, tensors, json.loads(json.dumps(rest)))
    steps(model, optimizer, 5, 12)
    steps(other, again, 5, 12)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


class Killer(Callback):
    def on_epoch(self, record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt


RESUMED = (
    "a tensor as rate",
    "numbers in groups",
    "numbers in the state",
    "one inside",
    "one cycle",
)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_recovery_ends_as_if_it_had_not_been_interrupted(name, tmp_path):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    split = list(zip(x.split(16), (x.sum(1) > 0).long().split(16), strict=True))
    config = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery_of(epochs=6))

    def train(**choices):
        model = network()
        recover_(model, Data(split, split), config=config, optimizer=MAKERS[name], **choices)
        return [p.detach() for p in model.parameters()]

    point = Checkpoint(tmp_path / "c", "x")
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[Killer()], checkpoint=point)
    for a, b in zip(train(checkpoint=point), train(), strict=True):
        assert torch.equal(a, b)


class Opaque(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.memory = object()


def hooked(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def scheduled_elsewhere(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    lr_scheduler.StepLR(optimizer, 1)
    return optimizer


REFUSED = {
    "an object": (Opaque, "Opaque.*memory.* has a value of type object"),
    "hooks": (hooked, "SGD has hooks of its step"),
    "a scheduler elsewhere": (scheduled_elsewhere, "SGD has a scheduler elsewhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_before_an_epoch(name, tmp_path):
    make, message = REFUSED[name]
    model, x = network(), torch.randn(8, 6)
    before = copy.deepcopy(model.state_dict())
    split = [(x, torch.zeros(8, dtype=torch.long))]
    point = Checkpoint(tmp_path / "c", "x")
    data, dendrites = Data(split, split), DendriteConfig(max_sets=0)
    config = CompressConfig(dendrites=dendrites, recovery=recovery_of(epochs=1))
    with pytest.raises(CompressionError, match=message):
        recover_(model, data, config=config, optimizer=make, checkpoint=point)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    recover_(model, data, config=config, optimizer=make)  # without a checkpoint it may train


UNFIT = {
    "LBFGS": "an? LBFGS.*takes a closure.*Make one whose step",
    "SparseAdam": "an? SparseAdam.*sparse gradients alone.*Make an Adam",
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_phase_can_step_with_is_refused_before_an_epoch(name):
    model, x = network(), torch.randn(8, 6)
    before = copy.deepcopy(model.state_dict())
    split = [(x, torch.zeros(8, dtype=torch.long))]
    config = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery_of(epochs=1))
    with pytest.raises(CompressionError, match=UNFIT[name]):
        recover_(model, Data(split, split), config=config, optimizer=getattr(optim, name))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
