"""Work whose result nobody uses is in no count: plans, `measure` and exported files agree."""

import onnx
import pytest
import torch
from torch import nn

import pbcompress as pb

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
SIDE, MAIN = 16 * 64, 8 * 16 + 16 * 4  # multiply-adds of the layer aside, and of the others


class Net(nn.Module):
    """Two layers, and one beside them of whose result a function makes something."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.side, self.b = nn.Linear(8, 16), nn.Linear(16, 64), nn.Linear(16, 4)
        self.register_buffer("kept", torch.zeros(1, 64))
        self.use = use

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(self.use(self, h, self.side(h)))


def unused(net, h, z):
    return h


def overwritten(net, h, z):
    z = z + 1
    z = h
    return z


def an_assertion(net, h, z):
    assert z.isfinite().all()
    return h


def a_number(net, h, z):
    z.sum().item()
    return h


def a_change_in_place(net, h, z):
    z.add_(1)
    return h


def a_part(net, h, z):
    return h + z[:, :16]


def a_value(net, h, z):
    return h + z.mean()


def a_change_of_a_view(net, h, z):
    other = torch.zeros(len(h), 64)
    other[:, :64] = z
    return h + other[:, :1]


def a_buffer(net, h, z):
    net.kept.copy_(z.mean(0, keepdim=True))
    return h


@pytest.mark.parametrize("use", [unused, overwritten, an_assertion, a_number, a_change_in_place])
def test_what_nobody_uses_is_not_counted(use):
    model = Net(use).eval()
    plan = pb.plan_widths(model, X, 0.7)
    assert plan.cost_before.flops == pb.measure(model, X).flops == MAIN
    assert plan.cost_after.flops == pb.measure(pb.shrink(model, plan), X).flops < MAIN
    assert plan.cost_before.params == sum(p.numel() for p in model.parameters())
    assert plan.cost_before.by_layer["side"].flops == 0


@pytest.mark.parametrize("use", [a_part, a_value, a_change_of_a_view, a_buffer])
def test_what_is_used_on_the_way_is_counted(use):
    model = Net(use).eval()
    plan = pb.plan_widths(model, X, 0.7)
    assert plan.cost_before.flops == pb.measure(model, X).flops == MAIN + SIDE
    assert plan.cost_after.flops == pb.measure(pb.shrink(model, plan), X).flops


def test_the_exported_file_leaves_it_out_too(tmp_path):
    pb.export_onnx(Net(unused).eval(), tmp_path / "net.onnx", X)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [n.op_type for n in graph.node if n.op_type in ("Gemm", "MatMul")] == ["Gemm"] * 2
