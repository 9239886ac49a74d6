"""Bounds on time, and what a user hears when planning reaches one."""

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.core.deadline import Deadline


def test_a_deadline_raises_only_when_its_time_is_over():
    now = [0.0]
    deadline = Deadline(5, "Ask for less.", clock=lambda: now[0])
    deadline.check("Work")
    now[0] = 5.0
    deadline.check("Work")
    now[0] = 5.1
    with pytest.raises(pb.CompressionError, match=r"Work was to take at most 5 seconds.*less"):
        deadline.check("Work")
    Deadline(None, "", clock=lambda: now[0]).check("Work")


class Endless(nn.Module):
    """Runs operations until it is stopped."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        while True:
            x = self.layer(x)


@pytest.mark.parametrize(
    "model", [Endless(), nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4))], ids=["endless", "plain"]
)
def test_planning_stops_with_a_message_and_leaves_the_model(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = pb.CompressConfig(width=pb.WidthConfig(max_seconds=1e-6))
    with pytest.raises(pb.CompressionError, match=r"Planning.*1e-06 seconds.*max_seconds"):
        pb.plan_widths(model, torch.zeros(1, 4), 0.5, config=config)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_bound_on_time_is_positive(seconds):
    with pytest.raises(ValueError, match="max_seconds"):
        pb.WidthConfig(max_seconds=seconds)
