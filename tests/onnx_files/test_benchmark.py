"""Benchmarks of files: every number against another way to get it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import pbcompress as pb
from pbcompress.cli.main import main
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.onnx_files import contents as onnxfile
from pbcompress.onnx_files.apart import peak_memory
from pbcompress.onnx_files.contents import measure_onnx, node_owners, peak_activation_bytes
from pbcompress.onnx_files.session import Session
from pbcompress.onnx_files.store import values_of
from pbcompress.quantization.converter import Quantizer
from tests.support.configs import FORMS, dendrites_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    large = nn.Sequential(nn.Flatten(), nn.Linear(192, 4096), nn.ReLU(), nn.Linear(4096, 2))
    x = torch.zeros(2, 3, 8, 8)
    pb.export_onnx(small, folder / "small.onnx", x)
    pb.export_onnx(large, folder / "large.onnx", x)
    pb.export_onnx(small, folder / "fixed.onnx", x[:1], dynamic=None)
    return folder


def test_a_benchmark_holds_what_the_files_hold(files) -> None:
    names = ["small.onnx", "large.onnx", "fixed.onnx"]
    found = pb.bench([files / n for n in names], rounds=10, batch=7, profile=True)
    assert [f.name for f in found.files] == names
    assert (found.threads, found.batch) == (1, 7)
    for file in found.files:
        cost = measure_onnx(files / file.name)
        assert (file.params, file.flops, file.file_bytes) == (
            cost.params, cost.flops, cost.file_bytes,
        )  # fmt: skip
        assert 0 < file.latency.median <= file.latency.p95
        assert file.kernels
        assert all(ms >= 0 for ms in file.kernels.values())
    small, large, fixed = found.files
    assert small.latency.ratio == 1 == small.throughput.ratio
    assert fixed.throughput is None
    assert large.peak_memory > 192 * 4096 * 4  # its weights
    text = str(found)
    assert "batch 7, p50 ms" in text
    assert "1 thread(s)" in text
    assert "the slowest are" in text
    assert found.to_dict()["files"][1]["name"] == "large.onnx"


def test_memory_grows_with_the_weights(files) -> None:
    peaks = [
        peak_memory(files / name, Session(files / name).random_feeds(1))
        for name in ("small.onnx", "large.onnx")
    ]
    if None in peaks:
        pytest.skip("this system does not say")
    assert peaks[1] - peaks[0] > 2_000_000  # of 3.2 million


def save(graph, path) -> None:
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


def chain(path, kinds, shapes):
    """Write a file of nodes (operation, inputs, output) with values of given float shapes."""
    info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    nodes = [helper.make_node(op, list(read), [out], **more) for op, read, out, more in kinds]
    last = kinds[-1][2]
    graph = helper.make_graph(nodes, "g", [info["x"]], [info[last]])
    save(graph, path)
    return path


def test_peak_activations_by_hand(tmp_path) -> None:
    # x (8) -> a (8) -> c = a + x: x, a and c are alive at once; then c alone -> d
    kinds = [
        ("Relu", ["x"], "a", {}),
        ("Add", ["a", "x"], "c", {}),
        ("ReduceMean", ["c"], "d", {"keepdims": 1}),
    ]
    shapes = {"x": ["n", 8], "d": [1, 1]}
    assert peak_activation_bytes(chain(tmp_path / "a.onnx", kinds, shapes)) == 3 * 8 * 4
    kinds.insert(1, ("Identity", ["a"], "b", {}))  # a view takes no place, and keeps what it shows
    kinds[2] = ("Add", ["b", "x"], "c", {})
    assert peak_activation_bytes(chain(tmp_path / "b.onnx", kinds, shapes)) == 3 * 8 * 4
    line = [("Relu", ["x"], "a", {}), ("Relu", ["a"], "b", {}), ("Relu", ["b"], "c", {})]
    shapes = {"x": ["n", 8], "c": ["n", 8]}
    assert peak_activation_bytes(chain(tmp_path / "c.onnx", line, shapes)) == 2 * 8 * 4


def test_dendrites_widen_nothing_between_layers(tmp_path) -> None:
    network, x = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()), torch.zeros(1, 8, 6, 6)
    pb.export_onnx(network, tmp_path / "a.onnx", x)
    one = 8 * 6 * 6 * 4
    assert peak_activation_bytes(tmp_path / "a.onnx") == 2 * one
    pb.attach_dendrites_(network)
    nn.init.ones_(network[0].gains[0])
    pb.export_onnx(pb.fuse(network), tmp_path / "b.onnx", x)
    assert peak_activation_bytes(tmp_path / "b.onnx") == 4 * one  # the wide result and its parts


def crossing(path, layers) -> dict[str, int]:
    """Return the bytes of what each layer gives to others, by layer, at batch 1."""
    values, owners = values_of(onnx.load(path)), node_owners(path, layers)
    found = {}
    for node in onnx.load(path).graph.node:
        for name in node.input:
            if name in owners and owners[name] != owners[node.output[0]]:
                found[owners[name]] = onnxfile._bytes_of(*values[name])
    return found


def test_every_form_of_dendrite_is_tried() -> None:
    assert len(FORMS) == 5


@pytest.mark.parametrize(
    "form",
    [f if f in ("full", "shared") else pytest.param(f, marks=pytest.mark.slow) for f in FORMS],
)
def test_dendrites_of_any_form_widen_no_tensor_between_layers(form: str, tmp_path) -> None:
    network, x = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 2),
    ), torch.zeros(1, 4, 6, 6)  # fmt: skip
    layers, sets = ["0", "2", "5", "7"], 2
    pb.export_onnx(network, tmp_path / "a.onnx", x)
    for _ in range(sets):
        pb.attach_dendrites_(network, dendrites_of(form=form, nodes=2))
    for layer in (m for m in network.modules() if isinstance(m, pb.DendriteLayer)):
        for gains in layer.gains:
            nn.init.ones_(gains)
    pb.export_onnx(pb.fuse(network), tmp_path / "b.onnx", x)
    plain = crossing(tmp_path / "a.onnx", layers)
    assert plain == {"0": 8 * 36 * 4, "2": 16 * 16 * 4, "5": 12 * 4}
    assert crossing(tmp_path / "b.onnx", layers) == plain
    before, after = (peak_activation_bytes(tmp_path / f"{n}.onnx") for n in "ab")
    within = 2 * (sets + 1) * max(plain.values())  # one layer's wide result, and its parts
    assert before < after <= before + within


def test_a_fixed_batch_is_told_and_samples_are_counted(tmp_path, files) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    path = tmp_path / "four.onnx"
    pb.export_onnx(network, path, torch.zeros(4, 3, 8, 8), dynamic=None)
    found = pb.bench([files / "small.onnx", path], rounds=5)
    assert [file.batch for file in found.files] == [1, 4]
    four = found.files[1]
    assert four.throughput is None
    assert four.flops == 4 * 192 * 8
    rows = {line.split("  ")[0].strip("| "): line for line in str(found).splitlines()}
    assert f"{4000 / four.latency.median:,.0f}" in rows["small batch, samples/s"]
    assert f"{4 * four.latency.ratio:.2f}x" in rows["small batch, speed against the first"]


def test_an_absent_provider_is_named_with_those_that_are_there(files, capsys) -> None:
    message = r"NoneSuchProvider was asked for; ONNX Runtime .* has .*CPUExecutionProvider"
    with pytest.raises(CompressionError, match=message):
        pb.bench([files / "small.onnx"], provider="NoneSuchProvider")
    assert main(["bench", str(files / "small.onnx"), "--provider", "NoneSuchProvider"]) == 1
    assert "NoneSuchProvider was asked for" in capsys.readouterr().err


def test_inputs_that_fit_into_no_memory(tmp_path) -> None:
    shapes = {"x": ["n", 2**40], "a": ["n", 2**40]}
    path = chain(tmp_path / "a.onnx", [("Relu", ["x"], "a", {})], shapes)
    with pytest.raises(CompressionError, match=r"has the shape \[1, 1099511627776\]"):
        pb.bench([path])


def test_an_int8_file_has_the_weights_of_its_float32_form(files, tmp_path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    (name,) = Session(files / "small.onnx").input_names
    Quantizer(files / "small.onnx", [{name: x}], tmp_path).write(tmp_path / "int8.onnx")
    before, after = measure_onnx(files / "small.onnx"), measure_onnx(tmp_path / "int8.onnx")
    assert (after.params, after.flops) == (before.params, before.flops)
    assert after.params == 4 * 27 + 4 + 288 + 2


@pytest.mark.parametrize("choices", [{"threads": 0}, {"batch": 0}, {"rounds": 4}, {"paths": []}])
def test_arguments_out_of_range(choices, files) -> None:
    choices = {"paths": [files / "small.onnx"]} | choices
    with pytest.raises(CompressionError, match="bench takes one file or more"):
        pb.bench(**choices)


def test_a_broken_or_missing_file_and_free_axes(tmp_path, files) -> None:
    (tmp_path / "a.onnx").write_bytes((files / "small.onnx").read_bytes()[:200])
    with pytest.raises(StateMismatchError, match="no whole ONNX file"):
        pb.bench([tmp_path / "a.onnx"])
    with pytest.raises(StateMismatchError, match="is not there"):
        pb.bench([tmp_path / "b.onnx"])
    shapes = {"x": ["n", "m"], "a": ["n", "m"]}
    path = chain(tmp_path / "c.onnx", [("Relu", ["x"], "a", {})], shapes)
    with pytest.raises(CompressionError, match="no free axis but the first"):
        pb.bench([path])


def test_a_file_without_a_sample_is_named(tmp_path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [0, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    save(graph, tmp_path / "a.onnx")
    with pytest.raises(CompressionError, match=r"'x' has the shape \(0, 4\), which holds nothing"):
        pb.bench([tmp_path / "a.onnx"], rounds=5)


def test_random_inputs_have_the_types_of_the_file(tmp_path) -> None:
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, t, ["n", 3])
        for n, t in (("i", TensorProto.INT64), ("x", TensorProto.FLOAT), ("y", TensorProto.FLOAT))
    ]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:])
    save(graph, tmp_path / "a.onnx")
    feeds = Session(tmp_path / "a.onnx").random_feeds(5)
    assert {k: (v.dtype, v.shape) for k, v in feeds.items()} == {
        "i": (np.int64, (5, 3)),
        "x": (np.float32, (5, 3)),
    }
    assert pb.bench([tmp_path / "a.onnx"], rounds=5).files[0].params == 0


def test_the_command_prints_a_table_or_json(files, capsys) -> None:
    assert main(["bench", str(files / "small.onnx"), "--rounds", "5"]) == 0
    assert "peak activations, bytes" in capsys.readouterr().out
    assert main(["bench", str(files / "small.onnx"), "--rounds", "5", "--json"]) == 0
    assert '"threads": 1' in capsys.readouterr().out
    assert main(["bench", str(files / "none.onnx")]) == 1
    assert "is not there" in capsys.readouterr().err
