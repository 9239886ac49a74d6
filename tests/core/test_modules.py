"""The small operations on models, and that each puts back what it moved."""

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from pbcompress.core.inputs import (
    Call,
    as_call,
    few_samples,
    map_tensors,
    single_sample,
    to_device,
)
from pbcompress.core.modules import (
    channel_axis,
    copy_model,
    matches,
    parameter_count,
    preserved_mode,
    replace_module,
    shared_parameter_names,
)
from pbcompress.core.randomness import seeded, whole_seed
from pbcompress.errors import CompressionError


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def draw():
    return torch.rand(3).tolist(), random.random(), np.random.rand()


def test_example_inputs_become_positions_and_names():
    x = torch.zeros(2)
    assert as_call(x) == Call((x,), {})
    assert as_call((x, 3)) == as_call([x, 3]) == Call((x, 3), {})
    assert as_call({"a": x}) == Call((), {"a": x})
    assert as_call(as_call({"a": x})) == as_call({"a": x})


def test_a_call_is_given_back_as_a_tuple_or_a_dict():
    x = torch.zeros(2)
    assert as_call(x).example_inputs == (x,)
    assert as_call({"a": x}).example_inputs == {"a": x}
    with pytest.raises(CompressionError, match="positional and named inputs at once"):
        _ = Call((x,), {"a": x}).example_inputs


@pytest.mark.parametrize("wrong", [None, 3, "x", {1, 2}, np.zeros(3)])
def test_other_example_inputs_are_refused(wrong):
    with pytest.raises(CompressionError, match=f"Found {type(wrong).__name__}"):
        as_call(wrong)


def test_tensors_are_mapped_at_any_depth_and_the_rest_is_kept():
    call = Call((torch.ones(2), [torch.ones(1), "a"]), {"k": {"deep": torch.ones(3)}, "n": 5})
    args, kwargs = map_tensors(call, lambda t: t * 2)
    assert args[0].tolist() == [2, 2]
    assert (args[1][0].tolist(), args[1][1]) == ([2], "a")
    assert (kwargs["k"]["deep"].tolist(), kwargs["n"]) == ([2, 2, 2], 5)


def test_a_single_sample_is_the_first_and_no_view():
    x = torch.arange(6.0).reshape(3, 2)
    (first, scalar), _ = single_sample(Call((x, torch.tensor(4.0)), {}))
    assert first.tolist() == [[0, 1]]
    assert scalar.item() == 4
    first += 1
    assert x[0].tolist() == [0, 1]


def test_tensors_on_a_device_have_no_gradient():
    (x,), _ = to_device(Call((torch.ones(1, requires_grad=True) * 2,), {}), "cpu")
    assert not x.requires_grad


def test_a_copy_shares_no_tensor_and_keeps_ties():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    copied = copy_model(model)
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in copied.state_dict().values()}
    assert copied[2].weight is copied[0].weight
    assert not copied[0].bias.requires_grad


def test_what_cannot_be_copied_is_named():
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(CompressionError, match=r"cannot be copied.*lock"):
        copy_model(model)


def test_parameters_count_once_however_often_they_are_used():
    layer = nn.Linear(3, 4)
    model = nn.Sequential(layer, layer, nn.Linear(4, 3, bias=False))
    model[2].weight = nn.Parameter(torch.zeros(2))
    assert parameter_count(model) == 16 + 2
    assert parameter_count(nn.ReLU()) == 0


def test_aliases_name_the_first_owner():
    layer = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": layer, "d": layer})
    model["b"].weight = model["a"].weight
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"b.weight": "a.weight"} | {f"d.{n}": f"c.{n}" for n in names}
    assert shared_parameter_names(model) == expected
    assert shared_parameter_names(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("layer1.conv", ("layer1",), True),
        ("layer10.conv", ("layer1",), False),
        ("layer1.conv", ("layer?.conv",), True),
        ("layer1.conv", ("*conv",), True),
        ("layer1.conv", ("conv",), False),
        ("head", (), False),
        ("head", ("tail", "head"), True),
        ("Head", ("head",), False),
    ],
)
def test_patterns_match_a_layer_or_what_lies_below(name, patterns, expected):
    assert matches(name, patterns) is expected


def test_a_replaced_module_is_replaced_under_all_its_names():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Sequential(layer, nn.ReLU()))
    new = nn.Identity()
    replace_module(model, "1.0", new)
    assert model[0] is new
    assert model[1][0] is new


def test_a_module_can_be_wrapped_in_place():
    model = nn.Sequential(nn.Linear(3, 3))
    inner = model[0]
    replace_module(model, "0", nn.Sequential(inner))
    assert model[0][0] is inner


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (nn.Linear(2, 2), -1),
        (nn.Conv1d(2, 2, 1), -2),
        (nn.Conv2d(2, 2, 1), -3),
        (nn.Conv3d(2, 2, 1), -4),
    ],
)
def test_the_channel_axis_counts_from_the_end(layer, axis):
    assert channel_axis(layer) == axis


@pytest.mark.parametrize("training", [True, False])
def test_modes_come_back_also_after_an_error(training):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    before = [m.training for m in model.modules()]

    def fail():
        with preserved_mode(model, training=training) as same:
            assert same is model
            assert all(m.training is training for m in model.modules())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert [m.training for m in model.modules()] == before


def test_a_seed_names_a_stream_and_the_old_one_goes_on():
    before = states()
    with seeded("a", 1):
        first = draw()
    with seeded("a", 2):
        other = draw()
    with seeded("a", 1):
        again = draw()
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
    assert states() == before


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(8, 2), ["a"] * 8),
        (torch.zeros(8, 2), torch.zeros(4)),
        (torch.zeros(8, 2), torch.zeros(())),
        (torch.zeros(8, 2).to_sparse(), torch.zeros(8)),
        (torch.zeros(2, 2), torch.zeros(2)),
        {},
    ],
)
def test_a_batch_whose_samples_are_not_known_or_few_stays_whole(batch):
    assert few_samples(batch, 2) is batch


def test_the_first_samples_of_a_batch_at_any_depth():
    x = torch.arange(24.0).reshape(8, 3)
    few = few_samples({"inputs": (x, x + 1), "target": x[:, 0]}, 3)
    assert torch.equal(few["inputs"][1], x[:3] + 1)
    assert torch.equal(few["target"], x[:3, 0])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_a_seed_is_a_whole_number_of_any_kind(kind):
    with seeded("a", 3):
        first = draw()
    with seeded("a", kind(3)):
        assert draw() == first
    assert type(whole_seed(kind(3))) is int


@pytest.mark.parametrize("seed", [1.5, np.float64(2), "three", None, torch.tensor(0.5)])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(CompressionError, match=r"seed was given as .* Give a whole number"):
        whole_seed(seed)


def test_random_states_come_back_after_an_error():
    def fail():
        with seeded(0):
            draw()
            raise RuntimeError("inside")

    before = states()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert states() == before
