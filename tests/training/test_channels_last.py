"""Images in channels-last memory: the same numbers, and no trace in the network."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model_zoo import create_model
from pbcompress import (
    CompressConfig,
    Correlation,
    Data,
    DendriteConfig,
    Task,
    recover_,
)
from pbcompress.training.channels_last import (
    channels_last,
    suits_channels_last,
    takes_channels_last,
    that_take_channels_last,
)
from tests.support.configs import recovery_of

NETWORKS = {
    "lenet": ({"image_shape": (1, 8, 8), "widths": (4, 6), "hidden": 8}, 1),
    "small_cnn": ({"widths": (4, 6), "pool": True}, 1),
    "resnet20": ({"width": 0.5, "in_channels": 3}, 3),
    "mobilenet_small": ({"width": 0.25, "in_channels": 3}, 3),
}


class Viewing(nn.Module):
    """Asks for a view of what its convolution returned, as much code does."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))


def network(name):
    torch.manual_seed(0)
    return create_model(name, **NETWORKS[name][0])


def batches(channels, dtype=torch.float32, number=2):
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(6, channels, 8, 8, generator=draw, dtype=torch.float64).to(dtype),
            torch.randint(10, (6,), generator=draw),
        )
        for _ in range(number)
    ]


def suits(model, channels=3, dtype=torch.float32):
    return suits_channels_last(model, batches(channels, dtype)[0], Task())


def trained(model, data, **choices):
    rule = Correlation(initialization="random")  # eigenvectors repeat rounding many times
    dendrites = DendriteConfig(rule=rule)
    recovery = recovery_of(epochs=2, dendrite_epochs=1, **choices)
    config = CompressConfig(dendrites=dendrites, recovery=recovery)
    return recover_(model, data, config=config)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 5)] * 4))
def test_an_image_keeps_its_values_and_tells_its_layout(shape):
    image = torch.randn(shape)
    laid = channels_last(image)
    assert torch.equal(laid, image)
    _, c, h, w = shape
    assert laid.stride() == (c * h * w, 1, w * c, c)


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_hand_it_on_whatever_the_channels(channels):
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    with takes_channels_last(model):
        inside = model(torch.randn(2, channels, 8, 8))
    assert inside.is_contiguous(memory_format=torch.channels_last)
    assert model(torch.randn(2, channels, 8, 8)).is_contiguous()


def test_arguments_are_images_by_name_too_and_what_is_in_containers_is_the_callers():
    class Named(nn.Module):
        def forward(self, token, side, *, images):
            assert images.stride() == (27, 1, 9, 3)
            assert token.dtype is torch.long
            side["seen"] = True

    model, side = Named(), {}
    with takes_channels_last(model):
        model(torch.zeros(1, 1, 2, 2, dtype=torch.long), side, images=torch.zeros(1, 3, 3, 3))
    assert side == {"seen": True}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_to_the_same_weights(name):
    channels = NETWORKS[name][1]
    data = Data(train=batches(channels, torch.float64), val=batches(channels, torch.float64))
    one, other = network(name).double(), network(name).double()
    assert suits(one, channels, dtype=torch.float64)
    losses = [
        [record["loss"] for record in trained(model, data, channels_last=chosen)]
        for model, chosen in ((one, True), (other, False))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # Adam divides by what is near zero
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_network_is_as_it_was_but_for_its_values():
    model, data = network("resnet20"), Data(train=batches(3), val=batches(3))
    trained(model, data)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.is_contiguous() for p in model.parameters())
    assert model(batches(3)[0][0]).is_contiguous()


def test_hooks_go_where_a_step_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(RuntimeError, match="channels"), takes_channels_last(model):
        model(torch.zeros(1, 2, 8, 8))
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_network_can_be_copied_meanwhile(how):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with takes_channels_last(model):
        copied = how(model)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(copied(x), model(x))


def test_a_network_that_wants_views_trains_as_it_is():
    model, data = Viewing(), Data(train=batches(3), val=batches(3))
    assert not suits(model)
    assert len(trained(model, data)) == 7


class Reading(nn.Module):
    """Reads memory in an order of its own."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 4, 3), wrap

    def forward(self, x):
        y = self.conv(x)
        return self.wrap(y.as_strided((len(y), 10), (y.stride(0), 1)))


@dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize("wrap", [lambda t: t, Output, lambda t: {"logits": t}])
def test_a_network_that_reads_memory_is_found_out(wrap):
    assert not suits(Reading(wrap))


class Auxiliary(nn.Module):
    """Asks for a view in training mode only."""

    def __init__(self):
        super().__init__()
        self.conv, self.aux, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 10), nn.Linear(4, 10)

    def forward(self, x):
        y = self.conv(x)
        z = self.head(y.mean((2, 3)))
        return z + self.aux(y.view(len(y), -1)) if self.training else z


def test_the_training_mode_is_tried_too():
    assert not suits(Auxiliary())


def test_outputs_that_differ_in_number_or_shape_are_no_match():
    class Ragged(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return [y.flatten(1)] * (1 if y.is_contiguous() else 2)

    class Shaped(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return y.flatten(1)[:, : 20 if y.is_contiguous() else 30]

    assert not suits(Ragged(3, 4, 3))
    assert not suits(Shaped(3, 4, 3))


def test_infinite_scores_are_equal_where_they_are_the_same():
    class Masked(nn.Conv2d):
        def forward(self, x):
            scores = super().forward(x).mean((2, 3))
            return torch.cat([scores, scores.new_full((len(x), 1), -torch.inf)], 1)

    assert suits(Masked(3, 4, 3))


def test_networks_without_convolutions_are_not_tried():
    assert that_take_channels_last([nn.Linear(2, 2)], None, Task()) == ()


def test_a_step_that_fails_later_names_the_switch():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 10, 8)

        def forward(self, x):
            return self.conv(x).view(len(x), -1)[:, :10]

    small, large = batches(3)[0], (torch.randn(6, 3, 9, 9), torch.randint(10, (6,)))
    data = Data(train=[small, large], val=[small])
    with pytest.raises(RuntimeError, match="view") as caught:
        trained(Growing(), data)
    assert any("channels_last=False" in note for note in caught.value.__notes__)
    assert len(trained(Growing(), data, channels_last=False)) == 7


def test_two_samples_are_tried():
    sizes = []

    class Counting(nn.Conv2d):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x).mean((2, 3))

    assert suits(Counting(3, 4, 3))
    assert sizes == [2, 2, 2]  # in torch's layout, in the other one, and there in training mode


def test_the_whole_batch_is_tried_where_two_samples_do_not_run():
    class Fixed(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).reshape(6, 4, -1).mean(2)

    assert suits(Fixed(3, 4, 3))


def test_the_trial_leaves_no_gradient_and_no_statistics():
    model = network("resnet20").train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert suits(model)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("channels", range(1, 10))
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
def test_strided_1x1_convolutions_of_few_channels_are_not_tried(channels, stride):
    """Torch writes past its memory there, which would end the process."""
    strided = nn.Conv2d(channels, 8, 1, stride, bias=False)
    model = nn.Sequential(nn.Conv2d(3, channels, 3), strided, nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 3, 8, 8))
    assert suits(model) == (channels >= 8 or stride == 1)


def test_a_frozen_teacher_takes_them_too():
    assert suits(network("resnet20").requires_grad_(False))
