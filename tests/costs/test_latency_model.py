"""The model of latency: known coefficients are found again, and its closed form is consistent."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.modules import copy_model
from pbcompress.costs.exported_model import Calibration
from pbcompress.costs.latency_model import (
    PROBE_WIDTHS,
    LatencyModel,
    LayerFit,
    Measured,
    Shipped,
    fit_layer,
    multiple_of,
)
from pbcompress.costs.operator_table import MACHINES
from pbcompress.costs.operators import operators_of
from pbcompress.structure.channel_groups import find_groups
from tests.support.nets import CASES

POSITIVE = st.floats(0.01, 10)


def grouping_of(name):
    model = CASES[name].build()
    call = single_sample(as_call(CASES[name].inputs(1)))
    return model, find_groups(copy_model(model).eval(), call)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(POSITIVE, POSITIVE)
def test_known_coefficients_are_found_again(overhead, factor):
    points = [(told, overhead + factor * told) for told in (100, 49, 30, 9, 2, 0.1)]
    fit = fit_layer(points)
    assert fit.overhead + 50 * fit.factor == pytest.approx(overhead + 50 * factor, rel=0.02)
    exact = fit_layer([(told, factor * told) for told, _ in points])  # as the table says
    assert exact.factor == pytest.approx(factor)
    assert exact.overhead == pytest.approx(0, abs=1e-9 * factor)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_fit_has_no_negative_part_and_keeps_to_its_points(count):
    points = [(100.0, 5.0), (50.0, 3.0), (30.0, 2.0)][:count]
    fit = fit_layer(points)
    assert min(fit.overhead, fit.factor) >= 0
    for told, time in points:
        assert fit.overhead + fit.factor * told == pytest.approx(time, rel=0.1)


def test_a_layer_that_was_seen_once_goes_as_the_table_says():
    fit = fit_layer([(100.0, 8.0)])
    assert fit.overhead == pytest.approx(0, abs=1e-9)
    assert fit.factor == pytest.approx(0.08)


def test_networks_that_are_close_together_do_not_turn_noise_into_a_law():
    fit = fit_layer([(100.0, 8.0), (99.0, 8.1)])  # more work, less time
    assert fit.overhead + 10 * fit.factor < 0.4 * 8.0


def probe_costs(block, unaligned=1.0):
    """A runtime that works in blocks, and is slower for widths that are no multiple of 4."""
    return {
        multiple: (math.ceil(width / block) * block / width) ** 2 * (unaligned if width % 4 else 1)
        for multiple, width in PROBE_WIDTHS.items()
    }


@pytest.mark.parametrize("unaligned", [1.0, 3.0])
@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_the_block_of_a_runtime_is_read_off_its_times(block, unaligned):
    assert multiple_of(probe_costs(block, unaligned)) == block
    assert multiple_of(probe_costs(1, unaligned)) == (1 if unaligned == 1 else 4)


def test_every_probe_width_is_a_multiple_of_its_own_and_of_no_larger():
    for multiple, width in PROBE_WIDTHS.items():
        assert width % multiple == 0
        assert all(width % m for m in PROBE_WIDTHS if m > multiple)


def model_of(model, grouping, machine=MACHINES["AVX2"]):
    operators = operators_of(model, grouping)
    fits = {name: LayerFit(0.001, 1 + 0.1 * i) for i, name in enumerate(operators)}
    return LatencyModel(grouping.groups, operators, fits, machine, constant=0.002, scale=1.5)


@pytest.mark.parametrize("name", CASES)
def test_a_change_of_latency_is_the_difference_of_totals(name):
    model, grouping = grouping_of(name)
    latency = model_of(model, grouping)
    widths = [max(1, g.width // 2) for g in grouping.groups]
    for i, group in enumerate(grouping.groups):
        for width in (1, group.width):
            other = [*widths[:i], width, *widths[i + 1 :]]
            expected = latency.total(other) - latency.total(widths)
            assert latency.change(i, width, widths) == pytest.approx(expected, abs=2)


def measured(latency, widths, file_bytes=1000):
    by_layer = {name: latency.layer(name, widths) for name in latency.operators}
    other = latency.scale * latency.constant
    return Measured(file_bytes, sum(by_layer.values()) + other, by_layer, other)


@pytest.mark.parametrize("name", CASES)
def test_a_calibration_predicts_what_follows_the_form(name):
    model, grouping = grouping_of(name)
    truth = model_of(model, grouping)
    full = [g.width for g in grouping.groups]
    calibration = Calibration(model, grouping, truth.machine, measured(truth, full))
    draw = random.Random(name)
    for _ in range(5):
        widths = [draw.randint(1, g.width) for g in grouping.groups]
        calibration.add(grouping, widths, measured(truth, widths))
    widths = [max(1, 2 * g.width // 3) for g in grouping.groups]
    predicted = calibration.latency(grouping).total(widths)
    assert predicted == pytest.approx(truth.total(widths), rel=0.02)


def test_time_that_no_layer_owns_is_split_as_the_table_says():
    model, grouping = grouping_of("chain")
    full = [g.width for g in grouping.groups]
    calibration = Calibration(model, grouping, MACHINES["AVX2"], Measured(1000, 4.0, {}, 4.0))
    latency = calibration.latency(grouping)
    assert latency.total(full) == pytest.approx(4e6, rel=1e-6)
    half = [w // 2 for w in full]
    told = [sum(latency.told(n, w) for n in latency.operators) for w in (half, full)]
    assert latency.total(half) == pytest.approx(4e6 * told[0] / told[1], rel=1e-6)


def test_the_last_measured_file_is_predicted_to_the_byte():
    model, grouping = grouping_of("chain")
    full = [g.width for g in grouping.groups]
    calibration = Calibration(model, grouping, MACHINES["AVX2"], Measured(50_000, 4.0, {}, 4.0))
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
