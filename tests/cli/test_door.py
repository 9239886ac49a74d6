"""What a new user meets first: help, version, JSON, a recipe of one's own, completion."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import pbcompress
from pbcompress.cli.completion import words
from pbcompress.cli.main import main, make_parser
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.errors import CompressionError
from pbcompress.recipes.changes import FIELDS, changed, value_of
from pbcompress.recipes.recipe import Recipe
from pbcompress.recipes.weights import load_weights_

ROOT = Path(__file__).parents[2]
HERE = "tests.cli.test_door"
RECIPE = """
[model]
build = "model_zoo:create_model"
arguments = { name = "mlp", in_features = 64, hidden = [16] }
[data]
build = "model_zoo.datasets:load_loaders"
arguments = { name = "digits", batch_size = 200, train_limit = 400 }
[train]
epochs = 2
[compress]
target_params = 0.5
run_dir = "run"
"""


def fresh() -> nn.Module:
    return nn.Linear(3, 2)


def trained() -> nn.Module:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.zeros_(layer.bias)
    return layer


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits() -> object:
    from model_zoo.datasets import load_loaders

    return load_loaders("digits", batch_size=200, train_limit=400)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return str(tmp_path / "recipe.toml")


def told(capsys: pytest.CaptureFixture[str], *command: str) -> dict:
    """Run a command with --json, and return what it printed."""
    assert main([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- help, version, completion --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_torch(option: str) -> None:
    code = (
        "import sys\nfrom pbcompress.cli.main import main\n"
        f"try:\n    main([{option!r}])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ("usage: pbcompress" if option == "--help" else pbcompress.__version__) in found.stdout


def test_a_reader_that_stops_early_is_no_error() -> None:
    code = (
        "import os, sys\nfrom pbcompress.cli.main import main\n"
        "read, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "sys.exit(main(['completion', 'bash']))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_takes_json() -> None:
    tree = words(make_parser())
    leaves = {path: own for path, own in tree.items() if path and path != ("zoo",)}
    assert len(leaves) == 16
    for path, own in leaves.items():
        assert "--json" in own, path


def test_completion_offers_what_the_parser_has(tmp_path: Path) -> None:
    assert shutil.which("bash")
    script = subprocess.run(
        [sys.executable, "-m", "pbcompress.cli", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    for line, wanted, other in [
        ("pbcompress ", {"demo", "zoo", "plan", "--version"}, {"fetch"}),
        ("pbcompress zoo ", {"list", "fetch"}, {"demo"}),
        ("pbcompress plan --l", {"--latency"}, {"--target"}),
        ("pbcompress zoo run x --d", {"--dry-run"}, {"--json"}),
    ]:
        parts = line.split(" ")
        ask = (
            f"{script}\nCOMP_WORDS=({' '.join(repr(part) for part in parts)})\n"
            f"COMP_CWORD={len(parts) - 1}\n_pbcompress\necho ${{COMPREPLY[@]}}"
        )
        found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        offered = set(found.stdout.split())
        assert wanted <= offered, line
        assert not other & offered, line


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells_names_every_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = told(capsys, "completion", shell)["script"]
    assert all(word in script for path in words(make_parser()) for word in path)


# --- recipes --------------------------------------------------------------------------------------


def test_options_change_a_recipe(recipe: str) -> None:
    found = Recipe.read(recipe, changes={"compress.seed": 3, "compress.recovery.optimizer.lr": 0.1})
    assert found.seed == 3
    assert found.config.recovery.optimizer.lr == 0.1
    assert Recipe.read(recipe).seed == 0


def test_a_change_leaves_the_tables_as_they_were() -> None:
    tables = tomllib.loads(RECIPE)
    assert changed(tables, {"model.arguments.hidden": [8]})["model"]["arguments"]["hidden"] == [8]
    assert tables == tomllib.loads(RECIPE)
    assert value_of("0.5") == 0.5
    with pytest.raises(ValueError, match="is 2 and no table"):
        changed(tables, {"train.epochs.first": 1})


def test_a_dry_run_plans_and_writes_nothing(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["compress", recipe, "--run-dir", str(out), "--dry-run"]
    command += ["--target", "0.3", "--seed", "7", "--set", "compress.recovery.epochs=5"]
    facts = told(capsys, *command)
    assert facts["target_params"] == 0.3
    assert facts["seed"] == 7
    assert facts["compress"]["recovery"]["epochs"] == 5
    assert facts["plan"]
    assert main(command) == 0
    assert "train it for 5 epochs" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("compress.recovery.epoch=5", "[compress.recovery] has no key 'epoch'. Did you mean"),
        ("compress.recovery.optimizer.rl=5", "[compress.recovery.optimizer] has no key 'rl'"),
        ("compress.targetparams=5", "Did you mean 'target_params'"),
        ("model.wieghts=a", "Did you mean 'weights'"),
        ("compres.seed=1", "Did you mean 'compress'"),
        ("train=4", "train is 4 and no table"),
        ("nothing", "has no value"),
    ],
)
def test_a_wrong_key_is_told_with_the_nearest(
    key: str, sentence: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", recipe, "--dry-run", "--set", key]) == 1
    assert sentence in capsys.readouterr().err


def test_known_keys_are_the_fields_of_a_recipe() -> None:
    ours = {"target_params", "run_dir", "seed", "control"}
    assert set(FIELDS["compress"]) == ours | {"width", "dendrites", "recovery"}
    assert ours <= set(Recipe.__dataclass_fields__)
    assert "optimizer" in RecoveryConfig().to_dict()


def test_a_written_recipe_runs_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    command = ["init", f"{HERE}:wide", "--input", "1,1,8,8", "--data", f"{HERE}:digits"]
    facts = told(capsys, *command, "--out", str(path))
    assert facts["params"] == 64 * 32 + 32 + 32 * 10 + 10
    assert main([*command, "--out", str(path)]) == 1
    assert "was not changed" in capsys.readouterr().err
    assert main(["compress", str(path), "--trust", "tests", "--dry-run"]) == 0
    assert "0.25" in path.read_text()


def test_every_comment_of_a_written_recipe_is_a_choice_that_there_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert main(["init", f"{HERE}:wide", "--out", str(path), "--weights", "w.pt"]) == 0
    lines = path.read_text().splitlines()
    bare = [line.removeprefix("# ") for line in lines[3:]]
    text = "\n".join(line for line in bare if line[:1] == "[" or " = " in line)
    path.write_text(text)
    found = Recipe.read(path)
    assert found.export is not None
    assert found.config.dendrites.share == 0
    assert found.model["weights"] == "w.pt"


# --- weights --------------------------------------------------------------------------------------


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("inner", [None, "state_dict", "model"])
def test_weights_of_torch_are_read_as_data(inner: str | None, tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save({inner: state} if inner else state, tmp_path / "w.pt")
    network = fresh()
    load_weights_(network, tmp_path / "w.pt")
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (Trap(), "cannot be read as weights alone"),
        ([1, 2], "holds list and no state dict"),
        ({"epoch": 3}, "holds dict and no state dict"),
        ({"weight": torch.zeros(1)}, "weights of another model"),
        (None, "are not there"),
    ],
)
def test_other_weights_are_refused_and_nobody_is_told_to_delete_them(
    content: object, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CompressionError, match=sentence) as caught:
        load_weights_(fresh(), tmp_path / "w.pt")
    assert "delete" not in str(caught.value)


def test_no_message_tells_to_delete_something() -> None:
    texts = [path.read_text() for path in (ROOT / "pbcompress").rglob("*.py")]
    assert len(texts) > 200
    assert not [text for text in texts if "or delete" in text.lower()]


# --- compare --------------------------------------------------------------------------------------


def test_untrained_weights_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--input", "1,3"]
    notes = told(capsys, "compare", f"{HERE}:fresh", f"{HERE}:trained", *shape)["notes"]
    assert len(notes) == 1
    assert notes[0].startswith(f"{HERE}:fresh gives other weights at each call")


# --- plan -----------------------------------------------------------------------------------------


def test_a_plan_takes_several_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", f"{HERE}:wide", "--input", "1,1,8,8", "--flops", "0.5", "--target", "0.6"]
    facts = told(capsys, *command)
    budget = facts["budget"]
    assert (budget["params"], budget["flops"]) == (0.6, 0.5)
    assert main(["plan", f"{HERE}:wide", "--input", "1,1,8,8", "--flops", "nan"]) == 1
    assert "bounds cannot be used" in capsys.readouterr().err
