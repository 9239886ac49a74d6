"""What compensation asks for, leaves alone and tells."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import pbcompress as pb
from model_zoo import create_model
from pbcompress.compensation.ridge import Moments
from tests.support.nets import CASES, Net

ALL = sorted(CASES)


def batches_of(case, count=4, size=8):
    inputs = [case.inputs(size + i) for i in range(count)]
    return inputs if not isinstance(inputs[0], tuple) else [(x, None) for x in inputs]


def cut(model, example, share=0.5, **choices):
    plan = pb.plan_widths(model, example, share, config=pb.WidthConfig(**choices))
    return pb.shrink(model, plan), plan


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error(model, small, x):
    with torch.no_grad():
        a, b = model(x), small(x)
    return float((a - b).square().mean() / a.square().mean())


# --- every network -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_reader_is_fitted_or_left_with_a_reason(name):
    case = CASES[name]
    model = case.build().eval()
    small, plan = cut(model, case.inputs(1))
    report = pb.compensate_(small, model, plan, batches_of(case))
    told = report.layers.keys() | report.left.keys()
    read = {step.layer for step in plan.steps if step.dim in ("in", "weight:1", "weight:0")}
    transposed = {n for n, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d)}
    assert {n for n in read if n in transposed or f"{n}.weight" in plan_inputs(plan)} <= told
    assert report.left == {}
    assert all(e.rows > 0 for e in report.layers.values())
    mean = sum(e.after for e in report.layers.values()) / len(report.layers)
    assert mean < sum(e.before for e in report.layers.values()) / len(report.layers)


def plan_inputs(plan):
    return {f"{step.layer}.weight" for step in plan.steps if step.dim in ("in", "weight:1")}


def digits_like(count=2, size=16):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(count)]


def test_a_residual_network_comes_closer_than_by_the_first_pass_alone():
    model = create_model("resnet20", in_channels=1, width=0.25).eval()
    small, plan = cut(model, digits_like(1)[0][:1])
    plain = copy.deepcopy(small)
    report = pb.compensate_(small, model, plan, digits_like())
    new = torch.randn(64, 1, 8, 8)
    assert error(model, small, new) < 0.5 * error(model, plain, new)
    assert "stage3.1.conv2.conv" in report.layers  # which reads what was narrowed
    assert str(report).splitlines()[0].split() == ["layer", "error", "before", "after", "ridge"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_is_fitted_by_its_projections(batch_first):
    body = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=batch_first)
    model = Net(
        lambda net, x: net.head(net.body(net.mix(x)).mean(1)),
        mix=nn.Linear(6, 16),
        body=body,
        head=nn.Linear(16, 3),
    ).eval()
    inputs = [torch.randn(16, 5, 6) for _ in range(6)]
    small, plan = cut(model, inputs[0][:1])
    plain = copy.deepcopy(small)
    report = pb.compensate_(small, model, plan, inputs)
    assert {"body.self_attn.in_proj", "body.self_attn.out_proj", "head"} <= report.layers.keys()
    assert report.left == {}
    assert type(small.body.self_attn) is nn.MultiheadAttention
    assert small.state_dict().keys() == plain.state_dict().keys()
    new = torch.randn(64, 5, 6)
    assert error(model, small, new) < 0.7 * error(model, plain, new)


# --- biases --------------------------------------------------------------------------------------


def normed(bias):
    return nn.Sequential(
        nn.Conv2d(2, 12, 1), nn.Conv2d(12, 5, 3, bias=bias), nn.BatchNorm2d(5), nn.ReLU()
    )


def offsets(model, gone):
    """Let what goes be a constant, which only a bias can give back."""
    with torch.no_grad():
        model[0].weight[gone] = 0
        model[0].bias.zero_()  # else the constant is a sum of what stays
        model[0].bias[gone] = 3.0
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_a_mean_goes_into_the_bias_or_into_the_mean_of_the_norm_behind(bias):
    model = nn.Sequential(normed(bias), nn.Flatten(), nn.Linear(45, 3)).double().eval()
    images = [torch.randn(16, 2, 5, 5).double() for _ in range(4)]
    plan = pb.plan_widths(model, images[0][:1], 0.95, config=pb.WidthConfig(pin=(("0.0", 6),)))
    gone = list(next(step for step in plan.steps if step.layer == "0.0").removed)
    offsets(model[0], gone)
    small = pb.shrink(model, plan)
    before = small[0][2].running_mean.clone()
    pb.compensate_(small, model, plan, images)
    new = torch.randn(8, 2, 5, 5).double()
    assert torch.allclose(model(new), small(new), rtol=0, atol=1e-10)
    assert torch.equal(before, small[0][2].running_mean) is bias


def test_without_bias_and_norm_the_mean_stays_lost():
    model = nn.Sequential(
        nn.Conv2d(2, 12, 1), nn.Conv2d(12, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 2, 3)
    )
    images = [torch.randn(16, 2, 5, 5) for _ in range(4)]
    plan = pb.plan_widths(model, images[0][:1], 0.95, config=pb.WidthConfig(pin=(("0", 6),)))
    gone = list(next(step for step in plan.steps if step.layer == "0").removed)
    offsets(model, gone)
    small = pb.shrink(model, plan)
    report = pb.compensate_(small, model, plan, images)
    assert report.layers["1"].after > 1e-3
    assert small[1].bias is None


# --- nothing else changes ------------------------------------------------------------------------


def test_nothing_else_changes():
    calls = []
    model = create_model("resnet20", in_channels=1, width=0.25).train()
    model.head.weight.requires_grad_(False)
    small, plan = cut(model, digits_like(1)[0][:1])
    small.stem.train(False)
    small.register_forward_hook(lambda *_: calls.append(1))
    modes = [m.training for net in (model, small) for m in net.modules()]
    whole, parameters = state(model), list(small.parameters())
    shapes = [(p.shape, p.requires_grad, p.grad) for p in parameters]
    draws = torch.get_rng_state(), random.getstate()
    pb.compensate_(small, model, plan, digits_like(2))
    assert torch.equal(draws[0], torch.get_rng_state())
    assert draws[1] == random.getstate()
    assert same(whole, state(model))
    assert modes == [m.training for net in (model, small) for m in net.modules()]
    assert all(a is b for a, b in zip(parameters, small.parameters(), strict=True))
    assert shapes == [(p.shape, p.requires_grad, p.grad) for p in parameters]
    assert len(small._forward_hooks) == 1
    assert not any(m._forward_hooks for m in model.modules())


def test_labels_do_not_matter_and_a_seed_repeats_it():
    model = CASES["chain"].build()
    small, plan = cut(model, CASES["chain"].inputs(1))
    inputs = batches_of(CASES["chain"])
    found = []
    for batches in (inputs, [(x, torch.zeros(len(x))) for x in inputs], inputs):
        own = copy.deepcopy(small)
        pb.compensate_(own, model, plan, batches, seed=3)
        found.append(state(own))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert not same(found[0], state(small))


def test_nothing_changes_when_a_batch_cannot_be_used():
    model = CASES["chain"].build()
    small, plan = cut(model, CASES["chain"].inputs(1))
    before = state(small)
    with pytest.raises(RuntimeError):
        pb.compensate_(small, model, plan, [torch.randn(4, 3, 6, 6), torch.randn(4, 2, 6, 6)])
    assert same(before, state(small))


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture
def most(monkeypatch):
    """Watch the bytes of all sums that are alive at a time."""
    alive, seen = [0], [0]
    init = Moments.__init__

    class Watched(Moments):
        def __init__(self, *args):
            init(self, *args)
            alive[0] += self.size()
            seen[0] = max(seen[0], alive[0])

        def size(self):
            return sum(t.numel() * t.element_size() for t in (self.xx, self.tx, self.tt))

        def __del__(self):
            alive[0] -= self.size()

    monkeypatch.setattr("pbcompress.compensation.refit.Moments", Watched)
    return seen


def several(net, x):
    z = torch.relu(net.stem(x))
    return sum(head(z) for head in net.heads)


def heads():
    return Net(
        several,
        stem=nn.Linear(6, 40),
        heads=nn.ModuleList(nn.Linear(40, 5) for _ in range(6)),
    )


def test_sums_keep_to_the_bound_and_what_fits_under_none_is_told(most):
    model, inputs = heads(), [torch.randn(64, 6) for _ in range(4)]
    small, plan = cut(model, inputs[0][:1])
    width = small.stem.out_features
    one = 2 * Moments.bytes_of(1, width, 5)
    whole, parts, none = (copy.deepcopy(small) for _ in range(3))
    report = pb.compensate_(whole, model, plan, inputs)
    assert most[0] == report.sum_bytes == 6 * one
    most[0] = 0
    report = pb.compensate_(parts, model, plan, inputs, max_bytes=2 * one + 100)
    assert most[0] == report.sum_bytes == 2 * one
    assert all(
        torch.allclose(a, b, atol=1e-4)
        for a, b in zip(*map(list, (whole.parameters(), parts.parameters())), strict=True)
    )
    report = pb.compensate_(none, model, plan, inputs, max_bytes=100)
    assert report.layers == {}
    assert set(report.left) == {f"heads.{i}" for i in range(6)}
    assert "above max_bytes" in report.left["heads.0"]
    assert same(state(none), state(small))


# --- what is left, and what is refused -----------------------------------------------------------


def unusual(net, x):
    z = net.stem(x)
    return net.head(net.lstm(z)[0]) + net.tied(z) @ net.bare.T


def test_what_cannot_be_fitted_is_left_with_a_reason():
    model = Net(
        unusual,
        stem=nn.Linear(6, 16),
        lstm=nn.LSTM(16, 16, num_layers=2, batch_first=True),
        tied=parametrizations.weight_norm(nn.Linear(16, 8)),
        head=nn.Linear(16, 3),
    )
    model.bare = nn.Parameter(torch.randn(3, 8))
    inputs = [torch.randn(8, 4, 6) for _ in range(4)]
    small, plan = cut(model, inputs[0][:1], allocation="uniform")
    report = pb.compensate_(small, model, plan, inputs)
    assert "lstm.weight_ih_l0" in report.layers
    assert "states of the layer below" in report.left["lstm.weight_ih_l1"]
    assert "own states" in report.left["lstm.weight_hh_l0"]
    assert "whose sum is known" in report.left["bare"]


def test_a_weight_of_two_layers_is_left():
    model = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 30))
    model[3].weight = model[0].weight
    inputs = [torch.randint(0, 30, (8, 4)) for _ in range(4)]
    small, plan = cut(model, inputs[0][:1], share=0.8)
    report = pb.compensate_(small, model, plan, inputs)
    assert report.left == {"3": "another layer has the same weight"}


def test_too_few_samples_are_told():
    model = CASES["mlp"].build()
    small, plan = cut(model, CASES["mlp"].inputs(1))
    report = pb.compensate_(small, model, plan, [CASES["mlp"].inputs(3)])
    assert report.layers == {}
    assert set(report.left.values()) == {"it needs at least 4 samples"}


def test_bad_requests_are_refused_before_anything_changes():
    model, other = CASES["chain"].build(), CASES["residual"].build()
    small, plan = cut(model, CASES["chain"].inputs(1))
    batches, before = batches_of(CASES["chain"]), state(small)
    with pytest.raises(pb.StateMismatchError, match="The plan cuts"):
        pb.compensate_(small, other, plan, batches)
    with pytest.raises(pb.CompressionError, match="cut by the plan"):
        pb.compensate_(model, model, plan, batches)
    with pytest.raises(pb.CompressionError, match="yielded no batch"):
        pb.compensate_(small, model, plan, [])
    with pytest.raises(ValueError, match="at least 1"):
        pb.compensate_(small, model, plan, batches, max_bytes=0)
    assert same(before, state(small))
