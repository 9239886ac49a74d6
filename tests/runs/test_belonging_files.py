"""Files of a run belong together: one that came whole from another run is refused by its name.

Both runs are of the same network with the same shapes, and every file has a SHA-256 that fits.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.cli.main import main
from pbcompress.export.fusion import fuse
from pbcompress.runs.resumption import owner_of, read_plan
from pbcompress.runs.run_folder import read_facts, read_run
from pbcompress.runs.saved_network import save

CONFIG = pb.CompressConfig(
    dendrites=pb.DendriteConfig(max_sets=0), recovery=pb.RecoveryConfig(epochs=1)
)


def make_network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def compress(folder: Path, seed: int) -> pb.CompressionResult:
    torch.manual_seed(seed)
    network, x = make_network(), torch.randn(48, 8)
    batches = [(x, x[:, :3].argmax(1))]
    return pb.compress(
        network, 0.6, data=pb.Data(batches, batches), config=CONFIG, run_dir=folder, progress=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, other = (tmp_path_factory.mktemp("belonging") / name for name in ("one", "other"))
    for seed, folder in enumerate((one, other)):
        compress(folder, seed)
        shutil.copyfile(folder / "model.onnx", folder / "model.int8.onnx")
    return one, other


def mixed(runs: tuple[Path, Path], folder: Path, pattern: str) -> Path:
    """Return a copy of the first run with a file of the second, under its own name."""
    one, other = runs
    run = Path(shutil.copytree(one, folder / "run"))
    (own,), (strange,) = run.glob(pattern), other.glob(pattern)
    assert own.read_bytes() != strange.read_bytes()
    shutil.copyfile(strange, own)
    return run


def packaged(run: Path) -> None:
    pb.package(run, run.parent / "package")


def again(run: Path) -> None:
    compress(run, 0)


REFUSED: list[tuple[str, Callable[[Path], object]]] = [
    ("weights.safetensors", lambda run: pb.load(run, make_network)),
    ("weights.safetensors", read_run),
    ("weights.safetensors", packaged),
    ("state.json", lambda run: pb.load(run, make_network)),
    ("sample.safetensors", read_run),
    ("sample.safetensors", packaged),
    ("history.jsonl", read_run),
    ("model.onnx", packaged),
    ("model.int8.onnx", packaged),
    ("identity.json", again),
    ("checkpoints/width-*.plan.json", again),
    ("checkpoints/width-*.lr.json", again),
    ("checkpoints/width.safetensors", again),
]


@pytest.mark.parametrize(("pattern", "read"), REFUSED)
def test_a_file_of_another_run_is_refused(
    pattern: str, read: Callable[[Path], object], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = mixed(runs, tmp_path, pattern)
    (own,) = run.glob(pattern)
    with pytest.raises(pb.StateMismatchError) as caught:
        read(run)
    named = {"state.json": "weights.safetensors", "identity.json": f"{run} holds a run of another"}
    assert named.get(pattern, own.name) in str(caught.value)


def test_the_commands_refuse_it_in_a_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = mixed(runs, tmp_path, "weights.safetensors")
    words = ["--model", f"{__name__}:make_network"]
    commands = [["report", run], ["export", run, tmp_path / "a.onnx", *words], ["package", run]]
    for command in commands:
        assert main([str(word) for word in command]) == 1
        assert capsys.readouterr().err.count("does not belong to the state.json beside it") == 1


def test_the_plan_of_another_network_of_the_same_run_is_refused(runs: tuple[Path, Path]) -> None:
    (plan,) = runs[0].glob("checkpoints/width-*.plan.json")
    owner = owner_of("width", read_facts(runs[0]).fingerprint)
    assert read_plan(plan, owner).steps
    with pytest.raises(pb.StateMismatchError, match=r"is of 'width of .*, and 'dendrites of"):
        read_plan(plan, owner.replace("width", "dendrites"))


def test_an_export_by_command_says_of_which_run_it_is_and_ships(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = mixed(runs, tmp_path, "model.onnx")
    words = ["export", run, run / "model.int8.onnx", "--model", f"{__name__}:make_network"]
    assert main([str(word) for word in words]) == 0
    shutil.copyfile(runs[0] / "model.onnx", run / "model.onnx")
    assert list(pb.package(run, tmp_path / "package").models) == ["model.onnx", "model.int8.onnx"]


def test_a_network_alone_is_bound_to_its_weights(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(tmp_path / name, fuse(make_network()))
    shutil.copy(tmp_path / "one" / "weights.safetensors", tmp_path / "other")
    with pytest.raises(pb.StateMismatchError, match="does not belong to the state"):
        pb.load(tmp_path / "other", make_network)
