"""Counts against hand counts; nothing of the model or the process changes."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from pbcompress.costs.measured import measure
from pbcompress.errors import CompressionError
from tests.support.layer_costs import LAYERS
from tests.support.nets import CASES, images, vectors

NAMES = [
    "a/b",
    "a%2Fb",
    "/",
    "a\0b",
    "\0",
    "model",
    "\ud800",
    "<b>",
    "1",
    "é",
    "weight",
    "%",
    "&#47;",
]


def snapshot(model):
    return (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        [(id(p), p.requires_grad, None if p.grad is None else p.grad.clone())
         for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )  # fmt: skip


def is_unchanged(model, before):
    state, modes, parameters, hooks = snapshot(model)
    return (
        all(torch.equal(state[k], v) for k, v in before[0].items())
        and modes == before[1]
        and hooks == before[3]
        and all(
            a[:2] == b[:2] and (a[2] is b[2] or torch.equal(a[2], b[2]))
            for a, b in zip(parameters, before[2], strict=True)
        )
    )


def test_all_cases_are_counted():
    assert (len(CASES), len(LAYERS)) == (21, 15)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_what_its_formula_says(name):
    layer, shape, params, flops = LAYERS[name]
    cost = measure(layer, torch.zeros(3, *shape))
    assert (cost.params, cost.flops) == (params, flops)


@pytest.mark.parametrize("name", CASES)
def test_a_network_costs_what_was_counted_by_hand(name):
    case = CASES[name]
    cost = measure(case.build(), case.inputs(2))
    assert (cost.params, cost.flops) == (case.params, case.flops)


@pytest.mark.parametrize("name", CASES)
def test_layers_add_up_to_the_network(name):
    cost = measure(CASES[name].build(), CASES[name].inputs(1))
    assert sum(layer.params for layer in cost.by_layer.values()) == cost.params
    functional = {"dense": 28 * 36, "squeeze-excite": 24 * 36, "u-net": 20 * 9}  # in no layer
    assert sum(layer.flops for layer in cost.by_layer.values()) == (
        cost.flops - functional.get(name, 0)
    )


@pytest.mark.parametrize("name", CASES)
def test_measuring_leaves_the_model_alone(name):
    model, inputs = CASES[name].build(), CASES[name].inputs(2)
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    first = next(model.parameters())
    first.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    before = snapshot(model)
    measure(model, inputs)
    assert is_unchanged(model, before)


class Noisy(nn.Module):
    """Draws from every generator in its forward, and fails if told to."""

    def __init__(self, fails=False):
        super().__init__()
        self.layer, self.norm, self.fails = nn.Linear(10, 4), nn.BatchNorm1d(4), fails

    def forward(self, x):
        x = self.norm(self.layer(x)) + torch.randn(4) + random.random() + np.random.rand()
        if self.fails:
            raise RuntimeError("on purpose")
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_and_the_model_stay_also_when_forward_fails(fails):
    model = Noisy(fails).train()
    before = snapshot(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(CompressionError, match=r"\(1, 10\).*failed: on purpose.*first axis"):
            measure(model, vectors(3))
    else:
        measure(model, vectors(3))
    assert is_unchanged(model, before)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_the_batch_size_does_not_matter():
    model = CASES["chain"].build()
    assert measure(model, images(1)) == measure(model, images(5))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 4)

    def forward(self, data, scale=None):
        y = self.layer(data["a"][0]) + data["a"][1]
        return y if scale is None else y * scale


def test_nested_inputs_of_mixed_batch_sizes_are_cut_to_one():
    inputs = {
        "data": {"a": [torch.zeros(5, 10), torch.zeros(3, 4)]},
        "scale": torch.tensor(2.0),
    }
    cost = measure(Nested(), inputs)
    assert (cost.params, cost.flops) == (44, 40)
    assert cost.input_shapes == {"data.a.0": (1, 10), "data.a.1": (1, 4), "scale": ()}


@pytest.mark.parametrize(
    "inputs",
    [vectors(2), (vectors(2),), [vectors(2)], {"input": vectors(2)}],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_every_form_of_example_inputs_gives_the_same_count(inputs):
    assert measure(nn.Linear(10, 4), inputs).flops == 40


def test_inputs_that_are_no_tensor_are_passed_on():
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 4), nn.Linear(10, 6)

        def forward(self, x, which):
            return self.a(x) if which == "a" else self.b(x)

    assert measure(Switch(), (vectors(1), "a")).flops == 40
    assert measure(Switch(), {"x": vectors(1), "which": "b"}).flops == 60


def test_a_shared_parameter_counts_once_and_at_its_first_owner():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    cost = measure(model, vectors(1))
    assert (cost.params, cost.flops) == (120, 200)
    assert [layer.params for layer in cost.by_layer.values()] == [110, 10]


def test_a_shared_module_counts_its_parameters_once_and_its_work_twice():
    layer = nn.Linear(10, 10)
    cost = measure(nn.Sequential(layer, layer), vectors(1))
    assert (cost.params, cost.flops) == (110, 200)


def test_dropout_and_batch_statistics_are_those_of_eval_mode():
    model = nn.Sequential(nn.BatchNorm1d(10), nn.Dropout(0.9)).train()
    assert measure(model, vectors(1)).flops == 20  # batch 1 would fail in training mode


def test_operations_without_a_count_are_listed():
    class Attention(nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1).cumsum(-1)

    cost = measure(nn.Sequential(nn.Linear(10, 4), Attention()), vectors(1))
    assert cost.uncounted_ops == {"aten::softmax": 1, "aten::cumsum": 1}
    assert "not counted: aten::cumsum x1, aten::softmax x1" in str(cost)


def test_gradients_are_off_while_counting():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(torch.is_grad_enabled())
            return super().forward(x)

    measure(Spy(10, 4), vectors(1))
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Linear(10, 4), None, "a tensor, a tuple of positional or a dict"),
        (nn.Linear(10, 4), np.zeros((1, 10)), "Found ndarray"),
        (nn.Linear(10, 4), torch.zeros(0, 10), "holds no sample"),
        ("net", torch.zeros(1, 10), "found str"),
    ],
)
def test_bad_arguments_are_named(model, inputs, message):
    with pytest.raises(CompressionError, match=message):
        measure(model, inputs)


def test_outputs_that_cannot_be_traced_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return {1, 2}

    with pytest.raises(CompressionError, match=r"traced to count.*tensors, tuples or dicts"):
        measure(Odd(), vectors(1))


def test_widths_and_kinds_of_layers_are_recorded():
    cost = measure(CASES["chain"].build(), images(1))
    assert [(k, v.kind, v.width) for k, v in cost.by_layer.items()] == [
        ("0.0", "Conv2d", 16),
        ("0.1", "BatchNorm2d", None),
        ("1.0", "Conv2d", 24),
        ("1.1", "BatchNorm2d", None),
        ("2", "AdaptiveAvgPool2d", None),
        ("4", "Linear", 5),
    ]


def test_a_recurrent_layer_has_its_parameters_counted():
    cost = measure(nn.GRU(10, 6, batch_first=True), torch.zeros(2, 5, 10))
    assert cost.params == 3 * (6 * 10 + 6 * 6 + 2 * 6)
    assert math.isfinite(cost.flops)


@given(st.lists(st.text(min_size=1, max_size=8) | st.sampled_from(NAMES), min_size=2, max_size=2))
@example(["a/b", "a%2Fb"])
@example(["a\0b", "a"])
@example(["\ud800", "<script>alert(1)</script>"])
@settings(max_examples=20, deadline=None)
def test_the_names_of_layers_do_not_matter(names):
    assume(len({name.replace(".", ":") for name in names}) == 2)
    assume(not any(hasattr(nn.Sequential(), name) for name in names))
    plain, named = nn.Sequential(), nn.Sequential()
    for at, name in enumerate(names):
        part = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
        plain.add_module(f"part{at}", part)
        named.add_module(name.replace(".", ":"), part)
    expected, found = (measure(net, torch.ones(1, 2, 4, 4)) for net in (plain, named))
    layers = {name.replace(".", ":") + ".0": f"part{at}.0" for at, name in enumerate(names)}
    assert found.by_layer == {a: expected.by_layer[b] for a, b in layers.items()}
    assert (found.flops, found.params) == (expected.flops, expected.params) == (1152, 76)
