"""A frontier end to end: equal to single calls, resumed, refused, and run elsewhere."""

import pickle
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.runs.held_folder import held

CONFIG = pb.CompressConfig(
    recovery=pb.RecoveryConfig(
        epochs=3, compensation_batches=0, optimizer=pb.OptimizerConfig(lr=0.01)
    ),
    deploy=False,
)
TARGETS = [0.25, 0.5, pb.Budget(flops=0.4)]
NAMES = ["params-0.25", "params-0.5", "flops-0.4"]


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch) -> None:
    """Leave out what takes most of the time: the pages of runs, which tests of reports draw."""
    monkeypatch.setattr("pbcompress.result.REPORT_FILES", ("report.json",))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3)
    )


def make_data() -> pb.Data:
    """The class is which of the first three numbers is the largest."""
    generator = torch.Generator().manual_seed(1)
    splits = []
    for samples in (96, 60, 60):
        x = torch.randn(samples, 6, generator=generator)
        splits.append(list(zip(x.split(32), x[:, :3].argmax(1).split(32), strict=True)))
    return pb.Data(*splits)


def sweep(targets=TARGETS, **options) -> pb.Frontier:
    options = {"data": make_data(), "config": CONFIG, "progress": False} | options
    return pb.frontier(make_network(), targets, **options)


@cache
def whole() -> pb.Frontier:
    return sweep()


def by_target(found: pb.Frontier) -> dict[str, pb.FrontierPoint]:
    return {point.target: point for point in found.points}


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_same_points(a: pb.Frontier, b: pb.Frontier) -> None:
    one, other = by_target(a), by_target(b)
    assert one.keys() == other.keys()
    for name, point in one.items():
        assert_equal(point.model, other[name].model)
        assert point.facts.after == other[name].facts.after


def test_every_point_is_what_compress_gives_alone() -> None:
    network, data = make_network(), make_data()
    found = by_target(pb.frontier(network, TARGETS, data=data, config=CONFIG, progress=False))
    assert_equal(network, make_network())
    assert sorted(found) == sorted(NAMES)
    for name, target in zip(NAMES, TARGETS, strict=True):
        alone = pb.compress(make_network(), target, data=data, config=CONFIG, progress=False)
        assert found[name].budget == alone.budget
        assert found[name].facts.after == alone.facts().after
        assert_equal(found[name].model, alone.model)
        assert found[name].run_dir is None
        assert not found[name].model.training


def test_points_go_from_large_to_small() -> None:
    sizes = [point.params for point in whole().points]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


class Watch(pb.Callback):
    """Keeps what it hears, and stops everything in the second epoch of a target."""

    def __init__(self, stop: str = "") -> None:
        self.stop, self.records = stop, list[dict]()

    def on_epoch(self, record) -> None:
        self.records.append(record)
        if self.epochs(self.stop) == 2:
            raise KeyboardInterrupt

    def epochs(self, target: str) -> int:
        return sum(record["stage"] == f"{target}/width" for record in self.records)


@pytest.mark.parametrize("target", NAMES)
def test_a_stopped_frontier_goes_on_and_ends_the_same(target: str, tmp_path) -> None:
    first, second = Watch(stop=target), Watch()
    with pytest.raises(KeyboardInterrupt):
        sweep(run_dir=tmp_path, callbacks=[first])
    done = NAMES.index(target)
    assert [(tmp_path / name / "state.json").is_file() for name in NAMES] == [
        place < done for place in range(3)
    ]
    again = sweep(run_dir=tmp_path, callbacks=[second])
    assert_same_points(again, whole())
    assert len(first.records) == 3 * done + 2
    assert second.records[: len(first.records)] == first.records  # their seconds too
    assert [second.epochs(name) for name in NAMES] == [3, 3, 3]
    assert {point.run_dir for point in again.points} == {tmp_path / name for name in NAMES}


def test_a_finished_target_is_not_trained_again_beside_new_ones(tmp_path) -> None:
    first, second = Watch(), Watch()
    sweep([0.5], run_dir=tmp_path, callbacks=[first])
    assert_same_points(sweep(run_dir=tmp_path, callbacks=[second]), whole())
    assert second.records[:3] == first.records


def test_a_folder_of_another_call_is_refused(tmp_path) -> None:
    sweep([0.5], run_dir=tmp_path)
    with pytest.raises(pb.StateMismatchError, match="another call"):
        sweep([0.5], run_dir=tmp_path, seed=1)


def test_one_call_at_a_time_works_in_a_folder(tmp_path) -> None:
    with held(tmp_path), pytest.raises(pb.CompressionError, match="works in it"):
        sweep(run_dir=tmp_path)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        ([], pb.CompressionError, "no target"),
        ([0.5, pb.Budget(params=0.5)], pb.CompressionError, "params-0.5 twice"),
        ([0.5, "half"], pb.TargetUnreachableError, "'half'"),
        ([0.5, 1.0], pb.TargetUnreachableError, "below"),
        ([0.5, 3], pb.TargetUnreachableError, "smallest"),
    ],
)
def test_wrong_targets_are_refused_before_a_training(targets, error, words: str) -> None:
    seen = Watch()
    with pytest.raises(error, match=words):
        sweep(targets, callbacks=[seen])
    assert seen.records == []


def test_a_training_that_diverged_leaves_the_others(monkeypatch) -> None:
    real = pb.compress  # before it is replaced

    def diverging(model, budget, **options):
        if budget == pb.Budget(params=0.25):
            raise pb.DivergedError("the loss was nan")
        return real(model, budget, **options)

    monkeypatch.setattr("pbcompress.frontiers.targets.compress", diverging)
    found = sweep()
    assert dict(found.diverged) == {"params-0.25": "the loss was nan"}
    assert sorted(by_target(found)) == ["flops-0.4", "params-0.5"]
    assert "params-0.25 is not there: the loss was nan" in str(found)
    with pytest.raises(pb.DivergedError, match=r"every target.*params-0\.25.*nan"):
        sweep([0.25])


def test_without_data_sizes_are_all_there_is() -> None:
    found = sweep(data=None, example_inputs=torch.zeros(1, 6))
    assert [point.drop for point in found.points] == [None] * 3
    assert "accuracy" not in str(found)


class InOrder(Executor):
    """Runs everything at once, through pickles, as other processes would."""

    def submit(self, function, /, *args):
        future: Future = Future()
        try:
            future.set_result(
                pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(args)))))
            )
        except Exception as err:
            future.set_exception(pickle.loads(pickle.dumps(err)))
        return future


def test_an_executor_gives_the_same_and_tells_callbacks_in_the_end(tmp_path) -> None:
    here, there = Watch(), Watch()
    sweep(callbacks=[here])
    found = sweep(run_dir=tmp_path, callbacks=[there], executor=InOrder())
    assert_same_points(found, whole())
    told = [[(r["stage"], r["epoch"], r["loss"]) for r in w.records] for w in (here, there)]
    assert sorted(told[0]) == sorted(told[1])


def test_threads_are_an_executor(tmp_path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert_same_points(sweep(run_dir=tmp_path, executor=pool), whole())


class Failing(InOrder):
    """Loses the worker of one target."""

    def submit(self, function, /, shared, target):
        if target.name != "params-0.5":
            return super().submit(function, shared, target)
        future: Future = Future()
        future.set_exception(BrokenProcessPool("a worker died"))
        return future


def test_a_target_that_failed_elsewhere_is_named_and_the_others_are_kept(tmp_path) -> None:
    with pytest.raises(
        pb.CompressionError, match=r"params-0\.5 .* BrokenProcessPool: a worker"
    ) as e:
        sweep(run_dir=tmp_path, executor=Failing())
    assert isinstance(e.value.__cause__, BrokenProcessPool)
    done = {name: (tmp_path / name / "state.json").is_file() for name in NAMES}
    assert done == {"params-0.25": True, "params-0.5": False, "flops-0.4": True}
    assert_same_points(sweep(run_dir=tmp_path), whole())


def test_an_executor_that_has_ended_is_an_error_with_advice(tmp_path) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(pb.CompressionError, match=r"RuntimeError.*executor that still runs"):
        sweep(run_dir=tmp_path, executor=pool)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"executor": 2}, "'ray', an object with submit"),
        ({"executor": "dask"}, "'ray', an object with submit"),
        ({"executor": InOrder(), "run_dir": None}, "no run_dir"),
    ],
)
def test_what_cannot_run_elsewhere_is_refused(options, words: str, tmp_path) -> None:
    with pytest.raises(pb.CompressionError, match=words):
        sweep(**{"run_dir": tmp_path / "runs"} | options)
    assert not (tmp_path / "runs").exists()


def test_what_has_no_pickle_is_refused_for_processes(tmp_path) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        task = pb.Task(loss=lambda output, target: nn.functional.cross_entropy(output, target))
        with pytest.raises(pb.CompressionError, match="module of their own"):
            sweep(run_dir=tmp_path / "runs", executor=pool, task=task)
    assert not (tmp_path / "runs").exists()


def test_ray_that_is_not_there_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(pb.CompressionError, match=r"pbcompress\[ray\]"):
        sweep(run_dir=tmp_path / "runs", executor="ray")
    assert not (tmp_path / "runs").exists()
