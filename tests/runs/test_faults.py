"""Kills, full disks and workers, in whole runs: the same call goes on, and to the same result."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import pbcompress as pb
from pbcompress.errors import CompressionError, UnwritableError

ROOT = Path(__file__).parents[2]
CONFIG = pb.CompressConfig(
    dendrites=pb.DendriteConfig(max_sets=1, share=0.3, rule="gradient", form="shared"),
    recovery=pb.RecoveryConfig(epochs=2, dendrite_epochs=1, max_failures=1),
)
SHORT = replace(CONFIG, deploy=False)
UNWRITABLE, RAW, KILLED = 3, 4, -9


class Points(Dataset[Any]):
    """Points with noise that is drawn anew each time, where that is wanted."""

    def __init__(self, noise: float = 0.0) -> None:
        self.points = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
        self.noise = noise

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        point = self.points[index]
        return point + self.noise * torch.randn(4), point[:3].argmax()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))


def data(noise: float = 0.0, **options: Any) -> pb.Data:
    train = DataLoader(Points(noise), batch_size=16, shuffle=True, **options)
    return pb.Data(train=train, val=DataLoader(Points(), batch_size=16))


def run(folder: Path, config: pb.CompressConfig = CONFIG, **options: Any) -> pb.CompressionResult:
    call = {"data": data(), **options}
    return pb.compress(network(), 0.6, config=config, run_dir=folder, progress=False, **call)


def weights(result: pb.CompressionResult) -> list[Tensor]:
    return [p.detach().clone() for p in result.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; return how it ended."""
    child = os.fork()
    if child == 0:
        code = RAW
        try:
            work()
            code = 0
        except UnwritableError:
            code = UNWRITABLE
        except BaseException as err:
            os.write(2, f"{type(err).__name__}: {err}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def message_of(work: Callable[[], object]) -> str | None:
    try:
        work()
    except CompressionError as err:
        return str(err)
    return None


class Count:
    """Counts the renames that give files their place, and acts at one of them."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.real, self.seen, self.at, self.act = Path.replace, 0, at, act

    def __enter__(self) -> "Count":
        count = self

        def replacing(path: Path, target: Path) -> Path:
            if count.seen == count.at:
                count.seen += 1
                count.act()
            count.seen += 1
            return count.real(path, target)

        Path.replace = replacing  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        Path.replace = self.real  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_kill_at_any_write_of_a_run_report_and_export_included(tmp_path: Path) -> None:
    """A real signal, at each moment in which a draft is written and has not taken its place."""
    with Count(-1, lambda: None) as count:
        expected = weights(run(tmp_path / "whole"))
    names = {p.name for p in (tmp_path / "whole").rglob("*")}
    assert count.seen >= 9
    for at in range(count.seen):
        folder = tmp_path / f"killed {at}"

        def killed(at: int = at, folder: Path = folder) -> None:
            with Count(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                run(folder)

        assert in_child(killed) == KILLED
        assert hidden(folder)  # a draft, and the lock
        assert same(weights(run(folder)), expected)
        assert hidden(folder) == []
        assert {p.name for p in folder.rglob("*")} == names
        for name in ("weights.safetensors", "model.onnx", "sample.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_an_error_at_any_write_is_clear_and_the_same_call_goes_on(
    number: int, tmp_path: Path
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with Count(-1, lambda: None) as count:
        expected = weights(run(tmp_path / "whole", SHORT))
    assert count.seen >= 9
    for at in range(count.seen):
        folder = tmp_path / f"failed {at}"
        with Count(at, fail):
            told = message_of(lambda folder=folder: run(folder, SHORT))
        assert os.strerror(number) in str(told), at
        assert hidden(folder) == []
        assert same(weights(run(folder, SHORT)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 300, 1500, 4000, 9000, 20000])
def test_a_disk_that_fills_is_clear_and_the_same_call_goes_on(limit: int, tmp_path: Path) -> None:
    """The system refuses to let any file grow beyond a bound, as a full disk does."""
    expected = weights(run(tmp_path / "whole"))
    folder = tmp_path / "run"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run(folder)

    assert in_child(limited) in (UNWRITABLE, 0)
    assert hidden(folder) == []
    assert same(weights(run(folder)), expected)


@pytest.mark.slow
def test_temporary_folders_of_killed_processes_go_with_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inputs = torch.ones(1, 4)

    def killed() -> None:
        real = pb.export_onnx

        def kill(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        import pbcompress.comparison.side_by_side as module

        assert real
        module.export_onnx = kill  # type: ignore[attr-defined]
        pb.compare(network(), network(), inputs)

    assert in_child(killed) == KILLED
    assert len(list(tmp_path.iterdir())) == 1
    pb.compare(network(), network(), inputs)
    assert list(tmp_path.iterdir()) == []


class Interrupt(pb.Callback):
    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_a_run_stopped_by_hand_after_every_epoch_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", SHORT)
    for epochs in range(len(whole.history)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", SHORT, callbacks=[Interrupt(epochs)])
        assert hidden(tmp_path / "run") == []
    assert same(weights(run(tmp_path / "run", SHORT)), weights(whole))


WORKERS = {
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn"},
    "fork, persistent": {
        "num_workers": 2,
        "multiprocessing_context": "fork",
        "persistent_workers": True,
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("kind", WORKERS)
def test_runs_with_workers_are_resumed_to_the_same_result(
    kind: str, noise: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that live on draw other noise after a stop; that is told."""
    options = WORKERS[kind]
    whole = run(tmp_path / "whole", SHORT, data=data(noise, **options))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", SHORT, data=data(noise, **options), callbacks=[Interrupt(1)])
    again = run(tmp_path / "run", SHORT, data=data(noise, **options))
    if noise and "persistent" in kind:
        assert "Data.train: batches (they differ under one seed)" in caplog.text
    else:
        assert same(weights(again), weights(whole))
        assert "differ under one seed" not in caplog.text


MEMORY = """
import resource, torch
from torch import nn
import pbcompress as pb
x = torch.randn(2000, 4)
batches = list(zip(x.split(4), x[:, :3].argmax(1).split(4)))
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
class Watch(pb.Callback):
    def on_epoch(self, record):
        print(record["steps"], rss(), flush=True)
config = pb.CompressConfig(dendrites=pb.DendriteConfig(max_sets=0),
                           recovery=pb.RecoveryConfig(epochs=40))
pb.recover_(net, pb.Data(batches, batches[:4]), config=config, callbacks=[Watch()])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which is only on Linux")
def test_twenty_thousand_steps_take_no_more_memory_than_the_first_ones() -> None:
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert sum(steps for steps, _ in rows) == 20_000
    early, late = (max(size for _, size in part) for part in (rows[2:6], rows[-4:]))
    assert late - early < 4 * 2**20
