"""Intervals against scipy, and by what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pbcompress.comparison.intervals import (
    Estimate,
    bootstrap,
    change_of_hits,
    mcnemar,
    share_of_hits,
    wilson,
)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case):
    hits, samples = case
    expected = stats.binomtest(hits, samples).proportion_ci(0.95, method="wilson")
    assert wilson(hits, samples) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test_of_what_differs(lost, won):
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


def hits(share, count, seed):
    return np.random.default_rng(seed).random(count) < share


@pytest.mark.parametrize("seed", range(3))
def test_a_change_of_accuracy_is_scipys_paired_bootstrap(seed):
    before, after = hits(0.9, 500, seed), hits(0.85, 500, seed + 100)
    after[:300] = before[:300]  # they agree on most
    found = change_of_hits(before, after)

    def mean_change(a, b, axis):
        return b.mean(axis) - a.mean(axis)

    expected = stats.bootstrap(
        (before.astype(float), after.astype(float)),
        mean_change,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.003)
    table = (before & ~after).sum(), (~before & after).sum()
    assert found.p_value == pytest.approx(stats.binomtest(int(table[0]), int(sum(table))).pvalue)


def test_equal_networks_have_no_change():
    same = hits(0.8, 50, 0)
    found = change_of_hits(same, same)
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_accuracy_has_wilsons_interval():
    found = share_of_hits(hits(0.8, 50, 0))
    assert (found.low, found.high) == wilson(round(found.value * 50), 50)
    assert (found.method, found.samples) == ("Wilson", 50)
    assert str(Estimate(0.5, 9, 0.25, 0.75, "")) == "0.5000 (0.2500 to 0.7500)"


def test_any_metric_has_a_bootstrap_interval_and_changes_are_paired():
    generator = np.random.default_rng(0)
    target = generator.standard_normal(300)
    outputs = [target + generator.standard_normal(300), None]
    outputs[1] = outputs[0] + 0.5  # worse by the same on every sample

    def error(network, index):
        index = slice(None) if index is None else index
        return float(((outputs[network] - target)[index] ** 2).mean())

    (first, second), (change,) = bootstrap(error, 2, 300)
    squares = (outputs[0] - target) ** 2
    expected = stats.bootstrap(
        (squares,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (first.low, first.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert change.value == pytest.approx(second.value - first.value)
    assert change.high - change.low < second.high - second.low  # what both share falls out
    assert change.method == "paired bootstrap, 1,000 resamples"


def test_a_metric_without_a_value_on_some_draws_has_no_interval_and_says_why():
    def metric(network, index):
        if index is not None:
            raise ValueError("only one class")
        return float(network)

    values, changes = bootstrap(metric, 2, 10)
    assert [v.value for v in values] == [0, 1]
    assert {(e.low, e.high) for e in (*values, *changes)} == {(None, None)}
    assert "raised ValueError: only one class" in values[0].method
    assert str(values[1]) == "1.0000"


def test_a_slow_metric_has_no_interval(monkeypatch):
    monkeypatch.setattr("pbcompress.comparison.intervals.MAX_SECONDS", 0.0)
    values, _ = bootstrap(lambda network, index: 1.0, 1, 10)
    assert values[0].low is None
    assert "took too long" in values[0].method


def test_intervals_meet_or_do_not():
    a, b, c = (Estimate(x, 9, x - 0.1, x + 0.1, "") for x in (0.5, 0.65, 0.8))
    assert a.meets(b)
    assert b.meets(a)
    assert not a.meets(c)
    assert not a.meets(Estimate(0.5, 9, None, None, ""))
