"""A saved network comes back bit-identical, from JSON and safetensors alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pbcompress import (
    CompressionError,
    DendriteConfig,
    StateMismatchError,
    attach_dendrites_,
    load,
    plan_widths,
    shrink,
    shrink_,
)
from pbcompress.pruning.cuts import LayerCut
from pbcompress.runs.saved_network import STATE_FILE, WEIGHTS_FILE, save
from tests.support.changed_json import changes, rewrite
from tests.support.hf_models import FAMILIES


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def compressed(form="full", sets=2):
    network = make_network()
    plan = plan_widths(network, torch.zeros(1, 2, 6, 6), 0.5)
    small = shrink(network, plan)
    for _ in range(sets):
        attach_dendrites_(small, DendriteConfig(form=form))
    for parameter in small.parameters():
        nn.init.normal_(parameter)
    return small.eval(), plan


@pytest.mark.parametrize("sets", [0, 1, 2])
@pytest.mark.parametrize("form", ["full", "grouped", "lowrank", "shared"])
def test_outputs_are_bit_identical(form, sets, tmp_path):
    small, plan = compressed(form, sets)
    save(tmp_path, small, plan.steps)

    again = load(tmp_path, make_network)

    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(again(x), small(x))
    assert not again.training


def test_outputs_are_bit_identical_in_a_new_process(tmp_path):
    small, plan = compressed()
    save(tmp_path, small, plan.steps)
    x = torch.linspace(-1, 1, 72).reshape(1, 2, 6, 6)
    script = (
        "import torch, pbcompress as pb\n"
        "from tests.runs.test_saved_network import make_network\n"
        "torch.set_num_threads(1)\n"
        "x = torch.linspace(-1, 1, 72).reshape(1, 2, 6, 6)\n"
        f"y = pb.load({str(tmp_path)!r}, make_network)(x)\n"
        "print(y.detach().double().tolist())"
    )

    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)

    assert json.loads(output.stdout) == small(x).detach().double().tolist()


def test_saving_twice_gives_the_same_bytes(tmp_path):
    small, plan = compressed()
    for folder in ("a", "b"):
        save(tmp_path / folder, small, plan.steps)

    for name in (STATE_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_config_that_a_network_carries_states_its_widths(tmp_path):
    pytest.importorskip("transformers")
    family = FAMILIES["Llama"]
    plan = plan_widths(family.build(), family.inputs(), 0.6)
    small = shrink(family.build(), plan)
    save(tmp_path, small, plan.steps, stated=plan.stated)

    again = load(tmp_path, family.build)

    assert plan.stated
    assert again.config.to_dict() == small.config.to_dict() != family.build().config.to_dict()


def test_tied_weights_come_back_tied(tmp_path):
    def make():
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        network[1].weight = network[0].weight
        return network

    network = make()
    save(tmp_path, network)

    again = load(tmp_path, make)

    assert again[0].weight is again[1].weight
    assert torch.equal(again[1].weight, network[1].weight)


def test_frozen_dendrites_come_back_frozen(tmp_path):
    small, plan = compressed()
    small[0].freeze(1)
    save(tmp_path, small, plan.steps)

    again = load(tmp_path, make_network)

    assert [p.requires_grad for p in again[0].parameters()] == [
        p.requires_grad for p in small[0].parameters()
    ]


def test_another_architecture_is_refused_by_name(tmp_path):
    small, plan = compressed()
    save(tmp_path, small, plan.steps)

    with pytest.raises(StateMismatchError, match="architecture"):
        load(tmp_path, lambda: nn.Sequential(nn.Linear(3, 3)))


def test_a_wider_constructor_is_refused(tmp_path):
    save(tmp_path, nn.Sequential(nn.Linear(3, 3)))

    with pytest.raises(StateMismatchError, match="another architecture"):
        load(tmp_path, lambda: nn.Sequential(nn.Linear(3, 4)))


DAMAGES = {
    "missing folder": (lambda folder: (folder / STATE_FILE).unlink(), "is not there"),
    "missing weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "no such file"),
    "truncated state": (lambda folder: cut(folder / STATE_FILE), "truncated"),
    "truncated weights": (lambda folder: cut(folder / WEIGHTS_FILE), "truncated"),
    "another kind of JSON": (
        lambda folder: (folder / STATE_FILE).write_text("[1]"),
        "another kind",
    ),
    "another kind of weights": (
        lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"PK\x03\x04" * 30),
        "of another kind",
    ),
    "a newer version": (lambda folder: of_version(folder / STATE_FILE, 99), "Update pbcompress"),
    "an older version": (
        lambda folder: of_version(folder / STATE_FILE, 4),
        "has version 4, which an older pbcompress wrote",
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def of_version(path, version):
    rewrite(path, lambda state: state.update(version=version))


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_has_its_own_sentence(damage, tmp_path):
    assert len(DAMAGES) == 8
    save(tmp_path, nn.Sequential(nn.Linear(3, 3)))
    harm, sentence = DAMAGES[damage]
    harm(tmp_path)

    with pytest.raises(StateMismatchError, match=sentence):
        load(tmp_path, lambda: nn.Sequential(nn.Linear(3, 3)))


CUTS = [LayerCut("0", "in", (1,), 3)]


def tied():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2))
    model[2].weight = model[1].weight
    return model


@pytest.mark.parametrize("part", ["plan", "dendrites", "aliases"])
def test_a_state_with_any_value_changed_is_refused_by_the_name_of_its_file(part, tmp_path):
    model = tied()
    shrink_(model, CUTS)
    attach_dendrites_(model, DendriteConfig(layers=("0",)))
    model[0].keep_all_nodes([[0, 2]])
    save(tmp_path, model, CUTS)
    load(tmp_path, tied)
    refused, every = {}, set()
    for place in changes(tmp_path / STATE_FILE, (part,), ["gone", "text", "number"]):
        every.add(place)
        try:
            load(tmp_path, tied)  # some changes give another network that can be
        except StateMismatchError as err:
            refused[place] = str(err)
    assert refused.keys() == every
    assert len(every) > (0 if part == "aliases" else 5)
    assert all(str(tmp_path) in message for message in refused.values())


def test_extra_state_that_is_no_tensor_is_refused_before_writing(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(CompressionError, match="no tensor"):
        save(tmp_path / "run", nn.Sequential(Extra(3, 3)))
    assert not (tmp_path / "run").exists()
