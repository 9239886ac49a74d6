"""Channels behind a view: generators, heads, capsules, and sizes that layers state."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pbcompress import TargetUnreachableError, plan_widths, shrink
from tests.support.masking import assert_equals_masked
from tests.support.nets import Net


def codes(n):
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(n))


def images(n):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n))


def up(width):
    layers = nn.ConvTranspose2d(width, 12, 2, 2), nn.ReLU(), nn.ConvTranspose2d(12, 3, 2, 2)
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), *layers)


def generator(view):
    """A Linear whose 256 outputs are 16 channels of 4 x 4."""
    return Net(lambda s, z: s.up(view(s, s.fc(z))), fc=nn.Linear(12, 256), up=up(16))


def head(shape):
    return Net(
        lambda s, x: s.head(s.body(x).relu()).view(len(x), *shape),
        body=nn.Conv2d(3, 24, 3, padding=1),
        head=nn.Conv2d(24, 12, 1),
    )


def convolved(layer, outputs):
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(outputs, 3, 1))


torch.manual_seed(0)
NARROWED = {
    "its inputs": (generator(lambda s, y: y.view(-1, s.up[2].in_channels, 4, 4)), codes, "fc"),
    "its features": (generator(lambda s, y: y.view(-1, s.up[0].num_features, 4, 4)), codes, "fc"),
    "its weight's size": (
        generator(lambda s, y: y.view(-1, s.up[2].weight.shape[0], 4, 4)), codes, "fc"
    ),
    "a part of its outputs": (
        generator(lambda s, y: y.unflatten(1, (s.fc.out_features // 16, 4, 4))), codes, "fc"
    ),
    "the rest": (generator(lambda s, y: y.view(len(y), -1, 4, 4)), codes, "fc"),
    "channels last": (
        generator(lambda s, y: y.view(len(y), 4, 4, s.up[2].in_channels).permute(0, 3, 1, 2)),
        codes,
        "fc",
    ),
    "a layer that unflattens": (
        nn.Sequential(nn.Linear(12, 256), nn.Unflatten(1, torch.Size([16, 4, 4])), *up(16)),
        codes,
        "0",
    ),
    "a flattened image": (
        Net(
            lambda s, x: s.head(s.body(x).relu().view(-1, s.head.in_features)),
            body=nn.Conv2d(3, 16, 3),
            head=nn.Linear(256, 3),
        ),
        images,
        "body",
    ),
    "halves of its outputs": (
        Net(
            lambda s, x: s.head(torch.mul(*s.body(x).split(s.body.out_channels // 2, 1))),
            body=nn.Conv2d(3, 32, 3),
            head=nn.Conv2d(16, 3, 1),
        ),
        images,
        "body",
    ),
    "pixels by hand": (
        Net(
            lambda s, x: s.head(
                s.body(x).view(len(x), s.head.in_channels, 2, 2, 4, 4)
                .permute(0, 1, 4, 2, 5, 3).reshape(len(x), s.head.in_channels, 8, 8)
            ),
            body=nn.Conv2d(3, 32, 3),
            head=nn.Conv2d(8, 3, 1),
        ),
        images,
        "body",
    ),
    "an attention's width": (
        Net(
            lambda s, x: s.head(s.core(*[s.body(x)] * 3)[0].reshape(-1, s.core.embed_dim)),
            body=nn.Linear(6, 16),
            core=nn.MultiheadAttention(16, 4, batch_first=True),
            head=nn.Linear(16, 3),
        ),
        lambda n: images(n)[:, 0],
        "body",
    ),
    "a head of anchors and classes": (head((3, 4, 6, 6)), images, "body"),
    "grouped transposed": (convolved(nn.ConvTranspose2d(16, 8, 2, 2, groups=4), 8), images, "0"),
    "depthwise transposed": (
        convolved(nn.ConvTranspose2d(16, 16, 2, 2, groups=16), 16), images, "2"
    ),
    "two outputs of each input, transposed": (
        convolved(nn.ConvTranspose2d(16, 32, 2, 2, groups=16), 32), images, "2"
    ),
    "positions of a one-by-one convolution": (
        Net(
            lambda s, x: s.head(s.mix(torch.stack([s.body(x), s.other(x)], 1))[:, 0]),
            body=nn.Linear(12, 16),
            other=nn.Linear(12, 16),
            mix=nn.Conv1d(2, 1, 1),
            head=nn.Linear(16, 3),
        ),
        codes,
        "body",
    ),
}  # fmt: skip


def planned(model, inputs):
    try:
        return plan_widths(model, inputs(2), 0.6)
    except TargetUnreachableError as err:
        return plan_widths(model, inputs(2), err.smallest)


@pytest.mark.parametrize("name", NARROWED)
def test_channels_behind_a_view_are_narrowed(name):
    model, inputs, layer = NARROWED[name]
    plan = planned(model.eval(), inputs)
    assert [s for s in plan.steps if s.layer == layer and s.dim != "in"], plan.left_alone
    assert_equals_masked(model, plan, inputs(3))
    shrink(model, plan).train()(inputs(2)).sum().backward()


def test_sizes_of_transposed_groups_are_in_step():
    plain = shrink(*plan_of("grouped transposed"))[2]
    assert plain.groups == 4
    assert plain.weight.shape[:2] == (plain.in_channels, plain.out_channels // 4)
    wide = shrink(*plan_of("two outputs of each input, transposed"))[2]
    assert wide.groups == wide.in_channels == wide.out_channels // 2 < 16


def plan_of(name):
    model, inputs, _ = NARROWED[name]
    return model, planned(model.eval(), inputs)


def test_a_size_that_is_written_in_a_view_is_named():
    model = generator(lambda s, y: y.view(-1, 16, 4, 4))
    plan = planned(model.eval(), codes)
    assert "a size that does not follow: the plain number 16" in plan.left_alone["fc"]


def test_a_head_is_left_alone_because_it_is_an_output():
    plan = planned(head((3, 4, 6, 6)).eval(), images)
    assert plan.left_alone["head"] == "its width is the network's output"


class Windows(nn.Module):
    """Attention whose scale is computed from a width and a number of heads."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(10, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.heads, self.head = 4, nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = (q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).reshape(n, t, c)))


def test_a_number_that_stays_when_heads_go_leaves_them_free():
    def inputs(n):
        return torch.randn(n, 5, 10, generator=torch.Generator().manual_seed(n))

    plan = planned(Windows().eval(), inputs)
    model = Windows().eval()
    assert shrink(model, plan).heads < 4
    assert_equals_masked(model, plan, inputs(3))


class Paths(nn.Module):
    """Splits its input by the half of an attribute."""

    def __init__(self):
        super().__init__()
        self.width, self.body, self.head = 16, nn.Conv2d(3, 16, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a, b = self.body(x).split(self.width // 2, 1)
        return self.head(a * functional.silu(b))


def test_an_attribute_whose_half_splits_channels_follows_them():
    model = Paths().eval()
    plan = planned(model, images)
    small = shrink(model, plan)
    assert small.width == small.body.out_channels < 16
    assert_equals_masked(model, plan, images(3))


NORMS = {
    "layer norm of a shape": (lambda x: functional.layer_norm(x, x.shape[1:]), True),
    "layer norm of numbers": (lambda x: functional.layer_norm(x, (16, 8, 8)), False),
    "group norm of every channel": (lambda x: functional.group_norm(x, x.shape[1]), True),
    "group norm of a number": (lambda x: functional.group_norm(x, 16), False),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_follows_a_size_and_keeps_a_number(name):
    norm, follows = NORMS[name]
    model = Net(
        lambda net, x: net.head(norm(net.conv(net.first(x))).mean((2, 3))),
        first=nn.Conv2d(3, 16, 3, padding=1),
        conv=nn.Conv2d(16, 16, 3, padding=1),
        head=nn.Linear(16, 4),
    )
    left = plan_widths(model, torch.randn(2, 3, 8, 8), 0.9).left_alone
    assert ("conv" not in left) == follows
    assert follows or "the plain number 16" in left["conv"]


def test_a_norm_over_neighbours_is_named():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.LocalResponseNorm(3), nn.Conv2d(16, 3, 1)).eval()
    with pytest.raises(TargetUnreachableError, match=r"norm in '1' takes neighbouring channels"):
        plan_widths(model, images(2), 0.5)
