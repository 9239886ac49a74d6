"""Benchmarks of files: every number against another way to get it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import pbcompress as pb
from pbcompress.cli import main
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.onnxfile import measure_onnx, peak_activation_bytes
from pbcompress.quantization import Quantizer
from pbcompress.runtime import Session, peak_memory


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    large = nn.Sequential(nn.Flatten(), nn.Linear(192, 4096), nn.ReLU(), nn.Linear(4096, 2))
    x = torch.zeros(2, 3, 8, 8)
    pb.export_onnx(small, folder / "small.onnx", x)
    pb.export_onnx(large, folder / "large.onnx", x)
    pb.export_onnx(small, folder / "fixed.onnx", x[:1], dynamic_batch=False)
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
