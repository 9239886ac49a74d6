"""What a pass over a network collects, and what the rules of operations call to say it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pbcompress.structure.computed_weights import ComputedWeights
from pbcompress.structure.labels import Coupling, Labels
from pbcompress.structure.sizes import Attribute, Size, evaluate, values_of
from pbcompress.structure.used_work import UsedWork

__all__ = ["Check", "Event", "Trace", "Tracer", "UserCall", "Work"]

MOST_SHARES = 16  # equal parts of a dimension that its code may take by their number


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one operation: a coefficient times the sizes of some dimensions.

    Attributes:
        module: Dotted name of the module that ran it.
        coefficient: Multiply-adds per element of the product of ``dims``.
        dims: Labels of the dimensions whose size may change.
    """

    module: str
    coefficient: int
    dims: tuple[Tensor, ...]


@dataclass(frozen=True)
class Event:
    """An operation whose result depends on how many channels there are, and not only on which.

    Attributes:
        name: Operation.
        selects: For each operand (its place among the arguments) the dimension and its labels.
        scatters: The same for results.
        fill: What results have in place of what is removed.
    """

    name: str
    selects: tuple[tuple[int, int, Tensor], ...]
    scatters: tuple[tuple[int, int, Tensor], ...]
    fill: float = 0.0


@dataclass(frozen=True)
class Check:
    """A size that the forward pass hands to an operation, and the dimension that it describes.

    Without labels it is used as a number, and must stay what it is.
    """

    size: int
    labels: Labels
    where: str


@dataclass(frozen=True)
class UserCall:
    """The call in the user's code that an operation is part of."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the function or method."""
        return getattr(self.func, "__name__", "")


@dataclass
class Trace:
    """What one forward pass says about a network.

    Attributes:
        coupling: The forest of labels.
        tensors: Labels of every dimension of every parameter and buffer that takes part, by name.
        works: Counted operations that the outputs depend on.
        events: Operations for the proof, in the order in which they ran.
        bindings: Attributes that are rewritten when channels go, and the labels that they count.
        checks: Sizes that operations were given, and what they must go on to be the size of.
        stated: Those of the bindings that layers of torch state, and set from their weights.
        uncounted: Operations that are not counted, with their number.
        operations: Name of every operation, in the order in which they ran.
        decisions: Modules whose code read a value, so that it may take another path on others.
    """

    coupling: Coupling = field(default_factory=Coupling)
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bindings: dict[Attribute, Tensor] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    stated: set[Attribute] = field(default_factory=set)
    uncounted: Counter[str] = field(default_factory=Counter)
    operations: list[str] = field(default_factory=list)
    decisions: set[str] = field(default_factory=set)


class Tracer:
    """The state of a trace, and what the rules of operations call."""

    def __init__(self, network: nn.Module) -> None:
        self.result = Trace()
        self.coupling = self.result.coupling
        self.path: list[str] = []
        self.call: UserCall | None = None
        self.left_torch = False  # whether values went to numpy or Python
        self.trusts = False  # that the code that runs follows the attributes of its module
        self._modules: dict[str, nn.Module] = dict(network.named_modules())
        self.names: dict[int, str] = {}  # of parameters and buffers, by their id
        self._labels: Any = WeakTensorKeyDictionary()  # of tensors that are still in use
        self._kept_if_used: Any = WeakTensorKeyDictionary()  # labels and reasons, by tensor
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            self.names.setdefault(id(tensor), name)
        self.weights = ComputedWeights(self.names)
        self.used = UsedWork()

    @property
    def where(self) -> str:
        """Dotted name of the module that runs."""
        return self.path[-1] if self.path else ""

    @property
    def module(self) -> nn.Module:
        """The module that runs."""
        return self._modules[self.where]

    def labels(
        self, tensor: Tensor, new: Mapping[int, Labels] | None = None, *, is_use: bool = True
    ) -> list[Labels]:
        """Return the labels of every dimension of a tensor.

        Args:
            tensor: An operand or a result.
            new: Labels of a parameter's dimensions, if this is the first use of it. To take those
                that it is about to be coupled with is cheaper than to couple new ones.
            is_use: Whether its values are used, and not its shape alone.
        """
        kept = self._kept_if_used.pop(tensor, None) if self._kept_if_used and is_use else None
        if kept is not None:
            self.coupling.pin(*kept)
        found: list[Labels] | None = self._labels.get(tensor)
        if found is not None:
            return list(found)
        name = self.names.get(id(tensor))
        labels: list[Labels] = [None] * tensor.dim()
        if name is not None and (tensor.is_floating_point() or tensor.is_complex()):
            axes = [self._first(size, (new or {}).get(d)) for d, size in enumerate(tensor.shape)]
            self.result.tensors[name] = axes
            labels = [axis if len(axis) > 1 else None for axis in axes]
        self._labels[tensor] = labels
        return list(labels)

    def _first(self, size: int, given: Labels) -> Tensor:
        if given is not None and len(given) == size:
            return given
        return self.coupling.fresh(size) if size > 1 else torch.zeros(size, dtype=torch.long)

    def set_labels(self, tensor: Tensor, labels: Sequence[Labels]) -> None:
        """Give a result its labels; a dimension of one position has none."""
        self._labels[tensor] = [
            own if own is not None and size > 1 else None
            for own, size in zip(labels, tensor.shape, strict=True)
        ]

    def couple(self, a: Labels, b: Labels, reason: str = "") -> Labels:
        """Couple two dimensions of equal size and return the labels of both."""
        if a is not b:
            self.coupling.couple(
                a, b, reason or f"its channels meet a tensor of fixed size in {self.where!r}"
            )
        return a if a is not None else b

    def pin(self, tensor: Tensor, reason: str) -> None:
        """Keep all channels of a tensor."""
        for labels in self.labels(tensor):
            self.coupling.pin(labels, reason)

    def work(self, coefficient: int, *dims: tuple[int, Labels]) -> None:
        """Count multiply-adds: the coefficient times every size, fixed or labelled."""
        for size, labels in dims:
            if labels is None:
                coefficient *= size
        kept = tuple(labels for _, labels in dims if labels is not None)
        self.result.works.append(Work(self.where, coefficient, kept))

    def event(
        self,
        name: str,
        selects: Sequence[tuple[int, int, Labels]],
        scatters: Sequence[tuple[int, int, Labels]] = (),
        fill: float = 0.0,
    ) -> None:
        """Record an operation of which the proof runs only what is left."""
        self.result.events.append(
            Event(
                name,
                tuple((i, d, v) for i, d, v in selects if v is not None),
                tuple((i, d, v) for i, d, v in scatters if v is not None),
                fill,
            )
        )

    def expect(self, size: int | None, labels: Labels) -> None:
        """Note that ``size`` must go on to be the number of ``labels`` left; None: it adapts."""
        if labels is None or size is None or self.trusts:
            return
        origin = size.origin if isinstance(size, Size) else None
        if origin is labels:
            return
        if isinstance(origin, Attribute):
            self.result.bindings.setdefault(origin, labels)
        self.result.checks.append(Check(size, labels, self.where))

    def expect_attribute(self, name: str, tensor: Tensor, dim: int) -> None:
        """Note that the running module's attribute is the size of a tensor's dimension."""
        value = getattr(self._modules.get(self.where), name, None)
        if isinstance(value, int) and value == tensor.shape[dim]:
            self.expect(Size(value, Attribute(self.where, name)), self.labels(tensor)[dim])

    def expect_part(self, size: int | None, whole: Tensor, part: Labels) -> None:
        """Note that ``size`` is that of a part; an attribute that is as large as all counts all."""
        for leaf, value in values_of(size) if size is not None else ():
            if isinstance(leaf, Attribute) and value == len(whole) and not self.trusts:
                self.result.bindings.setdefault(leaf, whole)
        if isinstance(size, Size) and not self.trusts:
            self._couple_shares(size, whole)
        self.expect(size, part)

    def _couple_shares(self, size: Size, whole: Tensor) -> None:
        """Let all shares lose as much, where the code computes a share of a dimension's size."""
        total = len(whole)
        count = total // math.gcd(total, int(size))
        leaves = values_of(size)
        if not 1 < count <= MOST_SHARES or any(value != total for _, value in leaves):
            return
        share = int(size) * count // total
        for each in (1, 2, 3, total // count):
            if evaluate(size, lambda leaf, was: count * each) != share * each:  # noqa: B023
                return
        first, *others = whole.chunk(count)
        for other in others:
            self.couple(first, other)
        for leaf, _ in leaves:
            if isinstance(leaf, Tensor):  # whose size it is: as wide as this one
                self.couple(leaf, whole)

    def keep_if_used(self, tensor: Tensor, labels: Labels, reason: str) -> None:
        """Say that ``labels`` stay if the values of a tensor are ever used."""
        if labels is not None:
            self._kept_if_used[tensor] = labels, reason

    def labels_of_size(self, size: int) -> Labels:
        """Return the labels that a new dimension of ``size`` has because of where it was read."""
        origin = size.origin if isinstance(size, Size) else None
        if isinstance(origin, Attribute):
            if origin not in self.result.bindings:
                self.result.bindings[origin] = self.coupling.fresh(int(size))
            return self.result.bindings[origin]
        return origin if isinstance(origin, Tensor) else None

    def size_of(self, labels: Labels, size: int) -> int:
        """Return a size that remembers the dimension it was read from."""
        return size if labels is None else Size(size, labels, self)

    def were_equal(self, size: Size, other: int) -> None:
        """Note that the code wants a dimension to have the size that something else has."""
        is_kept_in_step = type(self.module).__module__.startswith("torch.")
        if is_kept_in_step and not isinstance(self.module, nn.Transformer):
            return
        found = other.origin if isinstance(other, Size) else None
        for labels, wanted, origin in ((size.origin, other, found), (found, size, size.origin)):
            if isinstance(labels, Tensor) and not isinstance(origin, Tensor | tuple):
                self.expect(wanted, labels)

    def number_matters(self, size: Size) -> None:
        """Note that a size was used as a number, so that it must stay."""
        self.result.checks.append(Check(size, None, self.where))
