"""Bags of embeddings beside a dense part, as in recommendation: their width goes."""

import pytest
import torch
from torch import nn

import pbcompress as pb

DENSE = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
ROWS = torch.randint(20, (4, 3, 2), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, mode):
        super().__init__()
        torch.manual_seed(0)
        self.bags = nn.ModuleList(nn.EmbeddingBag(20, 16, mode=mode) for _ in range(3))
        self.dense = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 16))
        self.top = nn.Sequential(nn.Linear(16 + 6, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x, rows):
        dense = self.dense(x)
        each = torch.stack([dense] + [bag(rows[:, k]) for k, bag in enumerate(self.bags)], 1)
        products, (i, j) = torch.bmm(each, each.mT), torch.tril_indices(4, 4, -1)
        return self.top(torch.cat((dense, products[:, i, j]), 1))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_narrowed_with_what_they_meet(mode):
    model = Net(mode).eval()
    plan = pb.plan_widths(model, (DENSE, ROWS), 0.5)
    assert set(plan.left_alone) == {"top.2"}
    small = pb.shrink(model, plan)
    width = small.dense[2].out_features
    assert width < 16
    assert {bag.embedding_dim for bag in small.bags} == {width}
    assert pb.measure(small, (DENSE, ROWS)).flops == plan.cost_after.flops
    reference = Net(mode).eval()
    for step in plan.steps:  # what goes writes zeros
        if step.dim == "out" or step.dim == "weight:1":
            layer = reference.get_submodule(step.layer)
            axis = int(isinstance(layer, nn.EmbeddingBag))
            layer.weight.data.index_fill_(axis, torch.tensor(step.removed), 0)
            if axis == 0:
                layer.bias.data[list(step.removed)] = 0
    with torch.no_grad():
        torch.testing.assert_close(small(DENSE, ROWS), reference(DENSE, ROWS))
