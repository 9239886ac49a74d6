"""Hard networks: planned to half of their parameters, and right by references of their own."""

import copy
import json
from functools import cache

import pytest
import torch

from pbcompress import (
    LayerCut,
    measure,
    plan_widths,
    shrink,
    shrink_,
)
from pbcompress.core.modules import copy_model, plain_kernels
from tests.support.dead_channels import count, double, reference, run, smallest_or
from tests.support.hard_nets import NETS

every_net = pytest.mark.parametrize("name", NETS)


@cache
def planned(name):
    model = NETS[name].build()
    return model, smallest_or(0.5, model, NETS[name].inputs(2))


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
    exact = copy_model(model).double()  # lengths of weights are computed anew
    small, large = shrink(exact, plan).eval(), reference(exact, plan.steps).eval()
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
