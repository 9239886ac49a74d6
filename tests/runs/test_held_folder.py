"""One call at a time works in a folder; who else comes is told by whom, and a kill lets go."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.errors import CompressionError, UnwritableError
from pbcompress.runs.held_folder import held

ROOT = Path(__file__).parents[2]
HOLDING = """
import sys, time
from pathlib import Path
from pbcompress.runs.held_folder import held
with held(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_it_is_let_go_of_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), held(tmp_path):
            raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_call_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").write_text('{"process": 1')
    (tmp_path / ".model.onnx.0123abcd.draft").mkdir()
    (tmp_path / "checkpoints" / ".width.safetensors.0123abcd.part").write_bytes(b"half")
    with held(tmp_path):
        left = [path.name for path in tmp_path.rglob("*")]
    assert sorted(left) == [".lock", "checkpoints"]


def test_another_thread_is_told_of_the_first(tmp_path: Path) -> None:
    told: list[str] = []

    def second() -> None:
        try:
            with held(tmp_path):
                pass
        except CompressionError as err:
            told.append(str(err))

    with held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "the thread 'MainThread' of this process, since" in told[0]
    assert "choose another run_dir" in told[0]


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableError, match="could not be"), held(tmp_path / "file" / "run"):
        pass


def test_calls_race_for_a_folder_without_a_raw_error(tmp_path: Path) -> None:
    """Each of four threads holds it, or is told; nobody meets a file that has just gone."""
    errors: list[BaseException] = []
    inside: list[int] = []

    def work() -> None:
        for _ in range(100):
            try:
                with held(tmp_path):
                    inside.append(1)
                    if len(inside) != 1:
                        errors.append(AssertionError("two at once"))
                    inside.pop()
            except CompressionError:
                pass
            except BaseException as err:
                errors.append(err)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.slow
def test_another_process_is_told_of_the_first_and_a_kill_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDING, str(tmp_path), "60"]
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    config = pb.CompressConfig(deploy=False)

    def compress() -> None:
        pb.compress(network, 0.5, example_inputs=torch.ones(1, 8), config=config, run_dir=tmp_path)

    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(CompressionError, match=f"process {process.pid} on .*, since "):
            compress()
        process.kill()
        process.wait()
    compress()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which is only on Unix")
def test_workers_that_outlive_a_killed_process_are_waited_for(tmp_path: Path) -> None:
    """A worker that was forked has the lock too, until it notices that its parent is gone."""
    fork = "    import os\n    if not os.fork():\n        time.sleep(3)\n        os._exit(0)\n"
    code = HOLDING.replace("    print", f"{fork}    print")
    command = [sys.executable, "-c", code, str(tmp_path), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        with held(tmp_path):
            pass


def made_call(seed: int) -> Callable[[], list[torch.Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 3))
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(seed))
    batches = list(zip(x.split(20), (x[:, :3].argmax(1)).split(20), strict=True))
    config = pb.CompressConfig(
        deploy=False,
        dendrites=pb.DendriteConfig(max_sets=0),
        recovery=pb.RecoveryConfig(epochs=3),
    )
    data = pb.Data(train=batches, val=batches)

    def call() -> list[torch.Tensor]:
        result = pb.compress(network, 0.6, data=data, config=config, seed=seed, progress=False)
        return [p.detach() for p in result.model.parameters()]

    return call


def test_threads_give_the_weights_of_one_and_leave_the_random_state_alone() -> None:
    calls = {seed: made_call(seed) for seed in (1, 2, 3)}
    alone = {seed: call() for seed, call in calls.items()}
    state, found = torch.get_rng_state(), dict[int, list[torch.Tensor]]()
    filters = list(warnings.filters)

    def work(seed: int) -> None:
        found[seed] = calls[seed]()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    assert warnings.filters == filters
    for seed, weights in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(weights, found[seed], strict=True))
