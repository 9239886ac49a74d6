"""`compress` in two processes, with batches of N, is `compress` in one with batches of 2N."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pbcompress import StateMismatchError
from tests.support import compress_run

ROOT = Path(__file__).parents[2]
FIGURES = ("before", "after", "budget", "note", "seed", "left_alone", "config")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two gloo processes worked, and what each of them ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *(str(ROOT / "tests" / "support" / "compress_run.py"), str(folder)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_close(found: Any, wanted: Any) -> None:
    """Compare weights, history and facts; times are left out, and what the batches decide."""
    weights, history, facts = found
    assert list(weights) == list(wanted[0])
    for name, value in wanted[0].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-6)
    assert len(history) == len(wanted[1]) > 1
    for record, other in zip(history, wanted[1], strict=True):
        same = {key: value for key, value in other.items() if key not in ("seconds", "scores")}
        assert {key: record[key] for key in same} == pytest.approx(same, rel=1e-6, abs=1e-6)
    assert {key: facts[key] for key in FIGURES} == {key: wanted[2][key] for key in FIGURES}


def assert_equal(one: Any, other: Any) -> None:
    assert list(one[0]) == list(other[0])
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    drop = [[{k: v for k, v in r.items() if k != "seconds"} for r in x[1]] for x in (one, other)]
    assert drop[0] == drop[1]


@pytest.mark.parametrize("name", ["width", "dendrites", "auto"])
def test_two_processes_make_what_one_makes_with_twice_the_batch(ranks, name) -> None:
    wanted = compress_run.run(name, 2 * compress_run.BATCH)
    for rank in ranks:
        assert_close(rank["results"][name], wanted)


@pytest.mark.parametrize("name", compress_run.CASES)
def test_all_processes_have_the_same_result(ranks, name) -> None:
    first, second = (rank["results"][name] for rank in ranks)
    assert_equal(first, second)
    assert first[2] == second[2]
    assert (first[2]["deployment"] is not None) == (name == "width")


def test_a_folder_changes_nothing_and_is_whole(ranks, folder) -> None:
    assert_equal(ranks[0]["kept"], ranks[0]["results"]["width"])
    assert_equal(*(rank["kept"] for rank in ranks))
    files = {path.name for path in (folder / "run").iterdir()}
    assert {"state.json", "model.onnx", "report.html", "identity.json"} <= files
    assert ".lock" not in files


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(ranks) -> None:
    assert [rank["stopped"][0].partition(":")[0] for rank in ranks] == [
        "KeyboardInterrupt",
        "_OtherError",
    ]
    for rank in ranks:
        assert_equal(rank["stopped"][1], rank["results"]["dendrites"])


def test_another_number_of_processes_is_refused_with_the_number(ranks, folder) -> None:
    with pytest.raises(StateMismatchError, match=r"in 2 process.* in 1: .*Start 2"):
        compress_run.run("dendrites", compress_run.BATCH, run_dir=folder / "stopped")


def test_an_error_in_one_process_is_raised_by_all(ranks) -> None:
    for said in zip(*(rank["errors"] for rank in ranks), strict=True):
        assert all("ValueError: no luck here" in one or "no luck here" in one for one in said)
        assert "Process 1" in said[0]


def test_other_data_in_one_process_is_refused_before_training(ranks) -> None:
    for rank in ranks:
        order, length = rank["other data"]
        assert "process 1 has another 'Data.train" in order
        assert "process 1 has another 'Data.train" in length


def test_a_frontier_in_several_processes_is_refused(ranks) -> None:
    assert all("frontier was called in one of 2 processes" in rank["frontier"] for rank in ranks)
