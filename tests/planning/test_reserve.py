"""What a plan keeps for dendrites is what grows, for every kind of layer, form and setting."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from pbcompress import CompressConfig, WidthConfig, attach_dendrites_, plan_widths, shrink
from pbcompress.errors import TargetUnreachableError
from tests.support.dead_channels import count
from tests.support.pairwise import pairwise_by_default
from tests.support.reference import FORMS
from tests.support.reference import config_of as dendrites_of


def old_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


IMAGE, SERIES, VOLUME = (1, 12, 8, 8), (1, 12, 8), (1, 12, 4, 4, 4)
KINDS = {
    "linear": (lambda bias: nn.Linear(12, 16, bias=bias), (1, 5, 12)),
    "1d": (lambda bias: nn.Conv1d(12, 16, 3, padding=1, bias=bias), SERIES),
    "2d": (lambda bias: nn.Conv2d(12, 16, 3, padding=1, bias=bias), IMAGE),
    "2d oblong": (lambda bias: nn.Conv2d(12, 16, (1, 3), bias=bias), IMAGE),
    "3d": (lambda bias: nn.Conv3d(12, 16, 2, bias=bias), VOLUME),
    "grouped": (lambda bias: nn.Conv2d(12, 16, 3, groups=4, bias=bias), IMAGE),
    "grouped 1d": (lambda bias: nn.Conv1d(12, 16, 3, groups=2, bias=bias), SERIES),
    "depthwise": (lambda bias: nn.Conv2d(12, 12, 3, groups=12, bias=bias), IMAGE),
    "multiplied": (lambda bias: nn.Conv2d(12, 24, 3, groups=12, bias=bias), IMAGE),
    "transposed 1d": (lambda bias: nn.ConvTranspose1d(12, 20, 2, 2, bias=bias), SERIES),
    "transposed": (lambda bias: nn.ConvTranspose2d(12, 20, 3, 2, 1, 1, bias=bias), IMAGE),
    "transposed 3d": (lambda bias: nn.ConvTranspose3d(12, 20, 2, 2, bias=bias), VOLUME),
    "transposed, grouped": (
        lambda bias: nn.ConvTranspose2d(12, 20, 2, 2, groups=4, bias=bias),
        IMAGE,
    ),
    "transposed, depthwise": (
        lambda bias: nn.ConvTranspose2d(12, 12, 2, 2, groups=12, bias=bias),
        IMAGE,
    ),
    "old weight norm": (lambda bias: old_norm(nn.Conv2d(12, 16, 3, bias=bias)), IMAGE),
    "old weight norm, transposed": (
        lambda bias: old_norm(nn.ConvTranspose1d(12, 20, 2, 2, bias=bias)),
        SERIES,
    ),
}
NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SETTINGS = {
    "one": {"max_sets": 1},
    "three in a cascade": {"max_sets": 3},
    "two apart": {"max_sets": 2, "cascade": False},
    "without norms": {"max_sets": 1, "normalize": False},
}
CASES = list(itertools.product(KINDS, FORMS, SETTINGS, (True, False), (True, False)))


class Net(nn.Module):
    """A layer between others, so that both of its sides may be narrowed."""

    def __init__(self, kind, bias, normed):
        super().__init__()
        make, shape = KINDS[kind]
        self.layer = make(bias)
        is_linear = isinstance(self.layer, nn.Linear)
        ends = {3: nn.Linear if is_linear else nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
        kernel = () if is_linear else (1,)
        out = getattr(self.layer, "out_features", 0) or self.layer.out_channels
        self.pre, self.first = ends(12, 64, *kernel), ends(64, 12, *kernel)
        self.last = ends(out, 3, *kernel)
        self.norm = NORMS[len(shape)](out) if normed and not is_linear else nn.Identity()
        order = ("pre", "first", "layer", "norm", "last")  # a norm comes after its layer
        self._modules = {name: self._modules[name] for name in order}

    def forward(self, x):
        return self.last(self.norm(self.layer(self.first(self.pre(x).relu()).relu())).relu())


def test_the_number_of_cases():
    assert (len(KINDS), len(FORMS), len(CASES)) == (16, 5, 1280)


@pytest.mark.parametrize(("kind", "form", "setting", "bias", "normed"), pairwise_by_default(CASES))
def test_what_a_plan_reserves_is_what_grows(kind, form, setting, bias, normed):
    torch.manual_seed(0)
    model = Net(kind, bias, normed).eval()
    dendrites = dendrites_of(form, share=1.0, layers=("layer",), **SETTINGS[setting])
    config = CompressConfig(dendrites=dendrites, width=WidthConfig(allocation="uniform"))
    grew = False
    for share in (0.9, 0.6):
        try:
            plan = plan_widths(model, torch.randn(KINDS[kind][1]), share, config=config)
        except TargetUnreachableError:
            continue
        small = shrink(model, plan)
        before = count(small)
        for _ in range(SETTINGS[setting]["max_sets"] if plan.grow else 0):
            attach_dendrites_(small, dendrites, layers=plan.grow)
        assert count(small) - before == plan.reserved_params
        grew |= bool(plan.grow)
    assert grew


class SharedWeights(nn.Module):
    """Two layers on one weight, and an output on that of an embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Embedding(30, 32), nn.Linear(32, 32)
        self.second, self.last = nn.Linear(32, 32), nn.Linear(32, 30)
        self.second.weight, self.last.weight = self.first.weight, self.table.weight

    def forward(self, x):
        return self.last(self.second(self.first(self.table(x)).relu()).relu())


@pytest.mark.parametrize("form", FORMS)
def test_layers_that_share_a_weight_are_reserved_for_at_their_own_width(form):
    torch.manual_seed(0)
    model, config = SharedWeights().eval(), dendrites_of(form, share=1.0, max_sets=2)
    x = torch.randint(0, 30, (1, 7))
    plan = plan_widths(model, x, 0.9, config=CompressConfig(dendrites=config))
    assert {"second", "last"} & set(plan.grow)
    small = shrink(model, plan)
    before = count(small)
    for _ in range(2):
        attach_dendrites_(small, config, layers=plan.grow)
    assert count(small) - before == plan.reserved_params
    assert count(small) <= plan.target_params
