"""The trial of context dendrites: gates that change nothing at first, and arms of one size."""

import pytest
import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from scripts.accuracy import run as accuracy
from scripts.accuracy.grid import Task
from scripts.context import run as context
from scripts.context.gates import Gated, gate_params, gated, places
from scripts.lines import read_lines

NETWORKS = {
    "cnn1d": ({}, lambda: torch.randn(3, 6, 40)),
    "small_cnn": ({"widths": (8, 16)}, lambda: torch.randn(3, 1, 12, 12)),
    "text_transformer": ({"width": 16}, lambda: torch.randint(256, (3, 48))),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    arguments, inputs = NETWORKS[request.param]
    torch.manual_seed(0)
    return create_model(request.param, **arguments).eval(), inputs()


def test_a_network_with_gates_is_the_same_at_first(network):
    model, x = network
    names = places(model, x, 1.0)
    grown = gated(model, names)
    assert len(names) == sum(isinstance(module, Gated) for module in grown.modules()) > 1
    assert torch.equal(grown(x), model(x))
    sizes = [pb.measure(each, x).params for each in (grown, model)]
    assert sizes[0] - sizes[1] == gate_params(grown) > 0


def test_a_gate_multiplies_by_what_the_mean_says(network):
    model, x = network
    name = places(model, x, 1.0)[-1]
    gate = gated(model, [name]).get_submodule(name)
    nn.init.normal_(gate.up)
    seen = torch.randn(2, gate.down.in_features, *[5] * gate.dims).double()
    if gate.dims == 0:
        seen = torch.randn(2, 5, gate.down.in_features).double()
    gate.double()
    with torch.no_grad():
        found, plain = gate(seen), gate.layer(seen)
        mean = seen.numpy().mean(axis=tuple(range(2, 2 + gate.dims)) or 1)
        inner = mean @ gate.down.weight.numpy().T + gate.down.bias.numpy()
        scale = 1 + torch.tensor(inner).tanh() @ gate.up.T
    for sample in range(2):
        axis = -1 if gate.dims == 0 else 0
        wanted = plain[sample].movedim(axis, -1) * scale[sample]
        torch.testing.assert_close(found[sample].movedim(axis, -1), wanted)


def test_norms_fold_away_behind_gates():
    model = create_model("small_cnn", widths=(8, 16)).eval()
    x = torch.randn(2, 1, 12, 12)
    fused = pb.fuse(gated(model, places(model, x, 1.0)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_third_of_the_layers_are_the_last_ones(network):
    model, x = network
    every, last = places(model, x, 1.0), places(model, x, 1 / 3)
    assert every[-len(last) :] == last
    assert len(last) == round(len(every) / 3)
    assert places(model, x, 0.0) == []


@pytest.mark.slow
def test_arms_have_the_size_or_the_time_of_the_control(tmp_path, monkeypatch):
    tiny = Task(
        {"name": "digits", "num_val": 200, "train_limit": 200, "batch_size": 50},
        {"name": "small_cnn", "widths": (16, 16, 24), "pool": True},
        epochs=1,
        base_epochs=1,
    )
    monkeypatch.setattr(context, "TASKS", {"tiny": tiny})
    monkeypatch.setattr(accuracy, "TASKS", {"tiny": tiny})
    monkeypatch.setattr(context, "STEPS", 4)
    monkeypatch.setattr(context, "Timer", ByFlops)
    speeds, lines = tmp_path / "speeds.jsonl", tmp_path / "lines.jsonl"
    call = ["--tasks", "tiny", "--targets", "0.5", "--seeds", "0"]
    assert context.main([str(speeds), "--job", "widths", *call]) == 0
    for _ in range(2):  # what is there is not run again
        assert context.main([str(lines), "--widths", str(speeds), *call]) == 0
    found = {line["arm"]: line for line in read_lines(lines)}
    assert list(found) == list(context.ARMS)
    control = found[context.CONTROL]
    assert len({line["steps"] for line in found.values()}) == 1
    for arm, line in found.items():
        assert line["params"] <= 0.5 * line["base"]["params"]
        assert (line["gate_params"] > 0) == (arm != context.CONTROL)
        if context.ARMS[arm].by_latency:
            assert line["flops"] <= control["flops"] / (1 - context.SLACK)


class ByFlops:
    """Takes a network for as fast as it has few FLOPs."""

    def __init__(self, control, example, folder):
        self.control, self.example = control, example

    def ratio(self, network):
        one, other = (pb.measure(each, self.example).flops for each in (self.control, network))
        return one / other
