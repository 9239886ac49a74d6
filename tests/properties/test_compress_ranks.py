"""`compress` in two processes, with batches of N, is `compress` in one with batches of 2N.

What is fast to see of it stands in test_distributed.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.support import compress_run
from tests.support.compress_run import assert_close, assert_equal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each of two gloo processes found, after the first attempt was killed."""
    script = compress_run.__file__
    killed = compress_run.torchrun(folder, script)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    return compress_run.in_two_processes(folder, script)


@pytest.mark.parametrize("name", ["dendrites", "auto"])
def test_two_processes_grow_and_find_a_rate_as_one_does(ranks, name) -> None:
    wanted = compress_run.run(name, 2 * compress_run.BATCH)
    for rank in ranks:
        assert_close(rank[name], wanted)


@pytest.mark.parametrize("name", compress_run.CASES)
def test_all_processes_have_the_same_result(ranks, name) -> None:
    first, second = (rank[name] for rank in ranks)
    assert_equal(first, second)
    assert first[2] == second[2]
    assert (first[2]["deployment"] is not None) == (name == "deployed")


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(ranks, folder) -> None:
    assert list((folder / "disk-1").iterdir()) == []  # the first process reads for all
    said = [rank["stopped"][0].partition(":")[0] for rank in ranks]
    assert said == ["KeyboardInterrupt", "OtherProcessError"]
    for rank in ranks:
        assert_equal(rank["stopped"][1], rank["loader"])


def test_a_run_whose_first_process_was_killed_goes_on_to_the_same_weights(ranks) -> None:
    for rank in ranks:
        assert_equal(rank["killed"], rank["loader"])


def test_an_error_of_the_checks_is_raised_by_all(ranks) -> None:
    assert all("no luck here" in rank["error"] for rank in ranks)
