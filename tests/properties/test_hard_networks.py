"""Hard networks: planned to half of their parameters, and right by references of their own."""

import copy
import json
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress import (
    CompressConfig,
    LayerCut,
    WidthConfig,
    measure,
    plan_widths,
    shrink,
    shrink_,
)
from pbcompress.core.modules import plain_kernels
from pbcompress.errors import TargetUnreachableError
from tests.support.hard_nets import NETS

every_net = pytest.mark.parametrize("name", NETS)


def smallest_or(share, model, inputs):
    """A plan for a share of the parameters, or for the smallest network where that is larger.

    All groups are narrowed alike, so that every one of them is.
    """
    config = CompressConfig(width=WidthConfig(allocation="uniform"))
    try:
        return plan_widths(model, inputs, share, config=config)
    except TargetUnreachableError as error:
        return plan_widths(model, inputs, error.smallest, config=config)


@cache
def planned(name):
    model = NETS[name].build()
    return model, smallest_or(0.5, model, NETS[name].inputs(2))


def run(model, inputs):
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def double(inputs):
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)


def count(model):
    return sum(p.numel() for p in model.parameters())


def dead(model, steps):
    """A copy in which every weight that makes or reads a removed channel is zero."""
    model = copy.deepcopy(model)
    for step in steps:
        layer, removed = model.get_submodule(step.layer), torch.tensor(step.removed)
        if step.dim == "in":
            size = layer.weight.shape[1]
            rows = layer.weight.data.view(step.width // size, -1, *layer.weight.shape[1:])
            for index in removed.tolist():  # of a grouped convolution: one block of rows
                rows[index // size, :, index % size] = 0
        elif step.dim == "out":
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if tensor.dim():
                    tensor.data.index_fill_(0, removed, 0)
        elif ":" in step.dim:
            name, axis = step.dim.split(":")
            if (name, axis) == ("original1", "0"):
                continue  # of a weight norm: the length of zero weights divides them
            getattr(layer, name).data.index_fill_(int(axis), removed, 0)
    return model


class Remaining(nn.Module):
    """A norm over channels that sees only those that are left."""

    def __init__(self, norm, removed):
        super().__init__()
        self.norm, self.width = norm, len(norm.weight)
        self.kept = [i for i in range(self.width) if i not in removed]

    def forward(self, x):
        norm, kept = self.norm, self.kept
        axis = 1 if isinstance(norm, nn.GroupNorm) else x.dim() - 1
        seen, weight = x.index_select(axis, torch.tensor(kept)), norm.weight[kept]
        if isinstance(norm, nn.GroupNorm):
            y = functional.group_norm(seen, norm.num_groups, weight, norm.bias[kept], norm.eps)
        elif isinstance(norm, nn.LayerNorm):
            y = functional.layer_norm(seen, (len(kept),), weight, norm.bias[kept], norm.eps)
        else:
            y = functional.rms_norm(seen, (len(kept),), weight, norm.eps)
        return torch.zeros_like(x).index_copy(axis, torch.tensor(kept), y)


def reference(model, steps):
    """The dead copy; its norms over channels see what is left."""
    model = dead(model, steps)
    for step in steps:
        layer = model.get_submodule(step.layer)
        if step.dim == "weight:0" and isinstance(layer, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            model.set_submodule(step.layer, Remaining(layer, step.removed))
    return model


def test_every_network_is_in_the_list():
    assert len(NETS) == 42


@every_net
def test_half_of_the_parameters_go_and_the_named_layers_are_narrower(name):
    model, plan = planned(name)
    small = shrink(model, plan)
    assert count(small) == plan.cost_after.params <= plan.target_params
    assert plan.cost_after.params <= 0.5 * plan.cost_before.params
    cut = {s.layer for s in plan.steps if s.dim != "in"}
    assert set(NETS[name].narrowed) <= cut, plan.left_alone
    cost = measure(small, NETS[name].inputs(1))
    assert cost.flops == plan.cost_after.flops
    assert measure(model, NETS[name].inputs(1)).flops == plan.cost_before.flops


@every_net
def test_balanced_widths_fill_the_same_target(name):
    model = NETS[name].build()
    inputs = NETS[name].inputs(1)
    uniform = planned(name)[1]
    plan = plan_widths(model, inputs, uniform.target_params)
    small = shrink(model, plan)
    assert count(small) == plan.cost_after.params <= plan.target_params
    assert measure(small, inputs).flops == plan.cost_after.flops
    assert plan.cost_after.params >= 0.95 * uniform.cost_after.params


@every_net
def test_the_small_network_computes_what_the_large_one_does_without_its_channels(name):
    if NETS[name].counts:
        pytest.skip("a mean over channels is another number without some of them")
    model, plan = planned(name)
    small = shrink(model, plan).double().eval()
    large = reference(model, plan.steps).double().eval()
    for batch in (1, 3):
        inputs = double(NETS[name].inputs(batch))
        with torch.no_grad(), plain_kernels(large):  # the fast one reads the norms' weights
            expected, found = run(large, inputs), run(small, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert max(t.abs().max() for t in expected) > 1e-3


@every_net
def test_it_trains_and_comes_back_from_its_plan(name):
    model, plan = planned(name)
    small = shrink(model, plan).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    loss = sum(y.square().mean() for y in run(small, NETS[name].inputs(3)))
    loss.backward()
    with_gradient = {k for k, p in small.named_parameters() if p.grad is not None}
    run_of_model = sum(y.square().mean() for y in run(copy.deepcopy(model), NETS[name].inputs(3)))
    assert run_of_model.isfinite()
    assert with_gradient == {k for k, _ in small.named_parameters()}
    optimizer.step()
    steps = json.loads(json.dumps(plan.to_dict()))["steps"]
    fresh = NETS[name].make()
    shrink_(fresh, [LayerCut.from_list(step) for step in steps])
    fresh.load_state_dict(small.state_dict())
    inputs = NETS[name].inputs(2)
    with torch.no_grad():
        for a, b in zip(run(fresh.eval(), inputs), run(small.eval(), inputs), strict=True):
            assert torch.equal(a, b)
