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

__all__ = ["FITS", "Outcome", "why_unchanged"]

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
        multiples: What the channels of each were rounded to.
        by_work: Whether multiply-adds were bounded.
    """

    grouping: Grouping
    widths: Widths
    narrowest: Widths
    scores: Sequence[Tensor]
    multiples: Sequence[int]
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
        self.sizes = _sizes(found.grouping, by_work=found.by_work)
        cut = [i for i, g in enumerate(found.grouping.groups) if found.widths[i] < g.width]
        self.cut = cut
        self.size_of_cut = sum(self.sizes[i] for i in cut) / len(cut) if cut else 0.0

    def of(self, layers: Mapping[str, int | None]) -> dict[str, str]:
        found = dict(self.fixed)
        for layer, width in layers.items():
            if layer not in found and (width is not None or layer in self.axes):
                reason = self._reason(layer)
                if reason:
                    found[layer] = reason
        return found

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
        if self.found.narrowest[index] == group.width:
            why = self._no_choice(group, self.found.multiples[index])
        elif self.config.allocation in SPEED and self.sizes[index] < self.size_of_cut:
            why = f"few {'multiply-adds' if self.found.by_work else 'weights'}: the rule keeps it"
        else:
            why = self._ranks_high(index) or self._one_block(group, index) or FITS
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

    def _no_choice(self, group: ChannelGroup, multiple: int) -> str:
        config, per_unit = self.config, group.channels_per_unit
        channels = group.width * per_unit
        if math.ceil(config.min_width / per_unit) >= group.width:
            return f"it has {channels} channels, and WidthConfig.min_width is {config.min_width}"
        if int(config.max_ratio * group.width) == 0:
            return f"WidthConfig.max_ratio leaves no channel of its {channels} to go"
        if channels == multiple:
            return f"one block of {multiple} channels: no smaller multiple"
        if channels < multiple:
            return f"its {channels} channels are less than one block of {multiple}"
        return f"no smaller multiple of {multiple} is allowed to its {channels} channels"

    def _one_block(self, group: ChannelGroup, index: int) -> str:
        multiple = self.found.multiples[index]
        is_one = 1 < group.width * group.channels_per_unit <= multiple
        return f"one block of {multiple} channels, as fast as fewer" if is_one else ""

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


def _sizes(grouping: Grouping, *, by_work: bool) -> list[float]:
    """Return the size of the layers that each group narrows: the mean, or the first if larger.

    Args:
        grouping: The groups.
        by_work: Whether multiply-adds are their size, and not weights.
    """
    parts = [
        (name.rpartition(".")[0], math.prod(axis.size for axis in axes), axes)
        for name, axes in grouping.shapes.items()
        if len(axes) > 1
    ]
    if by_work:
        parts = [
            (w.module, w.coefficient * math.prod(axis.size for axis in w.axes), w.axes)
            for w in grouping.works
        ]
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
