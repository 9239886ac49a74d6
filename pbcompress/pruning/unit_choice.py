"""Which units of a group go, where that is chosen after the plan: as data, and by importance."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pbcompress.pruning.cuts import LayerCut
from pbcompress.structure.channel_groups import Grouping, Member

__all__ = ["Places", "UnitChoice", "choices_of", "combined", "cuts_by_importance"]


@dataclass(frozen=True)
class Places:
    """The positions of a group's units along one dimension of a layer.

    Attributes:
        layer: Dotted name.
        dim: As in `LayerCut`.
        size: Of the dimension.
        step: From a unit to the next, where the first is at ``first`` and all are alike; 0: these
            are the positions of all units in turn.
        first: Positions of the first unit.
    """

    layer: str
    dim: str
    size: int
    step: int
    first: tuple[int, ...]

    @classmethod
    def of(cls, member: Member, size: int) -> "Places":
        """Return the places of a member of a group."""
        positions = member.positions
        steps = positions[1:] - positions[:-1]
        is_even = len(positions) > 1 and bool((steps == steps[0, 0]).all())
        first = positions[0] if is_even else positions.flatten()
        step = int(steps[0, 0]) if is_even else 0
        return cls(member.layer, member.dim, size, step, tuple(first.tolist()))

    def of_units(self, width: int) -> Tensor:
        """Return the positions of each of so many units, shape (units, positions)."""
        first = torch.tensor(self.first)
        if not self.step:
            return first.view(width, -1)
        return first + self.step * torch.arange(width)[:, None]


@dataclass(frozen=True)
class UnitChoice:
    """A group of which some units stay, and which is open.

    Attributes:
        name: The first layer that produces its channels.
        width: Units.
        kept: How many of them stay.
        members: Every dimension that they reach.
    """

    name: str
    width: int
    kept: int
    members: tuple[Places, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        members = [[m.layer, m.dim, m.size, m.step, list(m.first)] for m in self.members]
        return {"name": self.name, "width": self.width, "kept": self.kept, "members": members}


def choices_of(
    grouping: Grouping, removed: Mapping[str, Sequence[int]], sizes: Mapping[tuple[str, str], int]
) -> tuple[UnitChoice, ...]:
    """Return the groups that lose units, with how many stay.

    Args:
        grouping: The groups.
        removed: Units that go, by the name of their group; their number alone counts.
        sizes: Of every dimension that is cut, before the cut.
    """
    return tuple(
        UnitChoice(
            group.name,
            group.width,
            group.width - len(removed[group.name]),
            tuple(Places.of(m, sizes[m.layer, m.dim]) for m in group.members),
        )
        for group in grouping.groups
        if removed.get(group.name)
    )


def cuts_by_importance(
    choices: Sequence[UnitChoice], energies: Mapping[tuple[str, str], Tensor]
) -> tuple[LayerCut, ...]:
    """Return the cuts that keep the most important units of every group.

    Args:
        choices: The groups.
        energies: For dimensions that have weights, a number from zero for each position.
    """
    gone: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)
    for choice in choices:
        places = [(m, m.of_units(choice.width)) for m in choice.members]
        known = [
            energies[m.layer, m.dim][positions].sum(1)
            for m, positions in places
            if (m.layer, m.dim) in energies
        ]
        order = combined(known, choice.width).argsort(descending=True, stable=True)
        units = order[choice.kept :]
        for member, positions in places:
            gone[member.layer, member.dim, member.size].append(positions[units].flatten())
    return tuple(
        LayerCut(layer, dim, tuple(torch.cat(parts).unique().tolist()), size)
        for (layer, dim, size), parts in gone.items()
    )


def combined(energies: Sequence[Tensor], width: int) -> Tensor:
    """Return the importance of units: members scaled to mean 1 and summed, again of mean 1."""
    total = torch.zeros(width, dtype=torch.float64)
    for energy in energies:
        mean = energy.mean()
        if mean > 0:
            total += energy / mean
    mean = total.mean()
    return total / mean if mean > 0 else torch.ones_like(total)
