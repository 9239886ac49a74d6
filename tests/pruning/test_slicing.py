"""Cuts of every kind of layer, against numpy's slicing of its state."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from pbcompress.pruning.cuts import LayerCut, cut_all_
from pbcompress.pruning.slicing import cut_
from pbcompress.structure.dimensions import dimension_size, is_plain, named_dimension

PLAIN = {
    "linear": (nn.Linear(6, 4), ("out", "in")),
    "linear without bias": (nn.Linear(6, 4, bias=False), ("out", "in")),
    "conv1d": (nn.Conv1d(6, 4, 3), ("out", "in")),
    "conv2d": (nn.Conv2d(6, 4, (3, 1)), ("out", "in")),
    "conv3d without bias": (nn.Conv3d(6, 4, 2, bias=False), ("out", "in")),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), ("out",)),
    "batch norm 1d": (nn.BatchNorm1d(6), ("out",)),
    "batch norm 2d": (nn.BatchNorm2d(6), ("out",)),
    "batch norm 3d": (nn.BatchNorm3d(6), ("out",)),
    "batch norm without affine": (nn.BatchNorm2d(6, affine=False), ("out",)),
    "batch norm without statistics": (nn.BatchNorm2d(6, track_running_stats=False), ("out",)),
    "prelu": (nn.PReLU(6), ("out",)),
}
OTHERS = {  # by tensor and axis; what the layer states of its size afterwards
    "layer norm": (nn.LayerNorm(6), "weight:0", {}),
    "group norm": (nn.GroupNorm(1, 6), "weight:0", {"num_channels": 4}),
    "embedding": (nn.Embedding(6, 5), "weight:1", {"num_embeddings": 6, "embedding_dim": 3}),
    "transposed": (nn.ConvTranspose2d(6, 4, 2), "weight:0", {"in_channels": 4, "out_channels": 4}),
    "transposed, out": (
        nn.ConvTranspose2d(6, 4, 2),
        "weight:1",
        {"in_channels": 6, "out_channels": 2},
    ),
    "depthwise with two each": (
        nn.Conv2d(3, 6, 3, groups=3),
        "weight:0",
        {"groups": 2, "in_channels": 2, "out_channels": 4},
    ),
    "bilinear": (nn.Bilinear(6, 5, 4), "weight:1", {}),
    "lstm": (nn.LSTM(6, 5), "weight_ih_l0:1", {"input_size": 4, "hidden_size": 5}),
    "gru cell": (nn.GRUCell(6, 5), "weight_hh:1", {"input_size": 6, "hidden_size": 3}),
    "a subclass": (type("Own", (nn.Linear,), {})(6, 4), "weight:0", {"out_features": 2}),
    "buffer": (nn.BatchNorm2d(6), "running_mean:0", {}),
}
REMOVED = (0, 2)


def states(layer):
    return {k: v.numpy().copy() for k, v in layer.state_dict().items()}


def test_every_layer_is_in_the_lists():
    assert len(PLAIN) == 12
    assert len(OTHERS) == 11
    assert not is_plain(nn.ReLU())


@pytest.mark.parametrize(
    ("name", "dim"), [(name, dim) for name, (_, dims) in PLAIN.items() for dim in dims]
)
@pytest.mark.parametrize("trains", [True, False])
def test_a_plain_layer_loses_rows_or_columns(name, dim, trains):
    layer = copy.deepcopy(PLAIN[name][0]).requires_grad_(trains)
    assert is_plain(layer)
    before, width = states(layer), dimension_size(layer, "", dim)
    cut_(layer, "", dim, REMOVED)
    for key, value in states(layer).items():
        expected = before[key]
        if expected.ndim and not (dim == "in" and key == "bias"):
            expected = np.delete(expected, REMOVED, axis=1 if dim == "in" else 0)
        np.testing.assert_array_equal(value, expected)
    assert dimension_size(layer, "", dim) == width - len(REMOVED)
    assert all(p.requires_grad is trains for p in layer.parameters())


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_grouped_convolution_loses_one_input_of_every_group(kind, groups):
    layer = kind(4 * groups, 2 * groups, 3, groups=groups)
    before = states(layer)
    cut_(layer, "", "in", [4 * g + 1 for g in range(groups)])
    np.testing.assert_array_equal(states(layer)["weight"], np.delete(before["weight"], 1, axis=1))
    assert (layer.in_channels, layer.groups) == (3 * groups, groups)
    assert layer(torch.zeros(1, 3 * groups, *[4] * len(layer.kernel_size))).shape[1] == 2 * groups


@pytest.mark.parametrize("name", OTHERS)
def test_another_layer_loses_positions_of_the_named_tensor_alone(name):
    layer, dim, sizes = copy.deepcopy(OTHERS[name])
    tensor, axis = dim.split(":")
    before, width = states(layer), dimension_size(layer, "", dim)
    cut_(layer, "", dim, REMOVED)
    for key, value in states(layer).items():
        expected = np.delete(before[key], REMOVED, int(axis)) if key == tensor else before[key]
        np.testing.assert_array_equal(value, expected)
    assert dimension_size(layer, "", dim) == width - len(REMOVED)
    assert {key: getattr(layer, key) for key in sizes} == sizes


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_every_axis_of_every_tensor_has_a_name_of_the_right_size(name):
    layer = (PLAIN | OTHERS)[name][0]
    model = nn.Sequential(nn.ReLU(), layer)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    seen = 0
    for key, tensor in tensors:
        for axis in range(min(tensor.dim(), 2)):
            where, dim, spread = named_dimension(layer, key, axis, frozenset())
            places = spread(torch.arange(tensor.shape[axis])[:, None]).flatten().tolist()
            assert where == "1"
            if is_plain(layer) and tensor.shape[axis] > 1:
                assert dim in ("out", "in")
            size = dimension_size(model, where, dim)
            if size == tensor.shape[axis] or dim == "in":
                assert sorted(places) == list(range(len(places)))
            shared = named_dimension(layer, key, axis, {key})
            assert shared[:2] == ("1", f"{key.removeprefix('1.')}:{axis}")
            assert dimension_size(model, *shared[:2]) == tensor.shape[axis]
            seen += 1
    assert seen == sum(min(t.dim(), 2) for _, t in tensors)


def test_an_index_of_a_grouped_weight_is_an_input_of_every_group():
    model = nn.Sequential(nn.Conv2d(12, 6, 1, groups=3))
    layer, dim, spread = named_dimension(model[0], "0.weight", 1, frozenset())
    assert (layer, dim) == ("0", "in")
    assert spread(torch.arange(4)[:, None]).tolist() == [[i, 4 + i, 8 + i] for i in range(4)]
    assert spread(torch.tensor([[1, 3]])).tolist() == [[1, 5, 9, 3, 7, 11]]


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        ("1", "out"),  # no such layer
        ("0.weight", "out"),
        ("0", "@heads"),  # no such attribute
        ("0", "@kernel_size[2]"),
        ("0", "@bias[0]"),
        ("0", "scale:0"),  # no such tensor
        ("0", "weight:4"),
        ("0", "weight:x"),
        ("", "out"),  # a Sequential is no plain layer
    ],
)
def test_what_is_not_there_has_no_size(layer, dim):
    assert dimension_size(nn.Sequential(nn.Conv2d(3, 4, 3)), layer, dim) is None


def test_attributes_are_lowered_and_keep_their_kind():
    layer = nn.ReLU()
    layer.heads, layer.sizes, layer.items = 8, (4, 6), [3, 5]
    for dim in ("@heads", "@sizes[1]", "@items[0]"):
        cut_(layer, "", dim, REMOVED)
    assert (layer.heads, layer.sizes, layer.items) == (6, (4, 4), [1, 5])
    assert dimension_size(layer, "", "@sizes[1]") == 4


def test_a_shared_tensor_is_cut_under_every_name_with_its_gradient():
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    model["b"].weight = model["a"].weight
    model["a"](torch.ones(2, 6)).sum().backward()
    gradient = model["a"].weight.grad.numpy().copy()
    cut_(model, "a", "weight:1", REMOVED)
    assert model["a"].weight is model["b"].weight
    assert model["a"].in_features == model["b"].in_features == 4
    np.testing.assert_array_equal(model["b"].weight.grad.numpy(), np.delete(gradient, REMOVED, 1))


class Walked(nn.ModuleDict):
    """Counts how often all its modules are walked through."""

    walks = 0

    def modules(self):
        self.walks += 1
        return super().modules()


def tied(places):
    """Linears and embeddings: each place holds one of three tables, a buffer of it, and a bias."""
    tables = [nn.Parameter(torch.randn(6, 5), requires_grad=i != 1) for i in range(3)]
    marks = [torch.arange(6.0) + 10 * i for i in range(3)]
    model = Walked()
    for number, (table, linear) in enumerate(places):
        layer = nn.Linear(5, 6) if linear else nn.Embedding(6, 5)
        layer.weight = tables[table]
        layer.register_buffer("mark", marks[table])
        model[f"{number}"] = layer
    for table in tables:
        table.grad = torch.randn(6, 5) if table.requires_grad else None
    return model


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5),
    st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_tensors_with_several_names_are_cut_once(places, rows, columns):
    torch.manual_seed(0)
    model = tied(places)
    first = {table: f"{i}" for i, (table, _) in reversed([*enumerate(places)])}
    steps = [
        LayerCut(name, dim, tuple(gone), size)
        for name in first.values()
        for dim, gone, size in (
            ("weight:1", columns, 5),
            ("mark:0", rows, 6),
            ("weight:0", rows, 6),
        )
    ]
    before, gradients = states(model), {k: p.grad for k, p in model.named_parameters()}
    trains = [layer.weight.requires_grad for layer in model.values()]
    cut_all_(model, steps)
    assert model.walks == 2  # for owners and for norms of weights, however many cuts there are
    for (table, linear), (key, layer) in zip(places, model.items(), strict=True):
        weight = np.delete(np.delete(before[f"{key}.weight"], columns, 1), rows, 0)
        np.testing.assert_array_equal(layer.weight.detach().numpy(), weight)
        np.testing.assert_array_equal(layer.mark.numpy(), np.delete(before[f"{key}.mark"], rows, 0))
        assert layer.weight is model[first[table]].weight
        assert layer.mark is model[first[table]].mark
        grad = gradients[f"{first[table]}.weight"]
        assert (layer.weight.grad is None) == (grad is None)
        if grad is not None:
            kept = np.delete(np.delete(grad.numpy(), columns, 1), rows, 0)
            np.testing.assert_array_equal(layer.weight.grad.numpy(), kept)
        sizes = ("out_features", "in_features") if linear else ("num_embeddings", "embedding_dim")
        assert tuple(getattr(layer, name) for name in sizes) == weight.shape
    assert [layer.weight.requires_grad for layer in model.values()] == trains


def test_a_tensor_is_cut_where_its_layer_has_a_new_one_by_then():
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    model["b"].weight = model["a"].weight
    before = states(model)["a.weight"]
    cut_all_(model, [LayerCut("a", "out", REMOVED, 6), LayerCut("a", "weight:1", REMOVED, 6)])
    expected = np.delete(np.delete(before, REMOVED, 0), REMOVED, 1)
    np.testing.assert_array_equal(model["a"].weight.detach().numpy(), expected)
    np.testing.assert_array_equal(model["b"].weight.detach().numpy(), before)


def test_a_parametrized_layer_states_its_new_sizes():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(5, 6, 2)))
    weight = model[0].weight.detach().numpy().copy()
    own = "0.parametrizations.weight"
    cuts = [("0", "bias:0"), (own, "original0:0"), (own, "original1:0")]
    cut_all_(model, [LayerCut(layer, dim, REMOVED, 6) for layer, dim in cuts])
    np.testing.assert_allclose(
        model[0].weight.detach().numpy(), np.delete(weight, REMOVED, 0), rtol=1e-6
    )
    assert model[0].out_channels == 4
    assert model(torch.zeros(1, 5, 4)).shape == (1, 4, 3)
