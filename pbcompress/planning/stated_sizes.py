"""What the numbers of a network's config say about its sizes, found by building it.

No table of names: the network's class is built without data from the config with each number
changed, and what changes with it is compared. So this holds for classes that nobody here knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import nn

from pbcompress.core.model_config import built, config_of, numbers_of, with_numbers
from pbcompress.core.modules import names_of
from pbcompress.costs.closed_form import CostModel, Widths
from pbcompress.errors import CompressionError
from pbcompress.structure.channel_groups import Grouping

__all__ = ["Change", "StatedSizes", "is_scaled", "stated_sizes"]

Sizes = dict[tuple[str, int], int]  # of every axis of every parameter
_OPEN = ("inner", "dim", "size", "heads")  # how numbers end that a config may leave open
_FIXED = ("head_dim", "d_kv", "head_size", "kv_channels")  # sizes of a head, which stay
MOST = 6  # numbers of which all subsets are tried


@dataclass(frozen=True)
class Change:
    """What becomes of a role.

    Attributes:
        paths: The numbers of the config that it follows.
        units: How many units its groups have.
        before: Its width.
        after: Its width in the plan.
    """

    paths: frozenset[str]
    units: frozenset[int]
    before: int
    after: int


@dataclass(frozen=True)
class StatedSizes:
    """What a config states.

    Attributes:
        model: The network.
        config: Its config, in which what was left open and has a size is filled in.
        moved: For every number that sizes follow, by its path: the axes that do.
        silent: Numbers that no size follows.
        filled: Those numbers of ``config`` that were filled in.
    """

    model: nn.Module
    config: Any
    moved: Mapping[str, frozenset[tuple[str, int]]]
    silent: Mapping[str, int]
    filled: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, widths: Sequence[int]) -> "StatedSizes | None":
        """Learn what the config of a model states; None where its class is not built from one.

        Args:
            model: The network; left as it is.
            widths: Sizes that an open number may have.
        """
        config = config_of(model)
        if config is None:
            return None
        sizes = _sizes_of(model)
        if _built_sizes(model, config) != sizes:
            return None
        numbers = numbers_of(config)
        filled: dict[str, int] = {}
        for path, value in numbers.items():
            if value is None and path.endswith(_OPEN):
                found = _filled(model, config, path, widths, sizes)
                if found is not None:
                    filled[path] = found
        config = with_numbers(config, filled)
        moved, silent = {}, {}
        for path, value in {**numbers, **filled}.items():
            if value is not None:
                followers = _followers(model, config, path, value, sizes)
                if followers:
                    moved[path] = followers
                elif followers is not None:
                    silent[path] = value
        return cls(model, config, moved, silent, filled)

    def axes_of(self, grouping: Grouping, names: Sequence[str]) -> frozenset[tuple[str, int]]:
        """Return the axes of parameters that some groups narrow, under every name."""
        aliases = names_of(self.model)
        own = set(names)
        return frozenset(
            (alias, axis)
            for parameter, axes in grouping.shapes.items()
            for axis, size in enumerate(axes)
            if any(name in own for name, _ in size.groups)
            for alias in aliases[parameter]
        )

    def numbers_for(self, grouping: Grouping, names: Sequence[str]) -> frozenset[str]:
        """Return the numbers that the sizes of some groups follow."""
        axes = self.axes_of(grouping, names)
        return frozenset(path for path, followers in self.moved.items() if followers & axes)

    def solve(self, roles: Sequence[Change], wanted: Sizes) -> Iterator[dict[str, int]]:
        """Yield numbers at which the class has the wanted sizes, likely ones first.

        Args:
            roles: What becomes of each role.
            wanted: Sizes of every axis of every parameter.
        """
        found: dict[str, int] = {}
        for role in roles:
            silent = [p for p, v in self.silent.items() if "head" in p and v in role.units]
            for path in filter(is_scaled, (*role.paths, *silent)):
                number, rest = divmod(self._value(path) * role.after, role.before)
                if not rest:
                    found[path] = number
        every = list(found)
        for count in range(len(every), 0, -1) if len(every) <= MOST else [len(every)]:
            for some in combinations(every, count):
                tried = {**self.filled, **{path: found[path] for path in some}}
                if _built_sizes(self.model, with_numbers(self.config, tried)) == wanted:
                    yield {p: v for p, v in tried.items() if p in found or p in self.filled}

    def network_of(self, numbers: Mapping[str, int]) -> nn.Module:
        """Return a network of these numbers, its parameters without data."""
        return built(self.model, with_numbers(self.config, numbers))

    def sizes_at(self, grouping: Grouping, widths: Widths) -> Sizes:
        """Return the size of every axis of every parameter at other widths."""
        forms = CostModel(grouping.groups, [])
        sizes = _sizes_of(self.model)
        for first, names in names_of(self.model).items():
            for axis, own in enumerate(grouping.shapes.get(first, ())):
                sizes.update(dict.fromkeys([(n, axis) for n in names], forms.size(own, widths)))
        return sizes

    def _value(self, path: str) -> int:
        value = numbers_of(self.config)[path]
        assert value is not None
        return value


def stated_sizes(
    model: nn.Module, grouping: Grouping, same_width: bool | int | str
) -> StatedSizes | None:
    """Return what the config of a model states, None where it has none or is not to be followed.

    Raises:
        CompressionError: One width for each role was asked for, and the config of the model is not
            what it is made from.
    """
    if same_width is False or config_of(model) is None:
        return None
    widths = {group.width * group.channels_per_unit for group in grouping.groups}
    stated = StatedSizes.of(model, sorted(widths))
    if stated is None and same_width != "auto":
        raise CompressionError(
            f"WidthConfig.same_width={same_width!r} was asked for; {type(model).__name__} cannot "
            "be made again from model.config, so no config can state its widths. Give "
            "same_width=False, and save the plan beside the weights."
        )
    return stated


def is_scaled(path: str) -> bool:
    """Tell whether a number may change: the size of a head does not, as attention scales by it."""
    return not path.endswith(_FIXED)


def _sizes_of(network: nn.Module) -> Sizes:
    """Return the size of every axis of every parameter, under every name that it has."""
    return {
        (name, axis): size
        for name, parameter in network.named_parameters(remove_duplicate=False)
        for axis, size in enumerate(parameter.shape)
    }


def _built_sizes(model: nn.Module, config: Any) -> Sizes | None:
    try:
        return _sizes_of(built(model, config))
    except Exception:  # a class says in many ways that it does not take a config
        return None


def _filled(
    model: nn.Module, config: Any, path: str, widths: Sequence[int], sizes: Sizes
) -> int | None:
    """Return the number that an open one stands for, None if no size follows it."""
    for width in widths:
        if _built_sizes(model, with_numbers(config, {path: width})) == sizes:
            other = _built_sizes(model, with_numbers(config, {path: 2 * width}))
            return width if other not in (None, sizes) else None
    return None


def _followers(
    model: nn.Module, config: Any, path: str, value: int, sizes: Sizes
) -> frozenset[tuple[str, int]] | None:
    """Return the axes whose size follows a number; None if it decides what parameters there are."""
    for other in (2 * value, value // 2, value + 1):
        with suppress(Exception):
            found = _built_sizes(model, with_numbers(config, {path: other}))
            if found is None:
                continue
            if found.keys() != sizes.keys():
                return None
            return frozenset(key for key, size in found.items() if size != sizes[key])
    return None
