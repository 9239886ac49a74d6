"""Two processes with batches of N train as one with batches of 2N, through every growth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import distributed_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *(str(ROOT / "tests" / "support" / "distributed_run.py"), str(folder)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


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


def test_processes_share_the_validation_and_score_the_whole_of_it(ranks):
    value, samples, ran = distributed_run.evaluation()
    assert (samples, ran) == (5 * distributed_run.BATCH, 5)
    scored = [scores for *_, scores, _ in ranks]
    assert [(v, n) for v, n, _ in scored] == [(value, samples)] * 2
    assert [r for *_, r in scored] == [3, 2]


def test_the_clock_of_the_first_process_ends_the_training_of_both(ranks):
    assert [epochs for *_, epochs in ranks] == [1, 1]
