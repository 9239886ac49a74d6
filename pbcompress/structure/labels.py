"""Which positions of which dimensions must go together: unification of labels, vectorised.

Every position of a dimension carries a label. Labels that were coupled stand for one unit, which
is kept or lost as a whole. A label may be a pair of two others, where two axes were merged into
one dimension (heads times channels): it is lost when either of them is. Label 0, and every label
that was pinned, is never lost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Coupling", "Labels"]

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
        self._parent = torch.zeros(1024, dtype=torch.long)
        self._left = torch.zeros(1024, dtype=torch.long)  # 0: not a pair
        self._right = torch.zeros(1024, dtype=torch.long)
        self._pinned = torch.zeros(1024, dtype=torch.long)  # 0: free, else the reason's number
        self._has_pairs = False
        self._reasons = ["", ""]
        self._pinned[0] = 1

    @property
    def size(self) -> int:
        """Number of labels, label 0 included."""
        return self._size

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new free labels."""
        start, self._size = self._size, self._size + count
        while self._size > len(self._parent):
            for name in ("_parent", "_left", "_right", "_pinned"):
                old: Tensor = getattr(self, name)
                setattr(self, name, torch.cat([old, torch.zeros_like(old)]))
        labels = torch.arange(start, self._size)
        self._parent[start : self._size] = labels
        return labels

    def _pairs_of(self, left: Tensor, right: Tensor) -> Tensor:
        """Return new labels for pairs of two others."""
        pairs = self.fresh(len(left))
        self._left[pairs], self._right[pairs] = left, right
        self._has_pairs = True
        return pairs

    def _find(self, labels: Tensor) -> Tensor:
        root = self._parent[labels]
        above = self._parent[root]
        if torch.equal(above, root):
            return root
        while not torch.equal(above, root):
            root, above = above, self._parent[above]
        self._parent[labels] = root
        return root

    def resolve(self, labels: Tensor) -> Tensor:
        """Return each label's representative: 0 where pinned, else a free label or a free pair."""
        root = self._find(labels)
        root = root.masked_fill(self._pinned[root] > 0, 0)
        if not self._has_pairs:
            return root
        left = self._left[root]
        pairs = left.nonzero().squeeze(1)
        if len(pairs) == 0:
            return root
        left, right = self.resolve(left[pairs]), self.resolve(self._right[root[pairs]])
        inner = torch.where(left == 0, right, torch.where(right == 0, left, root[pairs]))
        root[pairs] = torch.where(left == right, left, inner)
        return root

    def sides(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two parts of resolved labels: a free label is its own left, 0 its right."""
        left, right = self._left[labels], self._right[labels]
        is_pair = left > 0
        return (
            torch.where(is_pair, self.resolve(left), labels),
            torch.where(is_pair, self.resolve(right), torch.zeros_like(labels)),
        )

    def parts(self, labels: Tensor) -> list[Tensor]:
        """Return the free labels that each position consists of, 0 where there are fewer."""
        labels = self.resolve(labels)
        if not (self._has_pairs and (self._left[labels] > 0).any()):
            return [labels]
        left, right = self.sides(labels)
        return self.parts(left) + self.parts(right)

    def parts_of(self, dimensions: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the `parts` of every dimension, without those that are all 0 but the first."""
        if not dimensions:
            return []
        first, *others = self.parts(torch.cat(list(dimensions)))
        sizes = [len(labels) for labels in dimensions]
        found = [[part] for part in first.split(sizes)]
        for other in others:
            for own, part in zip(found, other.split(sizes), strict=True):
                if part.any():
                    own.append(part)
        return found

    def pin(self, labels: Labels, reason: str) -> None:
        """Keep the units of ``labels`` for good; the first reason stays."""
        if labels is None:
            return
        labels = self.resolve(labels)
        labels = labels[labels > 0]
        if len(labels):
            self._reasons.append(reason)
            while len(labels):
                self._pinned[labels] = len(self._reasons) - 1
                left, right = self._left[labels], self._right[labels]
                labels = torch.cat([left[left > 0], right[right > 0]])
                labels = self._find(labels)
                labels = labels[self._pinned[labels] == 0]

    def reason(self, labels: Tensor) -> str:
        """Return why one of ``labels`` is pinned, "" if none is; of a pair, why its parts are."""
        roots = self._find(labels)
        found = self._pinned[roots]
        if found.any():
            return self._reasons[int(found.max())]
        pairs = roots[self._left[roots] > 0]
        if len(pairs) == 0:
            return ""
        parts = (self.reason(self._left[pairs]), self.reason(self._right[pairs]))
        return "; ".join(dict.fromkeys(filter(None, parts)))

    def couple(self, a: Labels, b: Labels, reason: str) -> None:
        """Make the units at equal positions one; where one side is pinned, both are."""
        if a is None or b is None:
            return self.pin(a if b is None else b, reason)
        given_a, given_b = torch.broadcast_tensors(a, b) if a.shape != b.shape else (a, b)
        while True:
            a, b = self.resolve(given_a), self.resolve(given_b)
            if torch.equal(a, b):
                return None
            differ = a != b
            given_a, given_b, a, b = given_a[differ], given_b[differ], a[differ], b[differ]
            fixed = (a == 0) | (b == 0)
            if fixed.any():
                known = self.reason(torch.cat([given_a[fixed], given_b[fixed]]))
                self.pin(torch.cat([a[fixed], b[fixed]]), known or reason)
                continue
            self._link(a, b, reason)

    def _link(self, a: Tensor, b: Tensor, reason: str) -> None:
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
        pair = torch.where(pair_a, a, b)[mixed]
        leaf = torch.where(pair_a, b, a)[mixed]
        parts = torch.stack(self.parts(pair))
        inside = (parts == leaf).any(0)
        if inside.any():  # a unit that would be part of itself: its other parts stay
            rest = parts[:, inside]
            self.pin(rest[rest != leaf[inside]], reason)
            return
        if torch.isin(leaf, parts).any():
            pair, leaf = pair[:1], leaf[:1]  # in turn: one's part is another's whole
        self._parent[leaf] = pair

    def _link_pairs(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Join pairs whose sides are the same, or else their sides."""
        (left_a, right_a), (left_b, right_b) = self.sides(a), self.sides(b)
        crossed = (left_a == right_b) | (right_a == left_b)
        left_b, right_b = (
            torch.where(crossed, right_b, left_b),
            torch.where(crossed, left_b, right_b),
        )
        same = (left_a == left_b) & (right_a == right_b)
        if same.all():
            self._join(a, b)
            return
        self.couple(left_a[~same], left_b[~same], reason)
        self.couple(right_a[~same], right_b[~same], reason)

    def _join(self, a: Tensor, b: Tensor) -> None:
        self._parent[torch.maximum(a, b)] = torch.minimum(a, b)

    def merge(self, a: Labels, rows: int, b: Labels, columns: int) -> Labels:
        """Return the labels of an axis that two adjacent axes were flattened into."""
        if a is None and b is None:
            return None
        left = self.resolve(a) if a is not None else torch.zeros(rows, dtype=torch.long)
        right = self.resolve(b) if b is not None else torch.zeros(columns, dtype=torch.long)
        left = left[:, None].expand(rows, columns).reshape(-1)
        right = right[None, :].expand(rows, columns).reshape(-1)
        merged = torch.where(left == 0, right, left)
        both = ((left > 0) & (right > 0)).nonzero().squeeze(1)
        if len(both):
            merged[both] = self._pairs_of(left[both], right[both])
        return merged

    def split(self, labels: Labels, rows: int, columns: int, reason: str) -> tuple[Labels, Labels]:
        """Return the labels of the two axes that one axis is unflattened into."""
        if labels is None:
            return None, None
        if rows == 1 or columns == 1:
            return (None, labels) if rows == 1 else (labels, None)
        outer: Labels = None
        inner: Labels = None
        rest: list[Tensor] = []
        for part in self.parts(labels):
            grid = part.view(rows, columns)
            if not part.any():
                continue
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
        for part in rest:
            self.pin(part, reason)
        return outer, inner

    def _both(self, a: Labels, b: Tensor) -> Tensor:
        """Return labels that are lost when either of two at the same position is."""
        if a is None:
            return b
        both = ((a > 0) & (b > 0)).nonzero().squeeze(1)
        joined = torch.where(a == 0, b, a)
        if len(both):
            joined[both] = self._pairs_of(a[both], b[both])
        return joined
