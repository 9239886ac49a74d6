"""Optimizers go on after a cut as if they had only ever trained what is left."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from pbcompress import CompressionError, StateMismatchError, plan_widths, shrink_
from tests.support.nets import CASES, vectors

# every choice that adds a kind of state, by class
BY_ELEMENT = {
    "ASGD": [{}],
    "Adadelta": [{}],
    "Adagrad": [{"initial_accumulator_value": 0.1}],
    "Adam": [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}, {"weight_decay": 0.1}],
    "AdamW": [{}, {"amsgrad": True}],
    "Adamax": [{}],
    "NAdam": [{}],
    "RAdam": [{}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}],
    "Rprop": [{}],
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "SparseAdam": [{}],
}
BY_MATRIX = {"Muon"}  # state by element, steps by matrix
REFUSED = {"Adafactor", "LBFGS"}
CHOICES = [(name, choice) for name, choices in BY_ELEMENT.items() for choice in choices]
every_choice = pytest.mark.parametrize(("name", "choice"), CHOICES, ids=str)


def test_every_optimizer_of_torch_is_in_a_list():
    known = {n for n, c in vars(torch.optim).items() if inspect.isclass(c)} - {"Optimizer"}
    assert known == {*BY_ELEMENT, *BY_MATRIX, *REFUSED}
    assert len(CHOICES) == 20


class Net(nn.Module):
    """Plain layers, a norm, a grouped convolution, a bare parameter and a tied weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, groups=2)
        self.scale = nn.Parameter(torch.randn(24, 1, 1))
        self.first, self.second = nn.Linear(24, 20), nn.Linear(20, 20, bias=False)
        self.third = nn.Linear(20, 20, bias=False)
        self.third.weight = self.second.weight
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.grouped(torch.relu(self.norm(self.conv(x)))) * self.scale
        x = torch.relu(self.first(x.mean((2, 3))))
        return self.head(torch.relu(self.third(torch.relu(self.second(x)))))


def trained(make, steps=3, frozen=("head.bias",)):
    """A network and its optimizer after some steps of fixed gradients."""
    torch.manual_seed(3)
    model = Net().double()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    optimizer = make(list(model.parameters()))
    for _ in range(steps):
        give_gradients(model, optimizer)
        optimizer.step()
    return model, optimizer


def give_gradients(model, optimizer, gradients=None):
    is_sparse = isinstance(optimizer, torch.optim.SparseAdam)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = None
        if parameter.requires_grad:
            gradient = gradients[i] if gradients else torch.randn_like(parameter)
            parameter.grad = gradient.to_sparse() if is_sparse else gradient


def places(before, after):
    """Where every element of the parameters came from: they are all different."""
    found = []
    for old, new in zip(before, after, strict=True):
        at = {value: i for i, value in enumerate(old.flatten().tolist())}
        assert len(at) == old.numel()
        found.append(torch.tensor([at[v] for v in new.flatten().tolist()]).view(new.shape))
    return found


def plan_of(model):
    example = torch.randn(1, 3, 6, 6, dtype=torch.double)
    return plan_widths(copy.deepcopy(model), example, 0.5)


def taken(tensors, kept):
    return [t.flatten()[place] for t, place in zip(tensors, kept, strict=True)]


@every_choice
def test_the_next_step_is_that_of_the_elements_that_are_left(name, choice):
    def make(parameters):
        half = len(parameters) // 2
        groups = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.003}]
        return getattr(torch.optim, name)(groups, lr=0.01, **choice)

    model, optimizer = trained(make)
    for parameter in model.parameters():  # the initial weights of norms are all alike
        parameter.data += torch.rand_like(parameter) * 1e-3
    whole, whole_optimizer = copy.deepcopy((model, optimizer))
    shrink_(model, plan_of(model), optimizer=optimizer)
    kept = places(list(whole.parameters()), list(model.parameters()))
    assert sum(p.numel() for p in kept) < 0.6 * sum(p.numel() for p in whole.parameters())
    gradients = [torch.randn_like(p) for p in whole.parameters()]
    for steps in range(2):
        give_gradients(whole, whole_optimizer, gradients)
        give_gradients(model, optimizer, taken(gradients, kept))
        whole_optimizer.step()
        optimizer.step()
        for found, wanted in zip(model.parameters(), taken(whole.parameters(), kept), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, msg=str(steps))
    before = list(whole.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, taken(before, kept), strict=True))


def numpy_step(kind, p, g, state, choice):
    """One step by the papers: Sutskever's momentum, Kingma and Ba, Loshchilov and Hutter."""
    lr, eps = 0.01, 1e-8
    if kind == "SGD":
        return p - lr * (0.9 * state["momentum_buffer"] + g)
    t = float(state["step"]) + 1
    if kind == "AdamW":
        p = p * (1 - lr * 0.01)
    m = 0.9 * state["exp_avg"] + 0.1 * g
    v = 0.999 * state["exp_avg_sq"] + 0.001 * g * g
    top = np.maximum(state["max_exp_avg_sq"], v) if choice.get("amsgrad") else v
    root = np.sqrt(top) / math.sqrt(1 - 0.999**t)
    return p - lr * (m / (1 - 0.9**t)) / (root + eps)


@pytest.mark.parametrize(
    ("kind", "choice"),
    [("SGD", {"momentum": 0.9}), ("Adam", {}), ("Adam", {"amsgrad": True}), ("AdamW", {})],
)
def test_the_next_step_is_the_one_counted_by_hand_from_sliced_state(kind, choice):
    make = getattr(torch.optim, kind)
    model, optimizer = trained(lambda parameters: make(parameters, lr=0.01, **choice))
    for parameter in model.parameters():
        parameter.data += torch.rand_like(parameter) * 1e-3
    old = [p.detach().clone() for p in model.parameters()]
    states = [copy.deepcopy(optimizer.state.get(p, {})) for p in model.parameters()]
    shrink_(model, plan_of(model), optimizer=optimizer)
    kept = places(old, list(model.parameters()))
    give_gradients(model, optimizer)
    now = [p.detach().numpy().copy() for p in model.parameters()]
    optimizer.step()
    moved = 0
    for p, before, state, place in zip(model.parameters(), now, states, kept, strict=True):
        if p.grad is None:
            assert (p.detach().numpy() == before).all()
            continue
        sliced = {k: v.flatten()[place].numpy() if v.dim() else v.item() for k, v in state.items()}
        wanted = numpy_step(kind, before, p.grad.numpy(), sliced, choice)
        np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=0, atol=1e-12)
        moved += 1
    assert moved == len(now) - 1


def test_muon_steps_as_one_that_was_made_with_sliced_state():
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 24), nn.Linear(24, 5))
    matrices = [p for p in model.double().parameters() if p.dim() == 2]
    vectors_ = [p for p in model.parameters() if p.dim() == 1]
    muon, adam = torch.optim.Muon(matrices), torch.optim.AdamW(vectors_)
    for _ in range(2):
        model(vectors(4).double()).square().sum().backward()
        muon.step()
        adam.step()
    old = [p.detach().clone() for p in matrices]
    buffers = [muon.state[p]["momentum_buffer"].clone() for p in matrices]
    plan = plan_widths(model, vectors(1).double(), 0.5)
    shrink_(model, plan, optimizer=[muon, adam])
    new = [p for p in model.parameters() if p.dim() == 2]
    assert muon.param_groups[0]["params"] == new
    kept = places(old, new)
    twins = [nn.Parameter(p.detach().clone()) for p in new]
    fresh = torch.optim.Muon(twins)
    for twin, p, buffer, place in zip(twins, new, buffers, kept, strict=True):
        fresh.state[twin]["momentum_buffer"] = buffer.flatten()[place].clone()
        p.grad = torch.randn_like(p)
        twin.grad = p.grad.clone()
    muon.step()
    fresh.step()
    for twin, p in zip(twins, new, strict=True):
        torch.testing.assert_close(p, twin, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_state_that_holds_the_weights_holds_them_after_the_cut(name):
    model, inputs = CASES[name].build(), CASES[name].inputs(1)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        state = {"step": torch.tensor(1.0), "exp_avg": parameter.detach().clone()}
        optimizer.state[parameter] = {**state, "exp_avg_sq": -parameter.detach()}
    shrink_(model, plan_widths(model, inputs, 0.6), optimizer=optimizer)
    assert set(optimizer.state) == set(model.parameters())
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], parameter)
        assert torch.equal(state["exp_avg_sq"], -parameter)
        assert state["step"] == 1
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_other_parameters_groups_and_choices_stay():
    model = CASES["mlp"].build()
    foreign = nn.Parameter(torch.randn(3))
    groups = [{"params": [model[0].weight, foreign], "lr": 0.5}, {"params": [model[4].weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = optimizer.state[foreign]["momentum_buffer"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    shrink_(model, plan_widths(model, vectors(1), 0.5), optimizer=optimizer)
    first, second = optimizer.param_groups
    assert first["params"][0] is model[0].weight
    assert first["params"][1] is foreign
    assert second["params"][0] is model[4].weight
    assert optimizer.state[foreign]["momentum_buffer"] is state
    assert [first["lr"], second["lr"]] == [0.5, 0.1]
    assert set(optimizer.state) == {model[0].weight, foreign, model[4].weight}
    for parameter in optimizer.state:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.05]


def test_an_optimizer_that_has_not_stepped_gets_the_new_parameters():
    model = CASES["chain"].build()
    optimizer = torch.optim.AdamW(model.parameters())
    shrink_(model, plan_widths(model, CASES["chain"].inputs(1), 0.5), optimizer=optimizer)
    assert not optimizer.state
    model(CASES["chain"].inputs(4)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_state_dict_fits_a_new_optimizer_of_the_shrunk_network():
    model, optimizer = trained(lambda p: torch.optim.Adam(p, lr=0.01))
    shrink_(model, plan_of(model), optimizer=optimizer)
    fresh = torch.optim.Adam(model.parameters(), lr=0.01)
    fresh.load_state_dict(optimizer.state_dict())
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(v, fresh.state[parameter][k]) for k, v in state.items())


def untouched(model, optimizer, plan, match, error=CompressionError):
    before, weights = list(model.parameters()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        shrink_(model, plan, optimizer=optimizer)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("name", "key"), [("Adafactor", "row_var"), ("LBFGS", "old_dirs")])
def test_state_that_is_not_by_element_is_refused_by_name(name, key):
    model = CASES["mlp"].build()
    make = getattr(torch.optim, name)
    optimizer = make(model.parameters(), lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = model(vectors(4)).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    plan = plan_widths(model, vectors(1), 0.5)
    held = [list(group["params"]) for group in optimizer.param_groups]
    untouched(model, optimizer, plan, rf"{name}.*'\w+'.*make a new one")
    assert key in optimizer.state[model[0].weight]
    for group, params in zip(optimizer.param_groups, held, strict=True):
        assert all(a is b for a, b in zip(group["params"], params, strict=True))


@pytest.mark.parametrize("thing", [3, "adam", torch.optim.Adam, {"a": 1}])
def test_what_is_no_optimizer_is_refused(thing):
    model = CASES["mlp"].build()
    untouched(model, thing, plan_widths(model, vectors(1), 0.5), "must be a torch.optim.Optimizer")


def test_a_plan_that_does_not_fit_leaves_the_optimizer_alone():
    model, optimizer = trained(lambda p: torch.optim.Adam(p))
    held = list(optimizer.param_groups[0]["params"])
    other = CASES["mlp"].build()
    plan = plan_widths(other, vectors(1), 0.5)
    untouched(model, optimizer, plan, "plan", StateMismatchError)
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))


def test_an_optimizer_class_of_ones_own_works_by_its_state():
    class Own(Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p] = {"twice": 2 * p.detach(), "seen": True, "none": None}

    model = CASES["mlp"].build()
    optimizer = Own(model.parameters())
    optimizer.step()
    shrink_(model, plan_widths(model, vectors(1), 0.5), optimizer=optimizer)
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["twice"], 2 * parameter)
        assert optimizer.state[parameter]["seen"] is True
