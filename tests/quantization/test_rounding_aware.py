"""Training under rounding, held against the int8 files of ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import pbcompress as pb
from pbcompress.core.inputs import as_call
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.session import Session
from pbcompress.quantization.converter import Quantizer, weight_bits
from pbcompress.quantization.rounding_aware import fake_quantized, observe_, train_quantized

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (8, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (8, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (8, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (8, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), (8, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (8, 4, 5, 5)),
}


OWN_BITS = weight_bits()


@pytest.fixture(params=[7, 8])
def bits(request, monkeypatch) -> int:
    """Both kinds of machine: those whose sums of 8-bit products overflow, and the others."""
    monkeypatch.setattr("pbcompress.quantization.converter.weight_bits", lambda: request.param)
    return request.param


def twin_and_file(model: nn.Module, shape, folder, bits: int):
    """Return inputs, the rounded graph and the int8 file, ranges from the same inputs."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model.eval()
    pb.export_onnx(model, folder / "a.onnx", x)
    (name,) = Session(folder / "a.onnx").input_names
    Quantizer(folder / "a.onnx", [{name: x.numpy()}], folder).write(folder / "b.onnx")
    twin = fake_quantized(model, as_call(x), bits)
    observe_(twin, [(x, x)], pb.Task(), len(x))
    return x, twin, folder / "b.onnx"


def rounded_weights(path) -> np.ndarray:
    graph = onnx.load(path).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    (node,) = [
        n
        for n in graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in tensors
        if tensors[n.input[0]].dtype == np.int8
    ]
    values, scale = tensors[node.input[0]], tensors[node.input[1]]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % values.ndim
    return values * scale.reshape([-1 if d == axis else 1 for d in range(values.ndim)])


def test_every_product_of_the_list_is_tried() -> None:
    assert len(LAYERS) == 6


@pytest.mark.parametrize("name", LAYERS)
def test_weights_and_outputs_are_those_of_the_int8_file(name: str, bits, tmp_path) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)  # else weights would depend on what was imported before
    layer = make()
    x, twin, path = twin_and_file(nn.Sequential(layer), shape, tmp_path, bits)
    wanted = rounded_weights(path)
    modules = [m for m in twin.modules() if type(m).__name__ == "_Weight"]
    assert len(modules) == 1
    found = modules[0](layer.weight).detach().numpy()
    found = found if found.shape == wanted.shape else found.T
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    if bits > OWN_BITS:
        return  # this machine cannot sum the products of such a file
    (output,) = Session(path).run({Session(path).input_names[0]: x.numpy()})
    step = (output.max() - output.min()) / 255
    assert np.abs(twin(x).detach().numpy() - output).max() < 1.5 * step  # the next level, at most


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Flatten(),
        nn.Linear(128, 4),
    )  # fmt: skip


def test_a_network_is_nearer_to_its_int8_file_than_to_itself(tmp_path) -> None:
    model = network()
    x, twin, path = twin_and_file(model, (64, 2, 8, 8), tmp_path, OWN_BITS)
    (output,) = Session(path).run({Session(path).input_names[0]: x.numpy()})
    with torch.no_grad():
        near = np.abs(twin(x).numpy() - output).mean()
        far = np.abs(model(x).numpy() - output).mean()
    assert near < far / 2
    names = [type(m).__name__ for m in twin.modules()]
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert names.count("_Activation") == operations.count("QuantizeLinear") == 5
    assert names.count("_Weight") == 3


def test_a_value_is_rounded_once_and_both_readers_see_it() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            hidden = x.relu()
            return hidden @ (self.a(hidden).T @ self.b(hidden))

    x = torch.randn(5, 3)
    twin = fake_quantized(Shared(), as_call(x), 8)
    names = [type(m).__name__ for m in twin.modules()]
    assert (names.count("_Activation"), names.count("_Weight")) == (6, 2)
    observe_(twin, [(x, x)], pb.Task(), 5)
    assert twin(x).isfinite().all()


def test_ranges_are_those_of_the_samples_alone() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    batches = [(torch.tensor([[-1.0], [3.0]]),) * 2, (torch.tensor([[9.0], [0.0]]),) * 2]
    twin = fake_quantized(model, as_call(torch.zeros(2, 1)), 8)
    for samples, high in ((2, 3.0), (3, 9.0), (1, 3.0)):
        observe_(twin, batches, pb.Task(), samples)
        first = next(m for m in twin.modules() if type(m).__name__ == "_Activation")
        assert (first.low.item(), first.high.item()) == (-1.0, high)
    assert twin(torch.tensor([[100.0]])).item() == pytest.approx(3.0, abs=4 / 255)


def digits(model: nn.Module, seed: int = 0) -> pb.Data:
    x = torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = model(x).argmax(1)
    return pb.Data(train=[(x[:64], y[:64])], val=[(x[64:], y[64:])])


def test_training_changes_a_copy_and_nothing_else() -> None:
    model = network().eval()
    data, state = digits(model), torch.get_rng_state()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    call = as_call(torch.zeros(2, 2, 8, 8))
    choices = {"epochs": 2, "bits": 8, "samples": 64}
    first = train_quantized(model, call, data, pb.Task(), **choices)
    again = train_quantized(model, call, data, pb.Task(), **choices)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not first.training
    assert all(p.grad is None for p in [*model.parameters(), *first.parameters()])
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert not torch.equal(tensor, before[name])


def test_a_forward_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(CompressionError, match=r"torch.export could not trace it.*recover_epochs"):
        fake_quantized(Branching(2, 2), as_call(torch.ones(2, 2)), 8)


@pytest.mark.parametrize("axes", [None, {"x": 1}])
def test_one_sample_is_enough_for_a_graph_of_any_batch(axes) -> None:
    class Rows(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    call = pb.Example(torch.ones(1, 1, 3), axes) if axes else torch.ones(1, 3)
    graph = fake_quantized(Rows(3, 2), as_call(call), 8).train()
    batch = torch.ones(1, 7, 3) if axes else torch.ones(7, 3)
    assert graph(batch).shape == (*batch.shape[:-1], 2)


class Tied(nn.Module):
    """A weight of two layers, a layer that nobody calls, a BatchNorm that does not fold."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.a, self.b = nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight, self.norm = self.a.weight, nn.BatchNorm1d(3)

    def forward(self, x, scale):
        return self.b(self.norm(self.a(x)).relu()) * scale


@pytest.mark.parametrize("by_name", [False, True])
def test_tied_weights_stay_tied_and_inputs_have_names(by_name: bool) -> None:
    model, x, scale = Tied().eval(), torch.randn(8, 3), torch.rand(8, 1)
    inputs = {"x": x, "scale": scale} if by_name else (x, scale)
    batches = [(inputs, torch.randint(3, (8,)))]
    choices = {"epochs": 1, "bits": 8, "samples": 8}
    data = pb.Data(batches, batches)
    trained = train_quantized(model, as_call(inputs), data, pb.Task(), **choices)
    assert trained.b.weight is trained.a.weight
    assert not torch.equal(trained.a.weight, model.a.weight)
    assert torch.equal(trained.unused.weight, model.unused.weight)
    assert torch.equal(trained.norm.running_mean, model.norm.running_mean)
    twin = fake_quantized(model, as_call(inputs), 8)
    assert torch.equal(twin(x, scale), twin(x=x, scale=scale))
