"""Planted faults: every way in which cuts can be wrong is found, and right ones pass."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from pbcompress.core.blanks import Blanks
from pbcompress.core.inputs import as_call, map_tensors, single_sample
from pbcompress.core.modules import copy_model, parameter_count
from pbcompress.planning.width_search import cuts_of
from pbcompress.pruning import proof_weights
from pbcompress.pruning.cuts import cut_all_
from pbcompress.pruning.proof import proof_failure
from pbcompress.structure.channel_groups import find_groups
from pbcompress.structure.dimensions import keep
from tests.support.nets import CASES


class Heads(nn.Module):
    """Fused attention: the number of heads is an attribute."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.num_heads, -1).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        x = x + self.proj(
            functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return self.head(x.mean(1))


def setting(name):
    if name == "attention":
        torch.manual_seed(0)
        model, inputs = Heads(), torch.randn(1, 5, 16)
    else:
        model, inputs = CASES[name].build(), CASES[name].inputs(1)
    call = map_tensors(single_sample(as_call(inputs)), torch.clone)
    grouping = find_groups(copy_model(model).eval(), call)
    removed = {g.name: list(range(g.width // 2)) for g in grouping.groups}
    gone = torch.zeros(grouping.trace.coupling.size, dtype=torch.bool)
    for group, units in removed.items():
        gone[grouping.units[group][units]] = True
    steps = list(cuts_of(model, grouping, removed))

    def failure(cuts):
        small = copy_model(model)
        with contextlib.suppress(Exception):  # a fault that shows when it is cut
            cut_all_(small, cuts)
        params = parameter_count(small)  # so that only what is computed can tell
        return proof_failure(copy_model(model).eval(), grouping.trace, gone, cuts, call, params)

    return steps, failure


NAMES = [*CASES, "attention"]


def test_another_number_of_parameters_than_predicted_is_a_failure():
    model = CASES["chain"].build()
    call = single_sample(as_call(CASES["chain"].inputs(1)))
    traced = find_groups(copy_model(model).eval(), call).trace
    gone = torch.zeros(traced.coupling.size, dtype=torch.bool)
    params = parameter_count(model)
    found = [
        proof_failure(copy_model(model).eval(), traced, gone, [], call, params + more)
        for more in (0, 1)
    ]
    assert found == [None, f"{params + 1:,} parameters were predicted and {params:,} are left"]


def test_every_network_is_in_the_list():
    assert len(NAMES) == 22


@pytest.mark.parametrize("name", NAMES)
def test_right_cuts_pass(name):
    steps, failure = setting(name)
    assert steps
    assert failure(steps) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_cut_is_found(name):
    steps, failure = setting(name)
    for i, step in enumerate(steps):
        assert failure(steps[:i] + steps[i + 1 :]) is not None, step


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_index_is_found(name):
    steps, failure = setting(name)
    tried = 0
    for i, step in enumerate(steps):
        kept = [k for k in range(step.width) if k not in step.removed]
        if step.dim.startswith("@") or len(step.removed) * 2 > step.width * 2 - 2:
            continue
        wrong = replace(step, removed=tuple(sorted([*step.removed[1:], kept[-1]])))
        tried += 1
        assert failure([*steps[:i], wrong, *steps[i + 1 :]]) is not None, step
    assert tried > 0


def test_heads_are_cut_whole_and_their_number_is_lowered():
    steps, _ = setting("attention")
    cut = {(s.layer, s.dim): s for s in steps}
    assert len(cut["", "@num_heads"].removed) == 2
    assert len(cut["qkv", "out"].removed) == 24
    assert len(cut["proj", "in"].removed) == 8


STREAMED = ["chain", "residual", "attention"]


@pytest.fixture
def all_streamed(monkeypatch):
    monkeypatch.setattr(proof_weights, "HELD", 0)
    monkeypatch.setattr(proof_weights, "SHARE", 0)


@pytest.mark.usefixtures("all_streamed")
@pytest.mark.parametrize("name", STREAMED)
def test_weights_that_are_made_for_each_operation_hide_no_fault(name):
    steps, failure = setting(name)
    assert failure(steps) is None
    for i, step in enumerate(steps):
        assert failure(steps[:i] + steps[i + 1 :]) is not None, step


@pytest.mark.usefixtures("all_streamed")
@pytest.mark.parametrize("block", [7, 64, 10_000])
def test_a_weight_is_the_same_masked_and_sliced(block, monkeypatch):
    monkeypatch.setattr(proof_weights, "BLOCK", block)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 6))
    network, rows = proof_weights.disturbed_copy(model, Blanks())
    weight = network.network[0].weight
    stays = {0: torch.tensor([0, 3, 19]), 1: torch.arange(0, 30, 2)}
    lost = {0: torch.tensor([1]), 1: torch.tensor([5, 29])}
    whole = proof_weights.masked(rows[weight], weight, {})
    assert not torch.equal(whole, model[0].weight)
    assert torch.allclose(whole, model[0].weight, atol=1)
    assert torch.equal(proof_weights.sliced(rows[weight], weight, stays), keep(whole, stays))
    masked = proof_weights.masked(rows[weight], weight, lost)
    assert not masked[1].any()
    assert not masked[:, [5, 29]].any()
    assert torch.equal(masked[2, :5], whole[2, :5])
