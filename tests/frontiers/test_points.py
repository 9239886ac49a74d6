"""What a frontier tells of its points: losses, the pick, the table, plain data, the picture."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pbcompress as pb
from pbcompress.frontiers.points import Frontier, FrontierPoint
from pbcompress.runs.contenders import Score
from pbcompress.runs.facts import Metric, RunFacts
from tests.support.run_facts import costing, make_facts, no_data, of_all, scored

Numbers = tuple[int, float, float]  # parameters, val, test


def make_point(size: int, val: float, test: float | None, **changes) -> FrontierPoint:
    facts = make_facts(**changes)
    after = costing(replace(facts.after, score=Score(val, 250, test, 1400)), params=size)
    return FrontierPoint(
        target=f"params-{size}",
        budget=pb.Budget(params=size),
        facts=replace(facts, after=after),
        model=nn.Identity(),
        run_dir=Path("runs") / f"params-{size}",
    )


def make_frontier(points: list[Numbers], **changes) -> Frontier:
    ordered = sorted(points, reverse=True)
    return Frontier(points=tuple(make_point(*point, **changes) for point in ordered))


OF_ACCURACY: list[Numbers] = [
    (1400, 0.95, 0.93),
    (900, 0.94, 0.94),
    (500, 0.935, 0.92),
    (200, 0.7, 1),
]


@pytest.mark.parametrize(
    ("max_drop", "params"), [(0, 1400), (0.01, 900), (0.0149, 900), (0.015, 500), (1, 200)]
)
def test_the_smallest_is_picked_on_validation(max_drop: float, params: int) -> None:
    assert make_frontier(OF_ACCURACY).smallest(max_drop).params == params


def test_a_loss_of_what_is_better_when_lower_is_a_rise() -> None:
    metric = Metric("mse", higher_is_better=False)
    points: list[Numbers] = [(1400, 0.90, 1), (900, 0.96, 1), (500, 1.2, 1)]  # before: 0.95
    found = make_frontier(points, metric=metric)
    assert [point.drop for point in found.points] == pytest.approx([-0.05, 0.01, 0.25])
    assert found.smallest(0).params == 1400
    assert found.smallest(0.01).params == 900
    assert found.smallest(math.nextafter(0.25, 1)).params == 500


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.floats(0, 1)), min_size=1, max_size=6),
    st.floats(0, 1),
    st.booleans(),
)
def test_no_smaller_point_would_do(pairs, max_drop: float, higher: bool) -> None:
    found = make_frontier(
        [(n, v, v) for n, v in pairs], metric=Metric("m", higher_is_better=higher)
    )
    lost = {(n, v): (0.95 - v if higher else v - 0.95) for n, v in pairs}
    good = [n for (n, v), drop in lost.items() if drop <= max_drop + 1e-6]
    surely = [n for (n, v), drop in lost.items() if drop <= max_drop]
    try:
        params = found.smallest(max_drop).params
    except pb.CompressionError:
        assert not surely
        return
    assert params in good
    assert params <= min(surely, default=params)


def test_what_is_small_can_be_work_or_time() -> None:
    points = [
        replace(point, facts=replace(point.facts, after=costing(point.facts.after, flops=flops)))
        for point, flops in zip(make_frontier(OF_ACCURACY).points, (300, 100, 200, 50), strict=True)
    ]
    fast = [
        replace(point, facts=replace(point.facts, deployment=None, expected_speedup=ratio))
        for point, ratio in zip(points, (1.5, 1.1, 1.2, 3.0), strict=True)
    ]
    found = Frontier(points=tuple(fast))
    assert found.smallest(0.02, by="params").params == 500
    assert found.smallest(0.02, by="flops").params == 900
    assert found.smallest(0.02, by="latency").params == 1400
    assert str(found).count("expected") == 4
    unknown = replace(fast[0], facts=replace(fast[0].facts, expected_speedup=None))
    with pytest.raises(pb.CompressionError, match="not known of every target"):
        Frontier(points=(unknown, *fast[1:])).smallest(0.02, by="latency")


@pytest.mark.parametrize("max_drop", [-0.1, math.nan, math.inf])
def test_a_wrong_loss_or_size_is_refused(max_drop: float) -> None:
    with pytest.raises(ValueError, match="number from 0"):
        make_frontier(OF_ACCURACY).smallest(max_drop)
    with pytest.raises(ValueError, match="'params', 'flops' or 'latency'"):
        make_frontier(OF_ACCURACY).smallest(0.1, by="bytes")  # type: ignore[arg-type]


def test_where_all_lose_more_the_least_loss_is_told() -> None:
    with pytest.raises(pb.CompressionError, match=r"at most 0\.1 of accuracy.*is 0\.2500"):
        make_frontier([(500, 0.7, 1.0), (400, 0.6, 1.0)]).smallest(0.1)


def test_without_a_metric_nothing_is_picked_or_drawn(tmp_path: Path) -> None:
    point = make_point(500, 0.9, 0.9)
    found = Frontier(points=(replace(point, facts=no_data(point.facts)),))
    for call in (lambda: found.smallest(0.1), lambda: found.plot(tmp_path / "a.svg")):
        with pytest.raises(pb.CompressionError, match="no metric was measured"):
            call()
    assert found.points[0].drop is None
    assert "accuracy" not in str(found)


def test_the_table_has_a_row_for_each_and_what_each_lost() -> None:
    lines = str(make_frontier(OF_ACCURACY)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        "(original)", "params-1400", "params-900", "params-500", "params-200"
    ]  # fmt: skip
    assert lines[4].split()[1:3] == ["900", f"{900 / 2794:.1%}"]
    assert lines[4].split()[-3:] == ["0.9400", "0.9400", "+0.0100"]
    assert "1.88x measured" in lines[4]


def test_plain_data_say_the_same() -> None:
    found = make_frontier(OF_ACCURACY)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["metric"] == "accuracy"
    assert data["before"]["val"] == 0.95
    assert [point["params"] for point in data["points"]] == [1400, 900, 500, 200]
    first = data["points"][0]
    assert first["speed"] == {"ratio": 1.88, "known": "measured"}
    assert first["latency_ms"] == 0.1234
    assert (first["val"], first["test"], first["drop"]) == (0.95, 0.93, 0.0)
    assert first["run_dir"] == "runs/params-1400"
    assert pb.Budget.from_dict(first["budget"]) == pb.Budget(params=1400)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture_is_the_same_each_time(ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_frontier(OF_ACCURACY).plot(tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_the_picture_shows_each_cost_that_is_known(tmp_path: Path) -> None:
    found = make_frontier(OF_ACCURACY)
    found.plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert [label in text for label in ("parameters", "FLOPs", "time of a run, measured")] == [
        True
    ] * 3
    assert "test: the original" in text
    untimed = [
        replace(p, facts=scored_on_val(replace(p.facts, deployment=None))) for p in found.points
    ]
    Frontier(points=tuple(untimed)).plot(tmp_path / "b.svg")
    text = (tmp_path / "b.svg").read_text()
    assert "time of a run" not in text
    assert "test" not in text


def scored_on_val(facts: RunFacts) -> RunFacts:
    return of_all(facts, lambda network: scored(network, test=None, test_samples=0))
