"""What a recipe file says becomes the choices of a run."""

import pytest

import pbcompress as pb
from pbcompress.recipes.builders import load_data
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


def test_data_that_is_not_there_is_an_error_of_one_line_that_says_how_to_get_it(tmp_path):
    wanted = {"name": "watch", "folder": str(tmp_path), "batch_size": 8, "num_val": 8}
    with pytest.raises(pb.CompressionError, match="pbcompress zoo fetch watch"):
        load_data("model_zoo.datasets:load_loaders", wanted)
