"""What an object is: the same for equal ones, another for each difference that counts."""

import functools
import re
import subprocess
import sys
from argparse import Namespace
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from pbcompress.core import object_identity
from pbcompress.core.object_identity import changed_places, identify

ROOT = Path(__file__).parents[2]
SCALE = 2.0


def scaled(x: float) -> float:
    return x * SCALE


def by_helper(x: float) -> float:
    return scaled(x) + 1


class Loss:
    def __init__(self, margin: float = 1.0) -> None:
        self.margin = margin

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).abs().sum() * self.margin


@dataclass
class Choice:
    width: int


def closing_over(value: object):
    return lambda x: (x, value)


def with_default(x: float, factor: float = 2.0) -> float:
    return x * factor


def other_default(x: float, factor: float = 3.0) -> float:
    return x * factor


other_default.__qualname__ = with_default.__qualname__
weights = torch.arange(6.0)
images = TensorDataset(torch.zeros(9, 2), torch.arange(9))
PAIRS = {
    "a constant": (lambda x: x + 1, lambda x: x + 2),
    "an operation": (lambda x: x + 1, lambda x: x * 1),
    "a name": (lambda x: torch.exp(x), lambda x: torch.log(x)),
    "a closure": (closing_over(1), closing_over(2)),
    "a tensor in a closure": (closing_over(weights), closing_over(weights + 1)),
    "a network in a closure": (closing_over(nn.Linear(2, 2)), closing_over(nn.Linear(2, 2))),
    "a default": (with_default, other_default),
    "a partial": (functools.partial(scaled, x=1), functools.partial(scaled, x=2)),
    "an attribute": (Loss(1.0), Loss(1.5)),
    "a method's owner": (Loss(1.0).__call__, Loss(1.5).__call__),
    "a choice of torch": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weights of a loss": (nn.CrossEntropyLoss(weights), nn.CrossEntropyLoss(weights + 1)),
    "a dataclass": (Choice(1), Choice(2)),
    "a dtype": (torch.float32, torch.float64),
    "a shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "the kind of an array": (np.zeros(3, np.float32), np.zeros(3, np.int32)),
    "a bit of an array": (np.array([1, 2]), np.array([1, 3])),
    "whether it trains": (nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)),
    "an activation": (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
    "a stride": (nn.MaxPool2d(2, 1), nn.MaxPool2d(2, 2)),
    "a pattern": (re.compile("a"), re.compile("b")),
    "indices of a data set": (Subset(images, [0, 1]), Subset(images, [0, 2])),
    "a set": ({1, 2}, {1, 3}),
    "the order of a list": ([1, 2], [2, 1]),
    "a bool and a number": (True, 1),
    "a namespace": (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    "a namespace in a closure": tuple(closing_over(SimpleNamespace(a=n)) for n in (1, 2)),
    "options of a command in a closure": tuple(closing_over(Namespace(a=n)) for n in (1, 2)),
    "a deque in a closure": (closing_over(deque([1])), closing_over(deque([2]))),
    "data of a loader": tuple(
        closing_over(DataLoader(TensorDataset(torch.full((3,), n)))) for n in (1, 2)
    ),
    "a nested list": ([[1], [2, 3]], [[1, 2], [3]]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_difference_shows(name: str) -> None:
    one, other = PAIRS[name]
    assert identify(one) == identify(one)
    assert changed_places(identify(one), identify(other))


def test_a_helper_and_a_constant_of_the_module_are_part_of_a_function(monkeypatch) -> None:
    before = identify(by_helper, "loss")
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert changed_places(before, identify(by_helper, "loss")) == ["loss.scaled.SCALE"]


def test_code_of_a_class_is_part_of_its_objects(monkeypatch) -> None:
    before = identify(Loss(), "loss")
    monkeypatch.setattr(Loss, "__call__", lambda self, output, target: output.sum())
    assert changed_places(before, identify(Loss(), "loss")) == ["loss<Loss>.__call__"]


class Strict:
    """Has an error of its own for attributes that are not there."""

    def __init__(self, margin: float) -> None:
        self.choices = {"margin": margin}

    def __getattr__(self, name: str) -> float:
        return self.__dict__["choices"][name]  # type: ignore[no-any-return]

    def __call__(self, x: float) -> float:
        return x * self.margin


def test_attributes_that_raise_are_let_alone() -> None:
    assert identify(Strict(1.0)) == identify(Strict(1.0))
    assert changed_places(identify(Strict(1.0)), identify(Strict(2.0)))


def test_tied_and_untied_weights_are_not_the_same() -> None:
    tied, untied = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    tied[1].weight = tied[0].weight
    untied.load_state_dict(tied.state_dict())
    assert changed_places(identify(tied), identify(untied))


def test_circles_end_and_hooks_are_known_by_their_code() -> None:
    round_trip: list[object] = []
    round_trip.append(round_trip)
    assert identify(round_trip) == identify(round_trip)
    one, other = nn.ReLU(), nn.ReLU()
    one.register_forward_hook(lambda *_: None).remove()  # torch counts on
    one.register_forward_hook(closing_over(1))
    other.register_forward_hook(closing_over(1))
    assert identify(one) == identify(other)


def test_what_cannot_be_seen_is_listed_by_its_class(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as file:
        found = identify(closing_over(file), "loss")
    assert dict(found.unseen) == {"loss.value": "TextIOWrapper"}


def test_what_is_too_large_is_not_read_and_listed(monkeypatch) -> None:
    monkeypatch.setattr(object_identity, "MOST_BYTES", 100)
    found = identify([torch.zeros(10), torch.zeros(1000)], "x")
    assert dict(found.unseen) == {"x[1]": "Tensor, too large to read"}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_plain_data_are_the_same_where_their_texts_are(one: object, other: object) -> None:
    assert (identify(one).places == identify(other).places) == (repr(one) == repr(other))


@pytest.mark.slow
def test_other_processes_find_the_same() -> None:
    """Hashes of texts, and so the order of sets, differ between processes."""
    code = (
        "from tests.core.test_object_identity import *\n"
        "f = lambda x: x in {'a', 'b', 'c'} and by_helper(x)\n"
        "print(identify([f, Loss(), nn.CrossEntropyLoss(), images, {'x', 'y', 'z'}]))"
    )
    outputs = set()
    for seed in "123":
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
