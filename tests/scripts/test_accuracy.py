"""The benchmark of accuracy: arms of one size and one number of steps, and its tables."""

import json
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scripts.accuracy import run as accuracy
from scripts.accuracy.cells import cells_of, from_csv, to_csv
from scripts.accuracy.grid import ARMS, Task
from scripts.accuracy.plot import plot
from scripts.accuracy.tables import Page, write
from scripts.paired import half_width, paired

TINY = Task(
    {"name": "digits", "num_val": 200, "train_limit": 200, "batch_size": 50},
    {"name": "lenet", "image_shape": (1, 8, 8), "widths": (8, 12), "hidden": 24},
    epochs=10,
    base_epochs=2,
)


CHEAP = {arm for arm in ARMS if "cheap" in arm}


@pytest.fixture(scope="module")
def all_lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "lines.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "TASKS", {"tiny": TINY})
        call = [str(path), "--targets", "0.4", "--seeds", "0", "1"]
        assert accuracy.main([*call, "--arms", "width", "scratch"]) == 0
        before = path.read_text()
        assert accuracy.main(call) == 0
    assert path.read_text().startswith(before)  # what was there is not run again
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def lines(all_lines):
    return [line for line in all_lines if "unreachable" not in line]


@pytest.mark.slow
def test_every_arm_ran_once_for_every_seed(all_lines):
    assert len(ARMS) >= 15
    cells = [(line["arm"], line["seed"]) for line in all_lines]
    assert sorted(cells) == sorted((arm, seed) for arm in ARMS for seed in (0, 1))


@pytest.mark.slow
def test_an_arm_without_room_for_a_set_says_so(all_lines, lines):
    without = {line["arm"] for line in all_lines if line not in lines}
    assert without < CHEAP  # 8 nodes are dear in so small a network
    reasons = [line["unreachable"] for line in all_lines if line not in lines]
    assert all("no room" in reason or "no set within" in reason for reason in reasons)


@pytest.mark.slow
def test_all_arms_take_as_many_steps(lines):
    assert {line["steps"] for line in lines} == {10 * 4}


def test_an_odd_number_of_epochs_can_be_halved(monkeypatch):
    monkeypatch.setitem(accuracy.TASKS, "odd", replace(TINY, epochs=5, base_epochs=1))
    bench = accuracy.Bench("odd", 0, "")
    assert {bench.run(ARMS[arm], 0.5)["steps"] for arm in ("width", "gradient", "hybrid")} == {20}


def test_arms_of_equal_flops_have_no_more(tmp_path, monkeypatch):
    roomy = replace(
        TINY, model=TINY.model | {"widths": (8, 24), "hidden": 96}, epochs=2, base_epochs=1
    )
    monkeypatch.setattr(accuracy, "TASKS", {"roomy": roomy})
    path = tmp_path / "lines.jsonl"
    call = [
        str(path),
        "--targets",
        "0.5",
        "--seeds",
        "0",
        "--arms",
        "width",
        "joint shared, cheap*",
    ]
    assert accuracy.main(call) == 0
    lines = {line["arm"]: line for line in map(json.loads, path.read_text().splitlines())}
    width, free = lines["width"], lines["joint shared, cheap"]
    bounded = lines["joint shared, cheap, equal FLOPs"]
    assert 0.9 * width["flops"] < bounded["flops"] <= width["flops"] < free["flops"]
    assert bounded["params"] < free["params"]
    assert bounded["sets"] == 1
    assert len({line["steps"] for line in lines.values()}) == 1


@pytest.mark.slow
def test_all_arms_are_as_large(lines):
    for line in lines:
        target = 0.4 * line["base"]["params"]
        if line["arm"] == "correlation, no dendrites":
            continue
        least = 0 if "equal FLOPs" in line["arm"] else 0.9  # there another bound may be the end
        assert least * target < line["params"] <= target, line["arm"]


@pytest.mark.slow
def test_the_base_of_the_published_method_is_that_method_without_its_set(lines):
    of_arm = {line["arm"]: line for line in lines}
    grown, base = of_arm["correlation"], of_arm["correlation, no dendrites"]
    assert (grown["sets"], base["sets"]) == (1, 0)
    assert grown["steps"] == base["steps"]
    assert 0.3 * grown["params"] < base["params"] < 0.7 * grown["params"]


def test_a_first_layer_is_twice_as_wide_in_a_network_of_the_same_size(monkeypatch):
    monkeypatch.setitem(accuracy.TASKS, "tiny", TINY)
    bench = accuracy.Bench("tiny", 0, "")
    costs = [bench.plan(ARMS[arm], 0.4).cost_after for arm in ("width", "width, wide first")]
    widths, wider = ([c.width for c in cost.by_layer.values() if c.width] for cost in costs)
    assert wider[0] == min(2 * widths[0], 8)
    assert sum(wider[1:]) < sum(widths[1:])
    assert costs[1].params > 0.9 * costs[0].params


@pytest.mark.slow
def test_arms_start_from_the_same_network(lines):
    for seed in (0, 1):
        assert len({json.dumps(line["base"]) for line in lines if line["seed"] == seed}) == 1


@pytest.mark.slow
def test_the_page_has_a_row_for_every_arm(lines, tmp_path):
    path, intro = tmp_path / "lines.jsonl", tmp_path / "intro.md"
    path.write_text("\n".join(map(json.dumps, lines)))
    intro.write_text("An introduction.")
    cells = write(Page("A title", path, intro), "page", tmp_path)
    plot(cells, tmp_path / "plot.svg")
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# A title\n\nAn introduction.\n\n")
    rows = [row for row in page.splitlines() if row.startswith("| ")]
    names = [row.split("|")[1].strip(" *") for row in rows]
    assert set(ARMS) - CHEAP <= set(names)
    by_seed = {line["seed"]: line for line in lines if line["arm"] == "scratch"}
    mean = 100 * statistics.mean(line["test"] for line in by_seed.values())
    assert any(f"| {mean:.2f} |" in row for row in rows if row.startswith("| scratch"))
    arms = {line["arm"] for line in lines}
    assert f"{len(lines)} runs, {len(arms) - 1} comparisons" in page
    assert (tmp_path / "plot.svg").read_text().count("tiny") >= 1


@pytest.mark.slow
def test_cells_come_back_from_their_file(lines, tmp_path):
    cells = cells_of(lines)
    assert len(cells) == len({line["arm"] for line in lines})
    assert from_csv(to_csv(cells)) == cells


@pytest.mark.parametrize(("change", "message"), [("steps", "steps"), ("params", "more than")])
@pytest.mark.slow
def test_lines_that_cannot_be_compared_are_refused(lines, change, message):
    broken = [dict(line) for line in lines]
    broken[-1][change] += 10_000
    with pytest.raises(ValueError, match=message):
        cells_of(broken)


@pytest.mark.slow
def test_lines_of_another_original_are_refused(lines):
    broken = [dict(line) for line in lines]
    broken[-1]["base"] = broken[-1]["base"] | {"val": 0.5}
    with pytest.raises(ValueError, match="another network than the control"):
        cells_of(broken)


@pytest.mark.slow
def test_a_cell_without_all_seeds_is_left_out(lines):
    arms = [cell.arm for cell in cells_of(lines[:-1])]
    assert lines[-1]["arm"] not in arms
    assert len(arms) == len({line["arm"] for line in lines}) - 1


# --- the interval ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.5, 1.5, 0.0], list(range(25))])
def test_the_interval_is_that_of_scipy(values):
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert half_width(values) == pytest.approx((high - low) / 2)
    own = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    assert own.half == pytest.approx((high - low) / 2, rel=1e-3)
    assert own.mean == pytest.approx((high + low) / 2)


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=10), st.floats(-5, 5))
def test_a_constant_difference_is_certain(control, ahead):
    before = dict(enumerate(control))
    found = paired({seed: value + ahead for seed, value in before.items()}, before)
    assert found.mean == pytest.approx(ahead, abs=1e-9)
    assert found.half == pytest.approx(0, abs=1e-9)
    if abs(ahead) > 1e-6:
        assert found.verdict == (1 if ahead > 0 else -1)


def test_noise_is_no_difference():
    assert paired({0: 1.0, 1: -1.0, 2: 0.5}, {0: 0.0, 1: 0.0, 2: 0.0}).verdict == 0


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="1 seeds in common"):
        paired({0: 1.0, 3: 2.0}, {0: 1.0, 2: 2.0})
