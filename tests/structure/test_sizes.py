"""Sizes compute as ints do, and can be computed anew."""

import copy
import math
import operator
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress.structure.sizes import Attribute, Size, evaluate, leaves_of

OPERATIONS = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]
A, B = Attribute("block", "heads"), Attribute("block", "sizes", 1)
POSITIVE = st.integers(1, 500)


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE)
def test_arithmetic_is_that_of_ints_now_and_later(operation, a, b, new_a, new_b):
    later = {A: new_a, B: new_b}
    for left, right in ((Size(a, A), Size(b, B)), (Size(a, A), b), (a, Size(b, B))):
        result = operation(left, right)
        assert result == operation(a, b)
        expected = operation(
            new_a if isinstance(left, Size) else a, new_b if isinstance(right, Size) else b
        )
        assert evaluate(result, lambda leaf, was: later[leaf]) == expected
        assert set(leaves_of(result)) == {
            size.origin for size in (left, right) if isinstance(size, Size)
        }


def test_every_operation_is_in_the_list():
    assert len(OPERATIONS) == 5


NUMBERS = {
    "float": float,
    "root": math.sqrt,
    "division": lambda n: n / 2,
    "reverse division": lambda n: 2 / n,
    "power": lambda n: n**-0.5,
    "product with a float": lambda n: n * 0.5,
}


class Seen:
    """A reader that keeps what it is told."""

    def __init__(self):
        self.numbers, self.equal = [], []

    def number_matters(self, size):
        self.numbers.append(size)

    def were_equal(self, size, other):
        self.equal.append((size, other))


@pytest.mark.parametrize("name", NUMBERS)
def test_use_as_a_number_is_noticed(name):
    seen = Seen()
    size = Size(16, A, seen)
    assert NUMBERS[name](size) == NUMBERS[name](16)
    assert list(map(int, seen.numbers)) == [16]
    assert leaves_of(seen.numbers[0]) == [A]
    assert len(NUMBERS) == 6


def test_use_as_a_shape_is_not_use_as_a_number():
    seen = Seen()
    size = Size(4, A, seen)
    assert torch.zeros(12).view(size, -1).shape == (4, 3)
    assert torch.Size([size])[0] is size
    assert [list(range(size)), [5, 6, 7, 8, 9][size]] == [[0, 1, 2, 3], 9]
    assert seen.numbers == []


def test_a_comparison_that_holds_is_noticed():
    seen = Seen()
    size, other = Size(4, A, seen), Size(4, B, seen)
    assert [size == 5, size == "4", size > 4, size < 4, bool(size)] == [False] * 4 + [True]
    assert seen.equal == []
    assert [size == other, size == 4, size != 4, size in (3, 4)] == [True, True, False, True]
    assert [(a is size, b is other) for a, b in seen.equal] == [(True, True), *[(True, False)] * 3]


def test_plain_ints_are_constants():
    assert evaluate(7, lambda leaf, was: 0) == 7
    assert leaves_of(7) == []


def test_copies_are_plain_ints():
    size = Size(4, A)
    assert type(copy.deepcopy(size)) is int
    assert type(pickle.loads(pickle.dumps(size))) is int


@pytest.mark.parametrize("operation", [operator.floordiv, operator.mod])
def test_where_nothing_is_left_to_divide_by_the_size_is_zero(operation):
    size = operation(Size(12, A), Size(4, B))
    assert evaluate(size, lambda leaf, was: 0 if leaf == B else was) == 0
