"""Hands over rows of regressions: what the original put out, beside what the narrowed one reads."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.compensation.passes import Forward, run
from pbcompress.compensation.views import View

__all__ = ["HELD_OUT", "Sweeps", "Use"]

ROWS = 10  # for each feature of a regression
FEWEST_ROWS = 4096  # where there are as many
HELD_OUT = 4  # every fourth entry of a batch is held out
Use = Callable[[str, Tensor, Tensor, Tensor], None]  # reader, features, targets, which are held out


@dataclass(frozen=True)
class _Rows:
    """What the original showed in one call of a reader."""

    sizes: tuple[int, int]  # entries, and positions of each
    index: Tensor  # the positions that were drawn
    targets: Tensor

    @property
    def bytes(self) -> int:
        """Size of the targets."""
        return self.targets.numel() * self.targets.element_size()


class Sweeps:
    """Passes of both networks over the same batches.

    The rows of the original are kept up to a bound, and drawn anew where they are more.

    Args:
        whole: The original, in eval mode.
        left: The narrowed network, in eval mode.
        views: The regressions by name.
        modules: The module of each.
        forwards: What runs a network, for each batch.
        max_bytes: Bound on the rows that are kept.

    Attributes:
        order: When each reader comes first in the narrowed network; those of one number read one
            tensor.
        refused: Readers that no rows can be had of, with the reason.
    """

    def __init__(
        self,
        whole: nn.Module,
        left: nn.Module,
        views: Mapping[str, View],
        modules: Mapping[str, str],
        forwards: Sequence[Forward],
        max_bytes: int,
    ) -> None:
        self.whole, self.left, self.views, self.forwards = whole, left, views, forwards
        self.device = next(left.parameters()).device
        self.names: dict[str, list[str]] = defaultdict(list)  # of readers, by module
        for name in views:
            self.names[modules[name]].append(name)
        self.kept: dict[tuple[int, str, int], _Rows] = {}
        self.calls: list[Counter[str]] = []
        self.order: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self._room = max_bytes
        for number in range(len(forwards)):
            self._survey(number)
        why = "the forward pass does not call it as a layer"
        self.refused.update({name: why for name in views if name not in self.order})

    def _survey(self, number: int) -> None:
        """Learn from a batch how often and in which order layers are called, and keep rows."""
        in_whole: Counter[str] = Counter()
        in_left: Counter[str] = Counter()
        last: list[Any] = [None]  # what the layer before has read

        def draw(module: str, call: int, x: Any, y: Any) -> None:
            in_whole[module] += 1
            for name in self.names[module]:
                rows = self._drawn(self.views[name], x, y)
                if rows.bytes <= self._room:
                    self._room -= rows.bytes
                    self.kept[number, name, call] = rows

        def count(module: str, call: int, x: Any, y: Any) -> None:
            in_left[module] += 1
            for name in self.names[module]:
                place = max(self.order.values(), default=0) + int(x is not last[0])
                self.order.setdefault(name, place)
                last[0] = x

        run(self.whole, self.forwards[number], self.names, draw)
        run(self.left, self.forwards[number], self.names, count)
        self.calls.append(in_left)
        for module, names in self.names.items():
            if in_whole[module] != in_left[module]:
                why = "the two networks do not call it alike"
                self.refused.update(dict.fromkeys(names, why))

    def sweep(self, names: Sequence[str], use: Use) -> None:
        """Hand over the rows of some readers, batch by batch."""
        for number in range(len(self.forwards)):
            self._sweep(number, set(names), use)

    def _sweep(self, number: int, chosen: set[str], use: Use) -> None:
        forward, calls = self.forwards[number], self.calls[number]
        rows = {key[1:]: rows for key, rows in self.kept.items() if key[0] == number}

        def draw(module: str, call: int, x: Any, y: Any) -> None:
            for name in chosen.intersection(self.names[module]):
                rows[name, call] = self._drawn(self.views[name], x, y)

        def hand_over(module: str, call: int, x: Any, y: Any) -> None:
            for name in chosen.intersection(self.names[module]):
                drawn = rows.pop((name, call), None)
                if drawn is None or drawn.sizes != self.views[name].sizes(x, y):
                    self.refused[name] = "the two networks do not call it alike"
                    continue
                features = self.views[name].feature_rows(x, y, drawn.index)
                entry = torch.arange(len(features), device=self.device) // len(drawn.index)
                is_held = (entry + number) % HELD_OUT == HELD_OUT - 1
                use(name, features, drawn.targets, is_held)

        modules = [module for module, own in self.names.items() if chosen.intersection(own)]
        missing = [
            module
            for module in modules
            for name in chosen.intersection(self.names[module])
            if any((name, call) not in rows for call in range(calls[module]))
        ]
        if missing:
            run(self.whole, forward, set(missing), draw, calls)
        run(self.left, forward, modules, hand_over, calls)

    def _drawn(self, view: View, x: Any, y: Any) -> _Rows:
        """Return the targets at positions drawn at random, as many as the regression needs."""
        entries, positions = view.sizes(x, y)
        wanted = max(FEWEST_ROWS, ROWS * view.features) / (entries * len(self.forwards))
        count = min(positions, math.ceil(wanted))
        index = torch.randperm(positions)[:count].sort().values.to(self.device)
        return _Rows((entries, positions), index, view.target_rows(x, y, index))
