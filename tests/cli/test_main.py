"""The command line as a user meets it: output, files, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pbcompress import Task, WidthPlan, load
from pbcompress.cli.main import main
from pbcompress.core.tensor_files import write_tensors
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.report.headline import headline
from pbcompress.runs.run_folder import read_facts

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "demo",
    "init",
    "completion",
    "compress",
    "frontier",
    "plan",
    "measure",
    "export",
    "compare",
    "bench",
    "report",
    "package",
)

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

[compress.recovery]
epochs = 2
dendrite_epochs = 1
max_failures = 1
"""


def make_network() -> nn.Module:
    import model_zoo

    return model_zoo.create_model("mlp", in_features=64, hidden=[16])


def make_data():
    from model_zoo.datasets import load_loaders

    return load_loaders("digits", batch_size=200, train_limit=400)


WORST = Task(metric=lambda y, t: float((y.argmax(1) != t).float().mean()), higher_is_better=False)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "recipe.toml").write_text(RECIPE)
    code = main(["compress", str(folder / "recipe.toml"), "--run-dir", str(folder / "run")])
    assert code == 0
    return folder / "run"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["measure"],
        ["measure", "x.onnx", "--input", "a"],
        ["plan", "a:b", "--input", "1,3", "--target", "half"],
        ["plan", "a:b", "--input", "1,3", "--target", "0.5", "--pin", "0=2.5"],
        ["plan", "a:b", "--input", "1,3", "--target", "0.5", "--pin", "0"],
        ["frontier", "a.toml"],
        ["frontier", "a.toml", "--targets", "half"],
        ["frontier", "a.toml", "--targets", "0.5", "--max-drop", "-1"],
        ["frontier", "a.toml", "--targets", "0.5", "--max-drop", "nan"],
        ["frontier", "a.toml", "--targets", "0.5", "--plot", "a.pdf"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compress", "missing.toml"], "is not there"),
        (["frontier", "missing.toml", "--targets", "0.5"], "is not there"),
        (["plan", "a:b", "--input", "1,3"], "has no bound"),
        (["init", "x.onnx"], "is an ONNX file"),
        (["measure", "missing.onnx"], "is not there"),
        (["measure", "tests.cli.test_main:make_network"], "Add --input"),
        (["measure", "nowhere:net", "--input", "1,3"], "could not be"),
        (["report", "nowhere"], "is not there"),
        (["plan", "x.onnx", "--input", "1,3", "--target", "0.5"], "is an ONNX file"),
        (["export", "nowhere", "x.onnx", "--model", "torch.nn:Identity"], "is not there"),
    ],
)
def test_a_failed_job_exits_with_1_and_says_why_in_one_line(arguments, sentence, capsys):
    assert main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert sentence in lines[0]


def test_a_plan_is_printed_and_written(tmp_path, capsys):
    text = tmp_path / "plan.json"
    command = ["plan", "tests.cli.test_main:make_network", "--input", "1,64", "--target", "0.5"]
    assert main([*command, "--out", str(text)]) == 0
    plan = WidthPlan.from_json(text.read_text())
    assert capsys.readouterr().out == f"{plan}\n"
    layer = next(step.layer for step in plan.steps)
    assert main([*command, "--pin", f"{layer}=3", "--out", str(text)]) == 0
    edited = WidthPlan.from_json(text.read_text())
    assert edited.cost_after.by_layer[layer].width == 3


def test_a_recipe_runs_and_can_be_loaded(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert {
        "state.json",
        "weights.safetensors",
        "history.jsonl",
        "model.onnx",
        "report.md",
    } <= names
    network = load(finished_run, make_network)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_recipe_that_was_run_goes_on_from_its_end(finished_run, capsys):
    before = (finished_run / "weights.safetensors").read_bytes()
    (finished_run.parent / "again.toml").write_text(RECIPE)
    assert (
        main(["compress", str(finished_run.parent / "again.toml"), "--run-dir", str(finished_run)])
        == 0
    )
    assert (finished_run / "weights.safetensors").read_bytes() == before
    text = capsys.readouterr().out
    assert text.startswith("\n".join(headline(read_facts(finished_run))))
    assert "report.html" in text


def test_a_frontier_is_printed_and_the_same_command_goes_on(tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    command = ["frontier", str(tmp_path / "recipe.toml"), "--run-dir", str(tmp_path / "run")]
    command += ["--set", "compress.recovery.compensation_batches=0"]
    picture = tmp_path / "a.svg"
    assert main([*command, "--targets", "0.3", "0.5", "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "accuracy, val" in text
    assert picture.read_text().startswith("<?xml")

    assert main([*command, "--targets", "0.3", "0.5", "--max-drop", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [point["target"] for point in data["points"]] == ["params-0.5", "params-0.3"]
    assert data["smallest"] == "params-0.3"
    for point in data["points"]:
        assert Path(point["run_dir"], "model.onnx").is_file()
        assert read_facts(point["run_dir"]).after.cost.params == point["params"]
        assert f"{point['params']:,}" in text

    higher = data["before"]["val"] - max(point["val"] for point in data["points"])
    assert main([*command, "--targets", "0.3", "0.5", "--max-drop", "0", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["smallest"] is None) == (higher > 0)


def test_export_writes_a_proven_file(finished_run, tmp_path, capsys):
    import model_zoo.mlp  # noqa: F401 - the constructor is named below

    target = tmp_path / "out.onnx"
    command = [
        "export",
        str(finished_run),
        str(target),
        "--model",
        "tests.cli.test_main:make_network",
    ]
    assert main(command) == 0
    assert metadata_of(target) == metadata_of(finished_run / "model.onnx")
    assert "differ by at most" in capsys.readouterr().out


@pytest.mark.parametrize("bits", ["int8", "fp16"])
def test_export_in_fewer_bits_says_which_guard_failed(bits, finished_run, tmp_path, capsys):
    here = "tests.cli.test_main"
    command = ["export", str(finished_run), str(tmp_path / "a.onnx"), "--model"]
    command += [f"{here}:make_network", "--quantize", bits, "--data", f"{here}:make_data"]
    assert main([*command, "--task", f"{here}:WORST", "--max-drop", "-1"]) == 1
    assert "max_drop was given as -1.0; it must be zero or positive" in capsys.readouterr().err
    if bits == "fp16":
        assert main([*command, "--recover-epochs", "2"]) == 1
        assert "Fp16 has no 'recover_epochs'; it has max_drop" in capsys.readouterr().err
    assert main([*command, "--max-drop", "0.9"]) == 0
    text = capsys.readouterr().out
    assert f"{bits} taken: accuracy" in text or f"{bits} not taken (speed)" in text
    assert "times as fast (guard" in text


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "needs data=Data"),
        (["--data", "tests.cli.test_main:make_network"], "has no val"),
        (
            ["--data", "tests.cli.test_main:make_data", "--task", "tests.cli.test_main:ROOT"],
            "to be a Task",
        ),
    ],
)
def test_export_in_fewer_bits_needs_data(data, sentence, finished_run, tmp_path, capsys):
    command = ["export", str(finished_run), str(tmp_path / "a.onnx"), "--quantize", "int8"]
    assert main([*command, "--model", "tests.cli.test_main:make_network", *data]) == 1
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_may_ask_for_fewer_bits(finished_run, tmp_path, capsys):
    text = RECIPE + '\n[export]\nquantize = "int8"\nmax_drop = 0.9\n'
    (tmp_path / "recipe.toml").write_text(text)
    run = tmp_path / "run"
    assert main(["compress", str(tmp_path / "recipe.toml"), "--run-dir", str(run)]) == 0
    told = capsys.readouterr().out
    assert f"{run / 'model.int8.onnx'}: opset 20" in told
    assert "int8 taken" in told or "int8 not taken (speed)" in told
    assert (run / "model.int8.onnx").is_file() == ("int8 taken" in told)


def test_compare_two_files(finished_run, capsys):
    file = str(finished_run / "model.onnx")
    assert main(["compare", file, file, "--input", "1,1,8,8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["max_difference"] == 0
    assert facts["agreement"] == 1


def test_measure_a_file_and_a_network(finished_run, capsys):
    assert main(["measure", str(finished_run / "model.onnx"), "--json"]) == 0
    from_file = json.loads(capsys.readouterr().out)
    state = json.loads((finished_run / "state.json").read_text())
    assert from_file["params"] == state["facts"]["after"]["cost"]["params"]
    assert main(["measure", "tests.cli.test_main:make_network", "--input", "1,1,8,8"]) == 0
    assert "1,210 parameters" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["md", "json", "html"])
def test_report_from_a_run(ending, finished_run, tmp_path, capsys):
    target = tmp_path / f"report.{ending}"
    assert main(["report", str(finished_run), "--out", str(target)]) == 0
    assert len(target.read_text()) > 500
    assert capsys.readouterr().out.startswith("\n".join(headline(read_facts(finished_run))))


def test_a_recipe_takes_weights_instead_of_training(tmp_path):
    network = make_network()
    write_tensors(tmp_path / "base.safetensors", network.state_dict(), {})
    text = RECIPE.replace("[train]\nepochs = 2\n", "").replace(
        "hidden = [16] }", f'hidden = [16] }}\nweights = "{tmp_path}/base.safetensors"'
    )
    (tmp_path / "recipe.toml").write_text(text)
    assert (
        main(["compress", str(tmp_path / "recipe.toml"), "--run-dir", str(tmp_path / "run")]) == 0
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("[train]", "[trian]"), "no table [trian]. Did you mean 'train'"),
        (
            ("epochs = 2\n\n[compress]", "epoch = 2\n\n[compress]"),
            "[train] has no key 'epoch'. Did you mean 'epochs'",
        ),
        (("target_params = 0.5\n", ""), "target_params"),
        (("[train]\nepochs = 2\n", ""), "no weights"),
        (("[model]", "[model"), "no TOML"),
        (("[train]", "[export]\nbits = 8\n\n[train]"), "no key 'bits'"),
        (("[train]", "[export]\nmax_drop = 0.1\n\n[train]"), "[export] has no quantize"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(change, sentence, tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(*change))
    assert main(["compress", str(tmp_path / "recipe.toml")]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_demo_runs_in_its_own_process_and_repeats_its_numbers(tmp_path):
    outputs = []
    for name in ("a", "b"):
        command = [
            sys.executable,
            "-m",
            "pbcompress.cli",
            "demo",
            "--out",
            str(tmp_path / name),
        ]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=280)
        outputs.append((tmp_path / name / "weights.safetensors").read_bytes())
        assert (tmp_path / name / "model.onnx").is_file()
        assert (tmp_path / name / "report.html").is_file()
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_a_process_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 12"))
    command = [
        sys.executable,
        "-m",
        "pbcompress.cli",
        "compress",
        str(tmp_path / "recipe.toml"),
    ]

    def attempt(folder, seconds):
        process = subprocess.Popen(
            [*command, "--run-dir", str(tmp_path / folder)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    assert attempt("whole", 200) == 0
    codes = [attempt("killed", 5 + 0.35 * turn) for turn in range(6)]
    assert attempt("killed", 200) == 0

    assert -9 in codes
    whole, killed = (tmp_path / f / "weights.safetensors" for f in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
