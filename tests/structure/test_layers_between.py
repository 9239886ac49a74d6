"""Layers of torch without weights, or with norms, between two convolutions: none keeps channels."""

import pytest
import torch
from torch import nn

import pbcompress as pb
from tests.support.masking import assert_equals_masked

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def padded(mode, padding=1):
    return nn.Conv2d(16, 16, 3, padding=padding, padding_mode=mode)


BY_POSITION = {
    "zeros": padded("zeros", "same"),
    "circular": padded("circular"),
    "circular, same": padded("circular", "same"),
    "reflect": padded("reflect"),
    "replicate": padded("replicate", 2),
    "a circular pad": nn.CircularPad2d((1, 2, 0, 1)),
    "a leak": nn.PReLU(16),
    "a random leak": nn.RReLU(),
    "a random leak in place": nn.RReLU(inplace=True),
    "a norm without weights": nn.BatchNorm2d(16, affine=False),
}
OF_WHAT_IS_LEFT = {
    "a norm of the batch": nn.BatchNorm2d(16, track_running_stats=False),
    "a norm of the batch without weights": nn.BatchNorm2d(
        16, affine=False, track_running_stats=False
    ),
    "a norm of samples": nn.InstanceNorm2d(16, affine=True),
    "a norm of samples with statistics": nn.InstanceNorm2d(16, track_running_stats=True),
    "a norm of groups": nn.GroupNorm(4, 16),
    "a norm of all": nn.LayerNorm([16, 8, 8]),
    "mean squares of all": nn.RMSNorm([16, 8, 8]),
    "a pool of powers": nn.LPPool2d(2, 2),
}


@pytest.mark.parametrize("name", [*BY_POSITION, *OF_WHAT_IS_LEFT])
def test_channels_go_through_and_cost_what_is_predicted(name):
    torch.manual_seed(0)
    layer = {**BY_POSITION, **OF_WHAT_IS_LEFT}[name]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    first, last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 1)
    model = nn.Sequential(first, layer, last, nn.ReLU(), head).eval()
    plan = pb.plan_widths(model, X, 0.5)
    assert not {"0", "1"}.intersection(plan.left_alone)
    small = pb.shrink(model, plan)
    assert small[0].out_channels < 16
    for network, cost in ((model, plan.cost_before), (small, plan.cost_after)):
        found = pb.measure(network, X)
        assert (found.params, found.flops) == (cost.params, cost.flops)
    if name in BY_POSITION:
        assert_equals_masked(model, plan, X)
