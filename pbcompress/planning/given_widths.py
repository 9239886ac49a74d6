"""Widths that the user gives: from layers and channels to groups and units, or refused."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from pbcompress.core.modules import matches
from pbcompress.errors import CompressionError, UnsupportedLayerError, a_few
from pbcompress.structure.channel_groups import Axis, Grouping, output_axes, reasons

__all__ = ["with_pins"]

Pins = tuple[tuple[str, int | float], ...]


def with_pins(model: nn.Module, grouping: Grouping, pins: Pins) -> Grouping:
    """Return the grouping in which the groups of the named layers have their width given.

    Args:
        model: The network that the grouping is of.
        grouping: Its groups.
        pins: Pairs of a layer (name or pattern) and its output channels, or a share of them.

    Raises:
        CompressionError: A pattern names no layer that has a width.
        UnsupportedLayerError: A layer cannot have the width that is given for it; the message says
            which it can have, and what it is coupled with.
    """
    if not pins:
        return grouping
    axes = output_axes(model, grouping)
    why = reasons(model, grouping)
    asked: dict[str, int | float] = {}
    for pattern, width in pins:
        named = [name for name in axes if matches(name, (pattern,))]
        if not named:
            raise CompressionError(
                f"WidthConfig.pin names {pattern!r}; the model has no such layer with a width. "
                f"Those that have one are {a_few(list(axes), 12)}."
            )
        asked.update(dict.fromkeys(named, width))
    units: dict[str, tuple[str, int]] = {}  # by group: the layer that asked first, and its units
    for layer, width in asked.items():
        for group, count in _Layer(layer, axes, grouping, why).units(width):
            first, other = units.setdefault(group, (layer, count))
            if other != count:
                raise _refused(
                    layer,
                    width,
                    f"its channels go with those of {first!r}, which is pinned to {asked[first]}",
                    "Give both the same share of their channels, or pin one of them",
                )
    groups = tuple(
        replace(g, pinned=units[g.name][1]) if g.name in units else g for g in grouping.groups
    )
    return replace(grouping, groups=groups)


class _Layer:
    """The widths that one layer can have.

    Args:
        name: Dotted name.
        axes: The output dimension of every layer.
        grouping: The groups, of which some may reach the layer.
        why: Why layers keep their width.
    """

    def __init__(
        self, name: str, axes: Mapping[str, Axis], grouping: Grouping, why: Mapping[str, str]
    ) -> None:
        self.name, self.axes, self.axis = name, axes, axes[name]
        groups = {group.name: group for group in grouping.groups}
        self.reason = why.get(name, "its channels cannot be followed")
        self.live = [(groups[g], step) for g, step in self.axis.groups if g in groups]

    def units(self, width: int | float) -> Iterator[tuple[str, int]]:
        """Yield each group that reaches the layer with its units at ``width``."""
        size = self.axis.size
        is_all = width == size if isinstance(width, int) else width == 1
        if is_all:
            yield from ((group.name, group.width) for group, _ in self.live)
        elif not self.live:
            raise self._refused(
                width, f"it keeps its width of {size}: {self.reason}", "Leave it out"
            )
        elif isinstance(width, float):
            for group, _ in self.live:
                yield group.name, max(1, round(width * group.width))
        elif len(self.live) > 1:
            names = " and ".join(repr(group.name) for group, _ in self.live)
            raise self._refused(
                width,
                f"its {size} channels are narrowed in {len(self.live)} parts, {names}",
                "Give a share, which holds for each of them",
            )
        else:
            yield self._one(width)

    def _one(self, width: int) -> tuple[str, int]:
        (group, step), size = self.live[0], self.axis.size
        fixed = size - group.width * step
        count, rest = divmod(width - fixed, step)
        if rest or not 1 <= count <= group.width:
            found = f"it can have {fixed + step} to {size}"
            found += f" in steps of {step}, its channels going {step} at a time" if step > 1 else ""
            coupled = [n for n, a in self.axes.items() if group.name in dict(a.groups)]
            others = [name for name in coupled if name != self.name]
            found += f", together with {a_few(others)}" if others else ""
            raise self._refused(width, found, "Give one of these widths, or a share in (0, 1]")
        return group.name, count

    def _refused(self, width: int | float, reason: str, advice: str) -> UnsupportedLayerError:
        return _refused(self.name, width, reason, advice)


def _refused(layer: str, width: int | float, reason: str, advice: str) -> UnsupportedLayerError:
    asked = f"{width} channels" if isinstance(width, int) else f"the share {width} of its channels"
    message = f"WidthConfig.pin sets {layer!r} to {asked}; {reason}. {advice}."
    return UnsupportedLayerError(message, layer, reason)
