"""Importance: every criterion against a slow reference in numpy, and no trace of it afterwards."""

import random
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pbcompress import (
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    RecoveryConfig,
    Task,
    WidthConfig,
    compress,
    plan_widths,
)
from pbcompress.core.inputs import as_call
from pbcompress.core.modules import copy_model
from pbcompress.planning.importance import unit_scores
from pbcompress.structure.channel_groups import find_groups
from pbcompress.structure.layer_geometry import is_depthwise
from pbcompress.training.batch_statistics import Sample
from tests.support.nets import CASES

WITH_DATA = ("taylor", "variance", "fisher")
CRITERIA = ("magnitude", "bn_scale", *WITH_DATA)
MEAN = functional.cross_entropy
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


class Bare(nn.Module):
    """A scale that is no layer, and a bias that a transposed matrix product leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(4, 3)
        self.scale, self.matrix = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh((self.first(x) * self.scale) @ self.matrix))


class Tied(nn.Module):
    """The readout is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.mix, self.back = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.back(torch.relu(self.mix(self.norm(h))))
        return functional.linear(h, self.embed.weight).mean(1)


class Unseen(nn.Module):
    """No layer runs as a module: hooks on layers see nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(functional.linear(x, self.first.weight, self.first.bias))
        return functional.linear(h, self.last.weight, self.last.bias)


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 2, 4, 4, generator=generator).double()


def vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 5, generator=generator).double()


NETS = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
        vectors,
    ),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(6, 8, 1),
            nn.PReLU(8),
            nn.Conv2d(8, 4, 3, padding=1, groups=2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        images,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 1),
            nn.GroupNorm(1, 4),
            nn.ConvTranspose2d(4, 3, 2, stride=2),
            nn.Tanh(),
            nn.Conv2d(3, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        images,
    ),
    "bare": (Bare, vectors),
    "tied": (Tied, lambda g: torch.randint(7, (5, 4), generator=g)),
    "unseen": (Unseen, vectors),
}
every_net = pytest.mark.parametrize("name", NETS)


@cache
def case(name):
    """Return a float64 network, its batches and its groups."""
    make, inputs = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    generator = torch.Generator().manual_seed(4)
    batches = []
    for _ in range(3):
        x = inputs(generator)
        classes = model.eval()(x).shape[1]
        batches.append((x, torch.randint(classes, (5,), generator=generator)))
    groups = find_groups(copy_model(model), as_call(batches[0][0])).groups
    assert groups
    return model, batches, groups


def scores_of(name, criterion, model=None, groups=None, **sample):
    own, batches, found = case(name)
    given = Sample(sample.pop("batches", batches), Task(**sample), 16)
    return unit_scores(model or own, groups or found, criterion, given)


# --- the reference -------------------------------------------------------------------------------


def held(model, member, unit, *, with_bias):
    """Return (parameter, mask of the elements that a member holds of a unit)."""
    layer = model.get_submodule(member.layer)
    positions = member.positions[unit].tolist()
    name, _, axis = member.dim.partition(":")
    if name.startswith("@"):
        return
    name = "weight" if member.dim in ("out", "in") else name
    parameter = getattr(layer, name)
    if not isinstance(parameter, nn.Parameter):
        return
    mask = np.zeros(parameter.shape, bool)
    if member.dim == "in" and getattr(layer, "groups", 1) > 1:
        rows, columns = mask.shape[0] // layer.groups, mask.shape[1]
        for p in positions:
            group = p // columns
            mask[group * rows : (group + 1) * rows, p % columns] = True
    else:
        index = [slice(None)] * mask.ndim
        index[{"out": 0, "in": 1}.get(member.dim) if not axis else int(axis)] = positions
        mask[tuple(index)] = True
    yield parameter, mask
    if with_bias and member.dim == "out" and getattr(layer, "bias", None) is not None:
        mask = np.zeros(layer.bias.shape, bool)
        mask[positions] = True
        yield layer.bias, mask


def sum_held(model, group, value, keep=lambda member: True):
    found = []
    for member in filter(keep, group.members):
        parts = [list(held(model, member, u, with_bias=False)) for u in range(group.width)]
        if parts[0]:
            found.append([sum(value(p.detach().numpy())[m].sum() for p, m in of) for of in parts])
    return found


def slope(model, parts, batch):
    """Return the derivative of the loss along a factor on some elements, by central differences."""
    step, losses = 1e-5, []
    for factor in (1 + step, 1 - step):
        for parameter, mask in parts:
            parameter.data[torch.from_numpy(mask)] *= factor
        losses.append(functional.cross_entropy(model(batch[0]), batch[1]).item())
        for parameter, mask in parts:
            parameter.data[torch.from_numpy(mask)] /= factor
    return (losses[0] - losses[1]) / (2 * step)


def single(parts):
    """Yield the elements of some parts one by one."""
    for parameter, mask in parts:
        for index in zip(*np.nonzero(mask), strict=True):
            alone = np.zeros(mask.shape, bool)
            alone[index] = True
            yield [(parameter, alone)]


@torch.no_grad()
def slopes(model, group, batches, split=lambda parts: [parts]):
    """Return for each member, for each unit, the mean over batches of the sum of squared slopes."""
    model = copy_model(model).eval()
    found = []
    for member in group.members:
        parts = [list(held(model, member, u, with_bias=True)) for u in range(group.width)]
        if parts[0]:
            squares = [
                [sum(slope(model, piece, b) ** 2 for piece in split(of)) for b in batches]
                for of in parts
            ]
            found.append(np.mean(squares, 1))
    return found


def variances(model, group, batches):
    model, inputs = copy_model(model).eval(), {}
    for name, layer in model.named_modules():
        layer.register_forward_pre_hook(
            lambda layer, args, name=name: inputs.setdefault(name, []).append(args[0].numpy())
        )
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    found = []
    for member in group.members:
        layer = model.get_submodule(member.layer)
        is_transposed = isinstance(layer, nn.ConvTranspose2d) and member.dim == "weight:0"
        is_reader = member.dim == "in" or (member.dim == "out" and is_depthwise(layer))
        if member.layer in inputs and (is_reader or is_transposed):
            axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
            values = np.concatenate([np.moveaxis(v, axis, 0) for v in inputs[member.layer]], 1)
            channels = values.reshape(len(values), -1).var(1)
            found.append([channels[p].sum() for p in member.positions.tolist()])
    return found


def reference(model, group, criterion, batches):
    def is_scale(member):
        is_norm = isinstance(model.get_submodule(member.layer), NORMS)
        return is_norm and member.dim in ("out", "weight:0")

    energies = {
        "magnitude": lambda: sum_held(model, group, np.square),
        "bn_scale": lambda: sum_held(model, group, np.abs, is_scale),
        "variance": lambda: variances(model, group, batches),
        "taylor": lambda: slopes(model, group, batches),
        "fisher": lambda: slopes(model, group, batches, single),
    }
    found = energies[criterion]() or energies["magnitude"]()
    total = np.zeros(group.width)
    for energy in map(np.asarray, found):
        if energy.mean() > 0:
            total += energy / energy.mean()
    return total / total.mean() if total.any() else np.ones(group.width)


@every_net
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_those_of_the_reference(name, criterion):
    model, batches, groups = case(name)
    scores = scores_of(name, criterion)
    assert list(scores) == [group.name for group in groups]
    for group in groups:
        expected = reference(model, group, criterion, batches)
        assert scores[group.name].dtype == torch.float64
        # central differences are good to about 1e-9 of a loss near 1 and slopes down to 1e-3
        tolerance = 1e-4 if criterion in ("taylor", "fisher") else 1e-12
        np.testing.assert_allclose(
            scores[group.name].numpy(), expected, rtol=tolerance, atol=tolerance / 10
        )


def test_the_networks_have_every_kind_of_member():
    kinds = set()
    for name in NETS:
        model, _, groups = case(name)
        for member in (m for g in groups for m in g.members):
            layer = model.get_submodule(member.layer)
            grouped = " grouped" if getattr(layer, "groups", 1) > 1 else ""
            kind = " depthwise" if is_depthwise(layer) else grouped
            kinds.add(f"{type(layer).__name__}{kind} {member.dim}")
    assert kinds >= {
        "Linear out", "Linear in", "Conv2d out", "Conv2d in", "Conv2d depthwise out",
        "Conv2d grouped out", "Conv2d grouped in", "BatchNorm1d out", "BatchNorm2d out",
        "PReLU out", "GroupNorm weight:0", "LayerNorm weight:0", "ConvTranspose2d weight:0",
        "ConvTranspose2d weight:1", "Embedding weight:1", "Bare scale:0", "Bare matrix:0",
        "Bare matrix:1",
    }  # fmt: skip


def test_importance_is_the_mean_of_scaled_squared_norms():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 2], [2, 1]]))
        model[2].weight.copy_(torch.tensor([[1.0, 0, 1], [0, 3, 1]]))
    groups = find_groups(copy_model(model), ((torch.zeros(1, 2),), {})).groups
    # rows 1, 4, 5 of mean 10/3; columns 1, 9, 2 of mean 4
    expected = torch.tensor([1 / (10 / 3) + 1 / 4, 4 / (10 / 3) + 9 / 4, 5 / (10 / 3) + 2 / 4])
    torch.testing.assert_close(unit_scores(model, groups)["0"], expected.double() / 2)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_where_nothing_matters_all_units_matter_alike(criterion):
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    for layer in model:
        nn.init.zeros_(layer.weight)
    groups = find_groups(copy_model(model), ((torch.zeros(1, 2),), {})).groups
    sample = Sample([(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))], Task(), 1)
    assert unit_scores(model, groups, criterion, sample)["0"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", CASES)
def test_scores_have_mean_one_and_rank_dead_units_last(name):
    model = CASES[name].build()
    groups = find_groups(copy_model(model).eval(), as_call(CASES[name].inputs(1))).groups
    scores = unit_scores(model, groups)
    for group in groups:
        assert scores[group.name].shape == (group.width,)
        assert scores[group.name].mean().item() == pytest.approx(1)
    group = groups[0]
    with torch.no_grad():
        for member in group.members:
            weight = getattr(model.get_submodule(member.layer), "weight", None)
            if member.dim == "out" and weight is not None:
                weight[member.positions[1].tolist()] = 0
    assert unit_scores(model, groups)[group.name].argmin() == 1


# --- invariances ---------------------------------------------------------------------------------

factors = st.lists(st.floats(0.1, 10), min_size=6, max_size=6)


@given(factors)
@settings(max_examples=20, deadline=None)
def test_units_of_a_relu_network_may_be_rescaled(factors):
    """What a unit does stays; loss and activations say so, and squared weights do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    groups = find_groups(copy_model(model), ((torch.zeros(1, 4).double(),), {})).groups
    sample = Sample([(torch.randn(8, 4).double(), torch.randint(3, (8,)))], Task(), 1)
    before = {c: unit_scores(model, groups, c, sample)["0"] for c in ("taylor", "fisher")}
    scale = torch.tensor(factors).double()
    with torch.no_grad():
        model[0].weight.mul_(scale[:, None])
        model[0].bias.mul_(scale)
        model[2].weight.div_(scale)
    for criterion, expected in before.items():
        torch.testing.assert_close(unit_scores(model, groups, criterion, sample)["0"], expected)


@given(factors)
@settings(max_examples=20, deadline=None)
def test_what_a_norm_takes_away_has_no_say_in_the_variance(factors):
    model, batches, groups = case("linear")
    other, scale = copy_model(model), torch.tensor(factors).double()
    for norm in (model[1], other[1]):
        norm.eps = 0.0
    with torch.no_grad():
        other[0].weight.mul_(scale[:, None])
        other[0].bias.mul_(scale)
        other[1].running_mean.mul_(scale)
        other[1].running_var.mul_(scale**2)
    sample = Sample(batches, Task(), 3)
    expected = unit_scores(model, groups, "variance", sample)
    torch.testing.assert_close(unit_scores(other, groups, "variance", sample), expected)


@every_net
@pytest.mark.parametrize("criterion", ["magnitude", "bn_scale"])
def test_a_layer_may_be_rescaled_as_a_whole(name, criterion):
    model, _, groups = case(name)
    other = copy_model(model)
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            parameter.mul_(i + 2)
    expected = scores_of(name, criterion)
    torch.testing.assert_close(scores_of(name, criterion, other, groups), expected)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_the_unit_of_the_loss_does_not_matter(criterion):
    def loss(output, target):
        return 1000 * functional.cross_entropy(output, target)

    expected = scores_of("conv", criterion)
    torch.testing.assert_close(scores_of("conv", criterion, loss=loss), expected)


def test_taylor_and_fisher_agree_on_units_of_one_weight_and_differ_on_others():
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    groups = find_groups(copy_model(model), ((torch.zeros(1, 1),), {})).groups
    sample = Sample([(torch.randn(8, 1), torch.randint(2, (8,)))], Task(), 1)
    with torch.no_grad():
        model[2].weight[1] = 0  # two classes: of the second weights nothing is left
    taylor, fisher = (unit_scores(model, groups, c, sample)["0"] for c in ("taylor", "fisher"))
    torch.testing.assert_close(taylor, fisher)
    taylor, fisher = (scores_of("conv", c) for c in ("taylor", "fisher"))
    assert all(not torch.allclose(taylor[name], fisher[name], rtol=0.01) for name in taylor)


def test_the_variance_does_not_depend_on_how_samples_are_batched():
    _, batches, _ = case("conv")
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    uneven = [(x[part], y[part]) for x, y in whole for part in (slice(0, 2), slice(2, 15))]
    expected = scores_of("conv", "variance", batches=whole)
    torch.testing.assert_close(scores_of("conv", "variance", batches=uneven), expected)


def test_a_large_mean_does_not_drown_a_small_variance():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    nn.init.eye_(model[0].weight)
    groups = find_groups(copy_model(model), ((torch.zeros(1, 3),), {})).groups
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1.0, 2.0, 3.0]) + 3e4
    batches = [(part, torch.zeros(8, dtype=torch.long)) for part in x.split(8)]
    scores = unit_scores(model, groups, "variance", Sample(batches, Task(), 8))["0"].numpy()
    expected = x.double().numpy().var(0)
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=2e-2)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_is_summed_in_single(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = find_groups(copy_model(model), ((torch.zeros(1, 4),), {})).groups
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    expected = unit_scores(model, groups, criterion, Sample([(x, y)], Task(), 1))["0"]
    low = Sample([(x.bfloat16(), y)], Task(loss=lambda o, t: MEAN(o.float(), t)), 1)
    scores = unit_scores(copy_model(model).bfloat16(), groups, criterion, low)["0"]
    assert expected.std() > 0.2
    torch.testing.assert_close(scores, expected, rtol=0.1, atol=0.05)
    large = copy_model(model).half()
    with torch.no_grad():
        large[0].weight.mul_(1000)  # squares are beyond the largest half
    assert unit_scores(large, groups)["0"].isfinite().all()


# --- batches -------------------------------------------------------------------------------------


class Counted:
    """Shuffled batches that tell how many were taken."""

    def __init__(self, batches):
        self.batches, self.taken = batches, 0

    def __iter__(self):
        for index in torch.randperm(len(self.batches)).tolist():
            self.taken += 1
            yield self.batches[index]


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_few_batches_are_looked_at_and_the_seed_names_them(criterion):
    model, batches, groups = case("linear")
    found = []
    for seed in (0, 0, 1, 2, 3, 4, 5):
        counted = Counted(batches)
        found.append(unit_scores(model, groups, criterion, Sample(counted, Task(), 1, seed))["0"])
        assert counted.taken == 1
        torch.rand(1)
    assert torch.equal(found[0], found[1])
    assert not all(torch.equal(found[0], other) for other in found[2:])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("grad_mode", [True, False])
def test_nothing_of_the_user_changes(criterion, grad_mode):
    model, batches, groups = case("conv")
    model = copy_model(model).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with torch.set_grad_enabled(grad_mode):
        unit_scores(model, groups, criterion, Sample(Counted(batches), Task(), 2))
        assert torch.is_grad_enabled() == grad_mode
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == streams
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model[0].weight.requires_grad
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert graded == {"3.weight"}
    assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_frozen_parameters_count(criterion):
    model, _, groups = case("conv")
    frozen = copy_model(model).requires_grad_(False)
    expected = scores_of("conv", criterion)
    torch.testing.assert_close(scores_of("conv", criterion, frozen, groups), expected)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_dropout_is_off_in_recurrent_layers_too(criterion):
    class Recurrent(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.body = nn.LSTM(5, 6, num_layers=2, batch_first=True, dropout=dropout)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.body(x)[0].mean(1))

    models = [Recurrent(0.0), Recurrent(0.9)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(4, 7, 5)
    groups = find_groups(copy_model(models[0]).eval(), as_call(x)).groups
    assert groups
    sample = Sample([(x, torch.randint(3, (4,)))], Task(), 1)
    without, with_dropout = (unit_scores(m, groups, criterion, sample) for m in models)
    torch.testing.assert_close(with_dropout, without)
    assert models[1].body.dropout == 0.9


# --- plans ---------------------------------------------------------------------------------------


def example():
    """Return a network whose unit 2 is written large and read by nobody, and data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[2] = 100
        model[3].weight[:, 2] = 0
    batches = [(torch.randn(12, 8), torch.randint(3, (12,))) for _ in range(4)]
    return model, Data(train=batches, val=batches)


def config_of(criterion, **others):
    width = WidthConfig(importance=criterion, importance_batches=2)
    recovery = RecoveryConfig(epochs=1, dendrite_epochs=1, max_failures=1)
    return CompressConfig(width=width, recovery=recovery, deploy=False, **others)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_a_plan_removes_what_the_loss_does_not_need(criterion):
    model, data = example()
    removed = {}
    for name in (criterion, "magnitude"):
        plan = plan_widths(model, torch.zeros(1, 8), 0.9, config=config_of(name), data=data)
        removed[name] = next(s.removed for s in plan.steps if (s.layer, s.dim) == ("0", "out"))
    assert 2 in removed[criterion]
    assert 2 not in removed["magnitude"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_compress_plans_with_its_data_and_its_seed(criterion):
    model, data = example()
    config = config_of(criterion, dendrites=DendriteConfig(max_sets=0))
    result = compress(model, 0.5, data=data, config=config, seed=3, device="cpu", progress=False)
    plan = plan_widths(model, torch.zeros(1, 8), 0.5, config=config, data=data, seed=3)
    assert result.plan.steps == plan.steps


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_without_data_nothing_begins(criterion, tmp_path):
    model, _ = example()
    with pytest.raises(CompressionError, match=rf"importance='{criterion}'.*Pass data="):
        plan_widths(model, torch.zeros(1, 8), 0.5, config=config_of(criterion))
    with pytest.raises(CompressionError, match="Pass data="):
        compress(
            model,
            0.5,
            example_inputs=torch.zeros(1, 8),
            config=config_of(criterion),
            run_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("criterion", ["magnitude", "bn_scale"])
def test_criteria_without_data_do_not_touch_the_data_they_get(criterion):
    model, _ = example()
    none = Data(train=[], val=[])
    plan = plan_widths(model, torch.zeros(1, 8), 0.5, config=config_of(criterion), data=none)
    assert (
        plan.steps == plan_widths(model, torch.zeros(1, 8), 0.5, config=config_of(criterion)).steps
    )


def infinite_gradient(output, target):
    return output.sum().abs().sqrt() * 0 + (output - output).abs().sqrt().sum()


@pytest.mark.parametrize("criterion", WITH_DATA)
@pytest.mark.parametrize(
    ("train", "message"),
    [([], "no batch"), (iter([(torch.ones(2, 8),)]), "iterator"), (None, "NoneType")],
    ids=["empty", "iterator", "none"],
)
def test_data_that_cannot_be_used_are_named(criterion, train, message):
    model, _ = example()
    data = Data(train=train, val=[])
    with pytest.raises(CompressionError, match=message):
        plan_widths(model, torch.zeros(1, 8), 0.5, config=config_of(criterion), data=data)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: output.sum() * float("nan"), "finite"),
        (lambda output, target: output.detach().sum(), "without gradient"),
        (lambda output, target: output, "scalar"),
        (infinite_gradient, "gradient of Task.loss has a NaN"),
    ],
    ids=["nan", "detached", "vector", "gradient"],
)
def test_a_loss_that_cannot_be_used_is_named(criterion, loss, message):
    model, data = example()
    with pytest.raises(CompressionError, match=message):
        plan_widths(
            model,
            torch.zeros(1, 8),
            0.5,
            config=config_of(criterion),
            data=data,
            task=Task(loss=loss),
        )


def test_inputs_of_a_grouped_convolution_whose_outputs_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, groups=1), nn.Conv2d(8, 6, 1, groups=2))
    (group,) = find_groups(copy_model(model), ((torch.zeros(1, 3, 4, 4),), {})).groups
    scores = unit_scores(model, [group])[group.name]
    made = model[0].weight.detach().double().square().sum((1, 2, 3)).view(2, 4).sum(0)
    read = model[1].weight.detach().double().square().view(2, 3, 4).sum((0, 1))
    expected = made / made.mean() + read / read.mean()
    torch.testing.assert_close(scores, expected / expected.mean(), rtol=1e-6, atol=0)
