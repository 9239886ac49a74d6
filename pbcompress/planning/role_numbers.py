"""The numbers that the config of a shrunk network states, proven on a network made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbcompress.core.deadline import Deadline
from pbcompress.costs.closed_form import Widths
from pbcompress.planning.proving import Prover
from pbcompress.planning.stated_sizes import Change, StatedSizes
from pbcompress.planning.width_search import WidthSearch, cuts_of
from pbcompress.pruning.cuts import LayerCut

__all__ = ["Configs"]

NO_CONFIG = "a network made from a config with its width computes something else"


@dataclass(frozen=True)
class Configs:
    """Finds configs of one model.

    Attributes:
        stated: What the model's config states, None where that is not asked.
        prover: Holds networks made from configs against cut ones.
        deadline: Bound on the time.
    """

    stated: StatedSizes | None
    prover: Prover
    deadline: Deadline

    def numbers(
        self, search: WidthSearch, trial: Widths, steps: Sequence[LayerCut]
    ) -> Mapping[str, int] | None:
        """Return what the config has to state; None if no config states these widths."""
        if self.stated is None or not steps:
            return {}
        self.deadline.check("Planning, in the search for a config,")
        changes = [
            Change(
                search.roles.paths[group.name],
                frozenset(own.width for own in search.roles.groups[group.name]),
                group.width,
                width,
            )
            for group, width in zip(search.grouping.groups, trial, strict=True)
            if width < group.width
        ]
        wanted = self.stated.sizes_at(search.grouping, trial)
        for numbers in self.stated.solve(changes, wanted):
            if self.prover.states(steps, self.stated.network_of(numbers)):
                return numbers
        return None

    def unstated(self, search: WidthSearch, trial: Widths) -> dict[str, str]:
        """Return the groups of the roles that no config states at their width, with the reason."""
        groups, full = search.grouping.groups, [group.width for group in search.grouping.groups]
        narrowed = [i for i, width in enumerate(trial) if width < full[i]]
        guilty = []
        for index in narrowed:
            alone = [*full[:index], trial[index], *full[index + 1 :]]
            removed = search.removed(search.roles.spread(alone))
            steps = cuts_of(self.prover.network, search.roles.whole, removed)
            if self.numbers(search, alone, steps) is None:
                guilty.append(index)
        return {
            own.name: NO_CONFIG
            for index in guilty or narrowed
            for own in search.roles.groups[groups[index].name]
        }
