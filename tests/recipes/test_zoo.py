"""The zoo's folders: every small model is loaded, measured and scored on real data."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from model_zoo.datasets import load_loaders
from pbcompress.cli.main import main
from pbcompress.config.budget import Budget
from pbcompress.errors import StateMismatchError
from pbcompress.onnx_files.contents import measure_onnx, metadata_of
from pbcompress.onnx_files.session import Session
from pbcompress.recipes.recipe import Recipe
from pbcompress.recipes.zoo import Entry, entries
from pbcompress.report.headline import headline
from pbcompress.runs.contenders import Split
from pbcompress.runs.run_folder import read_facts
from tests.support.changed_json import rewrite

FOLDER = Path(__file__).parents[2] / "model_zoo" / "recipes"
ENTRIES = {entry.name: entry for entry in entries(FOLDER)}
FINISHED = {name: entry for name, entry in ENTRIES.items() if entry.result()}
BUNDLED = [
    name
    for name, entry in FINISHED.items()
    if entry.recipe().data["arguments"]["name"] == "digits"  # needs no download
]


def test_the_zoo_has_what_it_should() -> None:
    finished = ["digits", "digits_cnn", "fashion_mnist", "reuters_r8", "watch"]
    assert list(ENTRIES) == sorted(["cifar10", "lenet5", *finished])
    assert list(FINISHED) == finished
    assert len(BUNDLED) == 2


@pytest.mark.parametrize("name", ENTRIES)
def test_a_recipe_can_be_read_and_its_network_built(name: str) -> None:
    recipe = ENTRIES[name].recipe()
    assert isinstance(recipe, Recipe)
    assert sum(p.numel() for p in recipe.make_model().parameters()) > 0
    assert ENTRIES[name].about().endswith(".")


@pytest.mark.parametrize("name", FINISHED)
def test_a_model_is_what_its_result_and_its_card_say(name: str) -> None:
    entry = FINISHED[name]
    result = entry.result()
    assert result is not None
    facts, size = result.facts, result.facts.after.cost.params
    assert entry.model.stat().st_size < 2_000_000
    assert hashlib.sha256(entry.model.read_bytes()).hexdigest() == result.sha256
    assert result.sha256 in entry.card()
    notes = metadata_of(entry.model)
    assert facts.budget == Budget.of(entry.recipe().target_params)
    assert int(notes["params"]) == size <= facts.budget.params * facts.before.cost.params
    # norms are folded; a number that the code multiplies by is a constant of the file
    constants = sum(not tensor.dims for tensor in onnx.load(entry.model).graph.initializer)
    assert measure_onnx(entry.model).params - constants <= size
    assert f"{size:,}" in entry.card()
    assert "\n".join(headline(facts)) in entry.card().replace("\n\n", "\n")
    recipe = entry.recipe()
    assert facts.seed == recipe.seed
    assert facts.config == recipe.config


@pytest.mark.parametrize("name", BUNDLED)
def test_a_model_scores_in_the_runtime_what_the_card_says(name: str) -> None:
    entry = FINISHED[name]
    loaders = load_loaders(**entry.recipe().data["arguments"])
    result = entry.result()
    assert result is not None
    score = result.facts.after.score
    assert score is not None
    splits: list[tuple[Split, Any]] = [("val", loaders.val), ("test", loaders.test)]
    for split, loader in splits:
        session, right, count = Session(entry.model), 0, 0
        for inputs, labels in loader:
            (output,) = session.run({session.input_names[0]: inputs.numpy()})
            right += int((np.argmax(output, 1) == labels.numpy()).sum())
            count += len(labels)
        assert count == score.samples(split)
        assert right / count == pytest.approx(score.on(split), abs=1e-6)


DAMAGES = {
    "truncated": (lambda text: text[:-20], "is truncated"),
    "another kind": (lambda text: text.replace("recipe result", "run"), "of another kind"),
    "no kind": (lambda text: text.replace('"kind"', '"sort"'), "of another kind"),
    "an older version": (lambda text: text.replace('"version": 2', '"version": 1'), "version 1"),
    "a newer version": (lambda text: text.replace('"version": 2', '"version": 9'), "version 9"),
    "an unknown field": (
        lambda text: text.replace('"sha256"', '"colour": 1, "sha256"', 1),
        "colour is a field that is not known",
    ),
    "a missing field": (lambda text: text.replace('"seed": 0,', ""), "facts.seed is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_result_is_refused_in_a_sentence_of_its_own(name: str, tmp_path: Path) -> None:
    change, sentence = DAMAGES[name]
    text = (FOLDER / "digits" / "result.json").read_text()
    assert change(text) != text
    path = tmp_path / "result.json"
    path.write_text(change(text))
    with suppress(json.JSONDecodeError):  # as whoever changes it on purpose
        rewrite(path, lambda _: None)
    with pytest.raises(StateMismatchError, match=sentence):
        Entry(tmp_path).result()


# --- the command ----------------------------------------------------------------------------------


def test_list_has_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list", "--folder", str(FOLDER)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(ENTRIES)
    by_name = dict(zip(ENTRIES, lines, strict=True))
    result = FINISHED["digits"].result()
    assert result is not None
    after = result.facts.after
    assert after.score is not None
    assert f"-> {after.cost.params:,} parameters" in by_name["digits"]
    assert f"-> {after.score.test:.4f}" in by_name["digits"]
    assert result.facts.shipped is not None
    pace = f"{result.facts.shipped.latency_after.ratio:.2f} times as fast"
    assert pace in by_name["digits"]


def test_show_prints_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "show", "digits", "--folder", str(FOLDER)]) == 0
    assert capsys.readouterr().out.strip() == ENTRIES["digits"].card().strip()


def test_run_writes_an_entry_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "zoo" / "mine"
    folder.mkdir(parents=True)
    text = (FOLDER / "digits" / "recipe.toml").read_text().replace("epochs = 40", "epochs = 2")
    (folder / "recipe.toml").write_text(text)
    zoo = ["--folder", str(tmp_path / "zoo")]
    assert main(["zoo", "show", "mine", *zoo]) == 1
    assert "nobody has run it" in capsys.readouterr().err
    assert main(["zoo", "run", "mine", *zoo, "--run-dir", str(tmp_path / "run")]) == 0
    assert not (folder / "model.onnx").exists()
    assert main(["zoo", "run", "mine", *zoo, "--run-dir", str(tmp_path / "run"), "--update"]) == 0
    entry = Entry(folder)
    found = entry.result()
    assert found is not None
    assert found.facts == read_facts(tmp_path / "run")
    assert "# mine" in entry.card()
    assert entry.model.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "takes the name of a recipe"),
        (["run", "mnist"], "no recipe 'mnist'; it has cifar10, digits"),
    ],
)
def test_wrong_use_says_what_there_is(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["zoo", *arguments, "--folder", str(FOLDER)]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_without_recipes_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(FOLDER / "digits" / "recipe.toml", tmp_path / "recipe.toml")
    assert main(["zoo", "list", "--folder", str(tmp_path)]) == 1
    assert "holds no recipes" in capsys.readouterr().err
