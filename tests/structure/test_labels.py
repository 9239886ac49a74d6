"""Unification of labels: against a slow reference, and the algebra of pairs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress.structure.labels import Coupling

SIZE = 12
PAIRS = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)), max_size=30)
PINS = st.lists(st.integers(0, SIZE - 1), max_size=3)


def classes(pairs, pins):
    """The same unification by repeated relabelling; class None is pinned."""
    label = list(range(SIZE))
    for a, b in pairs:
        old, new = label[a], label[b]
        label = [new if x == old else x for x in label]
    fixed = {label[p] for p in pins}
    return [None if x in fixed else x for x in label]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PAIRS, PINS, st.integers(1, 5), st.booleans())
def test_coupling_is_the_closure_of_its_pairs(pairs, pins, chunk, pins_first):
    units = Coupling()
    labels = units.fresh(SIZE)
    if pins_first:
        units.pin(labels[pins], "first")
    for start in range(0, len(pairs), chunk):
        some = pairs[start : start + chunk]
        units.couple(labels[[a for a, _ in some]], labels[[b for _, b in some]], "a sum")
    if not pins_first:
        units.pin(labels[pins], "last")
    expected, found = classes(pairs, pins), units.resolve(labels).tolist()
    for i in range(SIZE):
        assert (found[i] == 0) == (expected[i] is None)
        for j in range(i):
            if expected[i] is not None:
                assert (found[i] == found[j]) == (expected[i] == expected[j])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(2, 5))
def test_a_split_undoes_a_merge_and_a_merge_a_split(rows, columns):
    units = Coupling()
    outer, inner = units.fresh(rows), units.fresh(columns)
    a, b = units.split(units.merge(outer, rows, inner, columns), rows, columns, "")
    assert torch.equal(units.resolve(a), outer)
    assert torch.equal(units.resolve(b), inner)

    flat = units.fresh(rows * columns)
    a, b = units.split(flat, rows, columns, "")
    again = units.merge(a, rows, b, columns)
    parts, others = units.parts(flat), units.parts(again)
    assert all(torch.equal(p, q) for p, q in zip(parts, others, strict=True))


def test_two_splits_of_one_axis_share_their_parts():
    units = Coupling()
    flat = units.fresh(12)
    first, second = units.split(flat, 3, 4, ""), units.split(flat, 3, 4, "")
    for a, b in zip(first, second, strict=True):
        assert torch.equal(units.resolve(a), units.resolve(b))


def test_pinning_one_side_of_a_pair_leaves_the_other():
    units = Coupling()
    flat = units.fresh(6)
    heads, inner = units.split(flat, 2, 3, "")
    units.pin(inner, "channels of a head stay")
    found = units.resolve(flat).view(2, 3)
    assert torch.equal(found, units.resolve(heads)[:, None].expand(2, 3))
    assert (found > 0).all()
    units.pin(flat[:1], "an output")
    assert units.resolve(flat).tolist()[:3] == [0, 0, 0]
    assert units.resolve(flat)[3:].all()


def test_a_constant_axis_repeats_the_other():
    units = Coupling()
    channels = units.fresh(3)
    flat = units.merge(channels, 3, None, 4)
    assert torch.equal(flat, channels.repeat_interleave(4))
    assert units.split(flat, 3, 4, "")[1] is None
    assert units.merge(None, 2, None, 5) is None
    assert units.split(None, 2, 5, "") == (None, None)


def test_an_axis_coupled_with_a_fixed_one_is_pinned_with_its_reason():
    units = Coupling()
    a, b, c = units.fresh(3), units.fresh(3), units.fresh(3)
    units.couple(a, b, "a sum")
    units.pin(b, "an output")
    units.couple(c, a, "another sum")
    units.pin(c, "too late")
    assert [units.reason(x) for x in (a, b, c)] == ["an output"] * 3
    units.couple(a, None, "")
    assert not units.resolve(c).any()


def test_a_unit_that_would_be_part_of_itself_stays():
    units = Coupling()
    heads, inner = units.fresh(2), units.fresh(3)
    units.couple(units.merge(heads, 2, inner, 3), heads.repeat_interleave(3), "a product")
    assert units.resolve(heads).all()
    assert not units.resolve(inner).any()


def test_labels_grow_without_bound():
    units = Coupling()
    many = units.fresh(5000)
    units.couple(many[:-1], many[1:], "a chain")
    assert len(units.resolve(many).unique()) == 1
    assert units.size == 5001


STEP = st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 99), st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(STEP, max_size=14))
def test_any_order_of_merges_splits_and_couplings_ends(steps):
    units = Coupling()
    flat = [units.fresh(12) for _ in range(3)]
    axes = {n: [units.fresh(n)] for n in (2, 3, 4, 6)}
    for kind, i, j, pins in steps:
        rows = (2, 3, 4, 6)[i % 4]
        columns = 12 // rows
        if kind == 0:
            units.couple(flat[i % len(flat)], flat[j % len(flat)], "a sum")
        elif kind == 1:
            parts = units.split(flat[j % len(flat)], rows, columns, "a reshape")
            for size, labels in zip((rows, columns), parts, strict=True):
                axes[size] += [labels] if labels is not None else []
        elif kind == 2:
            outer, inner = axes[rows][j % len(axes[rows])], axes[columns][0]
            flat.append(units.merge(outer, rows, inner, columns))
        else:
            units.couple(axes[rows][0], axes[rows][j % len(axes[rows])], "a product")
        if pins:
            units.pin(flat[j % len(flat)][: 1 + i % 3], "an output")
    for labels in flat:
        assert all((units.resolve(p) == p).all() for p in units.parts(labels))
