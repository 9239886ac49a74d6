"""Outputs that are viewed as a square matrix, which is applied to the channels it was made from."""

import numpy as np
import pytest
import torch
from torch import nn

import pbcompress as pb
from tests.support.masking import assert_equals_masked

X = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(0))
SQUARE = "the rows and the columns of a matrix of outputs are the same channels, which stay"
FIXED = "its channels meet a tensor of fixed size in 'transform'"


class Transform(nn.Module):
    """As in PointNet: k x k numbers for every sample."""

    def __init__(self, k, matrix):
        super().__init__()
        self.a, self.b, self.out = nn.Conv1d(k, 32, 1), nn.Linear(32, 32), nn.Linear(32, k * k)
        self.k, self.matrix = k, matrix

    def forward(self, x):
        h = self.b(self.a(x).relu().amax(2)).relu()
        return self.matrix(self, x, self.out(h))


class Points(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 64, 1), nn.Linear(64, 5)
        self.transform = Transform(8, matrix)

    def forward(self, x):
        h = self.a(x).relu()
        h = torch.bmm(h.transpose(1, 2), self.transform(h)).transpose(1, 2)
        return self.head(self.b(h).relu().amax(2))


MATRICES = {
    "plus a flat one": (
        lambda net, x, y: (y + torch.eye(net.k).flatten()[None]).view(-1, net.k, net.k), SQUARE,
    ),
    "plus one": (lambda net, x, y: y.view(-1, net.k, net.k) + torch.eye(n=net.k), SQUARE),
    "plus many": (
        lambda net, x, y: y.view(-1, net.k, net.k) + torch.eye(net.k).repeat(len(x), 1, 1), SQUARE,
    ),
    "by the shape of its input": (
        lambda net, x, y: y.view(x.shape[0], x.shape[1], x.shape[1]), SQUARE,
    ),
    "plus one of numpy": (
        lambda net, x, y: y.view(-1, net.k, net.k) + torch.from_numpy(np.eye(net.k)).float(), FIXED,
    ),
    "by a number": (lambda net, x, y: y.view(-1, 8, 8), "the plain number 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MATRICES)
def test_a_square_keeps_the_channels_that_it_turns_and_says_so(name):
    matrix, reason = MATRICES[name]
    model = Points(matrix).eval()
    plan = pb.plan_widths(model, X, 0.6)
    assert set(plan.left_alone) >= {"a", "transform.out", "head"}
    assert reason in plan.left_alone["a"]
    assert reason in plan.left_alone["transform.out"]
    small = pb.shrink(model, plan)
    assert small.transform.a.out_channels < 32
    assert small.transform.b.out_features < 32
    assert_equals_masked(model, plan, X)


@pytest.mark.parametrize("size", [lambda x: x.shape[1], lambda x: x.size(-1)])
def test_an_identity_of_the_size_of_channels_goes_with_them(size):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(20, 32), nn.Linear(32, 4)

        def forward(self, x):
            x = self.a(x[:, 0])
            return self.b((x @ torch.eye(size(x), dtype=x.dtype)).relu())

    model = Net().eval()
    plan = pb.plan_widths(model, X, 0.5)
    assert set(plan.left_alone) == {"b"}
    assert pb.shrink(model, plan).a.out_features < 32
    assert_equals_masked(model, plan, X)
