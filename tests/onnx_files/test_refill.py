"""Weights of a narrower network in the graph of a wider one: the file is that of the narrower."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from pbcompress.onnx_files.refill import Template
from pbcompress.onnx_files.session import Session


def network(width):
    """A convolution, one of every channel alone, and a product."""
    torch.manual_seed(width)
    layers = {
        "first": nn.Conv2d(3, width, 3, padding=1),
        "alone": nn.Conv2d(width, width, 3, groups=width),
        "last": nn.Linear(width * 4, 5),
    }
    return nn.ModuleDict(layers).eval()


def output_of(net, x):
    with torch.no_grad():
        return net["last"](net["alone"](net["first"](x).relu()).flatten(1)).numpy()


def weights_of(net):
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def written(path, net):
    """Write its file by hand; the product's weight is turned, as exporters do."""
    weights = weights_of(net)
    stored = {name: array for name, array in weights.items() if name != "last.weight"}
    stored["turned"] = np.ascontiguousarray(weights["last.weight"].T)
    stored["shape"] = np.array([1, weights["last.weight"].shape[1]])
    width = len(weights["first.bias"])
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "alone.weight", "alone.bias"], ["c"], group=width),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("MatMul", ["d", "turned"], ["e"]),
        helper.make_node("Add", ["e", "last.bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, 4, 4))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 5))],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
        value_info=[helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, (1, width, 4, 4))],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return Template(path, weights)


@pytest.mark.parametrize("width", [1, 5, 8, 12])
def test_the_file_computes_what_the_other_network_computes(width, tmp_path):
    template = written(tmp_path / "wide.onnx", network(8))
    other, x = network(width), torch.randn(1, 3, 4, 4)
    before = (tmp_path / "wide.onnx").read_bytes()
    assert template.fill(weights_of(other), tmp_path / "other.onnx")
    (found,) = Session(tmp_path / "other.onnx").run({"x": x.numpy()})
    assert found == pytest.approx(output_of(other, x), abs=1e-5)
    assert (tmp_path / "wide.onnx").read_bytes() == before


def test_a_network_with_other_weights_has_no_file(tmp_path):
    template = written(tmp_path / "wide.onnx", network(8))
    weights = weights_of(network(8))
    for other in ({**weights, "dendrite": np.ones(3)}, dict(list(weights.items())[1:])):
        assert not template.fill(other, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
