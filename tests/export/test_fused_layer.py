"""The exported graph of a layer with dendrites: one wide operation, and what the formula needs."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from pbcompress import attach_dendrites_, fuse
from pbcompress.export.onnx_export import write_onnx
from tests.support.configs import FORMS, dendrites_of

SETS = (1, 2)
# layer (and norm), shape of its input, what the layer itself is in a graph, groups, and whether
# there is a bias: a BatchNorm always gives one
LAYERS = {
    "linear": (lambda: [nn.Linear(8, 12)], (2, 8), ["Gemm"], 1, True),
    "linear bn": (lambda: [nn.Linear(8, 12), nn.BatchNorm1d(12)], (2, 8), ["Gemm"], 1, True),
    "tokens": (lambda: [nn.Linear(8, 12)], (2, 5, 8), ["MatMul", "Add"], 1, True),
    "tokens without bias": (
        lambda: [nn.Linear(8, 12, bias=False)],
        (2, 5, 8),
        ["MatMul"],
        1,
        False,
    ),
    "conv1d": (lambda: [nn.Conv1d(8, 12, 3)], (2, 8, 5), ["Conv"], 1, True),
    "conv2d": (lambda: [nn.Conv2d(8, 12, 3, stride=2)], (2, 8, 5, 5), ["Conv"], 1, True),
    "conv2d bn": (
        lambda: [nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12)],
        (2, 8, 5, 5),
        ["Conv"],
        1,
        True,
    ),
    "conv3d bn": (
        lambda: [nn.Conv3d(8, 12, 2), nn.BatchNorm3d(12)],
        (2, 8, 3, 3, 3),
        ["Conv"],
        1,
        True,
    ),
    "reflect": (
        lambda: [nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect")],
        (2, 8, 5, 5),
        ["Pad", "Conv"],
        1,
        True,
    ),
    "transposed": (
        lambda: [nn.ConvTranspose2d(8, 12, 3)],
        (2, 8, 4, 4),
        ["ConvTranspose"],
        1,
        True,
    ),
    "transposed grouped bn": (
        lambda: [nn.ConvTranspose1d(8, 12, 3, groups=4), nn.BatchNorm1d(12)],
        (2, 8, 5),
        ["ConvTranspose"],
        4,
        True,
    ),
    "grouped": (lambda: [nn.Conv2d(8, 12, 3, groups=4)], (2, 8, 5, 5), ["Conv"], 4, True),
    "grouped bn": (
        lambda: [nn.Conv1d(8, 12, 3, groups=2), nn.BatchNorm1d(12)],
        (2, 8, 5),
        ["Conv"],
        2,
        True,
    ),
    "depthwise": (lambda: [nn.Conv2d(8, 8, 3, groups=8)], (2, 8, 5, 5), ["Conv"], 8, True),
    "depthwise bn": (
        lambda: [nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)],
        (2, 8, 5, 5),
        ["Conv"],
        8,
        True,
    ),
}


class Side(nn.Module):
    """Some layers, each on an input of its own."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


def expected(kind: str, form: str, sets: int) -> Counter[str]:
    """The nodes that the formula of docs/dendrites.md needs, counted by hand."""
    _, shape, own, groups, has_bias = LAYERS[kind]
    nodes = Counter(own)
    dims = len(shape) - 2 if own[-1] in ("Conv", "ConvTranspose") else 0
    pointwise = ["Conv"] if dims else (["Gemm"] if len(shape) == 2 else ["MatMul"])
    bias = ["Add"] if has_bias and pointwise == ["MatMul"] else []

    # a second set hears the first (V), each set has its activation, and adds U a
    nodes.update(["Mul", "Add"] * (sets * (sets - 1) // 2))
    nodes.update(["Relu"] * sets)
    if form != "shared":
        nodes.update(["Mul", "Add"] * sets)
    else:  # U is a map; a Gemm adds
        nodes.update((pointwise if pointwise == ["Gemm"] else [*pointwise, "Add"]) * sets)

    if form == "tied":  # scale and offset of the neuron's own sum
        nodes.update(["Mul", "Add"] * sets)
    elif form == "full" or (form == "grouped" and groups > 2):
        nodes.update(["Split"] if groups == 1 else ["Reshape", "Split", "Reshape"])
    elif form == "grouped":
        if dims:
            nodes.update(own[-1:] * sets)
        else:  # rows of each group, once for all sets; products; and back
            back = ["MatMul", "Transpose", "Reshape", *(["Add"] if has_bias else [])]
            nodes.update(["Reshape", "Transpose", *back * sets])
    else:  # "lowrank", "shared": maps without groups, with the layer or beside it
        nodes.update([] if groups == 1 else own[-1:])
        nodes.update(["Split"] if groups == 1 or sets > 1 else [])
        if form == "lowrank":
            nodes.update([*pointwise, *bias] * sets)
    return nodes


def fused(kind: str, form: str, sets: int) -> nn.Module:
    network = nn.Sequential(*LAYERS[kind][0]())
    for _ in range(sets):
        attach_dendrites_(network, dendrites_of(form=form, groups=2, rank=2, nodes=3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    return fuse(network.eval())


def test_the_lists_are_whole():
    assert (len(LAYERS), len(FORMS), len(SETS)) == (15, 5, 2)


FEW = ("linear", "tokens without bias", "grouped bn")


@pytest.mark.parametrize(
    ("form", "sets", "kinds"),
    [
        ("full", 2, FEW),
        ("shared", 2, FEW),
        *(
            pytest.param(form, sets, tuple(LAYERS), marks=pytest.mark.slow)
            for form in FORMS
            for sets in SETS
        ),
    ],
    ids=lambda value: value if not isinstance(value, tuple) else f"{len(value)} kinds",
)
def test_no_node_is_redundant(form, sets, kinds, tmp_path):
    inputs = [torch.randn(LAYERS[kind][1]) for kind in kinds]
    write_onnx(Side([fused(kind, form, sets) for kind in kinds]), tmp_path / "a.onnx", (inputs,))

    graph = onnx.load(str(tmp_path / "a.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    for kind, output in zip(kinds, graph.output, strict=True):
        nodes, names = {}, [output.name]
        while names:  # everything between this output and the layer's input
            node = makers.get(names.pop())
            if node is not None:
                nodes[node.output[0]] = node.op_type
                names.extend(node.input)
        assert Counter(nodes.values()) == expected(kind, form, sets), kind
