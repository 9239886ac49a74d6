"""Files on disk: hostile ones are refused, and ours are written whole or not at all."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pbcompress import CompressionError, StateMismatchError, export_onnx
from pbcompress.core.inputs import Call
from pbcompress.export import onnx_writer
from pbcompress.export.free_axes import Inputs
from pbcompress.export.translation import translate
from pbcompress.onnx_files.benchmark import bench
from pbcompress.onnx_files.contents import (
    facts_of,
    measure_onnx,
    metadata_of,
    peak_activation_bytes,
)
from pbcompress.onnx_files.session import Session
from pbcompress.onnx_files.store import files_of, install, load, relabel, save, size_of


def graph_file(path: Path, *weights: TensorProto) -> Path:
    """A file that adds its weights to its input."""
    nodes, name = [], "x"
    for number, weight in enumerate(weights):
        nodes.append(helper.make_node("Add", [name, weight.name], [f"y{number}"]))
        name = f"y{number}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def weight(**changes: object) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if "dims" in changes:
        del tensor.dims[:]
        tensor.dims.extend(changes["dims"])  # type: ignore[arg-type]
    return tensor


def outside(location: str, name: str = "w", **notes: object) -> TensorProto:
    """A weight that is said to be in another file."""
    tensor = weight()
    tensor.name = name
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": 16, **notes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def link(folder: Path) -> TensorProto:
    (folder / "link").symlink_to(folder.parent / "secret")
    return outside("link")


HOSTILE = {
    "cut off": lambda folder: None,
    "huge claimed sizes": lambda folder: weight(dims=[2**40, 2**20]),
    "negative sizes": lambda folder: weight(dims=[-4]),
    "a weight above the folder": lambda folder: outside("../secret"),
    "a weight at an absolute path": lambda folder: outside(str(folder.parent / "secret")),
    "a weight behind a link": link,
    "a weight that is not there": lambda folder: outside("nothing"),
    "a weight beyond the end": lambda folder: outside("short", length=16, offset=8),
    "a weight of another length": lambda folder: outside("short", length=4),
    "a weight before the beginning": lambda folder: outside("short", offset=-16),
    "no number": lambda folder: outside("short", offset="many"),
    "no place": lambda folder: outside(""),
}
READERS = {
    "session": Session,
    "facts": facts_of,
    "measure": measure_onnx,
    "metadata": metadata_of,
    "peak": peak_activation_bytes,
    "bench": lambda path: bench([path]),
}


def test_the_lists_are_whole():
    assert (len(HOSTILE), len(READERS)) == (12, 6)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_every_reader(kind, reader, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "short").write_bytes(bytes(16))
    tensor = HOSTILE[kind](folder)
    path = graph_file(folder / "a.onnx", tensor or weight())
    if tensor is None:
        path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(StateMismatchError, match=r"a\.onnx"):
        READERS[reader](path)


def test_whole_files_are_read(tmp_path):
    (tmp_path / "data").write_bytes(np.ones(4, np.float32).tobytes())
    path = graph_file(tmp_path / "a.onnx", weight(), outside("data", "v"))
    assert Session(path).run({"x": np.zeros(4, np.float32)})[0].tolist() == [2] * 4
    assert files_of(path) == [path, tmp_path / "data"]
    assert size_of(path) == measure_onnx(path).file_bytes == path.stat().st_size + 16


def pair(folder: Path, value: float, *, is_two: bool) -> Path:
    """A draft that adds a value, which is in a second file or not."""
    folder.mkdir()
    values = np.full(4, value, np.float32)
    (folder / "a.onnx.data").write_bytes(values.tobytes())
    tensor = outside("a.onnx.data") if is_two else numpy_helper.from_array(values, "w")
    return graph_file(folder / "a.onnx", tensor)


def value_of(path: Path) -> float:
    return float(Session(path).run({"x": np.zeros(4, np.float32)})[0][0])


def test_weights_get_a_file_of_their_own_above_the_bound_alone(tmp_path):
    network = nn.Sequential(nn.Linear(16, 64, bias=False)).eval()
    inputs = Inputs(network, Call((torch.zeros(2, 16),), {}))
    small, large = tmp_path / "s" / "a.onnx", tmp_path / "l" / "a.onnx"
    for path, bound in ((small, 64 * 16 * 4), (large, 64 * 16 * 4 - 1)):
        path.parent.mkdir()
        translate(network, inputs, path, [], opset=20, one_file=bound)
    assert [p.name for p in files_of(small)] == ["a.onnx"]
    assert [p.name for p in files_of(large)] == ["a.onnx", "a.onnx.data"]
    assert size_of(large) == sum(p.stat().st_size for p in large.parent.iterdir()) > 64 * 16 * 4
    assert measure_onnx(large).params == measure_onnx(small).params == 64 * 16
    assert measure_onnx(large).flops == measure_onnx(small).flops
    assert facts_of(large) == facts_of(small)
    feeds = {"input": np.ones((2, 16), np.float32)}
    np.testing.assert_array_equal(*(Session(path).run(feeds)[0] for path in (small, large)))


def test_an_export_of_two_files_is_whole_and_takes_a_former_one_away(tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_writer, "translate", lambda *args, **named: translate(*args, one_file=99, **named)
    )
    (tmp_path / "a.onnx.data").write_bytes(b"somebody else's")
    report = export_onnx(
        nn.Linear(16, 64), tmp_path / "a.onnx", torch.randn(2, 16), metadata={"by": "me"}
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.2.data", "a.onnx.data"]
    assert (tmp_path / "a.onnx.data").read_bytes() == b"somebody else's"
    assert report.file_bytes == size_of(tmp_path / "a.onnx")
    assert metadata_of(tmp_path / "a.onnx")["by"] == "me"

    install(pair(tmp_path / "draft", 1.0, is_two=False), tmp_path / "a.onnx")
    assert [p.name for p in files_of(tmp_path / "a.onnx")] == ["a.onnx"]
    assert not (tmp_path / "a.onnx.2.data").exists()


class Killed(BaseException):
    """What no handler may catch."""


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Killed()], ids=type)
@pytest.mark.parametrize("is_two", [True, False], ids=["two files", "one file"])
def test_a_replacement_that_stops_leaves_the_former_file_whole(
    is_two, error, stop, tmp_path, monkeypatch
):
    target = tmp_path / "out" / "a.onnx"
    former = pair(tmp_path / "former", 1.0, is_two=is_two)
    target.parent.mkdir()
    install(former, target)
    draft = pair(tmp_path / "draft", 2.0, is_two=is_two)
    moves, real = [], Path.replace

    def replace(self, goal):
        if Path(goal).parent == target.parent:
            moves.append(goal)
            if len(moves) == stop:
                raise error
        return real(self, goal)

    monkeypatch.setattr(Path, "replace", replace)
    if stop == 2 and not is_two:  # one move is all
        install(draft, target)
        assert value_of(target) == 2
        return
    with pytest.raises((CompressionError, Killed)):
        install(draft, target)
    assert value_of(target) == 1
    monkeypatch.undo()
    install(pair(tmp_path / "again", 3.0, is_two=is_two), target)
    assert value_of(target) == 3


def test_names_are_given_and_inner_ones_make_way(tmp_path):
    path = graph_file(tmp_path / "a.onnx", weight())
    proto = load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "2*s0"
    relabel(proto, inputs=["w"], outputs=["x"], sizes={"s0": "n"}, notes={"a": "b"})
    save(proto, path)

    onnx.checker.check_model(str(path), full_check=True)
    session = Session(path)
    assert (session.input_names, session.output_names) == (["w"], ["x"])
    assert session.run({"w": np.zeros(4, np.float32)})[0].tolist() == [1] * 4
    assert load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "2*n"
    relabel(proto, sizes={"n": 2})
    assert metadata_of(path) == {"a": "b"}
