"""Small files that ask for much: each is refused in a line, soon, and with little memory."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pbcompress import CompressionError, StateMismatchError
from pbcompress.onnx_files.bounds import MOST_NODES
from pbcompress.onnx_files.contents import (
    facts_of,
    measure_onnx,
    metadata_of,
    peak_activation_bytes,
)
from pbcompress.onnx_files.session import Session
from pbcompress.onnx_files.store import MAKER, load, save
from tests.support.hostile_files import endless, graph, model
from tests.support.hostile_files import save as write

READERS = (Session, facts_of, measure_onnx, metadata_of, peak_activation_bytes)
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]


def function(name, *called):
    nodes, value = [], "x"
    for index, (kind, domain) in enumerate(called):
        nodes.append(helper.make_node(kind, [value], [f"t{index}"], domain=domain))
        value = f"t{index}"
    return helper.make_function("d", name, ["x"], [value], nodes, OPSETS)


def with_functions(*functions):
    made = model(
        graph([helper.make_node(functions[-1].name, ["x"], ["y"], domain="d")]), ("", 20), ("d", 1)
    )
    made.functions.extend(functions)
    return made


def doubling():
    parts = [function("F0", ("Relu", ""), ("Relu", ""))]
    return with_functions(*parts, *(
        function(f"F{i}", (f"F{i - 1}", "d"), (f"F{i - 1}", "d")) for i in range(1, 14)
    ))  # fmt: skip


def deep_functions():
    parts = [function("F0", ("Relu", ""))]
    return with_functions(*parts, *(function(f"F{i}", (f"F{i - 1}", "d")) for i in range(1, 40)))


def calls_itself():
    return with_functions(function("F", ("F", "d"), ("Relu", "")))


def call_each_other():
    return with_functions(function("F", ("G", "d")), function("G", ("F", "d")))


def many_nodes():
    made = model(graph([helper.make_node("Relu", ["x"], ["y"])]))
    node = made.graph.node[0]
    for _ in range(MOST_NODES + 1):
        made.graph.node.add().CopyFrom(node)
    return made


def deep_graphs():
    inner = empty = helper.make_graph([], "g", [], [])
    for _ in range(25):
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=empty)
        inner = helper.make_graph([node], "g", [], [])
    return model(inner)


def sparse():
    made = model(graph([helper.make_node("Relu", ["x"], ["y"])]))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**40]))
    return made


def large_constant():
    shape = numpy_helper.from_array(np.array([2**16, 2**17]), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return model(graph(nodes, [shape]))


def place(location):
    def make():
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        return model(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]))

    return make


def within_function():
    made = calls_itself()
    made.functions[0].node[0].op_type = "Identity"
    made.functions[0].node[0].domain = ""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40])
    made.functions[0].node.append(helper.make_node("Constant", [], ["t9"], value=weight))
    return made


BOMBS = {
    "functions that double": doubling,
    "functions in functions": deep_functions,
    "a function that calls itself": calls_itself,
    "functions that call each other": call_each_other,
    "many nodes": many_nodes,
    "graphs in graphs": deep_graphs,
    "sparse weights": sparse,
    "a weight within a function": within_function,
    "a NUL in a place": place("a\0b"),
    "a folder in a place": place("a/../b"),
    "a place with a long name": place("x" * 5000),
    "a place of Windows": place("C:\\x"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_every_reader_in_a_line(name, tmp_path):
    path = write(BOMBS[name](), tmp_path / "a.onnx")
    assert path.stat().st_size < 2**21
    for reader in READERS:
        started = time.process_time()
        with pytest.raises(StateMismatchError) as caught:
            reader(path)
        assert time.process_time() - started < 10
        assert len(str(caught.value)) < 1000


def test_a_constant_of_many_gigabytes_is_not_made(tmp_path):
    path = write(large_constant(), tmp_path / "a.onnx")
    for reader in (Session, measure_onnx, peak_activation_bytes):
        with pytest.raises(StateMismatchError, match="has the shape"):
            reader(path)


def test_a_loop_without_end_is_ended(tmp_path):
    session = Session(write(endless(), tmp_path / "a.onnx"), silent=True)
    with pytest.raises(CompressionError, match=r"at most 0\.3 seconds"):
        session.run({"x": np.zeros((1, 4), np.float32)}, seconds=0.3)


def test_constants_computed_from_each_other_are_counted_in_little_time(tmp_path):
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w0")
    nodes = [helper.make_node("Add", [f"w{i}", f"w{i}"], [f"w{i + 1}"]) for i in range(60)]
    nodes.append(helper.make_node("Add", ["x", "w60"], ["y"]))
    assert measure_onnx(write(model(graph(nodes, [weight])), tmp_path / "a.onnx")).params == 4


def small(folder):
    weight = numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), "w")
    made = model(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]))
    save(made, folder / "a.onnx")
    return folder / "a.onnx"


def test_a_bit_that_flips_is_noticed_or_changes_nothing(tmp_path):
    path = small(tmp_path)
    content, whole = path.read_bytes(), load(path).graph
    noticed = 0
    for place_of_bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[place_of_bit // 8] ^= 1 << place_of_bit % 8
        path.write_bytes(bytes(changed))
        try:
            assert load(path).graph == whole, place_of_bit
        except StateMismatchError:
            noticed += 1
    assert noticed > 0.9 * 8 * len(content)


def test_a_file_of_others_needs_no_digest_and_one_of_ours_may_be_moved(tmp_path):
    path = small(tmp_path)
    proto = onnx.load(path)
    assert [(e.key, len(e.value)) for e in proto.metadata_props] == [("sha256", 64)]
    assert metadata_of(path) == {}
    del proto.metadata_props[:]
    onnx.save(proto, path)
    assert metadata_of(path) == {}
    proto.graph.initializer[0].raw_data = np.zeros(16, np.float32).tobytes()
    save(proto, path)
    path.rename(tmp_path / "b.onnx")
    load(tmp_path / "b.onnx")


def test_a_file_of_ours_may_not_lack_its_digest(tmp_path):
    """One bit makes another name of the note that has it."""
    path = small(tmp_path)
    proto = load(path)
    onnx.helper.set_model_props(proto, {MAKER: "0.1.0"})
    save(proto, path)
    load(path)
    path.write_bytes(path.read_bytes().replace(b"sha256", b"sha254"))
    with pytest.raises(StateMismatchError, match="its SHA-256 is gone"):
        load(path)


def test_graphs_for_training_are_refused_as_nothing_follows_them(tmp_path):
    made = model(graph([helper.make_node("Relu", ["x"], ["y"])]))
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    made.training_info.add().initialization.initializer.append(weight)
    path = write(made, tmp_path / "a.onnx")
    for read in READERS:
        with pytest.raises(CompressionError, match="graphs for training"):
            read(path)


def test_what_lies_beside_a_file_of_ours_is_not_read_without_end(tmp_path):
    """A file of 2^40 bytes without content takes no place, and its SHA-256 half an hour."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "a.bin"), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=value)
    (tmp_path / "a.bin").write_bytes(bytes(64))
    made = model(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]))
    helper.set_model_props(made, {MAKER: "1"})
    save(made, tmp_path / "a.onnx")
    assert load(tmp_path / "a.onnx").graph.initializer[0].name == "w"
    with (tmp_path / "a.bin").open("ab") as file:
        file.truncate(2**40)
    started = time.perf_counter()
    with pytest.raises(StateMismatchError, match="was changed since it was written"):
        load(tmp_path / "a.onnx")
    assert time.perf_counter() - started < 5


def test_a_sequence_among_the_activations_is_named(tmp_path):
    made = model(graph([
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        helper.make_node("SequenceAt", ["s", "i"], ["y"]),
    ], [numpy_helper.from_array(np.array(0), "i")]))  # fmt: skip
    with pytest.raises(StateMismatchError, match="a value is no tensor"):
        peak_activation_bytes(write(made, tmp_path / "a.onnx"))
