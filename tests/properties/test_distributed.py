"""Two processes with batches of N train as one with batches of 2N, through every growth."""

import pytest
import torch

from pbcompress import StateMismatchError
from tests.support import compress_run, distributed_run
from tests.support.compress_run import assert_close, assert_equal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    """What each of two gloo processes ended with."""
    return compress_run.in_two_processes(folder, distributed_run.__file__)


@pytest.fixture(scope="module")
def compressed(ranks):
    """What they found of `compress`."""
    return [found for *_, found in ranks]


def test_every_rule_is_in_the_list():
    assert {config.rule.kind for config in distributed_run.CASES.values()} == {
        "correlation",
        "hybrid",
        "gradient",
    }
    assert len(distributed_run.CASES) == 6


@pytest.mark.parametrize("name", distributed_run.CASES)
def test_two_processes_train_as_one_with_twice_the_batch(ranks, name):
    weights, records = distributed_run.train(name, 2 * distributed_run.BATCH)
    for results, *_ in ranks:
        theirs, log = results[name]
        assert list(theirs) == list(weights)
        for key, value in weights.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=1e-6)
        same = ("phase", "kind", "epoch", "sets", "steps", "lr", "improved")
        assert [[r.get(k) for k in same] for r in log] == [
            [r.get(k) for k in same] for r in records
        ]
        for key in ("loss", "metric"):
            ours = torch.tensor([record[key] for record in records])
            torch.testing.assert_close(torch.tensor([r[key] for r in log]), ours)
    assert max(record["sets"] for record in records) >= 1


@pytest.mark.parametrize("name", [*distributed_run.CASES, "loader"])
def test_both_processes_end_with_equal_weights(ranks, name):
    first, second = (r[1][0] if name == "loader" else r[0][name][0] for r in ranks)
    assert list(first) == list(second)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_loader_goes_on_with_the_order_of_samples_that_it_had(ranks):
    whole, resumed = ranks[0][1]
    assert list(whole) == list(resumed)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_checkpoint_of_two_processes_is_refused_in_one(ranks, folder):
    with pytest.raises(StateMismatchError, match=r"of 2 process.*has 1: .*Start 2"):
        distributed_run.train_from_a_loader(folder)


def test_processes_share_the_validation_and_score_the_whole_of_it(ranks):
    value, samples, ran = distributed_run.evaluation()
    assert (samples, ran) == (5 * distributed_run.BATCH, 5)
    scored = [scores for *_, scores, _, _ in ranks]
    assert [(v, n) for v, n, _ in scored] == [(value, samples)] * 2
    assert [r for *_, r in scored] == [3, 2]


def test_the_clock_of_the_first_process_ends_the_training_of_both(ranks):
    assert [epochs for *_, epochs, _ in ranks] == [1, 1]


def test_two_processes_compress_as_one_with_twice_the_batch(compressed):
    wanted = compress_run.run("width", 2 * compress_run.BATCH)
    for rank in compressed:
        assert_close(rank["width"], wanted)


def test_a_folder_changes_nothing_and_is_whole(compressed, folder):
    for rank in compressed:
        assert_equal(rank["kept"], compressed[0]["width"])
        assert rank["kept"][2] == compressed[0]["width"][2]
    files = {path.name for path in (folder / "disk-0" / "run").iterdir()}
    assert {"state.json", "weights.safetensors", "report.html", "identity.json"} <= files
    assert ".lock" not in files
    assert list((folder / "disk-1").iterdir()) == []


def test_another_number_of_processes_is_refused_with_the_number(compressed, folder):
    with pytest.raises(StateMismatchError, match=r"in 2 process.* in 1: .*Start 2"):
        compress_run.run("width", compress_run.BATCH, run_dir=folder / "disk-0" / "run")


def test_an_error_in_one_process_is_raised_by_all(compressed):
    assert "OtherProcessError: Process 1" in compressed[0]["error"]
    assert "ValueError: no luck here" in compressed[0]["error"]
    assert compressed[1]["error"] == "ValueError: no luck here"


def test_a_target_that_the_plan_cannot_reach_is_told_by_all(compressed):
    first, second = (found["unreachable"] for found in compressed)
    assert first == second
    assert first.startswith("TargetUnreachableError")


def test_what_cannot_be_sent_is_told_by_all_and_nobody_waits(compressed):
    first, second = (found["unsendable"] for found in compressed)
    assert "lambda" in first
    assert second.startswith("OtherProcessError: Process 0 of this call stopped")


def test_other_data_in_one_process_is_refused_before_training(compressed):
    for rank in compressed:
        order, length = rank["other data"]
        assert "process 1 has another 'Data.train" in order
        assert "process 1 has another 'Data.train" in length


def test_a_frontier_in_several_processes_is_refused(compressed):
    assert all(
        "frontier was called in one of 2 processes" in rank["frontier"] for rank in compressed
    )
