"""`compress` in several processes: ``torchrun compress_run.py FOLDER``; see test_compress_ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pbcompress import (
    CompressConfig,
    Data,
    DendriteConfig,
    OptimizerConfig,
    RecoveryConfig,
    Task,
    compress,
    frontier,
)
from pbcompress.core.processes import join_processes
from pbcompress.core.records import to_data

ROOT = Path(__file__).parents[2]
FIGURES = ("before", "after", "budget", "note", "seed", "left_alone", "config")
BATCH, ROUNDS = 6, 4
T = TypeVar("T")
Result = tuple[dict[str, Tensor], list[Any], dict[str, Any]]
CASES = ("dendrites", "auto", "fitted", "deployed", "loader")


def network(norm: Callable[[int], nn.Module] | None = None) -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.Identity() if norm is None else norm(width) for width in (24, 16)]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), norms[0], nn.ReLU(),
        nn.Linear(24, 16), norms[1], nn.ReLU(), nn.Linear(16, 3),
    ).double()  # fmt: skip


def batches(size: int, shift: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2 + shift)
    x = torch.randn(2 * BATCH * ROUNDS, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = (x.mean((1, 2, 3)) * 9).long() % 3
    return list(zip(x.split(size), y.split(size), strict=True))


def loader(size: int) -> DataLoader[Any]:
    x, y = (torch.cat(part) for part in zip(*batches(size), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)


def config(name: str) -> CompressConfig:
    lr = "auto" if name == "auto" else 0.05
    optimizer = OptimizerConfig(algorithm="sgd", lr=lr, dendrite_lr=0.05)
    recovery = RecoveryConfig(
        epochs=3,
        dendrite_epochs=2,
        max_failures=1,
        improvement=(0.0,),
        replay=0.0,
        optimizer=optimizer,
        compensation_batches=64 if name == "fitted" else 0,
    )
    share = 0.3 if name in ("dendrites", "loader") else 0.0
    dendrites = DendriteConfig(max_sets=1, share=share)
    return CompressConfig(dendrites=dendrites, recovery=recovery, deploy=name == "deployed")


def run(name: str, size: int, *, share: float = 0.5, **others: Any) -> Result:
    """Compress, and return weights, history and facts."""
    is_loader = name == "loader"
    train, norm = (loader(size), nn.BatchNorm1d) if is_loader else (batches(size), None)
    data = Data(train=train, val=batches(2 * BATCH), test=batches(2 * BATCH, 1))
    choices = {"data": data, "config": config(name), "progress": False, "device": "cpu", **others}
    result = compress(network(norm), share, **choices)
    return result.model.state_dict(), result.history.records, to_data(result.facts())


def said_of(function: Callable[[], object]) -> str:
    """Return the error of a function: its class, and what it says."""
    try:
        function()
    except (Exception, KeyboardInterrupt) as err:
        return f"{type(err).__name__}: {err}"
    return "nothing"


def failing(rank: int, first_bad: int) -> str:
    """Return what is said where process 1 has an error in a train batch."""
    calls = 0

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += model.training
        if rank == 1 and calls >= first_bad:
            raise ValueError("no luck here")
        return model(batch[0]), batch[1]

    return said_of(lambda: run("width", BATCH, task=Task(forward=forward)))


def with_other_data(rank: int) -> list[str]:
    """Return what is said where process 1 has batches in another order, or fewer of them."""
    train = batches(BATCH)
    others = (train[:: 1 - 2 * rank], train[rank:])
    datas = [Data(train=other, val=batches(2 * BATCH)) for other in others]
    return [said_of(lambda data=data: run("width", BATCH, data=data)) for data in datas]  # type: ignore[misc]


class Stop:
    """Stops the first process after some epochs, as Ctrl-C does, or a kill."""

    def __init__(self, epochs: int, *, kills: bool = False) -> None:
        self.left, self.kills = epochs, kills

    def on_stage(self, stage: str, epochs: int) -> None: ...

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if not self.left and self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.left:
            raise KeyboardInterrupt

    def on_end(self) -> None: ...


def on_a_disk_of_its_own(rank: int, folder: Path, function: Callable[[], T]) -> T:
    """Call a function where a relative path is another one in each process."""
    disk = folder / f"disk-{rank}"
    disk.mkdir(exist_ok=True)
    with chdir(disk):
        return function()


def stopped(folder: Path) -> tuple[str, Result]:
    """Return what is said when a run is stopped, and what it ends with when it goes on."""
    said = said_of(lambda: run("loader", BATCH, run_dir=folder, callbacks=[Stop(4)]))
    return said, run("loader", BATCH, run_dir=folder)


def assert_close(found: Any, wanted: Any) -> None:
    """Compare weights, history and facts; times are left out, and what the batches decide."""
    weights, history, facts = found
    assert list(weights) == list(wanted[0])
    for name, value in wanted[0].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-6)
    assert len(history) == len(wanted[1]) > 1
    for record, other in zip(history, wanted[1], strict=True):
        assert list(record) == list(other)
        for key in set(other) - {"seconds", "scores"}:
            assert record[key] == (
                pytest.approx(other[key], rel=1e-6) if isinstance(other[key], float) else other[key]
            ), key
    assert {key: facts[key] for key in FIGURES} == {key: wanted[2][key] for key in FIGURES}


def assert_equal(one: Any, other: Any) -> None:
    assert list(one[0]) == list(other[0])
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    drop = [[{k: v for k, v in r.items() if k != "seconds"} for r in x[1]] for x in (one, other)]
    assert drop[0] == drop[1]


def torchrun(folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a script in two gloo processes, which get a folder."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", script, str(folder)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240
    )


def in_two_processes(folder: Path, script: str) -> list[Any]:
    """Return what each of the processes saved in the folder."""
    done = torchrun(folder, script)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def first_findings(rank: int, folder: Path) -> dict[str, Any]:
    """Return what the fast tests look at, in test_distributed."""
    return {
        "width": run("width", BATCH),
        "kept": on_a_disk_of_its_own(rank, folder, lambda: run("width", BATCH, run_dir="run")),
        "error": failing(rank, ROUNDS + 2),
        "other data": with_other_data(rank),
        "unsendable": said_of(lambda: join_processes().first(lambda: lambda: 0)),
        "unreachable": said_of(lambda: run("width", BATCH, config=CompressConfig(), share=1e-9)),
        "frontier": said_of(lambda: frontier(network(), [0.5], example_inputs=batches(1)[0][0])),
    }


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    if not (folder / "killed").exists():
        run("loader", BATCH, run_dir=folder / "killed", callbacks=[Stop(2, kills=True)])
    assert list((folder / "killed" / "checkpoints").glob("*.safetensors"))
    found = {
        **{name: run(name, BATCH) for name in CASES},
        "stopped": on_a_disk_of_its_own(rank, folder, lambda: stopped(Path("stopped"))),
        "killed": run("loader", BATCH, run_dir=folder / "killed"),
        "error": failing(rank, 1),
    }
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
