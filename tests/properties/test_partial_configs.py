"""A function that reads parts of all choices takes the whole, or one of these parts alone."""

import copy

import pytest
import torch
from torch import nn

import pbcompress as pb

BATCHES = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(2)]
DATA = pb.Data(train=BATCHES, val=BATCHES)
WIDTH = pb.WidthConfig(keep=("0",))
DENDRITES = pb.DendriteConfig(form=pb.Shared(nodes=2), layers=("0",), max_sets=1)
RECOVERY = pb.RecoveryConfig(epochs=1, dendrite_epochs=1, max_failures=1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def planned(config):
    plan = pb.plan_widths(network(), torch.zeros(1, 4), 0.7, config=config)
    return plan.to_json()


def attached(config):
    return pb.attach_dendrites_(network(), config)


def recovered(config):
    history = pb.recover_(model := network(), DATA, config=config)
    return [record["loss"] for record in history], [*model.state_dict()]


def phases(config):
    found = []
    for phase in pb.cycles(network(), config=config):
        found.append((phase.kind, phase.sets))
        phase.report(0.0)
        if len(found) > 40:
            break
    return found


def compressed(config):
    return pb.compress(network(), 0.7, example_inputs=torch.zeros(1, 4), config=config)


CALLS = {
    planned: {"width": WIDTH, "dendrites": DENDRITES},
    attached: {"dendrites": DENDRITES},
    recovered: {"dendrites": DENDRITES, "recovery": RECOVERY},
    phases: {"dendrites": DENDRITES, "recovery": RECOVERY},
    compressed: {"width": WIDTH, "dendrites": DENDRITES, "recovery": RECOVERY},
}


@pytest.mark.parametrize(
    ("call", "name"),
    [(call, name) for call in (planned, attached, recovered, phases) for name in CALLS[call]],
)
def test_a_part_alone_is_the_whole_with_that_part(call, name):
    part = CALLS[call][name]
    assert call(part) == call(pb.CompressConfig(**{name: part}))


@pytest.mark.parametrize("call", CALLS)
def test_what_a_function_does_not_read_is_refused_with_what_it_takes(call):
    taken = CALLS[call].values()
    for part in {WIDTH, DENDRITES, RECOVERY, pb.Budget(params=0.5)} - set(taken):
        with pytest.raises(ValueError, match=r"config was given as .* a CompressConfig") as caught:
            call(part)
        assert all(type(one).__name__ in str(caught.value) for one in taken)


def test_a_copied_layer_keeps_its_choices():
    grown = network()
    pb.attach_dendrites_(grown, DENDRITES)
    twin = copy.deepcopy(grown)
    assert twin[0].config == DENDRITES
    assert "form=shared, rule=correlation" in repr(twin[0])
