"""Networks of complex numbers: what Fourier transforms and complex weights let go."""

import copy
import warnings

import pytest
import torch
from torch import nn

from pbcompress import CompressConfig, Data, Task, WidthConfig, plan_widths, shrink
from pbcompress.core.modules import dtype_like
from tests.support.masking import masked


class Spectral(nn.Module):
    """A spectral convolution that writes its modes into zeros."""

    def __init__(self, inputs, outputs, modes=3):
        super().__init__()
        self.modes, self.out_channels = modes, outputs
        shape = inputs, outputs, modes, modes
        self.low = nn.Parameter(torch.randn(shape, dtype=torch.cfloat) / inputs)
        self.high = nn.Parameter(torch.zeros(shape, dtype=torch.cfloat))  # hides nothing

    def forward(self, x):
        m, (n, _, h, w) = self.modes, x.shape
        found = torch.fft.rfft2(x)
        out = torch.zeros(n, self.out_channels, h, w // 2 + 1, dtype=found.dtype)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", found[:, :, :m, :m], self.low)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", found[:, :, -m:, :m], self.high)
        return torch.fft.irfft2(out, s=(h, w))


class Pairs(nn.Module):
    """A global filter whose weights are pairs of real numbers."""

    def __init__(self, width):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(width, 8, 5, 2))

    def forward(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.filter), s=(8, 8))


class Phases(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.sizes = nn.Conv2d(width, width, 1)

    def forward(self, x):
        found = torch.fft.fft2(x)
        return torch.fft.ifft2(torch.polar(self.sizes(found.abs()), found.angle())).real


def around(middle):
    return nn.Sequential(nn.Conv2d(3, 12, 1), middle, nn.GELU(), nn.Conv2d(12, 2, 1)).eval()


NETS = {
    "spectral convolutions": lambda: around(nn.Sequential(Spectral(12, 16), Spectral(16, 12))),
    "pairs": lambda: around(Pairs(12)),
    "phases": lambda: around(Phases(12)),
}


def images(n):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def exact(model):
    return copy.deepcopy(model)._apply(lambda t: t.to(dtype_like(t, torch.float64)))


@pytest.mark.parametrize("name", NETS)
def test_a_spectral_network_is_narrowed_and_equals_the_original_without_its_channels(name):
    torch.manual_seed(0)
    model = NETS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a cast of complex numbers to real ones
        plan = plan_widths(model, images(2), 0.6)
    assert {s.layer for s in plan.steps if s.dim == "out"} >= {"0"}
    small, reference = shrink(model, plan), masked(model, plan.steps)
    assert sum(p.numel() for p in small.parameters()) == plan.cost_after.params
    with torch.no_grad():
        x = images(3).double()
        torch.testing.assert_close(exact(small)(x), exact(reference)(x), rtol=1e-9, atol=1e-9)
    small.train()(images(2)).sum().backward()
    assert {p.dtype for p in small.parameters()} == {p.dtype for p in model.parameters()}


def test_channels_that_a_transform_mixes_stay_with_their_reason():
    net = nn.Sequential(nn.Linear(6, 12), Mixed(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 2))
    plan = plan_widths(net.eval(), torch.randn(2, 6), 0.6)
    assert "a Fourier transform" in plan.left_alone["0"]


class Mixed(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


def test_complex_layers_and_inputs_are_narrowed():
    torch.manual_seed(0)
    model = ComplexNet()
    x = torch.randn(2, 6, dtype=torch.cfloat)
    for importance in ("magnitude", "taylor"):
        plan = planned(model, x, importance)
        assert shrink(model, plan).first.out_features < 24


def planned(model, x, importance):
    if importance == "magnitude":
        return plan_widths(model, x, 0.5)
    batches = [(x, torch.randn(2, 2))]
    config = CompressConfig(width=WidthConfig(importance=importance))
    task = Task(loss=nn.functional.mse_loss, metric=lambda y, t: -(y - t).square().mean().item())
    return plan_widths(model, x, 0.5, config=config, data=Data(batches, batches), task=task)


class ComplexNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 24, dtype=torch.cfloat), nn.Linear(24, 2)

    def forward(self, x):
        return self.last(self.first(x).abs())
