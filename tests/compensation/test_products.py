"""Layers of one's own that are a product with their weight are fitted as a Linear is."""

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.compensation.products import product_axis


class Plain(nn.Module):
    """A Linear of one's own."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(like.weight.detach().clone()), like.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Turned(nn.Module):
    """The same with inputs along the first axis, as in GPT-2."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(like.weight.detach().T.clone()), like.bias

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Bare(nn.Module):
    """A product without a bias, and without an attribute of that name."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.weight.detach().T.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Scaled(Plain):
    """No product alone: what it puts out is twice that."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def network(kind: type[nn.Module] | None, *, has_bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 24, bias=has_bias), nn.Linear(24, 20, bias=has_bias)]
    layers.append(nn.Linear(20, 3, bias=has_bias))
    own = layers if kind is None else [kind(layer) for layer in layers]
    return nn.Sequential(own[0], nn.ReLU(), own[1], nn.ReLU(), own[2]).eval()


def fitted(model: nn.Module) -> tuple[nn.Module, pb.CompensationReport]:
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
    plan = pb.plan_widths(model, x[:1], 0.5, config=pb.WidthConfig(round_to=1))
    small = pb.shrink(model, plan)
    return small, pb.compensate_(small, model, plan, list(x.split(64)))


@pytest.mark.parametrize(("kind", "has_bias"), [(Plain, True), (Turned, True), (Bare, False)])
def test_every_reader_is_fitted(kind: type[nn.Module], has_bias: bool) -> None:
    _, report = fitted(network(kind, has_bias=has_bias))
    assert report.left == {}
    assert report.layers.keys() == {"2", "4"}
    assert all(layer.after < 0.6 * layer.before for layer in report.layers.values())


def test_the_axis_of_the_inputs_changes_nothing() -> None:
    (plain, _), (turned, _) = fitted(network(Plain)), fitted(network(Turned))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(plain(x), turned(x), atol=1e-5)
    assert torch.allclose(plain[2].weight, turned[2].weight.T, atol=1e-5)


def test_what_is_no_product_alone_is_left() -> None:
    _, found = fitted(network(Scaled))
    assert found.layers == {}
    assert set(found.left.values()) == {
        "Scaled.weight is the weight of no layer whose sum is known"
    }


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.eye(3)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x @ self.weight


def test_the_layer_is_left_as_it_was() -> None:
    layer = Counting().train()
    assert product_axis(layer) == 1
    assert layer.calls == 0
    assert layer.training


@pytest.mark.parametrize("layer", [nn.LayerNorm(3), nn.Embedding(4, 3), nn.Conv1d(2, 3, 1)])
def test_other_layers_are_no_products(layer: nn.Module) -> None:
    assert product_axis(layer) is None
