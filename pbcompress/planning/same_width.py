"""One width for each role: groups that a config states with one number, or that are alike.

Each role is one group of a grouping in which its members are merged, so that the search for widths
knows nothing of it. Which units go is still chosen in every group by itself.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbcompress.costs.closed_form import Widths
from pbcompress.planning.stated_sizes import StatedSizes, is_scaled
from pbcompress.structure.channel_groups import Axis, ChannelGroup, Grouping, Member, Work

__all__ = ["Roles", "role_scores", "statable"]

UNSTATED = "no number of the config states its width"


@dataclass(frozen=True)
class Roles:
    """Groups that have one width together.

    Attributes:
        whole: The grouping as the network has it.
        merged: The one with a group for each role.
        groups: For each role, by the name of its group, the groups in it.
        paths: The numbers of a config that each role follows; empty without one.
    """

    whole: Grouping
    merged: Grouping
    groups: Mapping[str, tuple[ChannelGroup, ...]]
    paths: Mapping[str, frozenset[str]]

    @classmethod
    def alone(cls, grouping: Grouping) -> "Roles":
        """Return the roles where every group has its own width."""
        groups = {group.name: (group,) for group in grouping.groups}
        return cls(grouping, grouping, groups, {})

    @classmethod
    def of(cls, grouping: Grouping, stated: StatedSizes | None) -> "Roles":
        """Return the roles of a grouping; without a config groups of one structure have one."""
        if stated is None:
            alike: dict[object, list[ChannelGroup]] = defaultdict(list)
            for group in grouping.groups:
                alike[group.kind, group.width, group.channels_per_unit].append(group)
            together = [(tuple(own), frozenset[str]()) for own in alike.values()]
        else:
            together = _by_numbers(grouping, stated)
        together = [
            part
            for own, paths in together
            for part in ([(own, paths)] if _gcd(own) > 1 else [((g,), paths) for g in own])
        ]
        groups = {own[0].name: own for own, _ in together}
        paths = {own[0].name: found for own, found in together}
        return cls(grouping, _merged(grouping, groups), groups, paths)

    @property
    def is_shared(self) -> bool:
        """Whether any role has several groups."""
        return any(len(own) > 1 for own in self.groups.values())

    def unit_of(self, merged: ChannelGroup) -> int:
        """Return the channels of a unit where roles are counted in heads, else 1."""
        heads = [g for g in self.groups[merged.name] if g.channels_per_unit > 1]
        return merged.channels_per_unit if heads else 1

    def spread(self, widths: Widths) -> Widths:
        """Return the width of every group from the widths of the roles."""
        found = {}
        for merged, width in zip(self.merged.groups, widths, strict=True):
            for group in self.groups[merged.name]:
                found[group.name] = group.width * width // merged.width
        return [found[group.name] for group in self.whole.groups]


def role_scores(roles: Roles, scores: Mapping[str, Tensor], merged: ChannelGroup) -> Tensor:
    """Return the importance of every unit of a role: the mean over its groups, rank by rank."""
    own = roles.groups[merged.name]
    if len(own) == 1:
        return scores[own[0].name]
    ranked = [scores[g.name].sort(descending=True)[0].view(merged.width, -1).mean(1) for g in own]
    return torch.stack(ranked).mean(0)


def statable(grouping: Grouping, stated: StatedSizes) -> Grouping:
    """Leave alone the groups whose width a config cannot state by itself."""
    reasons = {}
    for own, paths in _by_numbers(grouping, stated):
        reached = stated.axes_of(grouping, [group.name for group in own])
        scaled = [path for path in paths if is_scaled(path)]
        beyond = [path for path in scaled if not stated.moved[path] <= reached]
        reason = UNSTATED
        if beyond:
            reason = f"{beyond[0]} of the config is also the size of layers that keep theirs"
        elif _gcd(own) == 1 and len(own) > 1:
            reason = f"{scaled[0]} of the config states widths with no common divisor"
        if not scaled or beyond or (_gcd(own) == 1 and len(own) > 1):
            reasons.update({group.name: reason for group in own})
    return grouping.without(reasons)


def _by_numbers(
    grouping: Grouping, stated: StatedSizes
) -> list[tuple[tuple[ChannelGroup, ...], frozenset[str]]]:
    """Return groups that follow the same numbers of a config, with these."""
    parts: list[tuple[tuple[ChannelGroup, ...], frozenset[str]]] = []
    for group in grouping.groups:
        own: tuple[ChannelGroup, ...] = (group,)
        paths = stated.numbers_for(grouping, [group.name])
        apart = []
        for others, found in parts:
            if any(map(is_scaled, paths & found)) or (not paths and not found):
                own, paths = (*others, *own), paths | found
            else:
                apart.append((others, found))
        parts = [*apart, (own, paths)]
    return parts


def _gcd(groups: Sequence[ChannelGroup]) -> int:
    return math.gcd(*(group.width for group in groups))


def _merged(grouping: Grouping, roles: Mapping[str, Sequence[ChannelGroup]]) -> Grouping:
    if all(len(own) == 1 for own in roles.values()):
        return grouping
    role_of, factors, merged = {}, {}, []
    for name, own in roles.items():
        width = _gcd(own)
        for group in own:
            role_of[group.name], factors[group.name] = name, group.width // width
        pins = {g.pinned * width // g.width for g in own if g.pinned is not None}
        merged.append(
            ChannelGroup(
                name=name,
                width=width,
                members=tuple(_rows(m, width) for g in own for m in g.members),
                kind=own[0].kind,
                pinned=min(pins, default=None),
            )
        )
    known: dict[Axis, Axis] = {}

    def axis_of(axis: Axis) -> Axis:
        if axis not in known:
            units: dict[str, int] = {}
            for name, positions in axis.groups:
                role, factor = role_of.get(name, name), factors.get(name, 1)
                units[role] = units.get(role, 0) + positions * factor
            known[axis] = Axis(axis.size, tuple(units.items()))
        return known[axis]

    return replace(
        grouping,
        groups=tuple(merged),
        shapes={name: tuple(map(axis_of, axes)) for name, axes in grouping.shapes.items()},
        works=tuple(
            Work(w.module, w.coefficient, tuple(map(axis_of, w.axes))) for w in grouping.works
        ),
        units={},
    )


def _rows(member: Member, width: int) -> Member:
    return replace(member, positions=member.positions.reshape(width, -1))
