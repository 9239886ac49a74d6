"""Files that may be anyone's run in a process of their own, within bounds that hold."""

import gc
import os
import signal
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pbcompress import CompressionError, bench, compare
from pbcompress.cli.main import main
from pbcompress.onnx_files import apart
from pbcompress.onnx_files.apart import CPU, Apart, peak_memory
from pbcompress.onnx_files.session import Session, kernel_times
from pbcompress.runs.file_inspection import inspect_file
from tests.support.hostile_files import doubling, endless, graph, model
from tests.support.hostile_files import save as write

X = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
has_limits = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")


def one_long_kernel():
    """A convolution of minutes: the runtime itself cannot be told to end within a kernel."""
    weights = {
        "w": np.ones((1, 1, 2**10, 2**10), np.float32),
        "s": np.array([1, 1, 2**12, 2**12]),
        "z": np.zeros(1, np.int64),
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["a"], keepdims=0),
        helper.make_node("Expand", ["a", "s"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["d"], auto_pad="SAME_UPPER"),
        helper.make_node("ReduceMax", ["d"], ["e"], keepdims=0),
        helper.make_node("Add", ["x", "e"], ["y"]),
    ]
    return model(graph(nodes, [numpy_helper.from_array(a, n) for n, a in weights.items()]))


@pytest.fixture
def small(tmp_path):
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 3, "w")
    made = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    return write(model(made), tmp_path / "small.onnx")


@pytest.mark.parametrize("bomb", [endless, one_long_kernel], ids=["a loop", "a kernel"])
def test_time_ends_a_run_also_within_a_kernel(bomb, tmp_path):
    file = Apart(write(bomb(), tmp_path / "a.onnx"), 1, True, CPU)
    started = time.perf_counter()
    with pytest.raises(CompressionError, match=r"at most 0\.2 seconds and is not done"):
        file.run(X, 0.2)
    assert time.perf_counter() - started < 5
    with pytest.raises(CompressionError):  # it is gone, and stays so
        file.run(X)


@has_limits
def test_a_value_that_doubles_gets_no_more_memory_than_it_may(tmp_path):
    file = Apart(write(doubling(), tmp_path / "a.onnx"), 1, True, CPU, memory=2**28)
    with pytest.raises(CompressionError, match=r"allocate|memory"):
        file.run(X)


@has_limits
def test_every_reader_that_runs_a_file_holds_it_to_its_memory(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(apart, "MOST_BYTES", 2**28)
    path = write(doubling(), tmp_path / "a.onnx")
    for call in (
        lambda: compare(small, path, torch.ones(2, 4)),
        lambda: bench([path], rounds=5),
        lambda: kernel_times(path, X, apart=True),
    ):
        with pytest.raises(CompressionError, match=r"allocate|memory") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert peak_memory(path, X) is None
    assert main(["compare", str(small), str(path), "--input", "2,4"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_every_reader_that_runs_a_file_holds_it_to_its_time(small, tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "MOST_SECONDS", 0.2)
    path = write(one_long_kernel(), tmp_path / "a.onnx")
    for call in (
        lambda: compare(small, path, torch.ones(2, 4)),
        lambda: bench([path], rounds=5),
    ):
        with pytest.raises(CompressionError, match=r"at most 0\.2 seconds"):
            call()


def test_a_fault_of_the_runtime_ends_its_own_process_alone(small):
    file = Apart(small, 1, True, CPU)
    os.kill(file._process.pid, signal.SIGABRT)
    with pytest.raises(CompressionError, match="ended with"):
        file.run(X)


def test_apart_a_file_gives_the_same_bits(small):
    here, there = Session(small), Session(small, apart=True)
    assert here.interface() == there.interface()
    assert (here.input_names, here.takes_any_batch) == (there.input_names, there.takes_any_batch)
    for batch in (0, 1, 7):
        feeds = here.random_feeds(batch)
        assert [a.tobytes() for a in here.run(feeds)] == [a.tobytes() for a in there.run(feeds)]
    feeds["x"][0, 0] = 5  # the same array with another number
    assert there.run(feeds)[0][0, 0] == 15
    assert there.seconds(feeds) > 0


def test_a_process_ends_with_its_object(small):
    file = Apart(small, 1, True, CPU)
    process = file._process
    assert process.poll() is None
    del file
    gc.collect()
    assert process.poll() is not None


def test_names_of_any_length_are_read_by_all(tmp_path):
    """What holds the inputs in a file of numpy's cannot have such names."""
    name = "n" * 70_000
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in (name, name[1:])]
    nodes = [helper.make_node("Relu", [name], [name[1:]], name=name)]
    made = helper.make_graph(nodes, name, ends[:1], ends[1:])
    path = write(model(made), tmp_path / "a.onnx")
    assert onnx.load(path).graph.input[0].name == name
    found = bench([path], rounds=5, profile=True)
    assert found.files[0].latency.rounds == 5
    both = compare(path, path, torch.ones(2, 4))
    assert both.max_difference == 0
    assert inspect_file(path).input_names == (name,)
    assert main(["measure", str(path)]) == 0
