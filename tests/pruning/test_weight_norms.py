import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, weight_norm

import pbcompress as pb
from pbcompress.pruning.cuts import LayerCut, cut_all_

LAYERS = {
    "linear": lambda: nn.Linear(8, 8),
    "1d": lambda: nn.Conv1d(8, 8, 3),
    "2d": lambda: nn.Conv2d(8, 8, 3),
    "3d": lambda: nn.Conv3d(8, 8, 1),
    "grouped": lambda: nn.Conv2d(16, 8, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose1d(8, 8, 3),
    "transposed 2d": lambda: nn.ConvTranspose2d(8, 8, 2),
}


def sample(layer):
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return torch.zeros(2, width, *[4] * (layer.weight.dim() - 2))


AXES = (0, 1, -1, None, 2, -2)
REMOVED = {0: (1, 6), 1: (0, 2, 5)}


def old(layer, dim):
    with pytest.warns(FutureWarning):
        return weight_norm(layer, dim=dim)


def normed(kind, layer, dim):
    return old(layer, dim) if kind == "old" else parametrizations.weight_norm(layer, dim=dim)


CASES = [
    (kind, layer, dim)
    for kind in ("old", "new")
    for layer in LAYERS
    for dim in AXES
    if not (layer == "linear" and dim == 2)
]


def test_the_number_of_cases():
    assert len(CASES) == 82


@pytest.mark.parametrize(("kind", "layer", "dim"), CASES)
def test_kept_weights_stay_what_they_were(kind, layer, dim):
    torch.manual_seed(0)
    own = normed(kind, LAYERS[layer](), dim)
    model = nn.Sequential(own)
    for parameter in own.parameters():  # lengths that are not those of the directions
        parameter.data += torch.rand_like(parameter)
    own(sample(own))
    expected = own.weight.detach().double().numpy()
    where, names = ("0", ("weight_g", "weight_v"))
    if kind == "new":
        where, names = "0.parametrizations.weight", ("original0", "original1")
    outputs = REMOVED["transposed" in layer]
    steps = [LayerCut("0", "bias:0", outputs, 8)]
    for axis, removed in REMOVED.items():
        expected = np.delete(expected, removed, axis)
        for name in names:
            shape = model.get_parameter(f"{where}.{name}").shape
            if shape and shape[axis] > 1:
                steps.append(LayerCut(where, f"{name}:{axis}", removed, shape[axis]))
    cut_all_(model, steps)
    np.testing.assert_allclose(own.weight.detach().double().numpy(), expected, rtol=1e-5)
    assert own.weight.shape == expected.shape
    assert own(sample(own)).isfinite().all()  # the sizes that the layer states are in step


def test_a_direction_that_nothing_is_left_of_gives_zeros():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    own = layer.parametrizations.weight
    own.original1.data[1] = torch.tensor([0.0, 0.0, 2.0, 0.0])
    model = nn.Sequential(layer)
    expected = layer.weight.detach().numpy()
    cuts = [LayerCut("0.parametrizations.weight", "original1:1", (2,), 4)]
    cut_all_(model, cuts)
    np.testing.assert_allclose(layer.weight.detach().numpy(), np.delete(expected, 2, 1), rtol=1e-6)
    layer(torch.ones(1, 3)).sum().backward()
    assert own.original0.grad.isfinite().all()


class Masked(nn.Module):
    """Two layers with weight norm, and channels that can be taken for zero."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.c = nn.Linear(6, 16), normed(kind, nn.Linear(16, 3), 0)
        self.b = normed(kind, nn.Linear(16, 16), 0)

    def forward(self, x, first=None, second=None):
        h = self.a(x).relu()
        h = h if first is None else h * first
        h = self.b(h).relu()
        return self.c(h if second is None else h * second)


def stays(plan, layer, width):
    gone = next(set(s.removed) for s in plan.steps if s.layer == layer and s.dim == "out")
    return torch.tensor([i not in gone for i in range(width)]).float()


@pytest.mark.parametrize("kind", ["old", "new"])
@pytest.mark.parametrize("dim", [-2, -3])
def test_an_axis_from_the_end_goes_on_to_be_narrowed(kind, dim):
    layer = normed(kind, nn.Linear(16, 16) if dim == -2 else nn.Conv1d(16, 16, 1), dim)
    layers = (nn.Linear(6, 16), layer, nn.Linear(16, 3))
    if dim == -3:
        layers = (nn.Conv1d(6, 16, 1), layer, nn.Conv1d(16, 3, 1))
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    plan = pb.plan_widths(model, torch.randn(2, 6, *[5] * (dim == -3)), 0.5)
    assert not any("sliced" in reason for reason in plan.left_alone.values())


@pytest.mark.parametrize("kind", ["old", "new"])
def test_a_shrunk_network_is_the_original_without_its_channels(kind):
    torch.manual_seed(0)
    model, x = Masked(kind).eval(), torch.randn(4, 6)
    plan = pb.plan_widths(model, x, 0.5)
    small = pb.shrink(model, plan)
    first = stays(plan, "a", 16)
    name = "b" if kind == "old" else "b.parametrizations.weight"
    direction = "weight_v:0" if kind == "old" else "original1:0"
    gone = next(s.removed for s in plan.steps if (s.layer, s.dim) == (name, direction))
    second = torch.tensor([i not in gone for i in range(16)]).float()
    assert first.sum() < 16
    assert second.sum() < 16
    torch.testing.assert_close(small(x), model(x, first, second), rtol=1e-5, atol=1e-6)


class Unit(nn.Module):
    """A norm of one's own: nobody knows how to keep its weights."""

    def forward(self, weight):
        return nn.functional.normalize(weight, dim=1)


class Centred(nn.Module):
    def forward(self, weight):
        return weight - weight.mean(1, keepdim=True)


class Squashed(nn.Module):
    def forward(self, weight):
        return weight.tanh()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Unit, "computes a weight from all of its channels (linalg_vector_norm)"),
        (Centred, "what is left of the weight '2.weight' would change"),
    ],
)
def test_a_parametrization_that_counts_inputs_keeps_them(kind, reason):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    parametrize.register_parametrization(model[2], "weight", kind())
    plan = pb.plan_widths(model.eval(), torch.randn(4, 6), 0.75)
    small = pb.shrink(model, plan)
    assert small[2].weight.shape[1] == 16
    assert small[2].weight.shape[0] < 16
    assert reason in plan.left_alone["0"]


def test_a_parametrization_of_single_weights_is_narrowed():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    parametrize.register_parametrization(model[2], "weight", Squashed())
    plan = pb.plan_widths(model.eval(), torch.randn(4, 6), 0.5)
    assert pb.shrink(model, plan)[2].weight.shape[1] < 16


# --- norms that a network's own code computes -----------------------------------------------------

WRITTEN = {
    "norm": lambda v, g: g[:, None] * v / v.norm(dim=1, keepdim=True),
    "normalize": lambda v, g: g[:, None] * functional.normalize(v, dim=1),
    "squares": lambda v, g: g[:, None] * v / (v * v).sum(1, keepdim=True).sqrt(),
    "vector_norm": lambda v, g: g[:, None] * v / torch.linalg.vector_norm(v, dim=1, keepdim=True),
    "_weight_norm": lambda v, g: torch._weight_norm(v, g[:, None], 0),
    "one_length": lambda v, g: g[:, None] * v / v.norm(),
    "spectral": lambda v, g: g[:, None] * v / torch.linalg.matrix_norm(v, 2),
    "sum_to_one": lambda v, g: g[:, None] * v.softmax(1),
    "rsqrt": lambda v, g: g[:, None] * v * (v.square().sum(1, keepdim=True) + 1e-8).rsqrt(),
    "absolute": lambda v, g: g[:, None] * v / v.abs().sum(1, keepdim=True),
    "linalg": lambda v, g: g[:, None] * v / torch.linalg.norm(v, dim=1, keepdim=True),
    "einsum": lambda v, g: g[:, None] * v / torch.einsum("oi,oi->o", v, v).sqrt()[:, None],
    "gram": lambda v, g: g[:, None] * v / (v @ v.T).diagonal().sqrt()[:, None],
    "ones": lambda v, g: g[:, None] * v / ((v * v) @ v.new_ones(v.shape[1], 1)).sqrt(),
    "linear": lambda v, g: g[:, None] * v / functional.linear(v * v, v.new_ones(1, v.shape[1])),
    "cosine": lambda v, g: v * functional.cosine_similarity(v, v + 1, dim=1)[:, None],
    "newton": lambda v, g: 1.5 * v - 0.005 * v @ v.T @ v,
    "quantile": lambda v, g: torch.where(v.abs() > v.abs().quantile(0.5), v, 0.0),
    "each_alone": lambda v, g: g[:, None] * v.tanh(),
}
SINGLE = ("each_alone",)  # whose weights do not hang together


class Written(nn.Module):
    """A linear layer whose weight its own code computes."""

    def __init__(self, inputs, outputs, how):
        super().__init__()
        self.v = nn.Parameter(torch.randn(outputs, inputs))
        self.g = nn.Parameter(torch.rand(outputs) + 0.5)
        self.how = how

    @property
    def computed(self):
        return WRITTEN[self.how](self.v, self.g)

    def forward(self, x):
        return functional.linear(x, self.computed)


def test_the_number_of_written_norms():
    assert len(WRITTEN) == 19


@pytest.mark.parametrize("how", WRITTEN)
def test_weights_that_code_computes_stay_what_they_were(how):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(8, 64), nn.ReLU(), Written(64, 24, how), nn.ReLU()),
        *(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 4)),
    )
    plan = pb.plan_widths(model, torch.randn(1, 8), 0.7)
    small = pb.shrink(model, plan)
    kept = {
        (step.layer, step.dim): sorted(set(range(step.width)) - set(step.removed))
        for step in plan.steps
    }
    rows = kept.get(("2", "v:0"), list(range(24)))
    columns = kept.get(("2", "v:1"), list(range(64)))
    torch.testing.assert_close(small[2].computed, model[2].computed[rows][:, columns])
    if how in SINGLE:
        assert len(columns) < 64
    else:
        assert len(columns) == 64
        assert "'2'" in plan.left_alone["0"]


def test_the_length_of_a_row_lets_rows_go():
    torch.manual_seed(0)
    model = nn.Sequential(Written(8, 64, "norm"), nn.ReLU(), nn.Linear(64, 4))
    plan = pb.plan_widths(model, torch.randn(1, 8), 0.5)
    assert pb.shrink(model, plan)[0].v.shape[0] < 40


class Standardised(nn.Conv2d):
    """As in NFNets and BiT: weights have mean 0 and variance 1 in each output."""

    @property
    def computed(self):
        flat = self.weight.reshape(1, self.out_channels, -1)
        found = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return found.reshape_as(self.weight)

    def forward(self, x):
        return functional.conv2d(x, self.computed, self.bias)


def test_standardised_weights_are_so_over_what_is_left():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 1), nn.ReLU(), Standardised(32, 32, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    )
    plan = pb.plan_widths(model.eval(), torch.randn(1, 3, 4, 4), 0.5)
    small = pb.shrink(model, plan)[2]
    assert max(small.weight.shape[:2]) < 32
    flat = small.weight.detach().double().numpy().reshape(len(small.weight), -1)
    spread = np.sqrt(flat.var(1, keepdims=True) + 1e-6)
    expected = (flat - flat.mean(1, keepdims=True)) / spread
    found = small.computed.detach().numpy().reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Latents(nn.Module):
    """Queries that are parameters, and go through layers before they meet an input."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 5, 32))
        self.own = nn.Linear(32, 32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.entry, self.head = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x):
        h = self.entry(x)
        z = self.latents + self.own(self.latents).relu()
        z = z + (z @ z.transpose(1, 2)).softmax(-1) @ z
        scores = self.query(z) @ self.key(h).transpose(1, 2)
        return self.head((z + scores.softmax(-1) @ self.value(h)).mean(1))


def test_latent_queries_are_a_stream_and_no_weights():
    model = Latents().eval()
    plan = pb.plan_widths(model, torch.randn(2, 7, 6), 0.5)
    assert set(plan.left_alone) == {"head"}


class Merged(nn.Module):
    """A layer that adds a product of two thin matrices to its weight, when that is read."""

    def __init__(self):
        super().__init__()
        self.base = nn.Parameter(torch.randn(24, 64))
        self.down, self.up = nn.Parameter(torch.randn(8, 64)), nn.Parameter(torch.randn(24, 8))

    @property
    def weight(self):
        return self.base + self.up @ self.down

    def forward(self, x):
        return functional.linear(x, self.weight)


def test_a_weight_that_is_computed_when_it_is_read_is_not_read_between_cuts():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(8, 64), nn.ReLU(), Merged(), nn.ReLU(), nn.Linear(24, 64), nn.ReLU()),
        nn.Linear(64, 4),
    )
    plan = pb.plan_widths(model, torch.randn(1, 8), 0.5)
    small = pb.shrink(model, plan)
    kept = {
        (step.layer, step.dim): sorted(set(range(step.width)) - set(step.removed))
        for step in plan.steps
    }
    rows, columns = kept["2", "base:0"], kept["0", "out"]
    ranks = kept["2", "down:0"]
    expected = model[2].base[rows][:, columns] + (
        model[2].up[rows][:, ranks] @ model[2].down[ranks][:, columns]
    )
    torch.testing.assert_close(small[2].weight, expected)
