"""Benchmarks that have no test of their own start, in small, and append their lines."""

import pytest
import torch

from model_zoo import create_model
from model_zoo.datasets import load_loaders
from scripts.dendrites import run as dendrites
from scripts.importance import run as importance
from scripts.int8 import run as int8
from scripts.int8 import tables as int8_tables
from scripts.lines import read_lines
from scripts.planner import run as planner
from scripts.planner import tables as planner_tables
from scripts.planner.networks import Entry
from scripts.recovery import run as recovery
from scripts.recovery import tables as recovery_tables

DIGITS = {"name": "small_cnn", "widths": (16, 48), "pool": True}


def small_cnn():
    torch.manual_seed(0)
    return create_model(**DIGITS).eval()


def images(batch):
    return (torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.slow
def test_planner(tmp_path, monkeypatch):
    entry = Entry("small_cnn", small_cnn, images)
    monkeypatch.setattr(planner, "LISTS", {"timm": lambda: {"small_cnn": entry}})
    path = tmp_path / "lines.jsonl"
    for act in ("run", "export", "reasons", "run"):  # what is there is not run again
        planner.main([act, "timm", str(path)])
    plan, export, whole = read_lines(path)
    assert whole["reasons"] == {planner_tables.OUTPUT: 1}
    assert plan["exact"]
    assert plan["replayed"]
    assert export["export"] == "any batch"
    page = planner_tables.page([plan, export, whole])
    assert "| timm | 1 |" in page
    assert f"| {planner_tables.OUTPUT} | 1 | 1 |" in page
    assert "| small_cnn | " in page


def test_dendrites(tmp_path, monkeypatch):
    monkeypatch.setattr(dendrites, "TRAINED", (("mlp", {"in_features": 3072}, 4),))
    path = tmp_path / "lines.jsonl"
    dendrites.main(["train", str(path), "--rounds", "1"])
    lines = read_lines(path)
    assert len(lines) == 13
    assert lines[0]["ratio"] == lines[0]["memory"] == 1


def test_recovery(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "BATCH", 2)
    monkeypatch.setattr(recovery, "TRAIN", 1)
    path = tmp_path / "lines.jsonl"
    recovery.main([str(path), "--rounds", "1"])
    lines = read_lines(path)
    arms = [*recovery.OURS, *recovery.PLAIN]
    assert [line["arm"] for line in lines] == arms
    assert all("fixed" in line for line in lines[: len(recovery.OURS)])
    assert recovery_tables.page(lines).count(f"| {lines[0]['commit']} |") == len(arms)


@pytest.mark.slow
def test_int8(tmp_path, monkeypatch):
    def loaders(name, *_, **__):
        return load_loaders(name, num_val=100, train_limit=200, batch_size=50)

    monkeypatch.setattr(int8, "load_loaders", loaders)
    monkeypatch.setitem(int8.NETWORKS, "mlp", ("digits", DIGITS))
    monkeypatch.setattr(int8, "EPOCHS", 1)
    monkeypatch.setattr(int8, "RECOVERY", 1)
    path = tmp_path / "lines.jsonl"
    int8.main([str(path), "--networks", "mlp"])
    lines = read_lines(path)
    assert {line["dendrites"] for line in lines} == {False, True}
    assert int8_tables.page(lines).count("| what ships |") == 2


def test_importance(tmp_path, monkeypatch):
    case = importance.Case("mlp", {"in_features": 64, "hidden": (16,)}, "digits", 200, 100, 1, 1)
    monkeypatch.setattr(importance, "CASES", {"mlp": case})
    monkeypatch.setattr(importance, "CRITERIA", ("magnitude", "taylor"))
    monkeypatch.setattr(importance, "SEEDS", (0,))
    path = tmp_path / "lines.jsonl"
    assert importance.main([str(path), "--networks", "mlp"]) == 0
    lines = read_lines(path)
    assert len(lines) == 2 * 3 * 2
    assert {importance.key_of(line)[2] for line in lines} == {"magnitude", "taylor"}
