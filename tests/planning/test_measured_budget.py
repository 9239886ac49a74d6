"""Bounds on what ships: the rounds on a synthetic runtime, and the real one end to end."""

import math
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from pbcompress import (
    Budget,
    CompressConfig,
    CompressionError,
    DendriteConfig,
    TargetUnreachableError,
    WidthConfig,
    fuse,
    measure,
    plan_widths,
    shrink,
)
from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.modules import copy_model
from pbcompress.costs.latency_model import Measured
from pbcompress.costs.operator_table import MACHINES
from pbcompress.export.onnx_export import write_onnx
from pbcompress.onnx_files.store import load
from pbcompress.planning import export_bench
from pbcompress.planning.export_bench import ExportBench
from pbcompress.planning.measured_budget import MeasuredBudget, confirmed, fastest
from pbcompress.planning.planner import _Planner, find_widths
from pbcompress.planning.width_search import Request
from tests.support.nets import CASES

BLOCK = 4


def small_cnn(width=32):
    torch.manual_seed(0)
    sizes = [3, width, 2 * width, 2 * width, 4 * width]
    layers = [
        part
        for a, b in pairwise(sizes)
        for part in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


class SyntheticRuntime:
    """Measures by formula: overhead, padded multiply-adds (more of them off the block), outputs.

    Args:
        model: The original.
        inputs: Of one sample.
        error: Factor on every network but the original: what no model of latency knows of.
        unaligned: How many times slower widths off the block are.
    """

    threads = 1

    def __init__(self, model, inputs, error=1.0, unaligned=1.0):
        self.inputs, self.unaligned, self.error = inputs, unaligned, 1.0
        self.measured = []
        self.original = self.measure(model)
        self.error = error
        self.measured.clear()

    machine = replace(MACHINES["AVX2"], block=BLOCK)

    def multiples(self, kinds):
        return dict.fromkeys(kinds, BLOCK)

    def measure(self, network):
        cost = measure(network, self.inputs)
        by_layer = {}
        for name, layer in cost.by_layer.items():
            module = network.get_submodule(name)
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            out, in_ = module.weight.shape[:2]
            padded = [math.ceil(size / BLOCK) * BLOCK for size in (out, in_)]
            work = layer.flops * padded[0] / out * (padded[1] / in_ if in_ > 3 else 1)
            is_off = out % BLOCK or (in_ > 3 and in_ % BLOCK)
            slower = self.unaligned if is_off and out != 10 else 1
            by_layer[name] = self.error * (0.01 + 1e-6 * work * slower + 1e-4 * padded[0])
        size = 4 * cost.params + 3000 + 17 * len(by_layer)
        result = Measured(size, sum(by_layer.values()) + 0.02, by_layer, 0.02)
        self.measured.append(result)
        return result


def planner_of(model, inputs, **width):
    config = CompressConfig(width=WidthConfig(**width))
    call = single_sample(as_call(inputs))
    return _Planner(copy_model(model).eval(), call, config, None)


IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def request_of(model, params=None, flops=None):
    return Request(params or sum(p.numel() for p in model.parameters()) - 1, flops)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("error", [1.0, 1.2, 0.85])
def test_a_bound_on_latency_holds_and_is_nearly_reached(share, error):
    model = small_cnn()
    planner, bench = planner_of(model, IMAGE), SyntheticRuntime(model, IMAGE, error)
    budget = MeasuredBudget.of(share, None, bench.original)
    plan, shipped = confirmed(planner, bench, request_of(model), budget, True)
    assert 0.9 * budget.milliseconds <= shipped.latency_after <= budget.milliseconds
    assert shipped.latency_after == bench.measure(shrink(model, plan)).milliseconds
    assert shipped.latency_predicted == pytest.approx(shipped.latency_after, rel=0.15)
    assert shipped.round_to == BLOCK
    assert len(bench.measured) <= 8


def test_only_the_first_and_the_last_plan_are_proven(monkeypatch):
    model, proven = small_cnn(), []
    planner, bench = planner_of(model, IMAGE), SyntheticRuntime(model, IMAGE, error=1.2)
    check = planner._proof_failure
    monkeypatch.setattr(
        planner, "_proof_failure", lambda *cuts: proven.append(cuts) or check(*cuts)
    )
    budget = MeasuredBudget.of(0.5, None, bench.original)
    plan, _ = confirmed(planner, bench, request_of(model), budget, True)
    assert bench.measured
    assert len(proven) == 2
    assert proven[-1][1] == plan.steps


@pytest.mark.parametrize("runs", [True, False])
def test_a_plan_whose_proof_fails_is_searched_anew_without_the_guilty(runs, monkeypatch):
    model, failed = small_cnn(), []
    planner, bench = planner_of(model, IMAGE), SyntheticRuntime(model, IMAGE)
    holds = planner.holds

    def fail_once(plan, widths):
        if failed:
            return holds(plan, widths)
        failed.append(plan)
        planner.grouping = planner.grouping.without({"6": "of its proof"})
        return False

    def network_of(plan, make=planner.network_of):
        if not failed and not runs:
            raise RuntimeError("sizes do not fit")
        return make(plan)

    monkeypatch.setattr(planner, "holds", fail_once)
    monkeypatch.setattr(planner, "network_of", network_of)
    budget = MeasuredBudget.of(0.7, None, bench.original)
    plan, shipped = confirmed(planner, bench, request_of(model), budget, True)
    assert "6" in {cut.layer for cut in failed[0].steps if cut.dim == "out"}
    assert plan.left_alone["6"] == "of its proof"
    assert plan.cost_after.by_layer["6"].width == plan.cost_before.by_layer["6"].width
    assert 0.9 * budget.milliseconds <= shipped.latency_after <= budget.milliseconds
    assert shipped.latency_after == bench.measure(shrink(model, plan)).milliseconds


def test_what_holds_and_cannot_be_measured_is_an_error(monkeypatch):
    model = small_cnn()
    planner, bench = planner_of(model, IMAGE), SyntheticRuntime(model, IMAGE)
    budget = MeasuredBudget.of(0.7, None, bench.original)

    def refuse(network):
        raise CompressionError("torch refused")

    monkeypatch.setattr(bench, "measure", refuse)
    with pytest.raises(CompressionError, match="torch refused"):
        confirmed(planner, bench, request_of(model), budget, True)


def test_a_search_takes_whatever_bench_it_is_handed():
    model, opened = small_cnn(), []

    @contextmanager
    def open_bench(original, call, layers, as_shipped):
        assert original is model
        assert not as_shipped
        assert set(layers) <= {name for name, _ in model.named_modules()}
        opened.append(SyntheticRuntime(original, call))
        yield opened[-1]

    call = single_sample(as_call(IMAGE))
    config = CompressConfig()
    found = find_widths(model, call, Budget(latency_ms=0.5), config, None, open_bench)
    (bench,) = opened
    assert found.shipped.latency_after == bench.measure(shrink(model, found)).milliseconds
    assert 0.4 < found.shipped.latency_after / bench.original.milliseconds <= 0.5
    assert find_widths(model, call, Budget(params=0.5), config, None, open_bench).shipped is None
    assert len(opened) == 1  # parameters are counted


def test_all_bounds_hold_at_once():
    model = small_cnn()
    full = measure(model, IMAGE)
    planner, bench = planner_of(model, IMAGE), SyntheticRuntime(model, IMAGE)
    reached = set()
    for params, flops, time, size in (
        (0.3, 0.9, 0.9, 0.9),
        (0.9, 0.3, 0.9, 0.9),
        (0.9, 0.9, 0.4, 0.9),
        (0.9, 0.9, 0.9, 0.3),
        (0.5, 0.5, 0.55, 0.5),
    ):
        request = request_of(model, int(params * full.params), int(flops * full.flops))
        budget = MeasuredBudget.of(time, size, bench.original)
        plan, shipped = confirmed(planner, bench, request, budget, True)
        uses = {
            "params": plan.cost_after.params / request.params,
            "flops": plan.cost_after.flops / request.flops,
            "time": shipped.latency_after / budget.milliseconds,
            "size": shipped.bytes_after / budget.file_bytes,
        }
        assert max(uses.values()) <= 1, uses
        assert max(uses.values()) >= 0.94, uses
        reached.add(max(uses, key=uses.get))
    assert reached == {"params", "flops", "time", "size"}


@pytest.mark.parametrize(("time", "size", "unit"), [(0.002, None, "ms"), (None, 0.005, "bytes")])
def test_a_bound_out_of_reach_names_the_smallest_and_the_layer_that_stops_it(time, size, unit):
    model = small_cnn()
    planner, bench = planner_of(model, IMAGE), SyntheticRuntime(model, IMAGE)
    budget = MeasuredBudget.of(time, size, bench.original)
    with pytest.raises(TargetUnreachableError, match=rf"smallest reachable .* {unit}") as caught:
        confirmed(planner, bench, request_of(model), budget, True)
    last = bench.measured[-1]
    smallest = last.milliseconds if unit == "ms" else last.file_bytes
    assert caught.value.smallest == smallest
    largest = max(last.by_layer, key=last.by_layer.get) if unit == "ms" else "14"
    assert repr(largest) in str(caught.value)
    for limit in (1.001, 0.999):  # it is the smallest indeed
        bound = MeasuredBudget(limit * smallest, None)
        if unit == "bytes":
            bound = MeasuredBudget(None, math.floor(limit * smallest))
        if limit > 1:
            confirmed(planner, bench, request_of(model), bound, True)
        else:
            with pytest.raises(TargetUnreachableError):
                confirmed(planner, bench, request_of(model), bound, True)


@pytest.mark.parametrize("name", ["latency_ms", "file_bytes"])
@pytest.mark.parametrize("asked", [0, -3, 1.0e9])
def test_a_bound_that_is_not_below_the_original_is_refused(name, asked):
    original = Measured(10_000, 5.0, {}, 5.0)
    bounds = {"latency_ms": None, "file_bytes": None, name: asked}
    with pytest.raises(TargetUnreachableError, match=name):
        MeasuredBudget.of(**bounds, original=original)


@pytest.mark.parametrize(("unaligned", "rounds"), [(3.0, True), (1.0, None)])
def test_the_faster_of_rounded_and_unrounded_is_chosen(unaligned, rounds):
    model = small_cnn(width=33)
    planner = planner_of(model, IMAGE, round_to="measured")
    bench = SyntheticRuntime(model, IMAGE, unaligned=unaligned)
    full = measure(model, IMAGE).params
    plan, shipped = fastest(planner, bench, request_of(model, full // 2))
    assert shipped.latency_after == min(m.milliseconds for m in bench.measured)
    assert len(bench.measured) == 2
    assert 0.98 * (full // 2) <= plan.cost_after.params <= full // 2
    if rounds:
        assert shipped.round_to == BLOCK


def test_a_network_that_is_slower_in_any_case_is_reported_as_such():
    model = small_cnn()
    bench = SyntheticRuntime(model, IMAGE, error=5.0)
    full = measure(model, IMAGE).params
    _, shipped = fastest(planner_of(model, IMAGE), bench, request_of(model, int(0.8 * full)))
    assert shipped.slower
    assert "SLOWER" in str(shipped)


# --- the real runtime ---------------------------------------------------------------------------


def exported_bytes(model, inputs, tmp_path):
    write_onnx(fuse(model), tmp_path / "x.onnx", inputs)
    return (tmp_path / "x.onnx").stat().st_size


FILES = ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("chain", "residual"))]


@pytest.mark.parametrize("name", FILES)
def test_a_bound_on_the_file_holds_for_the_file_that_ships(name, tmp_path):
    model, inputs = CASES[name].build().eval(), CASES[name].inputs(1)
    whole = exported_bytes(model, inputs, tmp_path)
    bound = whole - 2 * measure(model, inputs).params  # the graph itself takes some, and stays
    plan = plan_widths(model, inputs, Budget(file_bytes=bound))
    assert exported_bytes(shrink(model, plan), inputs, tmp_path) <= bound
    assert plan.shipped.bytes_before == whole
    assert plan.shipped.bytes_after <= bound
    assert plan.shipped.bytes_after >= 0.9 * bound
    assert plan.shipped.bytes_predicted == pytest.approx(plan.shipped.bytes_after, rel=0.15)
    assert "bytes, predicted" in str(plan)


def test_a_budget_of_all_kinds_on_the_real_runtime():
    model = small_cnn().eval()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    budget = Budget(params=0.9, flops=0.8, latency_ms=0.6, file_bytes=0.9)
    plan = plan_widths(model, IMAGE, budget)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())
    shipped, before, after = plan.shipped, plan.cost_before, plan.cost_after
    assert after.params <= 0.9 * before.params
    assert after.flops <= 0.8 * before.flops
    assert shipped.latency_after <= 0.6 * shipped.latency_before
    assert shipped.bytes_after <= 0.9 * shipped.bytes_before
    assert not shipped.slower
    assert "exported:" in str(plan)
    assert measure(shrink(model, plan), IMAGE).params == after.params


def test_every_layer_has_its_time_and_a_narrower_network_the_graph_of_the_original(monkeypatch):
    model, exported = small_cnn().eval(), []
    monkeypatch.setattr(
        export_bench, "write_onnx", lambda *a, **k: exported.append(a) or write_onnx(*a, **k)
    )
    layers = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    with ExportBench(model, as_call(IMAGE), layers) as bench:
        assert set(bench.original.by_layer) == layers
        told = sum(bench.original.by_layer.values())
        assert told + bench.original.other == pytest.approx(bench.original.milliseconds)
        assert told > 0.9 * bench.original.milliseconds
        narrow = bench.measure(shrink(model, plan_widths(model, IMAGE, 0.5)))
        assert len(exported) == 1  # of the original
        assert set(narrow.by_layer) == layers
        assert narrow.file_bytes < 0.6 * bench.original.file_bytes
        assert bench.multiples(["product"])["product"] in (1, 4, 8, 16, 32)


class NotExportable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(y if y.sum().item() > 1e9 else y + 0)


@pytest.mark.parametrize("bound", ["latency_ms", "file_bytes"])
def test_a_network_that_cannot_be_exported_is_refused_with_the_reason(bound):
    model = NotExportable().eval()
    assert plan_widths(model, torch.randn(1, 8), 0.5).shipped is None
    with pytest.raises(
        CompressionError, match=r"exported to ONNX .* torch refused at .*y\.sum\(\)\.item\(\)"
    ):
        plan_widths(model, torch.randn(1, 8), Budget(**{bound: 0.5}))


@pytest.mark.slow
def test_dendrites_are_inside_a_bound_on_the_file(tmp_path):
    model = small_cnn(16).eval()
    config = CompressConfig(dendrites=DendriteConfig(share=0.4))
    plan = plan_widths(model, IMAGE, Budget(file_bytes=0.6), config=config)
    assert plan.grow
    whole = exported_bytes(model, IMAGE, tmp_path)
    assert plan.shipped.bytes_after <= 0.6 * whole
    assert exported_bytes(shrink(model, plan), IMAGE, tmp_path) < plan.shipped.bytes_after


GRAPHS = ["residual", "depthwise separable", "grouped", "u-net", "transformer"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GRAPHS if name in CASES])
def test_the_graph_with_other_weights_is_what_an_export_would_write(name, tmp_path):
    model, inputs = CASES[name].build().eval(), CASES[name].inputs(1)
    small = fuse(shrink(model, plan_widths(model, inputs, 0.6)))
    with ExportBench(model, as_call(inputs), ()) as bench:
        filled = load(bench.file_of(small)).graph
    write_onnx(small, tmp_path / "x.onnx", inputs, free_batch=False)
    wanted = load(tmp_path / "x.onnx").graph
    assert [(node.op_type, node.name) for node in filled.node] == [
        (node.op_type, node.name) for node in wanted.node
    ]
    weights = {tensor.name: tensor for tensor in filled.initializer if tensor.data_type == 1}
    assert weights
    for tensor in wanted.initializer:
        if tensor.data_type == 1:
            assert list(weights[tensor.name].dims) == list(tensor.dims)
            assert weights[tensor.name].raw_data == tensor.raw_data
