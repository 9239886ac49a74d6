"""The model of latency: known coefficients are found again, and its closed form is consistent."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.modules import copy_model
from pbcompress.costs.closed_form import CostModel
from pbcompress.costs.exported_model import Calibration, layer_kinds
from pbcompress.costs.latency_model import (
    PROBE_WIDTHS,
    LatencyModel,
    LayerFit,
    Measured,
    Rounding,
    Shipped,
    features,
    fit_layer,
    layer_works,
)
from pbcompress.structure.channel_groups import find_groups
from tests.support.nets import CASES

POSITIVE = st.floats(0.01, 10)


def grouping_of(name):
    model = CASES[name].build()
    call = single_sample(as_call(CASES[name].inputs(1)))
    return model, find_groups(copy_model(model).eval(), call)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(POSITIVE, POSITIVE, POSITIVE)
def test_known_coefficients_are_found_again(overhead, by_work, by_size):
    points = [
        (work, size, overhead + by_work * work + by_size * size)
        for work, size in ((100, 16), (49, 10), (30, 12), (9, 3))
    ]
    fit = fit_layer(points)
    assert fit.overhead == pytest.approx(overhead, rel=1e-5)
    assert fit.by_work == pytest.approx(by_work, rel=1e-5)
    assert fit.by_size == pytest.approx(by_size, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_fit_has_no_negative_part_and_keeps_to_its_points(count):
    points = [(100.0, 10.0, 5.0), (50.0, 8.0, 3.0), (30.0, 2.0, 2.5)][:count]
    fit = fit_layer(points)
    assert min(fit.overhead, fit.by_work, fit.by_size) >= 0
    for work, size, time in points:
        assert fit.overhead + fit.by_work * work + fit.by_size * size == pytest.approx(
            time, rel=0.1
        )


def test_a_layer_that_was_seen_once_is_believed_to_be_fast_when_narrow():
    fit = fit_layer([(100.0, 10.0, 8.0)])
    narrow = fit.overhead + fit.by_work * 100 / 16 + fit.by_size * 10 / 16
    assert narrow == pytest.approx(1, abs=0.5)


def probe_times(block, unaligned=1.0):
    """A runtime that works in blocks, and is slower for widths that are no multiple of 4."""
    times = {}
    for multiple, width in PROBE_WIDTHS.items():
        padded = math.ceil(width / block) * block
        times[multiple] = padded**2 * (unaligned if width % 4 else 1.0)
    return times, {m: w**2 for m, w in PROBE_WIDTHS.items()}


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_the_block_of_a_runtime_is_read_off_its_times(block):
    rounding = Rounding.of(*probe_times(block))
    assert rounding.multiple == block
    assert all(factor == pytest.approx(1) for factor in rounding.slower.values())
    assert sorted(rounding.slower) == [m for m in sorted(PROBE_WIDTHS) if m < block]


def test_widths_off_the_multiples_cost_what_was_measured():
    rounding = Rounding.of(*probe_times(8, unaligned=3.0))
    assert rounding.factor([24, 8]) == 1
    assert rounding.factor([24, 12]) == pytest.approx(1)
    assert rounding.factor([24, 13]) == pytest.approx(3)
    assert (rounding.padded(13), rounding.padded(16)) == (16, 16)
    assert Rounding().factor([7]) == 1


def test_every_probe_width_is_a_multiple_of_its_own_and_of_no_larger():
    for multiple, width in PROBE_WIDTHS.items():
        assert width % multiple == 0
        assert all(width % m for m in PROBE_WIDTHS if m > multiple)


def model_of(model, grouping, rounding):
    layers = layer_works(model, grouping)
    fits = {name: LayerFit(0.01, 1e-6 * (i + 1), 1e-4) for i, name in enumerate(layers)}
    roundings = dict.fromkeys(layers, rounding)
    return LatencyModel(grouping.groups, layers, fits, roundings, constant=0.02, scale=1.5)


@pytest.mark.parametrize("name", CASES)
def test_a_change_of_latency_is_the_difference_of_totals(name):
    model, grouping = grouping_of(name)
    latency = model_of(model, grouping, Rounding(8, {1: 2.0, 4: 1.2}))
    widths = [max(1, g.width // 2) for g in grouping.groups]
    for i, group in enumerate(grouping.groups):
        for width in (1, group.width):
            other = [*widths[:i], width, *widths[i + 1 :]]
            expected = latency.total(other) - latency.total(widths)
            assert latency.change(i, width, widths) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("name", CASES)
def test_without_padding_the_work_of_the_layers_is_that_of_the_cost_model(name):
    model, grouping = grouping_of(name)
    flops = CostModel(grouping.groups, [(w.coefficient, w.axes) for w in grouping.works])
    numbers = CostModel(grouping.groups, [])
    widths = [max(1, g.width // 3) for g in grouping.groups]
    done = sum(
        features(layer, numbers, widths, Rounding())[0]
        for layer in layer_works(model, grouping).values()
    )
    assert done == flops.total(widths)


def measured(latency, widths, file_bytes=1000):
    by_layer = {name: latency.layer(name, widths) for name in latency.layers}
    other = latency.scale * latency.constant
    return Measured(file_bytes, sum(by_layer.values()) + other, by_layer, other)


@pytest.mark.parametrize("name", CASES)
def test_a_calibration_predicts_what_follows_the_form(name):
    model, grouping = grouping_of(name)
    rounding = Rounding(4, {1: 1.5})
    truth = model_of(model, grouping, rounding)
    roundings = dict.fromkeys(set(layer_kinds(model, grouping).values()), rounding)
    full = [g.width for g in grouping.groups]
    calibration = Calibration(model, grouping, roundings, measured(truth, full))
    draw = random.Random(name)
    for _ in range(5):
        widths = [draw.randint(1, g.width) for g in grouping.groups]
        calibration.add(grouping, widths, measured(truth, widths))
    widths = [max(1, 2 * g.width // 3) for g in grouping.groups]
    predicted = calibration.latency(grouping).total(widths)
    assert predicted == pytest.approx(truth.total(widths), rel=0.02)


def test_time_that_no_layer_owns_is_split_by_work():
    model, grouping = grouping_of("chain")
    full = [g.width for g in grouping.groups]
    calibration = Calibration(model, grouping, {}, Measured(1000, 4.0, {}, 4.0))
    latency = calibration.latency(grouping)
    assert latency.total(full) == pytest.approx(4e6, rel=1e-6)
    assert latency.total([w // 2 for w in full]) < 0.6 * 4e6


def test_the_last_measured_file_is_predicted_to_the_byte():
    model, grouping = grouping_of("chain")
    full = [g.width for g in grouping.groups]
    calibration = Calibration(model, grouping, {}, Measured(50_000, 4.0, {}, 4.0))
    assert calibration.file_bytes(grouping).total(full) == 50_000
    half = [w // 2 for w in full]
    calibration.add(grouping, half, Measured(20_000, 2.0, {}, 2.0))
    sizes = calibration.file_bytes(grouping)
    assert sizes.total(half) == 20_000
    params = [4 * sum(p.numel() for p in model.parameters()), sizes.total(full) - 20_000]
    assert 0 < params[1] < params[0]


@pytest.mark.parametrize(("after", "said"), [(1.0, "2.00x as fast"), (4.0, "SLOWER than the orig")])
def test_a_slower_network_is_called_slower(after, said):
    shipped = Shipped(2.0, after, None, 100, 50, None, round_to=8)
    assert shipped.slower == (after > 2)
    assert said in str(shipped)
    assert "predicted" not in str(shipped)


def test_predictions_stand_beside_what_was_measured():
    text = str(Shipped(2.0, 1.0, 1.25, 100, 50, 55, round_to=8))
    assert "1.000 ms, predicted 1.250" in text
    assert "50 bytes, predicted 55" in text
