"""Frontiers on pools of processes and on Ray, whose workers are killed."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

import pbcompress as pb
from tests.frontiers.swept import TARGETS, Batches, passes, sweep

pytestmark = pytest.mark.slow
DEADLY = 13  # passes: some for checks, then one for each of 8 epochs
NAMES = [f"params-{target}" for target in TARGETS]


def make_data(folder: Path, deadly: int = 0) -> pb.Data:
    folder.mkdir()
    return pb.Data(Batches(96, folder / "train", deadly), Batches(60, folder / "val"))


def assert_same(a: pb.Frontier, b: pb.Frontier) -> None:
    assert [point.target for point in a.points] == [point.target for point in b.points] == NAMES
    for one, other in zip(a.points, b.points, strict=True):
        assert one.facts.after == other.facts.after
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), (one.target, name)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[pb.Frontier, int]:
    """The frontier as this process makes it, and the passes that it takes."""
    folder = tmp_path_factory.mktemp("here") / "data"
    found = sweep(make_data(folder))
    return found, len(passes(folder / "train"))


def test_a_pool_of_processes_gives_the_same(here, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        data = make_data(tmp_path / "data")
        found = sweep(data, executor=pool, run_dir=tmp_path / "runs")
    assert_same(found, here[0])
    assert len(set(passes(tmp_path / "data" / "train")) - {os.getpid()}) in (1, 2)


def test_a_pool_whose_worker_was_killed_says_so_and_the_same_call_goes_on(here, tmp_path) -> None:
    data, runs = make_data(tmp_path / "data", deadly=DEADLY), tmp_path / "runs"
    context = multiprocessing.get_context("spawn")
    broken = pytest.raises(pb.CompressionError, match=r"BrokenProcessPool.*goes on")
    with ProcessPoolExecutor(2, mp_context=context) as pool, broken:
        sweep(data, executor=pool, run_dir=runs)
    assert data.train.grave.exists()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert_same(sweep(data, executor=pool, run_dir=runs), here[0])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers of this machine."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def of_ray(test):
    """Mark a test that runs on the cluster, whose processes older versions of Ray leave to it."""
    unraisable = "ignore::pytest.PytestUnraisableExceptionWarning"
    return pytest.mark.filterwarnings(unraisable)(pytest.mark.usefixtures("cluster")(test))


@of_ray
def test_ray_replaces_a_worker_that_was_killed_and_its_target_goes_on(here, tmp_path) -> None:
    data = make_data(tmp_path / "data", deadly=DEADLY)
    found = sweep(data, executor="ray", run_dir=tmp_path / "runs")
    assert_same(found, here[0])

    died = int(data.train.grave.read_text())
    made = Counter(passes(tmp_path / "data" / "train"))
    alive = set(made) - {os.getpid(), died}
    assert made[died] == DEADLY
    assert len(alive) in (1, 2)
    again = sum(made.values()) - here[1]
    assert again <= DEADLY - 4  # the checks and the epoch that was begun, not those before it


def test_a_cluster_that_cannot_be_reached_is_an_error_before_a_training(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refused(**_):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(pb.CompressionError, match="none could be reached or started: nobody"):
        sweep(make_data(tmp_path / "data"), executor="ray", run_dir=tmp_path / "runs")
    assert not list(tmp_path.rglob("width.safetensors"))


@of_ray
def test_ray_brings_an_error_of_the_users_code(tmp_path: Path) -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if multiprocessing.current_process().pid != parent and output.requires_grad:
            raise ArithmeticError("no such loss")
        return torch.nn.functional.cross_entropy(output, target)

    parent = os.getpid()
    with pytest.raises(
        pb.CompressionError,
        match=r"run elsewhere and failed with CompressionError: .*ArithmeticError: no such loss",
    ):
        sweep(
            make_data(tmp_path / "data"),
            executor="ray",
            run_dir=tmp_path / "runs",
            task=pb.Task(loss=loss),
        )
