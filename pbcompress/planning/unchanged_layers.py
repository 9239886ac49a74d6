"""Why a layer has its full width in a plan, though it could be narrower."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pbcompress.config.widths import WidthConfig
from pbcompress.core.modules import matches
from pbcompress.costs.closed_form import Widths
from pbcompress.planning.proportions import SPEED
from pbcompress.structure.channel_groups import (
    Axis,
    ChannelGroup,
    Grouping,
    output_axes,
    reasons,
)

__all__ = ["Outcome", "why_unchanged"]

Part = tuple[str, int, tuple[Axis, ...]]  # a layer, a size, the dimensions that make it
FITS = "the target is met with all its channels"
_NO_GROUP = "its channels belong to no group that may be narrowed"
_NO_WEIGHT = "it has no weight of its own that could be cut"


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        grouping: The groups, given widths in them.
        widths: Units of each.
        narrowest: The fewest that each could have.
        scores: Importance of every unit of each.
        multiples: What the channels of each should be a multiple of.
        by_weights: Whether parameters were bounded.
        by_work: Whether multiply-adds were bounded.
    """

    grouping: Grouping
    widths: Widths
    narrowest: Widths
    scores: Sequence[Tensor]
    multiples: Sequence[int]
    by_weights: bool
    by_work: bool


def why_unchanged(
    model: nn.Module, found: Outcome, config: WidthConfig, layers: Mapping[str, int | None]
) -> dict[str, str]:
    """Return for each layer that has all its channels why it has them.

    Args:
        model: The original.
        found: The widths.
        config: How they were chosen.
        layers: The layers of the original that are listed, with their width, None without one.
    """
    return _Reasons(model, found, config).of(layers)


class _Reasons:
    def __init__(self, model: nn.Module, found: Outcome, config: WidthConfig) -> None:
        self.found, self.config = found, config
        self.axes = output_axes(model, found.grouping)
        self.fixed = reasons(model, found.grouping)
        self.groups = {g.name: i for i, g in enumerate(found.grouping.groups)}
        self.cut = [i for i, g in enumerate(found.grouping.groups) if found.widths[i] < g.width]
        self.sizes: dict[str, list[float]] = {}  # beside the mean of the groups that are narrowed
        if config.allocation in SPEED:
            if found.by_weights:
                self.sizes["weights"] = self._relative(_weights(found.grouping))
            if found.by_work or SPEED[config.allocation]:
                self.sizes["multiply-adds"] = self._relative(_works(found.grouping))

    def of(self, layers: Mapping[str, int | None]) -> dict[str, str]:
        found = dict(self.fixed)
        for layer, width in layers.items():
            if layer not in found and (width is not None or layer in self.axes):
                reason = self._reason(layer)
                if reason:
                    found[layer] = reason
        return found

    def _relative(self, parts: Sequence[Part]) -> list[float]:
        sizes = _sizes(self.found.grouping, parts)
        mean = sum(sizes[i] for i in self.cut) / max(len(self.cut), 1)
        return [size / mean if mean else 1.0 for size in sizes]

    def _reason(self, layer: str) -> str:
        """Return why a layer has all its channels; "" where some of them go."""
        axis = self.axes.get(layer) or self._stated(layer)
        if axis is None:
            return _NO_WEIGHT
        names = [name for name, _ in axis.groups]
        own = [self.groups[name] for name in names if name in self.groups]
        if any(i in self.cut for i in own):
            return ""
        if not own:
            return _NO_GROUP
        whys = dict.fromkeys(self._of_group(layer, i) for i in own)
        return "; ".join(whys)

    def _stated(self, layer: str) -> Axis | None:
        """Return the output dimension of a module of another kind that states a width."""
        shape = self.found.grouping.shapes.get(f"{layer}.weight".lstrip("."))
        return shape[0] if shape else None

    def _of_group(self, layer: str, index: int) -> str:
        group = self.found.grouping.groups[index]
        if group.pinned is not None:
            return self._pinned(layer, group)
        has_choice = self.found.narrowest[index] < group.width
        why = "" if has_choice else self._floor(group)
        why = why or self._block(index, has_choice) or self._is_small(index)
        why = why or self._ranks_high(index) or FITS
        first = group.members[0].layer
        is_own = layer == first or why == FITS
        return why if is_own else f"its channels go with those of {first!r}: {why}"

    def _pinned(self, layer: str, group: ChannelGroup) -> str:
        patterns = tuple(pattern for pattern, _ in self.config.pin)
        if matches(layer, patterns):
            return "WidthConfig.pin gives it all its channels"
        coupled = [n for n, axis in self.axes.items() if group.name in dict(axis.groups)]
        who = next(name for name in coupled if matches(name, patterns))
        return f"its channels go with those of {who!r}, to which WidthConfig.pin gives all"

    def _floor(self, group: ChannelGroup) -> str:
        config, per_unit = self.config, group.channels_per_unit
        channels = group.width * per_unit
        if math.ceil(config.min_width / per_unit) >= group.width:
            return f"it has {channels} channels, and WidthConfig.min_width is {config.min_width}"
        if int(config.max_ratio * group.width) == 0:
            return f"WidthConfig.max_ratio leaves no channel of its {channels} to go"
        return ""

    def _block(self, index: int, has_choice: bool) -> str:
        group, multiple = self.found.grouping.groups[index], self.found.multiples[index]
        channels = group.width * group.channels_per_unit
        if channels == multiple > 1:
            return f"one block of {multiple} channels: no smaller multiple"
        if has_choice:
            return ""
        if channels < multiple:
            return f"its {channels} channels are less than one block of {multiple}"
        return f"no smaller multiple of {multiple} is allowed to its {channels} channels"

    def _is_small(self, index: int) -> str:
        """Return so where a group is small in what the rule of the allocation goes by."""
        ratios = {kind: sizes[index] for kind, sizes in self.sizes.items()}
        if not ratios or math.prod(ratios.values()) >= 1:
            return ""
        few = " and ".join(kind for kind, ratio in ratios.items() if ratio < 1)
        return f"few {few}: the rule keeps it"

    def _ranks_high(self, index: int) -> str:
        """Return so where all units of a group rank above all that go, in the list they share."""
        groups, scores = self.found.grouping.groups, self.found.scores
        rivals = self.cut if self.config.allocation == "global" else []
        if self.config.allocation == "isomorphic":
            rivals = [i for i in self.cut if groups[i].kind == groups[index].kind]
        gone = [float(scores[i].sort(descending=True).values[self.found.widths[i]]) for i in rivals]
        if gone and float(scores[index].min()) >= max(gone):
            return "all its channels rank above those that go"
        return ""


def _weights(grouping: Grouping) -> list[Part]:
    return [
        (name.rpartition(".")[0], math.prod(axis.size for axis in axes), axes)
        for name, axes in grouping.shapes.items()
        if len(axes) > 1
    ]


def _works(grouping: Grouping) -> list[Part]:
    return [
        (work.module, work.coefficient * math.prod(axis.size for axis in work.axes), work.axes)
        for work in grouping.works
    ]


def _sizes(grouping: Grouping, parts: Sequence[Part]) -> list[float]:
    """Return the mean size of what each group narrows, or that of its first layer if larger."""
    narrowed: dict[str, list[int]] = {group.name: [] for group in grouping.groups}
    of_layer: Counter[str] = Counter()
    for layer, size, axes in parts:
        of_layer[layer] += size
        for name in {name for axis in axes for name, _ in axis.groups} & narrowed.keys():
            narrowed[name].append(size)
    return [
        max(sum(sizes) / max(len(sizes), 1), of_layer[group.members[0].layer])
        for group, sizes in zip(grouping.groups, narrowed.values(), strict=True)
    ]
