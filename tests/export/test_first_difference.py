"""A file that is wrong in one layer is refused with that layer's name."""

import copy

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.errors import ExportMismatchError
from pbcompress.export import onnx_writer, parity


class Residual(nn.Module):
    """Layers in a block with a sum, a norm that folds, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1))
        self.twice = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.twice(self.twice(x + self.block(x)))
        return self.head(x.mean((2, 3)))


LAYERS = {
    "first": "norm",  # into which it is folded
    "norm": "norm",
    "block.0": "block.0",
    "block.2": "block.2",
    "twice": "head",  # of two calls the output is not known, so the next one is named
    "head": "head",
}
FAST = ("first", "block.0", "twice")


def other(model: nn.Module, name: str) -> nn.Module:
    """A copy with one layer changed."""
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.get_submodule(name).weight.mul_(1.5)
    return wrong


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def test_the_first_layer_that_differs_is_named(name: str, tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    model, export = Residual().eval(), onnx_writer.translate
    wrong = other(model, name)
    monkeypatch.setattr(
        onnx_writer, "translate", lambda _, *rest, **named: export(wrong, *rest, **named)
    )
    path = tmp_path / "a.onnx"
    named = LAYERS[name]
    kind = type(model.get_submodule(named)).__name__
    with pytest.raises(ExportMismatchError, match=rf"that differs is {named} \({kind}\)") as caught:
        pb.export_onnx(model, path, torch.randn(2, 3, 5, 5))
    assert caught.value.max_difference > 1e-3
    assert not list(tmp_path.iterdir())
    assert not any(m._forward_hooks for m in model.modules())


def test_without_a_layer_to_blame_the_error_is_as_it_was(tmp_path, monkeypatch) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor, self.layer = factor, nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.factor

    model, export = Scaled(2.0).eval(), onnx_writer.translate
    wrong = copy.deepcopy(model)
    wrong.factor = 3.0
    monkeypatch.setattr(
        onnx_writer, "translate", lambda _, *rest, **named: export(wrong, *rest, **named)
    )
    with pytest.raises(ExportMismatchError) as caught:
        pb.export_onnx(model, tmp_path / "a.onnx", torch.randn(2, 3))
    assert "first layer" not in str(caught.value)


def test_a_search_that_fails_hides_no_difference(tmp_path, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no sizes")

    model, export = nn.Linear(3, 2).eval(), onnx_writer.translate
    wrong = copy.deepcopy(model)
    nn.init.ones_(wrong.weight)
    monkeypatch.setattr(
        onnx_writer, "translate", lambda _, *rest, **named: export(wrong, *rest, **named)
    )
    monkeypatch.setattr(parity, "first_difference", fails)
    with pytest.raises(ExportMismatchError, match="differs by"):
        pb.export_onnx(model, tmp_path / "a.onnx", torch.randn(2, 3))
