"""What operators cost in ONNX Runtime on a CPU, from their sizes alone; no timing.

The runtime's convolutions work on blocks of channels, 8 with AVX2, and 16 with AVX-512 or NEON:
other widths are padded. A convolution that reads a number of channels which is no multiple of 4,
and a depthwise one of such a number, are no blocked ones: every patch of the image is copied, and
a matrix product does the rest, for each channel alone where it is depthwise.

Source:
    Block sizes: NchwcBlockSize in onnxruntime/core/mlas/lib/platform.cpp; which convolutions are
    blocked: TransformConv in onnxruntime/core/optimizer/nchwc_transformer.cc; four blocks of
    outputs at a time: MlasConvPointwiseThreaded in onnxruntime/core/mlas/lib/snchwc.cpp. The rates
    of AVX2 were measured, kernel by kernel; those of others follow from their wider or narrower
    arithmetic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pbcompress.costs.closed_form import CostModel, Widths
from pbcompress.costs.operators import Operator, OperatorSize, operators_of
from pbcompress.structure.channel_groups import Grouping

__all__ = ["MACHINES", "Machine", "expected_speedup", "operator_time", "this_machine"]

FLOAT = 4  # bytes
ALIGNED = 4  # channels that a blocked convolution reads must be a multiple of it
TOGETHER = 4  # blocks of outputs that a kernel computes at a time
SHARED = 0.4  # of the time of a full batch of blocks, which a part of it takes as well


@dataclass(frozen=True)
class Machine:
    """How fast one core of a kind of machine is, in ONNX Runtime with float32.

    Attributes:
        name: Of the kind.
        block: Channels in a block.
        macs: Multiply-adds in a nanosecond, in blocked convolutions and matrix products.
        channelwise: The same in blocked depthwise convolutions.
        copied: Bytes in a nanosecond that are copied or written.
        read: Bytes of weights in a nanosecond that are read once.
        call: Nanoseconds of a kernel that has nothing to do.
        run: Nanoseconds of a network that has nothing to do.
    """

    name: str
    block: int
    macs: float
    channelwise: float
    copied: float
    read: float
    call: float = 2500.0
    run: float = 10000.0


MACHINES: Mapping[str, Machine] = {
    "AVX512": Machine("AVX-512", 16, macs=75.0, channelwise=28.0, copied=11.0, read=60.0),
    "AVX2": Machine("AVX2", 8, macs=46.0, channelwise=17.0, copied=10.0, read=60.0),
    "DEFAULT": Machine("other", 16, macs=18.0, channelwise=7.0, copied=8.0, read=30.0),
}


def this_machine() -> Machine:
    """Return the table of this machine's kind, as torch tells it."""
    return MACHINES.get(torch.backends.cpu.get_cpu_capability(), MACHINES["DEFAULT"])


def operator_time(size: OperatorSize, machine: Machine) -> float:
    """Return the nanoseconds of an operator, with a share of what follows it.

    Args:
        size: The operator.
        machine: Where it runs.

    Example:
        >>> conv = OperatorSize("convolution", 9 * 64 * 64 * 196, 64, 64, 9, 196, is_image=True)
        >>> odd = OperatorSize("convolution", 9 * 63 * 63 * 196, 63, 63, 9, 196, is_image=True)
        >>> operator_time(conv, MACHINES["AVX2"]) < operator_time(odd, MACHINES["AVX2"])
        True
    """
    if size.macs <= 0:
        return 0.0
    written = size.out * size.positions * FLOAT / machine.copied
    if size.kind == "norm":
        return machine.call + size.macs * FLOAT / machine.copied
    if size.kind == "product":
        weights = size.out * size.in_ * FLOAT / machine.read
        return 2 * machine.call + size.macs / machine.macs + weights + written
    if _is_blocked(size, machine):
        return machine.call + _blocked(size, machine) + written / 2
    return machine.call + _copying(size, machine) + written


def _is_blocked(size: OperatorSize, machine: Machine) -> bool:
    """Tell whether a convolution works on blocks of channels."""
    if size.kind == "depthwise":
        return size.is_image and size.out % ALIGNED == 0
    if size.groups > 1:
        own = size.out // size.groups
        return size.is_image and size.in_ % machine.block == 0 == own % machine.block
    return size.is_image and (size.in_ < machine.block or size.in_ % ALIGNED == 0)


def _blocked(size: OperatorSize, machine: Machine) -> float:
    blocks = math.ceil(size.out / machine.block)
    if size.kind == "depthwise":
        return blocks * machine.block * size.taps * size.positions / machine.channelwise
    batches = math.ceil(blocks / TOGETHER)
    blocks_worth = (1 - SHARED) * blocks + SHARED * TOGETHER * batches
    narrow = size.in_ < machine.block  # these are read as they are
    in_ = size.in_ if narrow else math.ceil(size.in_ / machine.block) * machine.block
    return blocks_worth * machine.block * in_ * size.taps * size.positions / machine.macs


def _copying(size: OperatorSize, machine: Machine) -> float:
    groups = size.out if size.kind == "depthwise" else size.groups
    patches = groups * size.in_ * size.taps * size.positions * FLOAT / machine.copied
    if size.kind == "depthwise":
        return patches + groups * machine.call / 16
    weights = size.out * size.in_ * size.taps * FLOAT / machine.copied
    copied = patches if size.taps > 1 else 0.0
    return copied + weights + 1.2 * size.macs / machine.macs + (groups - 1) * machine.call / 8


def expected_speedup(
    model: nn.Module, grouping: Grouping, widths: Widths, machine: Machine | None = None
) -> float:
    """Return how many times as fast a narrower network should be, by the table alone.

    Args:
        model: The original.
        grouping: Its groups.
        widths: Units of every group.
        machine: Where it runs; None: a machine of this one's kind.
    """
    table, numbers = machine or this_machine(), CostModel(grouping.groups, [])
    operators = operators_of(model, grouping)
    full = [group.width for group in grouping.groups]
    before, after = (_network_time(operators, numbers, w, table) for w in (full, widths))
    return before / after


def _network_time(
    operators: Mapping[str, Operator], numbers: CostModel, widths: Widths, machine: Machine
) -> float:
    sizes = (operator.size(numbers, widths) for operator in operators.values())
    return machine.run + sum(operator_time(size, machine) for size in sizes)
