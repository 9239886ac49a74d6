"""The operators that a runtime executes for a network, with sizes in closed form in its widths."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pbcompress.costs.closed_form import CostModel, Widths
from pbcompress.structure.channel_groups import Axis, Grouping, Work
from pbcompress.structure.layer_geometry import has_own_groups, is_depthwise

__all__ = ["Operator", "OperatorKind", "OperatorSize", "operators_of"]

OperatorKind = Literal["convolution", "depthwise", "product", "norm"]
_Conv = nn.modules.conv._ConvNd
_Transposed = nn.modules.conv._ConvTransposeNd
_Folded = nn.modules.batchnorm._BatchNorm  # into the layer before it, when it is exported


@dataclass(frozen=True)
class OperatorSize:
    """An operator in numbers.

    Attributes:
        kind: What it does.
        macs: Multiply-adds, as they are counted.
        out: Channels that it writes; 0 where it has no weight.
        in_: Channels that one of its outputs reads.
        taps: Weights for each pair of channels.
        positions: Places of the image, or rows, that it computes.
        groups: Groups of a convolution.
        is_image: Whether it is a convolution over two axes, which runtimes have blocks for.
    """

    kind: OperatorKind
    macs: float
    out: int = 0
    in_: int = 0
    taps: int = 1
    positions: float = 1.0
    groups: int = 1
    is_image: bool = False


@dataclass(frozen=True)
class Operator:
    """An operator whose sizes follow the widths of groups.

    Attributes:
        original: Its sizes before any cut.
        out: The dimension that it writes; None where it has no weight.
        in_: The dimension that one of its outputs reads.
        works: Its counted operations, where it has no weight.
    """

    original: OperatorSize
    out: Axis | None = None
    in_: Axis | None = None
    works: tuple[Work, ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        """The names of the groups that its sizes follow."""
        axes = [axis for axis in (self.out, self.in_) if axis is not None]
        axes += [axis for work in self.works for axis in work.axes]
        return frozenset(name for axis in axes for name, _ in axis.groups)

    def size(self, numbers: CostModel, widths: Widths) -> OperatorSize:
        """Return its sizes at some widths.

        Args:
            numbers: Of the groups.
            widths: Units of every group.
        """
        was = self.original
        if self.out is None or self.in_ is None:
            return OperatorSize(was.kind, _macs(self.works, numbers, widths))
        out, in_ = numbers.size(self.out, widths), numbers.size(self.in_, widths)
        groups = was.groups if was.groups < was.out or was.groups == 1 else out
        macs = out * in_ * was.taps * was.positions
        return OperatorSize(was.kind, macs, out, in_, was.taps, was.positions, groups, was.is_image)


def operators_of(model: nn.Module, grouping: Grouping) -> dict[str, Operator]:
    """Return the operator of every module that does counted work, by its name.

    A BatchNorm is left out: the exported network has it in the layer before.
    """
    works: dict[str, list[Work]] = defaultdict(list)
    for work in grouping.works:
        works[work.module].append(work)
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        name: _operator(modules[name], tuple(own), grouping.shapes.get(f"{name}.weight"))
        for name, own in works.items()
        if not isinstance(modules[name], _Folded)
    }


def _operator(
    module: nn.Module, works: tuple[Work, ...], weight: tuple[Axis, ...] | None
) -> Operator:
    full = _macs(works, CostModel([], []), [])
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
        return Operator(OperatorSize("norm", full), works=works)
    if weight is None or not isinstance(module, nn.Linear | _Conv):
        return Operator(OperatorSize("product", full), works=works)
    inputs_first = isinstance(module, _Transposed) and not has_own_groups(module)
    out, in_ = weight[1::-1] if inputs_first else weight[:2]
    taps, groups = math.prod(axis.size for axis in weight[2:]), 1
    kind: OperatorKind = "product"
    if isinstance(module, _Conv):
        kind, groups = "depthwise" if is_depthwise(module) else "convolution", module.groups
    positions = full / (out.size * in_.size * taps)
    is_image = type(module) is nn.Conv2d
    size = OperatorSize(kind, full, out.size, in_.size, taps, positions, groups, is_image)
    return Operator(size, out, in_)


def _macs(works: tuple[Work, ...], numbers: CostModel, widths: Widths) -> float:
    return float(
        sum(w.coefficient * math.prod(numbers.size(a, widths) for a in w.axes) for w in works)
    )
