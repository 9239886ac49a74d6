"""FLOPs by two counters and by an ONNX graph, against hand counts; where they differ, and why."""

import math
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from pbcompress import ModelCost, export_onnx, fuse, measure
from pbcompress.core.records import from_data, to_data
from pbcompress.costs.flop_counters import LayerCost, by_kind, explain, gaps, side_by_side
from pbcompress.onnx_files.contents import measure_onnx
from tests.support import hard_nets
from tests.support.layer_costs import LAYERS
from tests.support.nets import CASES, vectors

FLOAT, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


def by_definition(model, inputs):
    """Count the multiply-adds of convolutions and Linears from their definitions."""
    total = 0

    def count(layer, args, output):
        nonlocal total
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            total += args[0].numel() * math.prod(layer.weight.shape[1:])
        else:
            total += output.numel() * math.prod(layer.weight.shape[1:])

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(inputs)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", LAYERS)
def test_both_counters_give_the_formula_of_a_layer(name):
    assert len(LAYERS) == 15
    layer, shape, _, flops = LAYERS[name]
    cost = measure(layer, torch.zeros(3, *shape))
    second = 0 if name.startswith("batchnorm") else flops  # which torch's counter does not count
    assert sum(cost.by_operation.values()) == cost.flops == flops
    assert sum(cost.dispatched.values()) == second


@pytest.mark.parametrize("name", CASES)
def test_both_counters_give_the_hand_count_of_a_network(name):
    model, inputs = CASES[name].build(), CASES[name].inputs(1)
    cost = measure(model, inputs)
    assert sum(cost.dispatched.values()) == by_definition(model, inputs)
    found = gaps(cost.by_operation, cost.dispatched, cost.uncounted_ops)
    assert sum(gap.fvcore - gap.dispatched for gap in found) == (
        cost.flops - sum(cost.dispatched.values())
    )
    norms = {"batch_norm", "layer_norm", "adaptive_avg_pool2d", "upsample_nearest2d"}
    assert {gap.operation for gap in found} <= norms


def check_file(name, path):
    model, inputs = CASES[name].build(), CASES[name].inputs(2)
    export_onnx(fuse(model), path, inputs)
    cost = measure_onnx(path)
    single = {k: v[:1] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:1]
    assert cost.flops == by_definition(model, single)
    assert sum(layer.flops for layer in cost.by_layer.values()) == cost.flops
    assert sum(layer.params for layer in cost.by_layer.values()) == cost.params
    own = measure(model, inputs).by_layer
    shared = [k for k in own if k in cost.by_layer and own[k].width is not None]
    assert shared
    assert {k: own[k].width for k in shared} == {k: cost.by_layer[k].width for k in shared}


@pytest.mark.parametrize("name", ["residual", "mlp on tokens"])
def test_a_graph_gives_the_hand_count_by_layer(name, tmp_path):
    check_file(name, tmp_path / "a.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_graph_gives_the_hand_count_by_layer(name, tmp_path):
    check_file(name, tmp_path / "a.onnx")


# --- what the layers' definitions do not tell -----------------------------------------------------

RECURRENT = {  # gates * (hidden * inputs + hidden * hidden), for every one of 5 steps
    "lstm": (nn.LSTM, {}, 4 * (6 * 10 + 36)),
    "gru": (nn.GRU, {}, 3 * (6 * 10 + 36)),
    "rnn": (nn.RNN, {}, 6 * 10 + 36),
    "both ways": (nn.LSTM, {"bidirectional": True}, 2 * 4 * (6 * 10 + 36)),
    "two layers": (nn.LSTM, {"num_layers": 2}, 4 * (6 * 10 + 36 + 36 + 36)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_both_counters_see_every_step_of_a_recurrent_layer(name):
    kind, choices, flops = RECURRENT[name]
    cost = measure(kind(10, 6, batch_first=True, **choices), torch.zeros(2, 5, 10))
    assert cost.flops == sum(cost.dispatched.values()) == 5 * flops


class Attention(nn.Module):
    def __init__(self, reads_values=False):
        super().__init__()
        self.project, self.reads_values = nn.Linear(8, 8), reads_values

    def forward(self, x):
        x = self.project(x)
        if self.reads_values and x.sum().item() < -1e9:
            return x
        heads = x.unflatten(2, (2, 4)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)


@pytest.mark.parametrize("reads_values", [False, True])
def test_attention_belongs_to_the_count(reads_values):
    cost = measure(Attention(reads_values), torch.zeros(3, 5, 8))
    linear, attention = 5 * 8 * 8, 2 * (2 * 5 * 5 * 4)  # scores and sums, in two heads of four
    assert (cost.flops, cost.dispatched) == (linear + attention, {"matrix product": 720})
    assert (gaps(cost.by_operation, cost.dispatched), cost.explanation) == ([], "")


def test_a_product_that_is_not_counted_is_named():
    class Covariance(nn.Module):
        def forward(self, x):
            return torch.cov(x)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), Covariance()

        def forward(self, x):
            return self.second(self.first(x)[0])

    cost = measure(Whole(), torch.zeros(1, 6, 4))
    assert cost.flops == 6 * 4 * 4
    assert "aten::cov" in cost.uncounted_ops
    assert "leaves out cov" in cost.explanation


def test_functional_products_are_seen_by_both():
    class Products(nn.Module):
        def forward(self, x):
            y = torch.einsum("nij,njk->nik", x, x) + torch.bmm(x, x) + x @ x
            return functional.linear(y, torch.ones(3, 4))

    cost = measure(Products(), torch.zeros(2, 4, 4))
    assert cost.flops == sum(cost.dispatched.values()) == 3 * 64 + 4 * 4 * 3


def test_a_small_difference_needs_no_explanation():
    assert explain({"convolution": 1000, "batch_norm": 20}, {"convolution": 1000}) == ""
    assert "batch_norm 21 and 0" in explain(
        {"convolution": 1000, "batch_norm": 21}, {"convolution": 1000}
    )
    assert explain({}, {}) == ""


def test_a_network_that_the_second_counter_cannot_run_has_no_second_count(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no counter")

    monkeypatch.setattr(sys.modules["pbcompress.costs.measured"], "FlopCounterMode", refuse)
    cost = measure(nn.Linear(10, 4), vectors(1))
    assert (cost.flops, cost.dispatched, cost.explanation) == (40, None, "")


def test_counts_survive_json_and_older_files_have_none():
    cost = measure(CASES["chain"].build(), CASES["chain"].inputs(1))
    assert from_data(ModelCost, to_data(cost), "The cost") == cost
    old = to_data(cost)
    del old["by_operation"], old["dispatched"]
    again = from_data(ModelCost, old, "The cost")
    assert (again.by_operation, again.dispatched, again.explanation) == ({}, None, "")


def test_kinds_are_the_same_whichever_counter_names_them():
    assert by_kind({"conv": 1, "aten.convolution": 2, "aten.bmm": 4, "linear": 8, "x": 0}) == {
        "convolution": 3,
        "matrix product": 12,
    }


# --- nodes of a graph, each by hand ---------------------------------------------------------------


def write(path, nodes, inputs, output, weights, domain=None):
    """Write a graph; inputs are name: (shape, type), weights name: (shape, numpy type).

    The output is (name, number of axes, type).
    """
    ends = [helper.make_tensor_value_info(n, t, s) for n, (s, t) in inputs.items()]
    axes = [f"axis{i}" for i in range(output[1])]
    last = helper.make_tensor_value_info(output[0], output[2], axes)
    held = [numpy_helper.from_array(np.zeros(s, t), n) for n, (s, t) in weights.items()]
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "g", ends, [last], held)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def node(kind, inputs, outputs=("y",), **attributes):
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


F, Q = np.float32, np.int8
IMAGE, ROWS = {"x": (["n", 4, 6, 6], FLOAT)}, {"x": (["n", 7], FLOAT)}
CODED = {"s": ((), F), "z": ((), np.uint8), "zw": ((), Q)}
NODES = {
    "Conv": (node("Conv", "xw", group=2), IMAGE, {"w": ((6, 2, 3, 3), F)}, 6 * 16 * 2 * 9),
    "ConvTranspose": (
        node("ConvTranspose", "xw", strides=[2, 2], group=2),
        IMAGE,
        {"w": ((4, 3, 2, 2), F)},
        4 * 36 * 3 * 4,
    ),
    "Gemm": (node("Gemm", "xw", transB=1), ROWS, {"w": ((5, 7), F)}, 35),
    "Gemm of a transposed input": (
        node("Gemm", "xw", transA=1),
        {"x": ([7, 1], FLOAT)},
        {"w": ((7, 5), F)},
        35,
    ),
    "MatMul": (node("MatMul", "xw"), {"x": (["n", 3, 7], FLOAT)}, {"w": ((7, 5), F)}, 105),
    "MatMul of activations": (node("MatMul", "xx"), {"x": (["n", 2, 4, 4], FLOAT)}, {}, 2 * 64),
    "Einsum": (
        node("Einsum", "xx", equation="nij, njk -> nik"),
        {"x": (["n", 4, 4], FLOAT)},
        {},
        64,
    ),
    "LSTM": (
        node("LSTM", ["x", "w", "r"], hidden_size=6),
        {"x": ([5, 1, 10], FLOAT)},
        {"w": ((1, 24, 10), F), "r": ((1, 24, 6), F)},
        5 * 24 * 16,
    ),
    "Attention in heads": (
        node("Attention", "qkv"),
        {"q": (["n", 2, 5, 4], FLOAT), "k": (["n", 2, 7, 4], FLOAT), "v": (["n", 2, 7, 3], FLOAT)},
        {},
        2 * 5 * 7 * (4 + 3),
    ),
    "Attention in rows": (
        node("Attention", "qkv", q_num_heads=4, kv_num_heads=2),
        {"q": (["n", 5, 16], FLOAT), "k": (["n", 7, 8], FLOAT), "v": (["n", 7, 6], FLOAT)},
        {},
        4 * 5 * 7 * (4 + 3),
    ),
    "MatMulInteger": (
        node("MatMulInteger", "xw"),
        {"x": (["n", 7], UINT8)},
        {"w": ((7, 5), Q)},
        35,
    ),
    "ConvInteger": (
        node("ConvInteger", "xw"),
        {"x": (["n", 4, 6, 6], UINT8)},
        {"w": ((6, 4, 3, 3), Q)},
        6 * 16 * 36,
    ),
    "QLinearMatMul": (
        node("QLinearMatMul", ["x", "s", "z", "w", "s", "zw", "s", "z"]),
        {"x": (["n", 7], UINT8)},
        {"w": ((7, 5), Q), **CODED},
        35,
    ),
    "QLinearConv": (
        node("QLinearConv", ["x", "s", "z", "w", "s", "zw", "s", "z"]),
        {"x": (["n", 4, 6, 6], UINT8)},
        {"w": ((6, 4, 3, 3), Q), **CODED},
        6 * 16 * 36,
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_costs_what_its_definition_says(name, tmp_path):
    assert len(NODES) == 14
    made, inputs, weights, flops = NODES[name]
    kind = TensorProto.INT32 if "Integer" in name else UINT8 if name[0] == "Q" else FLOAT
    axes = 4 if name == "LSTM" else len(next(iter(inputs.values()))[0])
    cost = measure_onnx(write(tmp_path / "a.onnx", [made], inputs, ("y", axes, kind), weights))
    assert cost.flops == flops
    assert cost.uncounted_ops == {}
    assert "not counted" not in str(cost)


def test_a_product_of_unknown_shape_is_said_not_to_be_counted(tmp_path):
    nodes = [node("NonZero", "x", "i"), node("Cast", "i", "f", to=FLOAT), node("MatMul", "fw")]
    weights = {"w": ((7, 5), F)}
    made = write(tmp_path / "a.onnx", nodes, ROWS, ("y", 2, FLOAT), weights)
    cost = measure_onnx(made)
    assert (cost.flops, cost.params) == (0, 35)
    assert cost.uncounted_ops == {"NonZero": 1, "Cast": 1, "MatMul": 1}
    assert "not counted: NonZero x1, Cast x1, MatMul x1" in str(cost)


def test_layers_of_a_foreign_file_are_named_by_their_weights(tmp_path):
    nodes = [
        node("MatMul", ["x", "first.weight"], ["a"]),
        node("Add", ["a", "first.bias"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("MatMul", ["c", "w"], ["y"], name="last"),
    ]
    weights = {"first.weight": ((7, 6), F), "first.bias": ((6,), F), "w": ((6, 5), F)}
    cost = measure_onnx(write(tmp_path / "a.onnx", nodes, ROWS, ("y", 2, FLOAT), weights))
    assert cost.by_layer == {
        "first": LayerCost("MatMul", 48, 42, 6),
        "last": LayerCost("MatMul", 30, 30, 5),
    }


def test_weights_that_stand_as_constants_are_weights(tmp_path):
    held = numpy_helper.from_array(np.zeros((7, 5), F))
    nodes = [node("Constant", "", "w", value=held), node("MatMul", "xw")]
    cost = measure_onnx(write(tmp_path / "a.onnx", nodes, ROWS, ("y", 2, FLOAT), {}))
    assert (cost.params, cost.flops, cost.uncounted_ops) == (35, 35, {})
    assert [layer.params for layer in cost.by_layer.values()] == [35]


def test_functions_of_a_file_are_looked_into(tmp_path):
    inner = helper.make_function(
        "mine",
        "Twice",
        ["a", "b"],
        ["c"],
        [node("MatMul", "ab", "c")],
        [helper.make_opsetid("", 23)],
    )
    write(
        tmp_path / "a.onnx",
        [node("Twice", "xw", domain="mine")],
        ROWS,
        ("y", 2, FLOAT),
        {"w": ((7, 5), F)},
        domain="mine",
    )
    proto = onnx.load(tmp_path / "a.onnx")
    proto.functions.append(inner)
    onnx.save(proto, tmp_path / "a.onnx")
    assert measure_onnx(tmp_path / "a.onnx").flops == 35


def test_weights_in_another_file_of_the_folder_count_as_bytes(tmp_path):
    path = write(
        tmp_path / "a.onnx", [node("MatMul", "xw")], ROWS, ("y", 2, FLOAT), {"w": ((7, 500), F)}
    )
    alone = measure_onnx(path)
    proto = onnx.load(path)
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    cost = measure_onnx(path)
    assert (cost.params, cost.flops) == (alone.params, alone.flops) == (3500, 3500)
    assert cost.file_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size


def test_a_layer_counts_once_with_what_lies_under_it():
    conv = LayerCost("Conv2d", 9, 90, 4)
    before = {"a": conv, "a.out": LayerCost("Linear", 5, 5, 2), "gone": conv}
    after = {
        "a": LayerCost("DendriteLayer", 1, 0, None),
        "a.base_layer": LayerCost("Conv2d", 4, 40, 3),
        "a.dendrites.0": LayerCost("Conv2d", 2, 20, 2),
        "a.out": LayerCost("Linear", 3, 3, 2),
        "new": conv,
        "idle": LayerCost("ReLU", 0, 0, 4),
    }
    pairs = side_by_side(before, after)
    assert list(pairs) == ["a", "a.out", "gone", "new"]
    assert pairs["a"][1] == LayerCost("Conv2d", 7, 60, 3)
    assert pairs["gone"] == (conv, None)
    assert pairs["new"] == (None, conv)
    for place, side in enumerate((before, after)):
        found = [pair[place] for pair in pairs.values() if pair[place]]
        assert sum(layer.params for layer in found) == sum(own.params for own in side.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", hard_nets.NETS)
def test_every_difference_of_the_counters_has_a_named_reason(name):
    case = hard_nets.NETS[name]
    cost = measure(case.build(), case.inputs(1))
    for gap in gaps(cost.by_operation, cost.dispatched, cost.uncounted_ops):
        assert gap.dispatched == 0 or gap.within, str(gap)
