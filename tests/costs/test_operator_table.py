"""The table of operators: its sizes are those of real networks, and its times behave."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress import WidthConfig, plan_widths, shrink
from pbcompress.core.inputs import as_call, single_sample
from pbcompress.core.modules import copy_model
from pbcompress.costs.closed_form import CostModel
from pbcompress.costs.operator_table import (
    FLOAT,
    MACHINES,
    expected_speedup,
    operator_time,
    this_machine,
)
from pbcompress.costs.operators import OperatorSize, operators_of
from pbcompress.structure.channel_groups import find_groups
from tests.support.nets import CASES

TABLES = st.sampled_from(sorted(MACHINES)).map(MACHINES.__getitem__)
WIDTHS, TAPS, PIXELS = st.integers(1, 300), st.sampled_from([1, 9, 25]), st.integers(1, 5000)
quickly = settings(max_examples=80, deadline=None, derandomize=True)


def conv(out, in_, taps=9, positions=196, **others):
    macs = out * in_ * taps * positions
    return OperatorSize("convolution", macs, out, in_, taps, positions, is_image=True, **others)


def depthwise(width, taps=9, positions=196):
    macs = width * taps * positions
    return OperatorSize("depthwise", macs, width, 1, taps, positions, width, is_image=True)


def product(out, in_, rows):
    return OperatorSize("product", out * in_ * rows, out, in_, positions=rows)


def grouping_of(name):
    model = CASES[name].build().eval()
    call = single_sample(as_call(CASES[name].inputs(1)))
    return model, find_groups(copy_model(model), call)


@quickly
@given(TABLES, WIDTHS, WIDTHS, TAPS, PIXELS, st.integers(1, 64))
def test_more_of_anything_takes_longer(machine, out, in_, taps, positions, more):
    """Channels that are read stay a multiple of 4: others go another way."""
    in_ *= 4
    before = operator_time(conv(out, in_, taps, positions), machine)
    for grown in (
        conv(out + more, in_, taps, positions),
        conv(out, in_ + machine.block * more, taps, positions),
        conv(out, in_, taps + more, positions),
        conv(out, in_, taps, positions + more),
    ):
        assert 0 < before < operator_time(grown, machine)
    before = operator_time(product(out, in_, positions), machine)
    for grown in (
        product(out + more, in_, positions),
        product(out, in_ + more, positions),
        product(out, in_, positions + more),
    ):
        assert 0 < before < operator_time(grown, machine)


@quickly
@given(TABLES, st.integers(1, 40), st.integers(0, 15), st.integers(0, 3), TAPS)
def test_a_padded_width_costs_the_arithmetic_of_its_block(machine, blocks, off, by, taps):
    whole = blocks * machine.block
    narrower = whole - off % machine.block
    padded, full = (operator_time(conv(out, 32, taps), machine) for out in (narrower, whole))
    not_written = (whole - narrower) * 196 * FLOAT / machine.copied / 2
    assert padded == pytest.approx(full - not_written)
    read, all_read = (operator_time(conv(32, 4 * n, taps), machine) for n in (8 - by, 8))
    is_same_block = math.ceil((32 - 4 * by) / machine.block) == math.ceil(32 / machine.block)
    assert (read == all_read) == is_same_block


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("width", [24, 64, 144])
def test_a_depthwise_convolution_off_the_multiples_of_4_is_several_times_slower(machine, width):
    off = operator_time(depthwise(width - 1, positions=784), machine)
    assert off > 2 * operator_time(depthwise(width, positions=784), machine)
    no_image = replace(depthwise(width, positions=784), is_image=False)
    assert operator_time(no_image, machine) > 2 * operator_time(
        depthwise(width, positions=784), machine
    )


def test_a_grouped_convolution_is_fast_where_every_group_fills_blocks():
    machine = MACHINES["AVX2"]
    fast, slow = (
        operator_time(replace(conv(8 * own, own), groups=8), machine) / own**2 for own in (16, 15)
    )
    assert slow > 1.5 * fast


def test_nothing_takes_no_time():
    assert operator_time(OperatorSize("product", 0.0), this_machine()) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_sizes_at_other_widths_are_those_of_the_shrunk_network(name):
    model, grouping = grouping_of(name)
    inputs = CASES[name].inputs(1)
    plan = plan_widths(model, inputs, 0.6, config=WidthConfig(allocation="uniform"))
    small = shrink(model, plan).eval()
    call = single_sample(as_call(inputs))
    after = operators_of(small, find_groups(copy_model(small), call))
    numbers = CostModel(grouping.groups, [])
    gone = {(cut.layer, cut.dim): len(cut.removed) for cut in plan.steps}
    widths = [
        group.width
        - gone.get((group.members[0].layer, group.members[0].dim), 0) // group.channels_per_unit
        for group in grouping.groups
    ]
    sizes = {n: o.size(numbers, widths) for n, o in operators_of(model, grouping).items()}
    assert sizes.keys() == after.keys()
    for layer, size in sizes.items():
        found = after[layer].original
        assert replace(size, macs=0, positions=0) == replace(found, macs=0, positions=0), layer
        assert size.macs == pytest.approx(found.macs), layer
    expected = expected_speedup(model, grouping, widths)
    assert plan.expected_speedup == expected


@pytest.mark.parametrize("name", CASES)
def test_the_original_is_as_fast_as_itself_and_the_narrowest_is_not_slower(name):
    model, grouping = grouping_of(name)
    full = [group.width for group in grouping.groups]
    assert expected_speedup(model, grouping, full) == 1.0
    for machine in MACHINES.values():
        assert expected_speedup(model, grouping, [1] * len(full), machine) > 1


def test_a_machine_is_told_by_what_torch_computes_with():
    assert this_machine() == MACHINES[torch.backends.cpu.get_cpu_capability()]
