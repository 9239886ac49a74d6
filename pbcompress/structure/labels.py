"""Which positions of which dimensions must go together: unification of labels, vectorised.

Every position of a dimension carries a label. Labels that were coupled stand for one unit, which
is kept or lost as a whole. A label may be a pair of two others, where two axes were merged into
one dimension (heads times channels): it is lost when either of them is. Label 0, and every label
that was pinned, is never lost.

Labels are tensors for those who ask, and arrays in here: an operation on a few hundred numbers
takes several times as long in torch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Coupling", "Labels"]

Array = NDArray[np.int64]
Labels = Tensor | None  # one label for each position; None: all of them are pinned


class Coupling:
    """A forest of labels with pairs, as in unification.

    Example:
        >>> units = Coupling()
        >>> a, b = units.fresh(3), units.fresh(3)
        >>> units.couple(a, b, "a sum")
        >>> bool((units.resolve(a) == units.resolve(b)).all())
        True
        >>> units.pin(b[:1], "an output")
        >>> units.resolve(a)[0].item(), units.reason(a)
        (0, 'an output')
    """

    def __init__(self) -> None:
        self._size = 1
        self._parent = np.zeros(1024, np.int64)
        self._left = np.zeros(1024, np.int64)  # 0: not a pair
        self._right = np.zeros(1024, np.int64)
        self._pinned = np.zeros(1024, np.int64)  # 0: free, else the reason's number
        self._has_pairs = False
        self._reasons = ["", ""]
        self._pinned[0] = 1

    @property
    def size(self) -> int:
        """Number of labels, label 0 included."""
        return self._size

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new free labels."""
        return torch.from_numpy(self._fresh(count))

    def resolve(self, labels: Tensor) -> Tensor:
        """Return each label's representative: 0 where pinned, else a free label or a free pair."""
        return torch.from_numpy(self._resolve(labels.numpy()))

    def parts(self, labels: Tensor) -> list[Tensor]:
        """Return the free labels that each position consists of, 0 where there are fewer."""
        return [torch.from_numpy(part) for part in self._parts(labels.numpy())]

    def parts_of(self, dimensions: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the `parts` of every dimension, without those that are all 0 but the first."""
        if not dimensions:
            return []
        first, *others = self.parts(torch.cat(list(dimensions)))
        sizes = [labels.numel() for labels in dimensions]
        found = [[part] for part in first.split(sizes)]
        for other in others:
            for own, part in zip(found, other.split(sizes), strict=True):
                if part.any():
                    own.append(part)
        return found

    def pin(self, labels: Labels, reason: str) -> None:
        """Keep the units of ``labels`` for good; the first reason stays."""
        if labels is not None:
            self._pin(labels.numpy(), reason)

    def reason(self, labels: Tensor) -> str:
        """Return why one of ``labels`` is pinned, "" if none is; of a pair, why its parts are."""
        return self._reason(labels.numpy())

    def couple(self, a: Labels, b: Labels, reason: str) -> None:
        """Make the units at equal positions one; where one side is pinned, both are."""
        if a is None or b is None:
            self.pin(a if b is None else b, reason)
        else:
            self._couple(a.numpy(), b.numpy(), reason)

    def merge(self, a: Labels, rows: int, b: Labels, columns: int) -> Labels:
        """Return the labels of an axis that two adjacent axes were flattened into."""
        if a is None and b is None:
            return None
        given_a = np.zeros(rows, np.int64) if a is None else a.numpy()
        given_b = np.zeros(columns, np.int64) if b is None else b.numpy()
        given_a, given_b = given_a.repeat(columns), np.tile(given_b, rows)
        left, right = self._resolve(given_a), self._resolve(given_b)
        merged = np.where(left == 0, right, left)
        known = np.where(given_b > 0, given_b, given_a)  # a pinned label knows why
        merged = np.where(merged == 0, known, merged)
        both = ((left > 0) & (right > 0)).nonzero()[0]
        if len(both):
            merged[both] = self._pairs_of(left[both], right[both])
        return torch.from_numpy(merged)

    def split(self, labels: Labels, rows: int, columns: int, reason: str) -> tuple[Labels, Labels]:
        """Return the labels of the two axes that one axis is unflattened into."""
        if labels is None:
            return None, None
        if rows == 1 or columns == 1:
            return (None, labels) if rows == 1 else (labels, None)
        outer: Labels = None
        inner: Labels = None
        rest: list[Tensor] = []
        parts = self.parts(labels)
        for part in parts:
            grid = part.view(rows, columns)
            if not part.any():
                continue
            if not _is_grid(grid):  # of a square, a place where both axes have one label is no pair
                grid = torch.where(grid == 0, parts[0].view(rows, columns), grid)
            if torch.equal(grid, grid[:, :1].expand_as(grid)):
                outer = self._both(outer, grid[:, 0])
            elif torch.equal(grid, grid[:1].expand_as(grid)):
                inner = self._both(inner, grid[0])
            else:
                rest.append(part)
        if len(rest) == 1 and outer is None and inner is None:
            outer, inner = self.fresh(rows), self.fresh(columns)
            self.couple(rest[0], self.merge(outer, rows, inner, columns), reason)
            return outer, inner
        if len(rest) > 1 and outer is None and inner is None:  # the finest of them may still go
            finest = max(rest, key=lambda part: len(part.unique()))
            for part in rest:
                if part is not finest:
                    self.pin(part, reason)
            return self.split(labels, rows, columns, reason)
        for part in rest:
            self.pin(part, reason)
        return outer, inner

    def _both(self, a: Labels, b: Tensor) -> Tensor:
        """Return labels that are lost when either of two at the same position is."""
        if a is None:
            return b
        both = ((a > 0) & (b > 0)).nonzero().squeeze(1).numpy()
        joined = torch.where(a == 0, b, a)
        if len(both):
            pairs = self._pairs_of(a.numpy()[both], b.numpy()[both])
            joined.numpy()[both] = pairs
        return joined

    def _fresh(self, count: int) -> Array:
        start, self._size = self._size, self._size + count
        while self._size > len(self._parent):
            for name in ("_parent", "_left", "_right", "_pinned"):
                old: Array = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        labels = np.arange(start, self._size, dtype=np.int64)
        self._parent[start : self._size] = labels
        return labels

    def _pairs_of(self, left: Array, right: Array) -> Array:
        """Return new labels for pairs of two others."""
        pairs = self._fresh(len(left))
        self._left[pairs], self._right[pairs] = left, right
        self._has_pairs = True
        return pairs

    def _find(self, labels: Array) -> Array:
        root = self._parent[labels]
        above = self._parent[root]
        if (above == root).all():
            return root
        while not (above == root).all():
            root, above = above, self._parent[above]
        self._parent[labels] = root
        return root

    def _resolve(self, labels: Array) -> Array:
        root = self._find(labels)
        root[self._pinned[root] > 0] = 0
        if not self._has_pairs:
            return root
        left = self._left[root]
        pairs = left.nonzero()[0]
        if len(pairs) == 0:
            return root
        left, right = self._resolve(left[pairs]), self._resolve(self._right[root[pairs]])
        inner = np.where(left == 0, right, np.where(right == 0, left, root[pairs]))
        root[pairs] = np.where(left == right, left, inner)
        return root

    def _sides(self, labels: Array) -> tuple[Array, Array]:
        """Return the two parts of resolved labels: a free label is its own left, 0 its right."""
        left, right = self._left[labels], self._right[labels]
        is_pair = left > 0
        return (
            np.where(is_pair, self._resolve(left), labels),
            np.where(is_pair, self._resolve(right), 0),
        )

    def _parts(self, labels: Array) -> list[Array]:
        labels = self._resolve(labels)
        if not (self._has_pairs and (self._left[labels] > 0).any()):
            return [labels]
        left, right = self._sides(labels)
        return self._parts(left) + self._parts(right)

    def _pin(self, labels: Array, reason: str) -> None:
        labels = self._resolve(labels)
        labels = labels[labels > 0]
        if len(labels):
            self._reasons.append(reason)
            while len(labels):
                self._pinned[labels] = len(self._reasons) - 1
                left, right = self._left[labels], self._right[labels]
                labels = self._find(np.concatenate([left[left > 0], right[right > 0]]))
                labels = labels[self._pinned[labels] == 0]

    def _reason(self, labels: Array) -> str:
        roots = self._find(labels)
        found = int(self._pinned[roots].max(initial=0))
        pairs = roots[self._left[roots] > 0]
        if found or not len(pairs):
            return self._reasons[found]
        parts = (self._reason(self._left[pairs]), self._reason(self._right[pairs]))
        return "; ".join(dict.fromkeys(filter(None, parts)))

    def _couple(self, given_a: Array, given_b: Array, reason: str) -> None:
        if given_a.shape != given_b.shape:
            given_a, given_b = np.broadcast_arrays(given_a, given_b)
        while True:
            a, b = self._resolve(given_a), self._resolve(given_b)
            differ = a != b
            if not differ.any():
                return
            given_a, given_b, a, b = given_a[differ], given_b[differ], a[differ], b[differ]
            fixed = (a == 0) | (b == 0)
            if fixed.any():
                known = self._reason(np.concatenate([given_a[fixed], given_b[fixed]]))
                self._pin(np.concatenate([a[fixed], b[fixed]]), known or reason)
                continue
            self._link(a, b, reason)

    def _link(self, a: Array, b: Array, reason: str) -> None:
        """Join some of the free, different, resolved labels; the caller asks again for the rest.

        One kind at a time, so that no label can become a part of itself: free labels with each
        other, then free labels with pairs (the pair stands for both), then pairs with pairs.
        """
        if not self._has_pairs:
            self._join(a, b)
            return
        pair_a, pair_b = self._left[a] > 0, self._left[b] > 0
        plain = ~(pair_a | pair_b)
        if plain.any():
            self._join(a[plain], b[plain])
            return
        mixed = pair_a ^ pair_b
        if not mixed.any():
            self._link_pairs(a, b, reason)
            return
        pair = np.where(pair_a, a, b)[mixed]
        leaf = np.where(pair_a, b, a)[mixed]
        parts = np.stack(self._parts(pair))
        inside = (parts == leaf).any(0)
        if inside.any():  # a unit that would be part of itself: its other parts stay
            rest = parts[:, inside]
            self._pin(rest[rest != leaf[inside]], reason)
            return
        if np.isin(leaf, parts).any():
            pair, leaf = pair[:1], leaf[:1]  # in turn: one's part is another's whole
        self._parent[leaf] = pair

    def _link_pairs(self, a: Array, b: Array, reason: str) -> None:
        """Join pairs whose sides are the same, or else their sides."""
        (left_a, right_a), (left_b, right_b) = self._sides(a), self._sides(b)
        crossed = (left_a == right_b) | (right_a == left_b)
        left_b, right_b = (
            np.where(crossed, right_b, left_b),
            np.where(crossed, left_b, right_b),
        )
        same = (left_a == left_b) & (right_a == right_b)
        if same.all():
            self._join(a, b)
            return
        self._couple(left_a[~same], left_b[~same], reason)
        self._couple(right_a[~same], right_b[~same], reason)

    def _join(self, a: Array, b: Array) -> None:
        self._parent[np.maximum(a, b)] = np.minimum(a, b)


def _is_grid(grid: Tensor) -> bool:
    """Tell whether all rows are alike, or all columns."""
    return bool((grid == grid[:, :1]).all() or (grid == grid[:1]).all())
