"""LeNet-5 beside published results: what is counted, and what is run."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pbcompress as pb
from model_zoo import create_model
from pbcompress.recipes.recipe import Recipe
from scripts.lenet import run, tables
from scripts.lines import read_lines

EXAMPLE = torch.zeros(1, 1, 28, 28)
SEEDS = 3
LINES = read_lines(run.RECIPE.parents[3] / "scripts" / "lenet" / "lines.jsonl.gz")


def test_parameters_of_published_widths_are_counted_as_ours():
    found = pb.measure(create_model("lenet5"), EXAMPLE).params
    assert tables.params_of(tables.ORIGINAL) == found == 431_080
    assert {6212, 2792, 38927} <= {tables.params_of(row[0]) for row in tables.PUBLISHED.values()}


def test_widths_of_the_lines_have_the_parameters_that_they_say():
    assert len(LINES) >= SEEDS
    for line in LINES:
        first, second, hidden = line["widths"]
        assert tables.params_of((first, second, 16 * second, hidden)) == line["params"]
        assert line["params"] <= line["size"]


def test_the_page_has_a_row_for_every_method_and_size():
    rows = tables.page(LINES).count("\n| ") - 2
    jobs = {(line["allocation"], line["size"]) for line in LINES}
    assert len(LINES) == SEEDS * len(jobs)
    assert jobs <= set(run.JOBS)
    assert rows == len(tables.PUBLISHED) + len(jobs)


def images(count, seed):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 28, 28, generator=draw), torch.arange(count) % 10
    return DataLoader(TensorDataset(x, y), 20)


@pytest.mark.slow
def test_a_run_reaches_every_size(tmp_path, monkeypatch):
    recipe = run.RECIPE.read_text().replace("epochs = 4", "epochs = 1")
    (tmp_path / "recipe.toml").write_text(recipe.replace("epochs = 10", "epochs = 1"))
    monkeypatch.setattr(run, "RECIPE", tmp_path / "recipe.toml")
    data = pb.Data(images(40, 0), images(20, 1), images(20, 2))
    monkeypatch.setattr(Recipe, "make_data", lambda _: data)
    path = tmp_path / "lines.jsonl"
    for _ in range(2):  # what is there is not run again
        assert run.main([str(path), "--seeds", "0"]) == 0
    lines = read_lines(path)
    assert [(line["allocation"], line["size"]) for line in lines] == list(run.JOBS)
    assert all(0.9 * line["size"] < line["params"] <= line["size"] for line in lines)
