"""Networks that once broke in one of the phases, in their inference form or in their file."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress import (
    CompressConfig,
    CompressionError,
    DendriteConfig,
    RecoveryConfig,
    cycles,
    export_onnx,
    fuse,
)
from pbcompress.dendrites.growth import detach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.recovery.policy import PhaseKind

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Net(nn.Module):
    """Calls its first layer in a way of its own."""

    def __init__(self, call: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.call(self.first, x))))
        return y


CALLS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "by name": lambda layer, x: layer(input=x),
    "by its size": lambda layer, x: layer(x[:, : layer.in_features]).reshape(
        -1, layer.out_features
    ),
    "by its dtype": lambda layer, x: layer(x.to(layer.weight.dtype)),  # as T5 does
    "past the layer": lambda layer, x: functional.linear(x, layer.weight, layer.bias),
}


def test_the_list_is_whole() -> None:
    assert len(CALLS) == 4


@pytest.mark.parametrize("form", ["full", "shared"])
@pytest.mark.parametrize("kind", CALLS)
def test_it_grows_trains_fuses_and_comes_back(kind: str, form: str) -> None:
    model = Net(CALLS[kind])
    layers, start = list(model.named_modules()), copy.deepcopy(model.state_dict())
    expected, kinds = model.eval()(X), []
    recovery = RecoveryConfig(epochs=1, dendrite_epochs=1, improvement=(-9.0,), thaw_epochs=1)
    config = CompressConfig(dendrites=DendriteConfig(form=form, max_sets=2), recovery=recovery)
    for number, phase in enumerate(cycles(model, config=config)):
        optimizer = torch.optim.SGD(phase.parameters(), 0.1)
        before = model.eval()(X)
        phase.train()
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
        model.eval()
        assert torch.equal(model(X), before) == (phase.kind is PhaseKind.DENDRITE)
        assert torch.equal(copy.deepcopy(model)(X), model(X))
        kinds.append(str(phase.kind))
        phase.report(float(number))
    assert kinds == ["neuron", "dendrite", "neuron", "dendrite", "neuron", "thaw"]
    assert len(dendrite_layers(model)) == 2
    torch.testing.assert_close(fuse(model)(X), model(X))
    detach_dendrites_(model, 2)
    assert list(model.named_modules()) == layers
    model.load_state_dict(start)
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("kind", CALLS)
def test_its_file_is_proven(kind: str, tmp_path) -> None:
    model = Net(CALLS[kind])
    config = CompressConfig(dendrites=DendriteConfig(rule="gradient", at_start=True))
    next(cycles(model, config=config))
    for layer in dendrite_layers(model).values():
        nn.init.normal_(layer.gains[0])
    assert export_onnx(fuse(model.eval()), tmp_path / "net.onnx", X).checks >= 3


def test_a_bfloat16_network_is_not_exported_and_the_folder_stays_empty(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).bfloat16()
    with pytest.raises(CompressionError, match=r"is bfloat16.*float32"):
        export_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 2, 5, 5, dtype=torch.bfloat16))
    assert list(tmp_path.iterdir()) == []
