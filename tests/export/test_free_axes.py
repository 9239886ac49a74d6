"""Axes that are free in a file: what was asked for, what the network allows, and proven so."""

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress import CompressionError, export_onnx
from pbcompress.core.inputs import Call
from pbcompress.export.free_axes import FreeAxis, Inputs, leaf_names, other_sizes, resized
from pbcompress.export.translation import translate
from pbcompress.onnx_files.contents import measure_onnx
from pbcompress.onnx_files.session import Session
from pbcompress.onnx_files.store import example_sizes


class Pooled(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.conv(image).relu(), 1).flatten(1))


class Flat(nn.Module):
    """Takes images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 36, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).flatten(1))


class Halves(nn.Module):
    """Takes images of even sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        return torch.cat([x, self.up(functional.max_pool2d(x, 2))], 1)


class Attention(nn.Module):
    """Two inputs of one length, which may be up to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.randn(16, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places[: ids.shape[1]]
        return self.layer(x, src_key_padding_mask=mask)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


class Baked(nn.Module):
    """Runs at any length; the graph would not."""

    def forward(self, x: Tensor) -> Tensor:
        length = int(x.shape[1])
        return x + torch.arange(length).float()


class Grid(nn.Sequential):
    """Its pooling follows any size in torch, and is translated for the one of the example."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))

    def forward(self, image):
        return super().forward(image)


IMAGE = torch.randn(1, 3, 6, 6)
TEXT = (torch.randint(20, (2, 7)), torch.zeros(2, 7, dtype=torch.bool))
SPATIAL = {"image": {2: "height", 3: "width"}}
# network, inputs, dynamic, other inputs that its file must take, sizes that were proven
FREE = {
    "spatial": (Pooled, IMAGE, SPATIAL, [(3, 3, 9, 14)], {"height": (7, 3), "width": (7, 3)}),
    "spatial, found": (
        Pooled,
        IMAGE,
        "auto",
        [(3, 3, 9, 14)],
        {"image_2": (7, 3), "image_3": (7, 3)},
    ),
    "even sizes": (
        Halves,
        IMAGE,
        SPATIAL,
        [(1, 3, 10, 4)],
        {"height": (12, 18), "width": (12, 18)},
    ),
    "one axis, from behind": (Pooled, IMAGE, {"image": {-1: "w"}}, [(2, 3, 6, 11)], {"w": (7, 3)}),
    "pooled to a grid, found": (Grid, IMAGE, "auto", [(4, 3, 6, 6)], {}),
    "none, found": (Flat, IMAGE, "auto", [(4, 3, 6, 6)], {}),
    "recurrent": (
        Recurrent,
        torch.randn(2, 7, 5),
        {"x": {1: "time"}},
        [(3, 4, 5)],
        {"time": (8, 3)},
    ),
    "text": (
        Attention,
        TEXT,
        {"ids": {1: "length"}, "mask": {1: "length"}},
        [(3, 12), (3, 12)],
        {"length": (8, 3)},
    ),
    "text, found": (Attention, TEXT, "auto", [(3, 12), (3, 12)], {"ids_1": (8, 3)}),
}
FAST = ("spatial, found", "even sizes", "recurrent", "pooled to a grid, found")


def test_the_list_is_whole():
    assert len(FREE) == 9


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FREE]
)
def test_a_file_takes_other_sizes_of_its_free_axes(name, tmp_path):
    make, inputs, dynamic, shapes, sizes = FREE[name]
    torch.manual_seed(0)
    network = make().eval()

    report = export_onnx(network, tmp_path / "a.onnx", inputs, dynamic=dynamic)

    assert report.axis_sizes == sizes
    examples = inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = [
        torch.randn(s)
        if t.is_floating_point()
        else torch.ones(s, dtype=t.dtype) * (t.dtype != torch.bool)
        for t, s in zip(examples, shapes, strict=True)
    ]
    tensors = [t.to(e.dtype) for t, e in zip(tensors, examples, strict=True)]
    session = Session(tmp_path / "a.onnx")
    (found,) = session.run(session.feeds(tensors))
    with torch.no_grad():
        np.testing.assert_allclose(found, network(*tensors).numpy(), rtol=1e-3, atol=1e-5)
    axes = onnx.load(str(tmp_path / "a.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert {a.dim_param for a in axes if a.dim_param} == {"batch", *sizes}


def test_recurrent_layers_keep_their_time_axis_the_second_time_too(tmp_path):
    network = nn.Sequential(nn.GRU(5, 6, batch_first=True)).eval()
    inputs = Inputs(network, Call((torch.randn(2, 7, 5),), {}))
    free = inputs.free({"input": {1: "time"}})
    for _ in range(2):
        found = translate(network, inputs, tmp_path / "a.onnx", free, opset=20)
        assert [axis.name for axis in found] == ["batch", "time"]


def test_none_in_place_of_a_name_fixes_the_batch_and_leaves_other_axes_free(tmp_path):
    network, x = nn.GRU(5, 6, batch_first=True).eval(), torch.randn(2, 7, 5)
    dynamic = {"input": {0: None, 1: "time"}}
    report = export_onnx(network, tmp_path / "a.onnx", x, dynamic=dynamic)
    assert (report.batch_sizes, report.axis_sizes) == ((2,), {"time": (8, 3)})
    axes = onnx.load(str(tmp_path / "a.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [a.dim_param or a.dim_value for a in axes] == [2, "time", 5]
    export_onnx(network, tmp_path / "b.onnx", x, dynamic=None)
    axes = onnx.load(str(tmp_path / "b.onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [a.dim_value for a in axes] == [2, 7, 5]


def test_a_file_knows_the_sizes_of_its_example(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    inputs = torch.randn(1, 3, 6, 8)
    export_onnx(network, tmp_path / "fixed.onnx", inputs)
    export_onnx(network, tmp_path / "free.onnx", inputs, dynamic={"input": {2: "h", 3: "w"}})

    fixed, free = (measure_onnx(tmp_path / f"{name}.onnx") for name in ("fixed", "free"))
    assert (fixed.params, fixed.flops) == (free.params, free.flops)
    feeds = Session(tmp_path / "free.onnx").random_feeds(2)
    assert [array.shape for array in feeds.values()] == [(2, 3, 6, 8)]
    assert [example_sizes({"axes": text}) for text in ("?", "[1]", '{"h": "x"}')] == [{}] * 3


@pytest.mark.parametrize(
    ("make", "inputs", "dynamic", "line"),
    [
        (Flat, IMAGE, SPATIAL, r"'height', axis 2 of 'image'.*fixes it at 6.*flatten\(1\)\)"),
        (Baked, torch.randn(2, 7), {"x": {1: "time"}}, r"at 7, at .*int\(x.shape\[1\]\)"),
        (Attention, TEXT, {"ids": {1: "length"}}, "fixes it at 7.*src_key_padding_mask"),
    ],
    ids=["flattened", "a number of Python", "one of two inputs"],
)
def test_an_axis_that_the_network_fixes_is_refused_with_the_line(
    make, inputs, dynamic, line, tmp_path
):
    with pytest.raises(CompressionError, match=line) as caught:
        export_onnx(make().eval(), tmp_path / "a.onnx", inputs, dynamic=dynamic)
    assert "test_free_axes.py, line" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"picture": {2: "h"}}, "forward was called with image"),
        ({"image": {4: "h"}}, "has shape"),
        ({"image": ["h"]}, "a dict from axis to name"),
        ({"image": {1: "x", 2: "x"}}, "One name|one name"),
        ("all", '"auto"'),
    ],
)
def test_a_choice_of_axes_that_makes_no_sense_is_refused(dynamic, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        export_onnx(Pooled(), tmp_path / "a.onnx", IMAGE, dynamic=dynamic)


def test_inputs_take_the_order_and_the_names_of_forward():
    def forward(first, second, *others, third=None, fourth=1.0):
        return first

    network = nn.Module()
    network.forward = forward
    a, b, c, d = (torch.zeros(2, n) for n in range(1, 5))

    inputs = Inputs(network, Call((a, [b, {"k": c}]), {"third": d, "fourth": 2.0}))

    assert inputs.names == ["first", "second_0", "second_1_k", "third"]
    assert [t.shape[1] for t in inputs.tensors] == [1, 2, 3, 4]
    with pytest.raises(CompressionError, match="bound to forward"):
        Inputs(network, Call((a, b), {"first": a}))


def test_leaf_names_know_keys_fields_and_indices():
    t = torch.zeros(1)
    assert leaf_names((t, [t], {"a.b": t}), "output_") == ["output_0", "output_1_0", "output_2_a_b"]


def test_resizing_repeats_and_cuts_what_belongs_together():
    call = Call((torch.arange(6.0).reshape(2, 3), torch.arange(3.0)), {})
    axis = FreeAxis("n", 3, ((0, 1), (1, 0)))

    (a, b), _ = resized(call, {axis: 5})
    (c, d), _ = resized(call, {axis: 2})

    assert a.tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]
    assert b.tolist() == [0, 1, 2, 0, 1]
    assert (c.tolist(), d.tolist()) == ([[0, 1], [3, 4]], [0, 1])


def test_other_sizes_are_those_at_which_the_network_runs():
    def run(call):
        if call.args[0].shape[0] % 2:
            raise ValueError("odd")

    sizes, problem = other_sizes(run, Call((torch.zeros(6),), {}), FreeAxis("n", 6, ((0, 0),)))
    assert sizes == [12, 18]
    assert str(problem) == "odd"
