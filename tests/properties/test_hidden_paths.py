"""What a network does where one forward pass on tensors does not show it.

Its output may lie in an object or leave torch; another branch may run in training mode or on
other inputs; channels may be told by their number; zeros may not be a number's neutral element.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress import measure, plan_widths, shrink
from pbcompress.core.inputs import tensors_of
from pbcompress.errors import TargetUnreachableError
from tests.support.dead_channels import count, double, reference, run, smallest_or
from tests.support.nets import images, vectors


class Net(nn.Module):
    """A network of a stem and a head, with further layers, from its forward function."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function, self.stem, self.head = function, nn.Linear(10, 16), nn.Linear(16, 4)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


@dataclass
class Answer:
    logits: Tensor
    extra: object = None


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


def logits(net, x):
    return net.head(torch.relu(net.stem(x)))


OUTPUTS = {
    "dataclass": lambda s, x: Answer(logits(s, x)),
    "dataclass within a dict within one": lambda s, x: Answer(None, {"a": Answer(logits(s, x))}),
    "slots": lambda s, x: Slotted(logits(s, x)),
    "distribution": lambda s, x: torch.distributions.Normal(logits(s, x), 1.0, validate_args=False),
    "numpy": lambda s, x: logits(s, x).detach().numpy(),
    "list": lambda s, x: logits(s, x).tolist(),
    "array": lambda s, x: __import__("numpy").asarray(logits(s, x).detach()),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_keeps_its_width_wherever_it_lies(name):
    model = Net(OUTPUTS[name])
    plan = plan_widths(model, vectors(2), 0.5)
    assert {(s.layer, s.dim) for s in plan.steps} == {("stem", "out"), ("head", "in")}
    assert len(OUTPUTS) == 7


def test_tensors_are_found_in_objects_that_hold_each_other():
    one, two = Answer(torch.ones(1)), Answer(torch.zeros(2))
    one.extra, two.extra = [two, nn.Linear(3, 3)], one
    assert [len(t) for t in tensors_of((one, {"x": two}))] == [1, 2]


def test_features_that_only_training_returns_keep_their_width():
    def forward(self, x):
        y = torch.relu(self.stem(x))
        return (self.head(y), y) if self.training else self.head(y)

    with pytest.raises(TargetUnreachableError, match="in training mode"):
        plan_widths(Net(forward), vectors(2), 0.5)


def experts():
    return nn.ModuleList(nn.Linear(16, 16) for _ in range(3))


def by_item(self, x):
    y = torch.relu(self.stem(x))
    return self.head(self.experts[int(self.gate(x).mean(0).argmax())](y))


def by_mask(self, x):
    y, chosen = torch.relu(self.stem(x)), self.gate(x).argmax(-1)
    out = torch.zeros_like(y)
    for i, expert in enumerate(self.experts):
        if (chosen == i).any():
            out = out + expert(y) * (chosen == i)[:, None]
    return self.head(out)


@pytest.mark.parametrize("function", [by_item, by_mask])
def test_experts_that_other_inputs_choose_still_fit(function):
    model = Net(
        lambda s, x: s.last(torch.relu(function(s, x))),
        experts=experts(),
        gate=nn.Linear(10, 3),
        last=nn.Linear(8, 4),
    )
    model.head = nn.Linear(16, 8)
    plan = smallest_or(0.5, model, vectors(1))
    small = shrink(model, plan)
    chosen = set()
    for seed in range(30):
        x = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed))
        chosen.add(int(model.gate(x).argmax()))
        assert small(x).shape == (1, 4)
    assert len(chosen) > 1
    assert "head" in {s.layer for s in plan.steps if s.dim == "out"}


def test_a_maximum_is_of_what_is_left_and_its_place_is_a_reason_to_stay():
    values = Net(lambda s, x: s.head(s.stem(x)) * torch.max(s.stem(x), 1, keepdim=True)[0])
    places = Net(lambda s, x: (s.head(s.stem(x)), torch.max(s.stem(x), 1)[1]))
    plan = plan_widths(values, vectors(2), 0.5)
    kept = [i for i in range(16) if i not in plan.steps[0].removed]
    y = values.stem(vectors(3))[:, kept]
    expected = (
        functional.linear(y, values.head.weight[:, kept], values.head.bias) * y.amax(1)[:, None]
    )
    torch.testing.assert_close(shrink(values, plan)(vectors(3)), expected)
    with pytest.raises(TargetUnreachableError, match="found by their number"):
        plan_widths(places, vectors(2), 0.5)


def test_zeros_that_are_no_number_prove_nothing():
    """Each channel is divided by its own length, which is 0 / 0 for a channel of zeros."""

    def forward(self, x):
        y = self.conv(x)
        y = y / y.pow(2).sum((2, 3), keepdim=True).sqrt()
        return self.last(torch.relu(y))

    model = Net(forward, conv=nn.Conv2d(3, 16, 3), last=nn.Conv2d(16, 2, 1))
    with pytest.raises(TargetUnreachableError, match="give nothing that can be compared"):
        plan_widths(model, images(2), 0.5)


def test_a_bias_that_the_code_does_not_use_goes_with_its_layer():
    def forward(self, x):
        return self.head(functional.linear(x, self.stem.weight))

    model = Net(forward)
    plan = plan_widths(model, vectors(2), 0.5)
    assert len(plan.steps[0].removed) > 2
    assert count(shrink(model, plan)) == plan.cost_after.params


def test_other_operations_at_another_batch_size_do_not_spoil_the_proof():
    """A product with one query is a batch of products for one sample, and one for two."""

    def forward(self, x):
        scores = self.query @ self.stem(x.unflatten(1, (2, 5)).repeat(1, 1, 2)).mT
        return self.head((scores.softmax(-1) @ self.value(x.unflatten(1, (2, 5)))).squeeze(1))

    model = Net(forward, query=nn.Parameter(torch.randn(1, 1, 16)), value=nn.Linear(5, 16))
    plan = plan_widths(model, vectors(2), 0.5)
    assert {"stem", "value", ""} <= {s.layer for s in plan.steps}
    expected = reference(model, plan.steps).double()
    found = run(shrink(model, plan).double(), double(vectors(3)))
    torch.testing.assert_close(found, run(expected, double(vectors(3))), rtol=1e-9, atol=1e-9)


def test_a_dimension_of_heads_and_channels_costs_their_product():
    """Heads and their channels lie on axes of their own and are contracted together."""

    def forward(self, x):
        y = torch.einsum("bt,hdt->bhd", self.stem(x), self.into)
        return self.head(torch.einsum("bhd,hdt->bt", y, self.out))

    model = Net(
        forward,
        into=nn.Parameter(torch.randn(4, 6, 16)),
        out=nn.Parameter(torch.randn(4, 6, 16)),
    )
    plan = plan_widths(model, vectors(2), 0.3)
    small = shrink(model, plan)
    assert small.into.shape[0] < 4
    assert small.into.shape[1] < 6
    heads, channels, width = small.into.shape
    by_hand = 10 * width + 2 * heads * channels * width + width * 4
    assert plan.cost_after.flops == by_hand == measure(small, vectors(1)).flops
