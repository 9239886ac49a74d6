"""A network's copy is what `copy.deepcopy` makes of it."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from pbcompress.core.copying import deep_copy
from tests.support.nets import CASES


class Views(nn.Module):
    """Buffers on one storage, and views of them where only a deep copy finds them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.arange(12.0).view(3, 4))
        self.register_buffer("first", self.rows[0])
        self.register_buffer("turned", self.rows.T)
        self.register_buffer("none", None)
        self.held = {"views": [self.rows[1], self.rows[2]]}


class Counts(nn.Linear):
    """Copied by a method of its own."""

    def __deepcopy__(self, memo):
        other = type(self)(self.in_features, self.out_features)
        memo[id(self)] = other
        other.was_copied = True
        return other


class Restored(nn.Linear):
    """Restored by a method of its own."""

    def __setstate__(self, state):
        super().__setstate__(state)
        self.was_restored = True


def looped():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    vars(model[0])["parent"] = [model]
    model[1].twin = model[0]
    return model


def dictionaries():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    held = {"empty": {}, ("a", 1): [2], "pair": (1, [3]), "sizes": (3, 3)}
    held["own"] = held
    model[0].held, model[1].held, model[1].empty = held, held, held["empty"]
    return model


def same_objects(a, b, seen):
    """Compare attributes at any depth, and that what is one object on one side is on the other."""
    if id(a) in seen:
        assert seen[id(a)][1] is b
        return
    seen[id(a)] = (a, b)  # kept alive, so that no id is used again
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
        assert a.requires_grad == b.requires_grad
        assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes()
    elif isinstance(a, nn.Module | dict):
        a, b = (vars(x) if isinstance(x, nn.Module) else x for x in (a, b))
        assert list(a) == list(b)
        for key in a:
            same_objects(a[key], b[key], seen)
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            same_objects(x, y, seen)
    elif isinstance(a, int | float | str | set | torch.Size | None):
        assert a == b


def norm_by_hooks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(weight_norm(nn.Linear(2, 3)))


MAKERS = {
    **{name: case.build for name, case in CASES.items()},
    "views": Views,
    "loop": looped,
    "dictionaries": dictionaries,
    "own copying": lambda: nn.Sequential(Counts(2, 2), nn.ReLU()),
    "own restoring": lambda: nn.Sequential(Restored(2, 2), nn.ReLU()),
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))),
    "meta": lambda: nn.BatchNorm1d(3, device="meta").requires_grad_(False),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_is_as_deepcopy_makes_it(name):
    model = MAKERS[name]()
    if name == "meta":
        copied = deep_copy(model, {})
        assert {t.device.type for t in copied.state_dict().values()} == {"meta"}
        return
    torch.manual_seed(0)  # some copies draw numbers
    expected = copy.deepcopy(model)
    torch.manual_seed(0)
    same_objects(expected, deep_copy(model, {}), {})


def test_views_stay_on_one_storage_that_is_a_new_one():
    model = Views()
    copied = deep_copy(model, {})
    held = [copied.rows, copied.first, copied.turned, *copied.held["views"]]
    assert len({t.untyped_storage().data_ptr() for t in held}) == 1
    copied.rows.zero_()
    assert not copied.held["views"][1].any()
    assert model.held["views"][1].all()


def test_what_was_computed_is_detached():
    model = norm_by_hooks()
    assert not model[0].weight.is_leaf
    copied = deep_copy(model, {})
    assert copied[0].weight.is_leaf
    x = torch.ones(1, 2)
    assert torch.equal(copied(x), model(x))


def test_what_is_given_stands_in_its_place():
    model = nn.Linear(2, 2)
    other = nn.Parameter(torch.zeros(2, 2))
    assert deep_copy(model, {id(model.weight): other}).weight is other
