"""Fewer bits: what is refused and by which guard, fp16, calibrations, and the recovery."""

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import pbcompress as pb
from pbcompress.core.inputs import as_call
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.onnx_files.network import OnnxNetwork
from pbcompress.onnx_files.session import Latency
from pbcompress.quantization import converter as quantization
from pbcompress.quantization import guards as precision
from pbcompress.quantization import int8_search as int8
from pbcompress.quantization.converter import METHODS, Quantizer, weight_bits
from pbcompress.quantization.guards import _drop, way_named
from pbcompress.quantization.int8_search import Int8Search, calibration_feeds
from pbcompress.quantization.rounding_aware import train_quantized
from tests.support.quantized import network


def data_of(model: nn.Module) -> pb.Data:
    """Images and the classes that the network gives them."""
    x = torch.randn(192, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    return pb.Data(train=[(x[:96], y[:96])], val=[(x[96:], y[96:])])


def unequal(spread: float) -> nn.Module:
    """Return that network, its channels of other ranges, its function the same."""
    model = network()
    unequalize_(model, spread)
    return model


def unequalize_(model: nn.Module, spread: float) -> None:
    """Multiply the channels between layers with ReLU, and divide them again."""
    layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, reader in pairwise(layers):
            factor = (spread * torch.randn(len(layer.weight), generator=generator)).exp()
            layer.weight.mul_(factor.view(-1, 1, 1, 1))
            layer.bias.mul_(factor)
            columns = reader.weight.view(len(reader.weight), len(factor), -1)
            columns.div_(factor.view(1, -1, 1))


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch):
    """Let all files be so many times as fast as float32."""

    def fix(speedup: float) -> None:
        def times(sessions, *_):
            return [Latency(1.0, 1.0, 5, speedup) for _ in sessions]

        monkeypatch.setattr(int8, "interleaved_latency", times)

    return fix


def export(model, path, data, **choices) -> pb.ExportReport:
    return pb.export_onnx(model, path, torch.randn(2, 3, 8, 8), data=data, **choices)


# --- fp16 and bf16 --------------------------------------------------------------------------------


def test_an_fp16_file_has_half_of_the_weights_bytes(tmp_path, fixed) -> None:
    model, path = network(), tmp_path / "a.onnx"
    fixed(0.7)
    report = export(model, path, data_of(model), quantize="fp16", metadata={"for": "a test"})
    q = report.quantization
    assert (q.precision, q.accepted, q.failures, q.scope, q.method) == (
        "fp16",
        True,
        (),
        None,
        None,
    )
    assert (q.least_speedup, q.speedup, q.metric_before) == (0.5, 0.7, 1.0)
    assert report.file_bytes == q.bytes_after == path.stat().st_size < q.bytes_before
    assert metadata_of(path)["for"] == "a test"
    graph = onnx.load(path).graph
    weights = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) > 1]
    assert [w.dtype for w in weights] == [np.float16] * 3
    ends = [*graph.input, *graph.output]
    assert {e.type.tensor_type.elem_type for e in ends} == {TensorProto.FLOAT}
    x = torch.randn(7, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = model(x).detach().numpy()
    assert 0 < np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize(("speedup", "failures"), [(0.5, ()), (0.49, ("speed",))])
def test_fp16_may_be_slower_up_to_half_the_speed(speedup, failures, tmp_path, fixed) -> None:
    model = network()
    fixed(speedup)
    report = export(model, tmp_path / "a.onnx", data_of(model), quantize="fp16")
    assert report.quantization.failures == failures
    assert ("Cast" in report.operations) == (not failures)


def test_numbers_beyond_fp16_are_a_failure_of_accuracy(tmp_path, fixed) -> None:
    model, path = network(), tmp_path / "a.onnx"
    with torch.no_grad():
        model[0].weight *= 1e6  # 65504 is the largest
        model[2].weight *= 1e-6
        model[2].bias *= 1e-6
    fixed(1.0)
    report = export(model, path, data_of(network()), quantize="fp16")
    assert report.quantization.failures == ("accuracy",)
    assert "fp16 not taken (accuracy)" in str(report)
    assert {t.data_type for t in onnx.load(path).graph.initializer} <= {
        TensorProto.FLOAT, TensorProto.INT64,
    }  # fmt: skip


def test_bf16_is_refused_because_the_runtime_has_no_products(tmp_path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [2, 2]) for n in "xyz"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "y"], ["z"])], "g", ends[:2], ends[2:]
    )
    opset = helper.make_opsetid("", 20)
    content = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="implementation for MatMul"):
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with pytest.raises(
        CompressionError, match=r"'bf16' was asked for; ONNX Runtime .* no bfloat16"
    ):
        export(network(), tmp_path / "a.onnx", data_of(network()), quantize="bf16")


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        (
            "fp16",
            {"recover_epochs": 2},
            "'fp16' was .* Fp16 has no 'recover_epochs'; it has max_drop",
        ),
        ("int8", {"recover_epochs": -1}, "'int8' was .*recover_epochs .* -1; .* number from 0"),
        ("int8", {"recover_epochs": 1.5}, "'int8' was .*recover_epochs .* 1.5; .* number from 0"),
        ("int8", {"max_drop": -0.1}, "'int8' was .*max_drop .* -0.1; it must be zero or positive"),
        ("fp16", {"max_drop": float("nan")}, "'fp16' was .*max_drop .* nan; .* zero or positive"),
        ("int8", {"recover_epochs": "4"}, "'int8' was .*recover_epochs .* '4'; .* number from 0"),
        ("fp16", {"max_drop": "low"}, "'fp16' was .*max_drop .* 'low'; .* zero or positive"),
        ("int4", {}, "quantize='int4' was asked for"),
    ],
)
def test_senseless_choices(name, choices, message) -> None:
    with pytest.raises(CompressionError, match=message):
        way_named(name, choices)


def test_a_name_stands_for_the_way_with_its_defaults() -> None:
    assert way_named("int8") == pb.Int8() == pb.Int8(max_drop=None, recover_epochs=0)
    assert way_named("fp16", {"max_drop": 0.1}) == pb.Fp16(max_drop=0.1) != pb.Fp16()


# --- the search of int8 ---------------------------------------------------------------------------


def searched(tmp_path, is_good) -> list[str]:
    """Return the names of the files that a search writes."""
    model, path = network(), tmp_path / "a.onnx"
    data = data_of(model)
    export(model, path, data)
    folder = tmp_path / "drafts"
    folder.mkdir()
    net = OnnxNetwork(path, model(data.val[0][0]))
    Int8Search(net, path, folder, data, pb.Task(), is_good).best()
    return sorted(p.stem for p in folder.glob("*-*-*.onnx"))


def test_what_passes_at_first_is_not_searched_further(tmp_path) -> None:
    assert searched(tmp_path, lambda _: True) == ["all-minmax-0", "products-minmax-0"]


def test_calibrations_are_tried_and_then_nodes_go_back(tmp_path) -> None:
    found = searched(tmp_path, lambda _: False)
    assert len(METHODS) == 3
    for scope in ("all", "products"):
        own = [name for name in found if name.startswith(scope)]
        assert {f"{scope}-{method}-0" for method in METHODS} < set(own)
        assert len(own) == 4  # of three nodes one goes back


def test_methods_give_other_ranges_and_leave_the_output_silent(tmp_path, capsys) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0)) ** 3  # long tails
    pb.export_onnx(model, tmp_path / "a.onnx", x[:2])
    quantizer = Quantizer(
        tmp_path / "a.onnx", [{"input": a.numpy()} for a in x.split(64)], tmp_path
    )
    ranges = {}
    for method in METHODS:
        quantizer.write(tmp_path / "b.onnx", method=method)
        tensors = {
            t.name: numpy_helper.to_array(t)
            for t in onnx.load(tmp_path / "b.onnx").graph.initializer
        }
        ranges[method] = float(tensors["input_scale"].item() * 255)
    assert ranges["minmax"] == pytest.approx((x.max() - x.min()).item(), rel=1e-4)
    assert ranges["percentile"] < ranges["minmax"]
    assert ranges["entropy"] < ranges["minmax"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("machine", "has_vnni", "bits", "kind"),
    [
        ("x86_64", True, 8, np.uint8),
        ("AMD64", False, 7, np.uint8),
        ("arm64", False, 8, np.int8),
    ],
)
def test_types_are_those_of_the_machines_kernels(
    machine, has_vnni, bits, kind, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(quantization.platform, "machine", lambda: machine)
    monkeypatch.setattr(quantization, "_has_vnni", lambda: has_vnni)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(64, 8)
    pb.export_onnx(model, tmp_path / "a.onnx", x[:2])
    Quantizer(tmp_path / "a.onnx", [{"input": x.numpy()}], tmp_path).write(tmp_path / "b.onnx")
    graph = onnx.load(tmp_path / "b.onnx").graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = [t for t in tensors.values() if t.dtype == np.int8 and t.ndim == 2]
    assert len(weights) == 2
    assert quantization.weight_bits() == bits
    assert max(np.abs(w.astype(int)).max() for w in weights) in (
        2 ** (bits - 1),
        2 ** (bits - 1) - 1,
    )
    zeros = [tensors[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {z.dtype for z in zeros} == {np.dtype(kind)}


@pytest.mark.parametrize("way", [pb.Int8(max_drop=1.0), pb.Fp16(max_drop=1.0)])
def test_a_file_with_a_fixed_batch(way, tmp_path) -> None:
    model, x = network(), torch.randn(12, 3, 8, 8)
    with torch.no_grad():
        batches = [(part, model(part).argmax(1)) for part in x.split(4)]
    choices = {"data": pb.Data(batches, batches), "dynamic": None}
    path = tmp_path / "a.onnx"
    q = pb.export_onnx(model, path, x[:4], quantize=way, **choices).quantization
    assert set(q.failures) <= {"speed"}
    assert q.metric_before == 1.0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [4, 3, 8, 8]


def test_a_scope_that_cannot_be_quantised_leaves_the_other(tmp_path, monkeypatch, fixed) -> None:
    model, write = network(), Quantizer.write

    def refuse(self, target, *, scope="products", **choices) -> None:
        if scope in refused:
            raise CompressionError(f"no {scope}")
        write(self, target, scope=scope, **choices)

    monkeypatch.setattr(Quantizer, "write", refuse)
    fixed(2.0)
    refused = {"all"}
    way = pb.Int8(max_drop=1.0)
    q = export(model, tmp_path / "a.onnx", data_of(model), quantize=way).quantization
    assert (q.accepted, q.scope) == (True, "products")
    refused = {"all", "products"}
    with pytest.raises(CompressionError, match="no all"):
        export(model, tmp_path / "a.onnx", data_of(model), quantize="int8")


# --- the recovery ---------------------------------------------------------------------------------


def test_a_recovery_that_helps_is_taken(tmp_path, monkeypatch, fixed) -> None:
    model, path = unequal(3.0), tmp_path / "a.onnx"
    calls = []

    def train(given, call, data, task, **choices):
        calls.append(choices)
        return network()  # the same function, its channels equal

    monkeypatch.setattr(precision, "train_quantized", train)
    monkeypatch.setattr(int8, "_by_harm", lambda quantizer: tuple(quantizer.products))
    fixed(2.0)
    way = pb.Int8(max_drop=0.03, recover_epochs=5)
    report = export(model, path, data_of(network()), metadata={"for": "a test"}, quantize=way)
    q = report.quantization
    assert [(c["epochs"], c["samples"]) for c in calls] == [(5, 256)]
    assert (q.accepted, q.recovered, q.metric_before) == (True, True, 1.0)
    assert q.metric_untrained < 0.97 <= q.metric_after
    assert f"recovered from {q.metric_untrained:.4f}" in str(report)
    assert metadata_of(path)["for"] == "a test"
    assert "DequantizeLinear" in report.operations


def test_a_recovery_that_does_not_help_leaves_the_float32_file(
    tmp_path, monkeypatch, fixed
) -> None:
    model, path = unequal(3.0), tmp_path / "a.onnx"

    def worse(*_, **__):
        found = network()
        nn.init.zeros_(found[-1].weight)
        return found

    monkeypatch.setattr(precision, "train_quantized", worse)
    fixed(2.0)
    way = pb.Int8(max_drop=0.0, recover_epochs=1)
    report = export(model, path, data_of(network()), quantize=way)
    q = report.quantization
    assert (q.accepted, q.recovered, q.failures) == (False, False, ("accuracy",))
    assert q.metric_untrained == q.metric_after
    assert "recovery did not better" in str(report)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-4)


def test_what_passes_is_not_trained(tmp_path, monkeypatch, fixed) -> None:
    model = network()
    monkeypatch.setattr(precision, "train_quantized", lambda *_, **__: 1 / 0)
    for speedup, failures in ((2.0, ()), (0.5, ("speed",))):  # training makes nothing faster
        fixed(speedup)
        way = pb.Int8(max_drop=0.5, recover_epochs=1)
        q = export(model, tmp_path / "a.onnx", data_of(model), quantize=way).quantization
        assert (q.failures, q.metric_untrained) == (failures, None)


def int8_accuracy(model: nn.Module, x: torch.Tensor, data: pb.Data, folder) -> float:
    """Return what calibration alone makes of a network, through ONNX Runtime."""
    folder.mkdir()
    pb.export_onnx(model, folder / "a.onnx", x)
    net = OnnxNetwork(folder / "a.onnx", model(x))
    feeds = calibration_feeds(net, data, pb.Task())
    Quantizer(folder / "a.onnx", feeds, folder).write(folder / "b.onnx")
    return pb.evaluate(OnnxNetwork(folder / "b.onnx", model(x)), data.val, pb.Task())[0]


@pytest.mark.slow
def test_a_recovery_on_real_data_wins_back_what_rounding_lost(tmp_path) -> None:
    from model_zoo.datasets import load_loaders

    loaders = load_loaders("digits", batch_size=64)
    data = pb.Data(loaders.train, loaders.val)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 36, 10),
    )  # fmt: skip
    engine = pb.EngineConfig(channels_last=False)  # a network that rounding hurts
    recovery = pb.RecoveryConfig(epochs=10, engine=engine)
    config = pb.CompressConfig(dendrites=pb.DendriteConfig(max_sets=0), recovery=recovery)
    pb.recover_(model, data, config=config)
    unequalize_(model, 1.5)
    before, _ = pb.evaluate(model, data.val, pb.Task())
    x = next(iter(loaders.val))[0][:2]
    plain = int8_accuracy(model, x, data, tmp_path / "plain")
    choices = {"epochs": 8, "bits": weight_bits(), "samples": 256}
    trained = train_quantized(model, as_call(x), data, pb.Task(), **choices)
    after = int8_accuracy(trained, x, data, tmp_path / "trained")
    assert before - plain > 0.02
    assert before - after <= 0.005


# --- metrics in any unit --------------------------------------------------------------------------


def regression(unit: float) -> tuple[nn.Module, pb.Data]:
    """A network of this unit that is right, but for noise, and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    with torch.no_grad():
        model[2].weight *= unit
        model[2].bias *= unit
        x = torch.randn(128, 4)
        y = model(x) + 0.01 * unit * torch.randn(128, 1)
    return model, pb.Data(train=[(x[:64], y[:64])], val=[(x[64:], y[64:])])


def mse(output: torch.Tensor, target: torch.Tensor) -> float:
    return (output.double() - target.double()).square().mean().item()


@pytest.mark.parametrize("unit", [1e-5, 1.0, 1e4])
def test_the_guard_is_a_share_of_the_metrics_range_in_any_unit(unit, tmp_path, fixed) -> None:
    model, data = regression(unit)
    fixed(2.0)
    task = pb.Task(loss=nn.functional.mse_loss, metric=mse, higher_is_better=False)
    path = tmp_path / "a.onnx"
    q = pb.export_onnx(model, path, torch.randn(2, 4), quantize="int8", data=data, task=task)
    q = q.quantization
    x, y = data.val[0]
    with torch.no_grad():
        out = model(x).double().numpy()
    y = y.double().numpy()
    by_chance = np.square(out.mean() - y).mean()  # half of that over all pairs of samples
    own = np.square(out - y).mean()
    assert q.guard == pytest.approx(0.005 * (by_chance - own), rel=0.1)
    assert q.metric_before == pytest.approx(own, rel=1e-3)
    assert ("accuracy" in q.failures) == (q.metric_after - q.metric_before > q.guard)
    shown = str(q).partition("mse ")[2].partition(" ->")[0]
    assert float(shown) == pytest.approx(q.metric_before, rel=5e-3)  # never 0.0000


def test_a_metric_that_fell_to_the_mean_is_no_good_in_small_units() -> None:
    _, data = regression(1e-5)
    y = data.val[0][1]
    task = pb.Task(metric=mse, higher_is_better=False)
    assert _drop(task, y, y, 64) < 0.05 * mse(y.mean().expand_as(y), y)
    assert _drop(pb.Task(), y, y, 64) == 0.005


def confident(samples: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of four classes that are sure of the right one."""
    target = torch.arange(samples) % 4
    generator = torch.Generator().manual_seed(0)
    return 15 * torch.eye(4)[target] + torch.randn(samples, 4, generator=generator), target


def test_a_metric_without_a_bound_is_held_to_what_knows_nothing() -> None:
    """Sure and wrong, a perplexity is thousands; to know nothing is one of four classes."""
    output, target = confident()
    cross_entropy = nn.functional.cross_entropy
    for metric, most in ((lambda o, t: cross_entropy(o, t).exp(), 4 - 1), (cross_entropy, 1.4)):
        task = pb.Task(metric=metric, higher_is_better=False)
        assert 0.9 * most < _drop(task, output, target, len(target)) / 0.005 < 1.1 * most


def test_a_metric_that_is_not_defined_where_nothing_varies_has_a_range() -> None:
    x = torch.linspace(-1, 1, 50)[:, None]

    def correlation(output: torch.Tensor, target: torch.Tensor) -> float:
        value = np.corrcoef(output[:, 0], target[:, 0])[0, 1]  # warns, which is an error here
        return float(value)

    drop = _drop(pb.Task(metric=correlation), x + 0.01 * x**2, x, 50)
    assert drop == pytest.approx(0.005, rel=0.2)


UNKNOWN = {
    "one sample": (mse, torch.zeros(1, 1), 1, "not one for each sample"),
    "no samples": (lambda o, t: 1.0, torch.tensor(1.0), 3, "not one for each sample"),
    "an error": (lambda o, t: 1 / 0, torch.zeros(3, 1), 3, "it raised ZeroDivisionError"),
    "not finite": (lambda o, t: float("nan"), torch.zeros(3, 1), 3, "by chance it is not finite"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_without_a_range_the_drop_must_be_given(name) -> None:
    metric, values, samples, reason = UNKNOWN[name]
    with pytest.raises(CompressionError, match=f"{reason}.*max_drop=") as caught:
        _drop(pb.Task(metric=metric), values, values, samples)
    assert "Say how much worse" in str(caught.value)
