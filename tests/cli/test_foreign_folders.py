"""A folder or a recipe of somebody else: no command runs its code unless the user named it."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from pbcompress.cli.main import main
from pbcompress.errors import CompressionError
from pbcompress.recipes.builders import resolve_trusted
from pbcompress.recipes.recipe import Recipe
from tests.support.hostile_files import model, save

ROOT = Path(__file__).parents[2]
LIBRARIES = ("onnx", "numpy", "onnxruntime", "jinja2", "model_zoo", "tomllib", "torch", "json")
RECIPE = """
[model]
build = "{model}"
[data]
build = "{data}"
arguments = {arguments}
[train]
epochs = 1
[compress]
target_params = 0.5
run_dir = "run"
"""


def trap(folder: Path) -> Path:
    """Fill a folder with modules that leave a mark where they are imported."""
    mark = folder / "RAN"
    for name in LIBRARIES:
        text = f"open({str(mark)!r}, 'w').write({name!r})\nraise ImportError\n"
        (folder / f"{name}.py").write_text(text)
    (folder / "evil.toml").write_text(
        RECIPE.format(
            model="torch.nn:Linear",
            data="os:system",
            arguments=f'{{ command = "echo > {mark}" }}',
        )
    )
    return mark


COMMANDS = {
    "measure": ["measure", "m.onnx"],
    "compare": ["compare", "a.onnx", "b.onnx", "--input", "1,3"],
    "bench": ["bench", "m.onnx"],
    "report": ["report", "."],
    "package": ["package", "."],
    "recipe": ["compress", "evil.toml"],
    "fetch": ["zoo", "fetch", "digits"],
    "list": ["zoo", "list"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_runs_code_of_the_current_folder(name: str, tmp_path: Path) -> None:
    mark = trap(tmp_path)
    code = f"import sys; from pbcompress.cli.main import main; sys.exit(main({COMMANDS[name]!r}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],  # as the installed command: without this folder
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in ((0,) if name == "list" else (1, 2))  # the recipes of pbcompress
    assert "Traceback" not in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_path_is_the_same_in_a_command_and_after_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = trap(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with suppress(SystemExit):
        assert main(COMMANDS[name]) == (0 if name == "list" else 1)
    assert sys.path == before
    assert not mark.exists()


def test_code_that_the_user_names_comes_from_the_current_folder_after_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = trap(tmp_path)
    (tmp_path / "own_nets_here.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom torch import nn\n"
        "assert sys.path[-1] == str(Path.cwd())\n"
        "def make():\n    return nn.Linear(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert main(["measure", "own_nets_here:make", "--input", "1,3"]) == 0
    assert "8" in capsys.readouterr().out
    assert sys.path == before
    assert not mark.exists()


REFUSED = [
    "os:system", "subprocess:run", "builtins:eval", "torch:load", "torch.hub:load", "numpy:load",
    "torch.nn.init:zeros_", "torch.nn:functional", "torch.nn.modules.module:OrderedDict",
    "pbcompress.cli.main:main", "pbcompress.recipes.builders:resolve", "pbcompress:load_spec",
    "model_zoo.datasets.fetch:Path", "model_zoo_of_mine:make", "shutil:rmtree", "pip:main",
    "pbcompress.recipes.demo:run_demo", "", ":", "os", "model_zoo:__import__",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_calls_nothing_that_is_not_trusted(name: str) -> None:
    with pytest.raises(CompressionError):
        resolve_trusted(name)


@pytest.mark.parametrize(
    "name",
    ["model_zoo:create_model", "model_zoo.datasets:load_loaders", "torch.nn:Linear",
     "pbcompress.recipes.demo:digits"],
)  # fmt: skip
def test_what_comes_with_pbcompress_is_trusted(name: str) -> None:
    assert callable(resolve_trusted(name))


def test_what_is_not_trusted_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_a_stranger.py").write_text(
        "def make():\n    return 1\nfrom os import system\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CompressionError, match="--trust nets_of_a_stranger"):
        resolve_trusted("nets_of_a_stranger:make")
    assert "nets_of_a_stranger" not in sys.modules
    trust = ["nets_of_a_stranger"]
    assert resolve_trusted("nets_of_a_stranger:make", trust)() == 1
    with pytest.raises(CompressionError, match="no function or class that is defined there"):
        resolve_trusted("nets_of_a_stranger:system", trust)
    with pytest.raises(CompressionError, match="not trusted"):
        resolve_trusted("nets_of_a_stranger_2:make", trust)


def test_a_zoo_that_does_not_lie_beside_pbcompress_is_that_of_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "__init__.py").write_text("def create_model():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "model_zoo"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(CompressionError, match="--trust model_zoo"):
        resolve_trusted("model_zoo:create_model")


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_hostile_recipe_stops_before_anything_is_called(part: str, tmp_path: Path) -> None:
    mark = tmp_path / "RAN"
    parts = {
        "model": "torch.nn:Linear",
        "data": "pbcompress.recipes.demo:digits",
        part: "os:system",
    }
    path = tmp_path / "evil.toml"
    path.write_text(RECIPE.format(**parts, arguments=f'{{ command = "echo > {mark}" }}'))
    assert main(["compress", str(path), "--run-dir", str(tmp_path / "run")]) == 1
    assert not mark.exists()
    assert Recipe.read(path, trust=["a"]).trust == ("a",)


@pytest.mark.parametrize("command", [["compress"], ["zoo", "run"]])
def test_the_help_warns(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "name only code that you would run" in text


def test_names_of_others_command_no_terminal(tmp_path, capsys):
    """An escape can clear the screen or name the window, a mark turn the direction of a line."""
    evil = "\x1b[2J\x1b]0;x\x07\u202e\u2066\x85\u2028"
    path = tmp_path / f"{evil}.onnx"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in (evil, "y")]
    node = helper.make_node("Relu", [evil], ["y"], name=evil)
    save(model(helper.make_graph([node], evil, ends[:1], ends[1:])), path)
    commands = {("bench", str(path), "--rounds", "5", "--profile"): 0}
    commands |= {("measure", f"{path}x"): 1, ("compress", f"{path}x"): 1}
    for command, code in commands.items():
        assert main([*command]) == code
        told = "".join(capsys.readouterr())
        assert told.count("\n") >= 1
        assert told.replace("\n", "").isprintable()
        assert "[2J" in told
