"""The inference form computes what the trained form computes, for every kind and form."""

import copy
import itertools

import pytest
import torch
from torch import nn

from pbcompress import DendriteConfig, attach_dendrites_, fuse
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.export.fused_layer import FusedDendriteLayer
from tests.support.configs import FORMS
from tests.support.pairwise import pairwise, pairwise_by_default

LAYERS = {
    "linear": (lambda: [nn.Linear(8, 12)], (5, 8)),
    "linear on tokens": (lambda: [nn.Linear(8, 12, bias=False)], (5, 3, 8)),
    "linear bn": (lambda: [nn.Linear(8, 12), nn.BatchNorm1d(12)], (5, 8)),
    "conv1d": (lambda: [nn.Conv1d(8, 12, 3, stride=2)], (3, 8, 9)),
    "conv2d bn": (lambda: [nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12)], (3, 8, 7, 7)),
    "conv2d grouped bn": (
        lambda: [nn.Conv2d(8, 12, 3, groups=4, padding=1), nn.BatchNorm2d(12)],
        (3, 8, 5, 5),
    ),
    "conv2d depthwise bn": (
        lambda: [nn.Conv2d(8, 8, 3, groups=8, dilation=2), nn.BatchNorm2d(8)],
        (3, 8, 9, 9),
    ),
    "conv2d reflect": (
        lambda: [nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect")],
        (3, 8, 5, 5),
    ),
    "conv3d bn": (lambda: [nn.Conv3d(8, 12, 2), nn.BatchNorm3d(12)], (3, 8, 3, 3, 3)),
    "transposed bn": (
        lambda: [nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1), nn.BatchNorm2d(12)],
        (3, 8, 4, 4),
    ),
    "transposed grouped bn": (
        lambda: [nn.ConvTranspose1d(8, 12, 3, groups=4, bias=False), nn.BatchNorm1d(12)],
        (3, 8, 5),
    ),
    "bn without affine": (
        lambda: [nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12, affine=False)],
        (3, 8, 4, 4),
    ),
}
FUSED = list(itertools.product(LAYERS, FORMS, (1, 3)))


def randomized(network: nn.Module) -> nn.Module:
    """Give every weight, U, V and statistic a value that matters."""
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2)
    return network.double().eval()


def test_the_lists_are_whole():
    assert (len(FORMS), len(LAYERS)) == (5, 12)
    assert (len(FUSED), len(pairwise(FUSED))) == (120, 60)


@pytest.mark.parametrize(("kind", "form", "sets"), pairwise_by_default(FUSED))
def test_fused_equals_trained_form(kind, form, sets):
    make, shape = LAYERS[kind]
    network = nn.Sequential(*make(), nn.ReLU())
    for _ in range(sets):
        attach_dendrites_(network, DendriteConfig(form=form, activation="tanh"))
    randomized(network)
    x = torch.randn(shape, dtype=torch.float64)

    fused = fuse(network)

    torch.testing.assert_close(fused(x), network(x), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    assert isinstance(fused[0], FusedDendriteLayer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_code_that_reads_a_layer_finds_what_the_base_layer_has(kind, form):
    base = LAYERS[kind][0]()[0]
    network = nn.Sequential(base)
    attach_dendrites_(network, DendriteConfig(form=form))
    randomized(network)
    sizes = ["stride", "in_channels", "out_channels"]
    names = ["in_features", "out_features"] if isinstance(base, nn.Linear) else sizes
    for layer in (network[0], fuse(network)[0]):
        assert [getattr(layer, name) for name in names] == [getattr(base, name) for name in names]
        assert torch.equal(layer.weight, base.weight)
        if base.bias is None:
            assert layer.bias is None or not layer.bias.any()
        else:
            assert torch.equal(layer.bias, base.bias)
        with pytest.raises(AttributeError, match="'nothing'"):
            _ = layer.nothing


@pytest.mark.parametrize("kind", [k for k in LAYERS if "reflect" not in k])
def test_full_dendrites_run_as_one_wide_operation(kind):
    make, _ = LAYERS[kind]
    network = nn.Sequential(*make())
    for _ in range(2):
        attach_dendrites_(network, DendriteConfig())

    fused = fuse(network.eval())

    maps = [m for m in fused.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    assert len(maps) == 1
    assert getattr(maps[0], "out_features", getattr(maps[0], "out_channels", 0)) == 3 * (
        8 if "depthwise" in kind else 12
    )


def test_fuse_leaves_the_model_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    attach_dendrites_(network)
    before = copy.deepcopy(network.state_dict())

    fuse(network)

    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


def test_a_norm_with_two_readers_of_its_source_is_not_folded():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    network, x = randomized(Branch()), torch.randn(2, 3, 4, 4, dtype=torch.float64)

    fused = fuse(network)

    assert isinstance(fused.bn, nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_layer_that_is_called_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.conv(self.bn(self.conv(x)))

    network, x = randomized(Twice()), torch.randn(2, 4, 4, 4, dtype=torch.float64)

    torch.testing.assert_close(fuse(network)(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_forward_with_control_flow_keeps_its_norms_and_its_outputs():
    class Control(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.bn(self.conv(x))
            return y if y.sum() > 0 else -y

    network = Control()
    attach_dendrites_(network)
    randomized(network)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    fused = fuse(network)

    assert isinstance(fused.bn, nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_norm_without_running_statistics_is_not_folded():
    network = randomized(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    )
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    torch.testing.assert_close(fuse(network)(x), network(x), rtol=1e-10, atol=1e-10)


HOOKS = {
    "before": lambda layer: layer.register_forward_pre_hook(lambda _, given: (given[0].abs(),)),
    "after": lambda layer: layer.register_forward_hook(lambda _, given, out: out.clamp(-1.0, 0.2)),
}


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("is_grown", [False, True])
def test_what_hooks_change_stays_changed(hook, where, is_grown):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    net[1](torch.randn(9, 4, 3, 3) * 3 + 1)
    HOOKS[hook](net[where])
    x = torch.randn(5, 1, 6, 6)
    if is_grown:
        attach_dendrites_(net)
        for layer in dendrite_layers(net).values():
            nn.init.normal_(layer.gains[0])
    expected = net.eval()(x)
    torch.testing.assert_close(fuse(net)(x), expected)
    for module in net.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    assert not torch.allclose(net(x), expected)


def test_a_hook_on_a_layer_with_dendrites_keeps_it_as_it_is():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    attach_dendrites_(net)
    net[0].register_forward_hook(lambda _, given, out: 2 * out)
    x = torch.randn(5, 3)
    fused = fuse(net)
    assert [type(m).__name__ for m in fused] == ["DendriteLayer", "ReLU", "FusedDendriteLayer"]
    torch.testing.assert_close(fused(x), net(x))
