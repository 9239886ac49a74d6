"""What is exported is proven, and what cannot be proven leaves no file."""

import functools

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import model_zoo
from pbcompress import (
    CompressionError,
    ExportMismatchError,
    StateMismatchError,
    export_onnx,
    export_pt2,
    fuse,
    measure,
)
from pbcompress.core.versions import version_of
from pbcompress.onnx_files import session as runtime_module
from pbcompress.onnx_files.contents import measure_onnx, metadata_of
from pbcompress.onnx_files.session import Session, interleaved_latency
from tests.support.exported import INPUTS, Fickle, Named, grown, zoo_inputs

FAST = ("cnn1d", "mlp", "small_cnn")
SAME_OPERATIONS = ("grouped", "lowrank", "shared")  # as a full one: maps of what the layer reads


def test_every_zoo_network_has_an_input():
    assert sorted(INPUTS) == model_zoo.list_models()


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in INPUTS]
)
def test_zoo_networks_export_proven_equal(name, tmp_path):
    network = model_zoo.create_model(name)

    report = export_onnx(fuse(network), tmp_path / "x.onnx", zoo_inputs(name))

    assert report.file_bytes == (tmp_path / "x.onnx").stat().st_size
    assert report.batch_sizes == (1, 2, 5, 64)
    assert report.max_relative < 1e-4
    assert report.opset == 20
    assert list(tmp_path.iterdir()) == [tmp_path / "x.onnx"]  # one file, no external data


@pytest.mark.parametrize(
    "form",
    ["full", "tied", *(pytest.param(f, marks=pytest.mark.slow) for f in SAME_OPERATIONS)],
)
def test_dendrites_of_every_form_export_fused_and_unfused(form, tmp_path):
    network = grown(form)
    x = torch.randn(1, 2, 6, 6)

    plain = export_onnx(network, tmp_path / "plain.onnx", x)
    fused = export_onnx(fuse(network), tmp_path / "fused.onnx", x)

    feeds = {plain.input_names[0]: torch.randn(7, 2, 6, 6).numpy()}
    a = Session(tmp_path / "plain.onnx").run(feeds)[0]
    b = Session(tmp_path / "fused.onnx").run(feeds)[0]
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # float32, sums in another order
    if form == "full":
        assert fused.operations["Conv"] == 1
        assert fused.operations["Gemm"] == 1


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 3), torch.randn(2, 5)),
        {"left": torch.randn(2, 3), "right": torch.randn(2, 5), "scale": 2.0},
        {"right": torch.randn(2, 5), "left": torch.randn(2, 3)},
    ],
    ids=["tuple", "dict with a number", "dict in another order"],
)
def test_several_inputs_and_outputs(inputs, tmp_path):
    names = ("sum", "half")
    report = export_onnx(Named(), tmp_path / "x.onnx", inputs, output_names=names)

    assert report.input_names == ("left", "right")
    assert report.output_names == names


def test_an_output_with_the_name_of_an_input_is_refused(tmp_path):
    inputs = (torch.randn(2, 3), torch.randn(2, 5))
    cases = {
        "of the network": {},
        "of the caller": {"output_names": ["sum", "right"]},
        "of both": {"input_names": ["sum", "b"], "output_names": ["sum", "half"]},
    }
    for choices in cases.values():
        with pytest.raises(CompressionError, match=r"the name of an input.*Pass export_onnx"):
            export_onnx(Named(), tmp_path / "x.onnx", inputs, **choices)
    assert not list(tmp_path.iterdir())


def test_an_advised_name_is_taken(tmp_path):
    inputs = (torch.randn(2, 3), torch.randn(2, 5))
    with pytest.raises(CompressionError, match=r"output_names=\['sum', 'left_1'\]"):
        export_onnx(Named(), tmp_path / "x.onnx", inputs)
    report = export_onnx(Named(), tmp_path / "x.onnx", inputs, output_names=["sum", "left_1"])
    assert report.output_names == ("sum", "left_1")


class Nested(nn.Module):
    """Nested inputs, one of them unused; outputs that are inputs, repeated, numbers or None."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, first, rest, /, unused=None, **named):
        y = self.linear(first) + rest["a"] + named["bias"]
        return {"linear": y, "twice": [y, y * 2], "none": None, "number": 3, "same": first}


def nested_inputs():
    tensors = [torch.randn(2, 3) for _ in range(4)]
    return (tensors[0], {"a": tensors[1], "b": [tensors[2]]}, tensors[3]), {"bias": torch.ones(3)}


def test_names_follow_the_structure_of_inputs_and_outputs(tmp_path):
    args, kwargs = nested_inputs()
    network = Nested().eval()
    network.forward = functools.partial(network.forward, **kwargs)

    report = export_onnx(network, tmp_path / "x.onnx", args)

    assert report.input_names == ("first", "rest_a", "rest_b_0", "unused")
    assert report.output_names == ("linear", "twice_0", "twice_1", "same")
    session = Session(tmp_path / "x.onnx")
    tensors = [args[0], args[1]["a"], args[1]["b"][0], args[2]]
    found = dict(zip(session.output_names, session.run(session.feeds(tensors)), strict=True))
    wanted = network(*args)
    pairs = {"linear": wanted["linear"], "twice_1": wanted["twice"][1], "same": args[0]}
    for name, tensor in pairs.items():
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_arguments_that_forward_does_not_name_have_the_names_of_the_call(tmp_path):
    class Open(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, *args, **named):
            return [self.layer(args[0]) + named["bias"], named["scale"] * 1.5]

    inputs = {"bias": torch.randn(2, 3), "scale": torch.randn(2, 1)}
    network = Open()
    network.forward = functools.partial(network.forward, torch.ones(1, 3))

    report = export_onnx(network, tmp_path / "x.onnx", inputs, dynamic={"bias": {0: "rows"}})

    assert report.input_names == ("bias", "scale")
    assert report.output_names == ("output_0", "output_1")
    axis = onnx.load(str(tmp_path / "x.onnx")).graph.input[0].type.tensor_type.shape.dim[0]
    assert axis.dim_param == "rows"


def test_names_can_be_given(tmp_path):
    names = {"input_names": ["a", "b"], "output_names": ["linear", "add"]}
    inputs = (torch.randn(2, 3), torch.randn(2, 5))
    report = export_onnx(Named(), tmp_path / "x.onnx", inputs, **names)
    assert (list(report.input_names), list(report.output_names)) == tuple(names.values())
    for wrong in ({"input_names": ["a"]}, {"output_names": ["a", "a"]}):
        with pytest.raises(CompressionError, match="one name for each, all different"):
            export_onnx(Named(), tmp_path / "y.onnx", inputs, **wrong)


def test_a_fixed_batch_is_a_clear_error_and_can_be_exported_as_such(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x).reshape(2, 2, 2)

    with pytest.raises(CompressionError, match="dynamic=None"):
        export_onnx(Fixed(), tmp_path / "x.onnx", torch.randn(2, 4))
    assert not list(tmp_path.iterdir())

    report = export_onnx(Fixed(), tmp_path / "x.onnx", torch.randn(2, 4), dynamic=None)
    assert report.batch_sizes == (2,)


def test_a_mismatch_raises_and_leaves_no_file(tmp_path):
    with pytest.raises(ExportMismatchError, match="differs by") as caught:
        export_onnx(Fickle(), tmp_path / "x.onnx", torch.randn(1, 3))

    assert caught.value.max_difference >= 1
    assert not list(tmp_path.iterdir())


def test_a_mismatch_leaves_a_former_file_as_it_was(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"former")

    with pytest.raises(ExportMismatchError):
        export_onnx(Fickle(), tmp_path / "x.onnx", torch.randn(1, 3))

    assert (tmp_path / "x.onnx").read_bytes() == b"former"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "18 to 25"),
        ({"quantize": "int4"}, r'it is "int8", "fp16", Int8\(...\), Fp16\(...\) or None'),
    ],
)
def test_options_that_cannot_be_had_are_refused(options, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        export_onnx(nn.Linear(3, 3), tmp_path / "x.onnx", torch.randn(1, 3), **options)


def test_an_unwritable_path_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(CompressionError, match="could not be"):
        export_onnx(nn.Linear(3, 3), tmp_path / "file" / "x.onnx", torch.randn(1, 3))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x)
        if y.sum() > 0:
            y = -y
        return y


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x) + 1


class Broken(nn.Module):
    def forward(self, x):
        return x @ torch.ones(4, 4)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branch(), r"test_onnx_export.py, line \d+, in forward: if y.sum\(\) > 0:.*torch.where"),
        (Bessel(), r"line \d+, in forward: return torch.special.bessel.*no ONNX counterpart"),
        (Broken(), r"does not run at batch size 2 at .*return x @ torch.ones"),
    ],
    ids=["a branch on values", "an operation without a counterpart", "it does not run"],
)
def test_what_torch_refuses_is_refused_with_the_line(network, message, tmp_path, capfd):
    with pytest.raises(CompressionError, match=message):
        export_onnx(network.eval(), tmp_path / "x.onnx", torch.randn(2, 3))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


def test_shapes_that_depend_on_values_are_exported_and_proven(tmp_path):
    class Chosen(nn.Module):
        def forward(self, x):
            return x[x > 0].sum() + x

    assert export_onnx(Chosen(), tmp_path / "x.onnx", torch.randn(2, 3)).max_relative < 1e-5


def test_a_provider_that_is_not_there_is_refused_before_the_work(tmp_path):
    export_onnx(nn.Linear(3, 3), tmp_path / "x.onnx", torch.randn(1, 3))
    calls = [
        lambda: export_onnx(
            nn.Linear(3, 3), tmp_path / "y.onnx", torch.randn(1, 3), providers=["NoneSuch"]
        ),
        lambda: Session(tmp_path / "x.onnx", providers=["NoneSuch"]),
        lambda: Session(tmp_path / "x.onnx", providers=[]),
    ]
    for call in calls:
        with pytest.raises(CompressionError, match="CPUExecutionProvider"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_a_provider_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    export_onnx(nn.Linear(3, 3), tmp_path / "x.onnx", torch.randn(1, 3))
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime_module.onnxruntime, "get_available_providers", lambda: there)
    with (
        pytest.warns(UserWarning, match="CUDA"),
        pytest.raises(CompressionError, match="could not start it"),
    ):
        Session(tmp_path / "x.onnx", providers=there)


def test_export_leaves_the_model_and_the_random_state_as_they_were(tmp_path):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()

    export_onnx(network, tmp_path / "x.onnx", torch.randn(4, 3, generator=torch.Generator()))

    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


def test_a_file_is_measured_like_its_module(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    x = torch.randn(1, 3, 6, 6)
    export_onnx(network, tmp_path / "x.onnx", x)

    file, module = measure_onnx(tmp_path / "x.onnx"), measure(network, x)

    assert (file.params, file.flops) == (module.params, module.flops)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", None])
def test_a_file_that_is_no_onnx_has_its_own_sentence(content, tmp_path):
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)

    with pytest.raises(StateMismatchError, match=r"x\.onnx"):
        measure_onnx(tmp_path / "x.onnx")


def test_the_file_passes_onnx_own_full_check_and_has_a_free_batch(tmp_path):
    export_onnx(nn.Linear(3, 2), tmp_path / "x.onnx", torch.randn(1, 3))

    onnx.checker.check_model(str(tmp_path / "x.onnx"), full_check=True)
    axis = onnx.load(str(tmp_path / "x.onnx")).graph.input[0].type.tensor_type.shape.dim[0]
    assert not axis.HasField("dim_value")


def test_latencies_are_interleaved_and_the_first_is_the_yardstick(tmp_path):
    export_onnx(nn.Linear(3, 2), tmp_path / "x.onnx", torch.randn(1, 3))
    session = Session(tmp_path / "x.onnx")
    feeds = session.feeds([torch.randn(1, 3)])

    first, second = interleaved_latency([session, session], [feeds, feeds], rounds=9)

    assert first.ratio == 1
    assert first.rounds == second.rounds == 9
    assert 0 < second.median <= second.p95


@pytest.mark.parametrize("notes", [None, {"metric": "accuracy", "val": "0.5"}])
def test_a_file_carries_its_version_and_what_it_was_given(notes, tmp_path):
    path = tmp_path / "a.onnx"
    report = export_onnx(nn.Linear(3, 2), path, torch.zeros(2, 3), metadata=notes)
    found = metadata_of(path)
    assert found.items() >= {"pbcompress": version_of("pbcompress"), **(notes or {})}.items()
    assert report.file_bytes == path.stat().st_size
    path.write_bytes(b"no onnx")
    with pytest.raises(StateMismatchError, match="no whole ONNX file"):
        metadata_of(path)


@pytest.mark.parametrize("name", ['a", print("x', "a\\b", "a\nb"])
def test_a_name_that_torch_would_take_for_code_is_refused(name, tmp_path):
    network = nn.Sequential()
    network.add_module(name, nn.Linear(3, 2))
    with pytest.raises(CompressionError, match="writes names into code"):
        export_onnx(network, tmp_path / "a.onnx", torch.zeros(1, 3))
    with pytest.raises(CompressionError, match="writes names into code"):
        export_pt2(network, tmp_path / "a.pt2", torch.zeros(1, 3))
    assert list(tmp_path.iterdir()) == []


class Causal(nn.Module):
    """A decoder of torch, which looks whether its mask is causal."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
        self.layers, self.head = nn.TransformerDecoder(layer, 1), nn.Linear(16, 3)

    def forward(self, x, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layers(x, memory, tgt_mask=mask))


def test_a_decoder_with_a_causal_mask_is_exported(tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    report = export_onnx(Causal().eval(), tmp_path / "model.onnx", inputs)
    assert report.max_relative < 1e-5
