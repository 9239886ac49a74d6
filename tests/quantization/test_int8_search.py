"""Int8 files: what is written, what is refused, and that the report is true of the file."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pbcompress as pb
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.onnx_files.network import OnnxNetwork
from pbcompress.onnx_files.session import Latency
from pbcompress.quantization import int8_search as int8
from pbcompress.quantization.converter import Quantizer
from pbcompress.quantization.int8_search import _by_harm
from tests.support.quantized import network


def data_of(model: nn.Module) -> pb.Data:
    """Images and the classes that the network gives them."""
    x = torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    train = DataLoader(TensorDataset(x[:96], y[:96]), 32, shuffle=True)
    return pb.Data(train=train, val=DataLoader(TensorDataset(x[96:], y[96:]), 16))


def fixed(monkeypatch: pytest.MonkeyPatch, *speedups: float) -> None:
    """Let the files that are timed be so many times as fast as float32."""
    times = [Latency(1.0, 1.0, 5, ratio) for ratio in (1.0, *speedups)]
    monkeypatch.setattr(int8, "interleaved_latency", lambda *_: times)


def export(model, path, x, max_drop=0.005, **choices) -> pb.ExportReport:
    return pb.export_onnx(model, path, x, quantize=pb.Int8(max_drop=max_drop), **choices)


def test_an_accepted_file_is_int8_and_the_report_is_true_of_it(tmp_path, monkeypatch) -> None:
    model, path = network(), tmp_path / "a.onnx"
    data, x = data_of(model), torch.randn(2, 3, 8, 8)
    fixed(monkeypatch, 1.5, 1.2)
    report = export(model, path, x, data=data, max_drop=0.2, metadata={"for": "a test"})
    assert metadata_of(path)["for"] == "a test"
    q = report.quantization
    assert (q.accepted, q.failures, q.scope, q.excluded) == (True, (), "products", ())
    assert (q.speedup, q.metric_before, q.samples) == (1.5, 1.0, 96)
    assert report.file_bytes == q.bytes_after == path.stat().st_size < q.bytes_before
    assert report.operations["QuantizeLinear"] == 5  # the ends, and between four operations
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = [
        (session.run(None, {session.get_inputs()[0].name: a.numpy()})[0].argmax(1) == b.numpy())
        for a, b in data.val
    ]
    assert q.metric_after == pytest.approx(np.concatenate(right).mean())
    assert "int8 taken: accuracy 1.0000" in str(report)


def test_weights_have_a_scale_for_each_output_channel(tmp_path, monkeypatch) -> None:
    model, path = network(), tmp_path / "a.onnx"
    fixed(monkeypatch, 1.5, 1.2)
    export(model, path, torch.randn(2, 3, 8, 8), data=data_of(model), max_drop=1.0)
    graph = onnx.load(path).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = [
        (tensors[n.input[0]], tensors[n.input[1]])
        for n in graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in tensors
        if tensors[n.input[0]].dtype == np.int8
    ]
    assert sorted(len(scale) for _, scale in weights) == [5, 32, 64]
    originals = {tuple(p.shape): p.detach().numpy() for p in model.parameters() if p.dim() > 1}
    for values, scale in weights:
        axis = list(values.shape).index(len(scale))
        wide = scale.reshape([-1 if d == axis else 1 for d in range(values.ndim)])
        original = originals.get(values.shape, originals.get(values.T.shape, np.zeros(0)).T)
        gap = np.abs(values * wide - original)
        assert (gap <= wide / 2 + 1e-7).all()


@pytest.mark.parametrize("speedups", [(0.5, 0.9), (0.2, 0.99)])
def test_a_slower_file_is_not_taken_and_float32_is_written(speedups, tmp_path, monkeypatch) -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    plain = pb.export_onnx(model, tmp_path / "plain.onnx", x)
    fixed(monkeypatch, *speedups)
    report = export(model, tmp_path / "a.onnx", x, data=data_of(model), max_drop=1.0)
    q = report.quantization
    assert (q.accepted, q.failures, q.scope, q.speedup) == (False, ("speed",), "all", speedups[1])
    assert report.operations == plain.operations
    assert report.file_bytes == plain.file_bytes
    assert "int8 not taken (speed)" in str(report)


def test_a_larger_file_is_not_taken(tmp_path, monkeypatch) -> None:
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.randn(40, 2)
    with torch.no_grad():
        batches = [(x, model(x).argmax(1))]
    fixed(monkeypatch, 2.0, 2.0)
    choices = {"data": pb.Data(train=batches, val=batches), "max_drop": 1.0}
    q = export(model, tmp_path / "a.onnx", x, **choices).quantization
    assert q.failures == ("size",)
    assert q.bytes_after >= q.bytes_before


def test_a_metric_that_rounding_breaks_is_a_failure_of_accuracy(tmp_path, monkeypatch) -> None:
    model, x = network(), torch.randn(32, 3, 8, 8)
    with torch.no_grad():
        batches = [(x, model(x))]
    task = pb.Task(
        loss=nn.functional.mse_loss,
        metric=lambda y, t: (y - t).abs().max().item(),
        higher_is_better=False,
        name="worst",
    )
    fixed(monkeypatch, 2.0, 2.0)
    choices = {"data": pb.Data(train=batches, val=batches), "task": task, "max_drop": 0.0}
    report = export(model, tmp_path / "a.onnx", x, **choices)
    q = report.quantization
    assert (q.accepted, q.failures, q.metric_name) == (False, ("accuracy",), "worst")
    assert q.metric_after > q.metric_before
    assert len(q.excluded) == 1  # of three: one more would leave nothing to gain
    assert "QuantizeLinear" not in report.operations


class Stretched(nn.Module):
    """Makes one channel so large that it leaves no levels for the others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([1000 * x[:, :1], x[:, 1:]], 1)


@pytest.mark.parametrize("bits", [7, 8])
def test_the_node_that_does_most_harm_goes_first_and_alone_back_to_float32(
    tmp_path, monkeypatch, bits
) -> None:
    monkeypatch.setattr("pbcompress.quantization.converter.weight_bits", lambda: bits)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), Stretched(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    with torch.no_grad():
        model[3].weight[:, 0] = 0  # nobody reads the large channel
    path, x = tmp_path / "a.onnx", torch.randn(64, 8)
    pb.export_onnx(model, path, x)
    feeds = [OnnxNetwork(path, model(x)).session.feeds([x])]
    quantizer = Quantizer(path, feeds, tmp_path)
    order = _by_harm(quantizer)
    assert len(order) == len(quantizer.products) == 3
    assert order[0] == quantizer.products[1]


class Pair(nn.Module):
    """Two inputs by name, several outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.a(x).relu() * scale
        return {"scores": self.b(hidden), "hidden": hidden}


def test_named_inputs_and_outputs_in_a_dict(tmp_path, monkeypatch) -> None:
    model, x, scale = Pair().eval(), torch.randn(40, 6), torch.rand(40, 1)
    batch = ({"x": x, "scale": scale}, model(x, scale)["scores"].argmax(1))
    data = pb.Data(train=[batch], val=[batch])
    task = pb.Task(
        loss=lambda y, t: nn.functional.cross_entropy(y["scores"], t),
        metric=lambda y, t: pb.Task().metric(y["scores"], t),
        name="right",
    )
    fixed(monkeypatch, 2.0, 2.0)
    example = {"x": x[:3], "scale": scale[:3]}
    q = export(model, tmp_path / "a.onnx", example, data=data, task=task, max_drop=1.0).quantization
    assert q.metric_before == 1.0
    assert 0.5 < q.metric_after <= 1


def test_nothing_else_changes(tmp_path, monkeypatch) -> None:
    model, root = network(), logging.getLogger()
    data, state = data_of(model), torch.get_rng_state()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    fixed(monkeypatch, 2.0, 2.0)
    export(model, tmp_path / "a.onnx", torch.randn(2, 3, 8, 8), data=data)
    torch.set_rng_state(state)
    state = torch.get_rng_state()
    export(model, tmp_path / "a.onnx", torch.ones(2, 3, 8, 8), data=data)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert not root.disabled
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not model._forward_hooks


REFUSED = {
    "no data": ({}, CompressionError, "needs data=Data"),
    "another name": ({"quantize": "int4"}, CompressionError, "quantize='int4' was asked for"),
    "nothing to calibrate": ({"train": []}, CompressionError, "gave no input to calibrate with"),
    "wrong shape": (
        {"train": torch.randn(4, 3, 9, 9)},
        CompressionError,
        r"Data.train was to calibrate 8 bits.*of shape \(.*, 3, 8, 8\); a batch gave float32 of "
        r"shape \(4, 3, 9, 9\)",
    ),
    "wrong type": ({"train": torch.randn(4, 3, 8, 8).double()}, CompressionError, "gave float64"),
    "too few axes": ({"train": torch.randn(3, 8, 8)}, CompressionError, r"shape \(3, 8, 8\)"),
    "a metric that raises": ({"metric": 1}, ZeroDivisionError, "division"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_leaves_a_former_file(case: str, tmp_path) -> None:
    choices, error, message = REFUSED[case]
    choices = dict(choices)
    model, path = network(), tmp_path / "a.onnx"
    path.write_bytes(b"former")
    data = data_of(model)
    if "train" in choices:
        train = choices.pop("train")
        batches = [(train, torch.zeros(4).long())] if len(train) else []
        choices["data"] = pb.Data(train=batches, val=data.val)
    if choices.pop("metric", None):
        choices |= {"data": data, "task": pb.Task(metric=lambda *_: 1 // 0)}
    choices = {"quantize": "int8"} | choices
    with pytest.raises(error, match=message):
        pb.export_onnx(model, path, torch.randn(2, 3, 8, 8), **choices)
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_sizes_that_cannot_be_followed_leave_no_word_and_no_file(
    tmp_path, monkeypatch, caplog
) -> None:
    """The library logs a traceback, and writes what it got so far into the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 4]) for name in ("x", "y")]
    sizes = numpy_helper.from_array(np.array([2**31, 2**31]), "s")
    large = numpy_helper.from_array(np.ones((4, 999), np.float32), "w")  # goes into a file beside
    nodes = [onnx.helper.make_node("Expand", ["x", "s"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [sizes, large])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "a")
    Quantizer(tmp_path / "a", [{"x": np.ones((2, 4), np.float32)}], tmp_path)
    assert caplog.text == ""
    assert list((tmp_path / "here").iterdir()) == []
    assert logging.getLogger("onnxruntime").propagate
