"""The benchmark of other toolkits: the same task, target and steps as our own arms."""

import json

import pytest
import torch
from torch import nn

from scripts.accuracy import run as accuracy
from scripts.accuracy.grid import Task
from scripts.peers import run as peers

TINY = Task(
    {"name": "digits", "num_val": 200, "train_limit": 200, "batch_size": 50},
    {"name": "small_cnn", "widths": (8, 12), "pool": True},
    epochs=4,
    base_epochs=2,
)


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "TASKS", {"tiny": TINY})

    def run(*arms):
        path = tmp_path / "lines.jsonl"
        monkeypatch.setattr(peers, "TASKS", ("tiny",))
        options = [str(path), "--tasks", "tiny", "--targets", "0.5", "--seeds", "0"]
        for _ in range(2):  # what is there is not run again
            assert peers.main([*options, "--arms", *arms]) == 0
        return {line["arm"]: line for line in map(json.loads, path.read_text().splitlines())}

    return run


def test_torch_pruning_gets_what_width_gets(call):
    lines = call("width", "torch-pruning")
    assert list(lines) == ["width", "torch-pruning"]
    width, other = lines.values()
    assert width["steps"] == other["steps"] == 4 * 4
    assert width["base"] == other["base"]
    assert 0.85 * width["params"] < other["params"] <= 0.5 * other["base"]["params"]
    assert other["flops"] < 0.8 * other["base"]["params"] * 64


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # its own
def test_perforatedai_gets_what_width_gets(call):
    pytest.importorskip("perforatedai")
    (line,) = call("perforatedai").values()
    assert line["steps"] == 4 * 4
    assert line["sets"] == 1
    assert line["params"] <= 0.5 * line["base"]["params"]


def test_a_layer_and_its_norm_become_one_module():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(5, 1, 6, 6)
    before = network.eval()(inputs)
    peers.join_norms_(network, lambda layers: nn.Sequential(*layers))
    assert [type(m).__name__ for m in network] == ["Sequential", "Identity", "ReLU", "Linear"]
    assert torch.equal(network(inputs), before)


def test_the_tasks_are_those_of_the_benchmark():
    assert set(peers.TASKS) < set(accuracy.TASKS)
