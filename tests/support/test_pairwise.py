"""The covering that tests run on by default leaves no two choices apart."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pairwise import pairs, pairwise, pairwise_by_default

PRODUCTS = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(
    lambda sizes: list(itertools.product(*map(range, sizes)))
)


@given(PRODUCTS, st.data())
def test_every_pair_of_choices_occurs_also_where_some_cases_cannot_be(product, data):
    cases = data.draw(st.lists(st.sampled_from(product), min_size=1, unique=True))
    chosen = pairwise(cases)
    assert set(chosen) <= set(cases)
    assert set().union(*map(pairs, chosen)) == set().union(*map(pairs, cases))
    assert chosen == pairwise(cases)  # the same on every run and every worker


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((2, 2, 2), 4), ((3, 3, 3), 10), ((21, 3, 3, 2), 63), ((4, 5), 20), ((1, 1, 1), 1)],
)
def test_the_covering_is_about_as_large_as_the_pairs_of_its_two_largest_choices(sizes, count):
    cases = list(itertools.product(*map(range, sizes)))
    first, second = sorted(sizes)[-2:]
    assert first * second <= len(pairwise(cases)) == count


def test_of_nothing_nothing_is_chosen():
    assert pairwise([]) == []


def test_the_rest_of_the_product_is_slow():
    cases = list(itertools.product("ab", (1, 2), (True, False)))
    by_default = pairwise_by_default(cases)
    assert len(by_default) == 8
    fast = [case for case in by_default if isinstance(case, tuple) and not hasattr(case, "marks")]
    slow = [case for case in by_default if hasattr(case, "marks")]
    assert fast == pairwise(cases)
    assert sorted([*fast, *(case.values for case in slow)], key=cases.index) == cases
    assert all(mark.name == "slow" for case in slow for mark in case.marks)
