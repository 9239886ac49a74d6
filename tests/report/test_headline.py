"""What is said first: true to the numbers, with a word where the result is slower."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbcompress import Budget
from pbcompress.costs.headline import Speed, bounds_of
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import LayerCost
from pbcompress.onnx_files.session import Latency
from pbcompress.packaging.model_card import _summary
from pbcompress.report.headline import asked_for, headline
from pbcompress.report.writing import to_markdown
from pbcompress.runs.facts import RunFacts
from tests.support.run_facts import (
    cost,
    costing,
    make_deployment,
    make_facts,
    make_history,
    no_data,
)


def timed(before: float, after: float, ratio: float, **changes: Any) -> RunFacts:
    old, new = (Latency(m, 2 * m, 200, r) for m, r in ((before, 1.0), (after, ratio)))
    deployment = make_deployment(latency_before=old, latency_after=new)
    return make_facts(deployment=deployment, **changes)


def test_the_first_line_has_size_work_speed_and_metric() -> None:
    assert headline(make_facts()) == (
        "52.9 % of the parameters (2,794 -> 1,477), 54.7 % of the multiply-adds (10,176 -> 5,562), "
        "measured 1.88 times as fast in ONNX Runtime on a CPU (1 thread, batch 1), "
        "accuracy 0.9400 -> 0.9321 (test, n=1,400).",
        "Bound: at most 1,500 parameters, reached 1,477 (98.5 % of it).",
    )


def test_a_slower_result_says_so_first_and_what_may_help() -> None:
    warning, line, bound = headline(timed(0.05, 0.081, 0.62))
    assert warning.startswith("SLOWER than the original: measured 0.62 times as fast")
    assert "which 1 of 1 narrowed layers lack" in warning  # conv has 9 channels
    assert "DendriteConfig(max_sets=0)" in warning
    assert "at 0.05 ms a run, the network may be too small" in warning
    assert "fewer multiply-adds" not in warning  # about half of them are gone
    assert line.startswith("52.9 % of the parameters")
    assert bound.startswith("Bound: ")


def test_advice_is_given_only_where_the_numbers_call_for_it() -> None:
    layers = {"conv": LayerCost("Conv1d", 2400, 9600, 32)}
    small = {"conv": LayerCost("Conv1d", 1200, 9000, 16)}
    facts = timed(3.0, 3.3, 0.91, other=None)
    facts = replace(facts, before=replace(facts.before, cost=cost(layers)))
    warning = headline(replace(facts, after=replace(facts.after, cost=cost(small))))[0]
    assert "fewer multiply-adds, of which 94 % are left" in warning
    assert "round_to" not in warning
    assert "max_sets" not in warning
    assert "too small" not in warning


@given(st.floats(0.05, 20), st.sampled_from(["measured", "expected"]))
def test_a_speed_is_slower_where_a_measurement_or_a_table_can_tell(
    ratio: float, known: Any
) -> None:
    speed, least = Speed(ratio, known), {"measured": 1.0, "expected": 0.9}[known]
    assert float(speed.shown) == pytest.approx(ratio, rel=0.06, abs=0.0051)
    if abs(ratio - least) > 0.006:
        assert speed.is_slower == (ratio < least)
    assert ("just as fast" in str(speed)) == (float(speed.shown) == 1)
    assert str(speed).startswith(known)


SHIPPED = Shipped(
    latency_before=2.0,
    latency_after=1.6,
    latency_predicted=None,
    bytes_before=1000,
    bytes_after=700,
    bytes_predicted=None,
    round_to=8,
)
UNTIMED = {
    "nothing was exported": ({"deployment": None}, "not timed, because nothing was exported"),
    "not exportable": ({"deployment": "no"}, "not timed, because it could not be exported"),
    "expected": (
        {"deployment": None, "expected_speedup": 1.43},
        "expected 1.4 times as fast in ONNX Runtime on a CPU (not timed, without dendrites)",
    ),
    "measured for the plan": (
        {"deployment": None, "expected_speedup": 1.43, "planned": SHIPPED},
        "measured 1.25 times as fast in ONNX Runtime on a CPU (1 thread, batch 1)",
    ),
    "expected to be slower": (
        {"deployment": None, "expected_speedup": 0.8},
        "Likely SLOWER than the original: expected 0.8 times as fast",
    ),
}


@pytest.mark.parametrize("name", UNTIMED)
def test_a_result_that_was_not_timed_says_what_is_known_of_its_speed(name: str) -> None:
    changes, words = UNTIMED[name]
    assert words in headline(make_facts(**changes))[0]


def test_without_data_the_metric_is_said_to_be_unknown() -> None:
    assert "accuracy not measured, because it was only shrunk" in headline(no_data(make_facts()))[0]


# --- bounds ---------------------------------------------------------------------------------------

TELLERS = {
    "print": lambda facts: "\n".join(headline(facts)),
    "report": lambda facts: to_markdown(facts, make_history()),
    "card": lambda facts: _summary(facts),
    "origin": asked_for,
}


@pytest.mark.parametrize("teller", TELLERS)
def test_a_budget_without_parameters_states_no_bound_on_them(teller: str) -> None:
    text = TELLERS[teller](make_facts(budget=Budget(flops=0.6)))
    assert "at most 6,105 FLOPs (0.6 of the original)" in text
    assert not re.search(r"at most [\d,]+ parameters", text)


def test_every_bound_stands_beside_what_was_reached() -> None:
    facts = timed(
        2.0, 1.1, 1.8, budget=Budget(params=0.6, flops=6000, latency_ms=0.5, file_bytes=7000)
    )
    assert headline(facts)[1:] == (
        "Bound: at most 1,676 parameters (0.6 of the original), reached 1,477 (88.1 % of it).",
        "Bound: at most 6,000 FLOPs, reached 5,562 (92.7 % of it).",
        "Bound: at most 1 ms of latency (0.5 of the original), reached 1.1 (110.0 % of it, MORE "
        "THAN THE BOUND).",
        "Bound: at most 7,000 bytes of file, reached 6,789 (97.0 % of it).",
    )


def test_a_bound_that_was_not_measured_says_so() -> None:
    facts = make_facts(budget=Budget(latency_ms=0.5), deployment=None)
    assert (
        headline(facts)[1] == "Bound: at most 0.5 of the original in ms of latency, not measured."
    )


@given(full=st.integers(2, 10**9), share=st.floats(1e-3, 0.999), after=st.integers(0, 10**9))
def test_a_share_is_the_count_that_the_planner_keeps_to(
    full: int, share: float, after: int
) -> None:
    before, small = (costing(make_facts().before, params=n).cost for n in (full, after))
    (bound,) = bounds_of(Budget(params=share), before, small, None)
    assert bound.limit == int(share * full)
    assert ("MORE THAN THE BOUND" in str(bound)) == (after > int(share * full))
