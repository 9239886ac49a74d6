"""Candidates on layers of every kind, and errors that are planted for them."""

import copy
import itertools

import pytest
import torch
from torch import nn

from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.training.task import Task
from tests.support.configs import dendrites_of
from tests.support.pairwise import pairwise_by_default

PLANTED = Task(loss=lambda y, error: (y * error).sum(), metric=lambda y, error: y.mean())
"""A task whose dLoss/dOutput is the target: the error is planted."""

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (12,)),
    "linear, three axes": (lambda: nn.Linear(12, 8), (5, 12)),
    "linear, no bias": (lambda: nn.Linear(12, 8, bias=False), (12,)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), (4, 8, 8)),
    "conv2d, dilated": (lambda: nn.Conv2d(4, 8, 3, dilation=2), (4, 8, 8)),
    "conv2d, reflect": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (4, 6, 6)),
    "conv2d, same": (lambda: nn.Conv2d(4, 8, (2, 3), padding="same"), (4, 6, 5)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), (4, 6, 6)),
    "conv2d, depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2, stride=(1, 2, 1)), (4, 4, 4, 4)),
}
FORMS = ("full", "grouped", "lowrank", "shared", "tied")
EVERY = list(itertools.product(LAYERS, FORMS, (False, True)))
every_dendrite = pytest.mark.parametrize(("name", "form", "normalized"), pairwise_by_default(EVERY))
ALL_ROWS = {"0": 10**6}


def grown(layer, form="full", normalized=False, **choices):
    net = nn.Sequential(copy.deepcopy(layer))
    config = dendrites_of(form=form, rank=2, nodes=4, groups=2, **choices)
    attach_dendrites_(net, config, layers={"0": normalized})
    return net


def everything(net):
    return {
        **{k: v.clone() for k, v in net.state_dict().items()},
        "modes": [m.training for m in net.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()],
        "grads": [p.grad for p in net.parameters()],
        "requires": [p.requires_grad for p in net.parameters()],
    }


def planted(shape, net, count=1, size=6):
    x = [torch.randn(size, *shape, dtype=torch.double) for _ in range(count)]
    return [(own, torch.randn_like(net(own)) / size) for own in x]


def batches_of(count=4, size=32, features=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count * size, features, generator=generator)
    y = (x[:, :2].prod(1) > 0).long()
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count * size, size)]


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
