"""ONNX files that lie, by name: a function that writes one into a folder."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph(nodes, weights=()):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y")]
    return helper.make_graph(nodes, "g", ends[:1], ends[1:], list(weights))


def save(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def model(made, *domains):
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains or [("", 20)]]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def loop(step, rounds, ends=("x", "y"), width=4):
    """A loop of so many rounds of a node from ``v`` to ``v_out``; no reader can tell how many."""
    info, value = helper.make_tensor_value_info, TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c_out"]), step],
        "body",
        [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("v", value, None)],
        [info("c_out", TensorProto.BOOL, []), info("v_out", value, None)],
    )
    nodes = [helper.make_node("Loop", ["m", "", ends[0]], [ends[1]], body=body)]
    sides = [[info(name, value, ["n", width])] for name in ends]
    count = numpy_helper.from_array(np.array(rounds), "m")
    return model(helper.make_graph(nodes, "g", *sides, [count]))


def doubling(*ends, width=4):
    """Of 8 numbers 2^42 bytes, where nothing ends it."""
    step = helper.make_node("Concat", ["v", "v"], ["v_out"], axis=1)
    return loop(step, 37, ends or ("x", "y"), width)


def endless(*ends, width=4):
    return loop(helper.make_node("Identity", ["v"], ["v_out"]), 2**62, ends or ("x", "y"), width)


def outside(location):
    """Weights that lie where ``location`` says."""

    def write(folder):
        (folder.parent / "secret.bin").write_bytes(bytes(64))
        (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
        weight.data_location = TensorProto.EXTERNAL
        where = str(folder.parent / "secret.bin") if location == "absolute" else location
        for key, value in (("location", where), ("offset", "0"), ("length", "64")):
            weight.external_data.add(key=key, value=value)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        return save(model(graph(nodes, [weight])), folder / "a.onnx")

    return write


def truncated(folder):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.0] * 16)
    path = save(
        model(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])), folder / "a.onnx"
    )
    path.write_bytes(path.read_bytes()[:-40])
    return path


def bytes_of_noise(folder):
    (folder / "a.onnx").write_bytes(bytes(range(256)) * 20)
    return folder / "a.onnx"


def empty(folder):
    (folder / "a.onnx").write_bytes(b"")
    return folder / "a.onnx"


def no_graph(folder):
    return save(onnx.ModelProto(ir_version=10), folder / "a.onnx")


def other_domain(folder):
    nodes = [helper.make_node("Evil", ["x"], ["y"], domain="evil")]
    return save(model(graph(nodes), ("evil", 1)), folder / "a.onnx")


def unknown_operation(folder):
    return save(model(graph([helper.make_node("Evil", ["x"], ["y"])])), folder / "a.onnx")


def future(folder):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return save(model(graph(nodes), ("", 9999)), folder / "a.onnx")


def broken_wire(folder):
    return save(model(graph([helper.make_node("Relu", ["nowhere"], ["y"])])), folder / "a.onnx")


def a_folder(folder):
    (folder / "a.onnx").mkdir()
    return folder / "a.onnx"


def runs_for_two_alone(folder):
    """Write a whole file whose graph says that any batch goes, and takes two samples only."""
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [2, 4])
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    path = save(model(graph(nodes, [shape])), folder / "a.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"note": "<script>alert(1)</script>"})
    for node in proto.graph.node:  # notes that are no list, and one that is too deep to read
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="(" * 5000)
    return save(proto, path)


FILES = {
    "truncated": truncated,
    "noise": bytes_of_noise,
    "empty": empty,
    "no graph": no_graph,
    "weights above the folder": outside("../secret.bin"),
    "weights at an absolute path": outside("absolute"),
    "weights behind a link": outside("link.bin"),
    "weights that are missing": outside("gone.bin"),
    "another domain": other_domain,
    "unknown operation": unknown_operation,
    "an operator set of the future": future,
    "a wire from nowhere": broken_wire,
    "a folder": a_folder,
}
