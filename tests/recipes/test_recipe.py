"""What a recipe file says becomes the choices of a run."""

import sys

import pytest
from torch import nn

import pbcompress as pb
from pbcompress.cli.main import main
from pbcompress.recipes.builders import as_model, load_data
from pbcompress.recipes.recipe import Recipe

RECIPE = """
[model]
build = "model_zoo:create_model"

[data]
build = "model_zoo.datasets:load_loaders"

[train]
epochs = 2
optimizer = { algorithm = "sgd", lr = 0.1 }

[compress]
target_params = 0.5
run_dir = "run"

[compress.dendrites]
form = { kind = "grouped", groups = 2 }
rule = "hybrid"

[compress.recovery.engine]
accumulate = 2
"""


def read(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    return Recipe.read(tmp_path / "recipe.toml")


def test_the_parts_of_the_choices_are_tables(tmp_path):
    recipe = read(tmp_path, RECIPE)
    sgd = pb.OptimizerConfig(algorithm="sgd", lr=0.1)
    assert recipe.train == pb.RecoveryConfig(epochs=2, optimizer=sgd)
    assert recipe.config == pb.CompressConfig(
        dendrites=pb.DendriteConfig(form=pb.Grouped(groups=2), rule=pb.Hybrid()),
        recovery=pb.RecoveryConfig(engine=pb.EngineConfig(accumulate=2)),
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("accumulate = 2", "accumulat = 2"), "has no key 'accumulat'. Did you mean 'accumulate'"),
        (("groups = 2", "nodes = 2"), "Grouped has no 'nodes'; it has groups"),
        (('"hybrid"', '"hebb"'), "DendriteConfig.rule was given as 'hebb'; it must be one of"),
        (("lr = 0.1", "lr = -1"), "OptimizerConfig.lr was given as -1; it must be above 0"),
    ],
)
def test_a_wrong_choice_is_named_with_those_that_there_are(tmp_path, change, sentence):
    with pytest.raises(pb.CompressionError, match=sentence):
        read(tmp_path, RECIPE.replace(*change))


HOSTILE = {
    "a number for code": "model.build = 5",
    "a table for code": "data.build = {a = 1}",
    "a long name": f'model.build = "{"k" * 10**6}:f"',
    "a list for arguments": "model.arguments = [1]",
    "an argument that is none": r'model.arguments = {"\u001b[2J" = 1}',
    "a size below zero": "model.arguments = {in_features = -1, out_features = 3}",
    "a size of text": 'model.arguments = {in_features = "a", out_features = 3}',
    "a size of petabytes": "model.arguments = {in_features = 10000000, out_features = 100000000}",
    "a size of 400 digits": f"model.arguments = {{in_features = 1{'0' * 400}, out_features = 3}}",
    "a device of text": r'model.arguments = {in_features=1, out_features=1, device="\u001b[2J\n"}',
    "a device without memory": (
        'model.arguments = {in_features = 1, out_features = 1, device = "meta"}'
    ),
    "a layer of no use": 'model.build = "torch.nn:Module"',
    "weights of a number": "model.weights = 5",
    "weights beyond NUL": r'model.weights = "a\u0000b.pt"',
    "weights of a long name": f'model.weights = "{"w" * 3000}.pt"',
    "weights elsewhere": 'model.weights = "../../../etc/passwd"',
    "a folder of a number": "compress.run_dir = 5",
    "a folder without a name": 'compress.run_dir = ""',
    "a folder beyond NUL": r'compress.run_dir = "a\u0000b"',
    "a folder of a long name": f'compress.run_dir = "{"r" * 10**6}"',
    "no number": "compress.target_params = nan",
    "no end": "compress.target_params = inf",
    "below zero": "compress.target_params = -1",
    "a truth": "compress.target_params = true",
    "lists": "compress.target_params = [[[]]]",
    "a day": "compress.target_params = 1979-05-27",
    "a long text": f'compress.target_params = "{"v" * 10**6}"',
    "a number of 120,000 digits": f"compress.target_params = 0x{'f' * 100_000}",
    "control of text": 'compress.control = "yes"',
    "a seed of text": 'compress.seed = "a"',
    "a rate that is none": "train.optimizer.lr = nan",
    "code for a form": 'compress.dendrites.form = "evilmod:f"',
    "code for bits": 'export.quantize = "evilmod:f"',
    "code that is not trusted": 'model.build = "evilmod:f"',
    "code that lies above": 'model.build = "..evilmod:f"',
    "code within torch.nn": 'model.build = "torch.nn.evilmod:f"',
    "code of Python": 'model.build = "os:system"',
    "lists in lists": f"x = {'[' * 100_000}{']' * 100_000}",
    "tables in tables": f"{'.'.join('a' * 50_000)} = 1",
    "a million letters": f"{'k' * 10**6} = 1",
    "an escape": r'"\u001b[2Jevil" = 1',
    "writing from the right": r'"\u202eevil" = 1',
}


def with_change(change):
    """Return a recipe for a layer in which one line is another."""
    lines = {
        "model.build": 'model.build = "torch.nn:Linear"',
        "model.arguments": "model.arguments = {in_features = 4, out_features = 2}",
        "data.build": 'data.build = "pbcompress.recipes.demo:digits"',
        "train.epochs": "train.epochs = 1",
        "compress.target_params": "compress.target_params = 0.5",
        "compress.run_dir": 'compress.run_dir = "run"',
    }
    return "\n".join({**lines, change.partition(" = ")[0]: change}.values())


def test_a_layer_without_sizes_is_named():
    with pytest.raises(pb.CompressionError, match="lazy and has no shape yet"):
        as_model(nn.LazyLinear, "torch.nn:LazyLinear", {"out_features": 3})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_in_a_line(name, tmp_path, monkeypatch, capsys):
    for folder in (tmp_path, tmp_path / "here"):
        folder.mkdir(exist_ok=True)
        (folder / "evilmod.py").write_text("raise SystemExit('code of the folder ran')")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "a.toml").write_text(with_change(HOSTILE[name]), encoding="utf-8")
    assert main(["compress", str(tmp_path / "a.toml")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.strip().isprintable()
    assert len(told) < 2000
    assert "evilmod" not in sys.modules
    assert not (tmp_path / "here" / "run").exists()


@pytest.mark.parametrize("given", ["compress.seed=1" + "0" * 5000, "x=" + "[" * 5000, "a." * 3000])
def test_a_hostile_change_is_refused_in_a_line(given, tmp_path, capsys):
    (tmp_path / "a.toml").write_text(with_change("compress.seed = 1"))
    given = given if "=" in given else f"{given}b=1"
    assert main(["compress", str(tmp_path / "a.toml"), "--set", given]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/dev/zero", "."])
def test_a_recipe_that_is_no_file_is_refused_in_a_line(path, capsys):
    assert main(["compress", path]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_data_that_is_not_there_is_an_error_of_one_line_that_says_how_to_get_it(tmp_path):
    wanted = {"name": "watch", "folder": str(tmp_path), "batch_size": 8, "num_val": 8}
    with pytest.raises(pb.CompressionError, match="pbcompress zoo fetch watch"):
        load_data("model_zoo.datasets:load_loaders", wanted)
