"""A part of a product of choices in which every two choices still meet.

Most faults come from one choice or from two that meet. So by default a test runs on a pairwise
covering of its choices, and on their full product where slow tests run too.
"""

import itertools
from collections.abc import Hashable, Iterable, Sequence

import pytest

Case = tuple[Hashable, ...]


def pairs(case: Case) -> frozenset[tuple[tuple[int, Hashable], ...]]:
    """Give every two choices of a case; a choice is its place in the case and its value."""
    return frozenset(itertools.combinations(enumerate(case), 2))


def pairwise(cases: Iterable[Case]) -> list[Case]:
    """Choose cases in which every pair of choices occurs that occurs in any case.

    Always the case with the most new pairs comes next, the first of them if there are several.
    What a case would add only falls, so one pass over the cases for each gain finds them all.
    """
    pairs_of = {case: pairs(case) for case in cases}
    missing = set().union(*pairs_of.values())
    chosen = set()
    for gain in range(max(map(len, pairs_of.values()), default=0), 0, -1):
        for case, its_pairs in pairs_of.items():
            if len(its_pairs & missing) == gain:
                chosen.add(case)
                missing -= its_pairs
    return [case for case in pairs_of if case in chosen]


def pairwise_by_default(cases: Sequence[Case]) -> list:
    """Give all cases as parameters of a test; those outside the covering are slow."""
    covering = set(pairwise(cases))
    return [
        case if case in covering else pytest.param(*case, marks=pytest.mark.slow) for case in cases
    ]
