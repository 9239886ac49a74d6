"""One forward pass that follows labels instead of channels: what a network's structure is.

Every dimension of every parameter starts with labels of its own. Each operation says how the
labels of its results follow from those of its operands, and which of them it couples. The sizes
that the forward pass computes are checked at the end against the labels, so that a shape that is
written into the code keeps its channels.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pbcompress.coupling import Coupling, Labels
from pbcompress.errors import CompressionError
from pbcompress.movement import RULES
from pbcompress.operators import unknown
from pbcompress.sizes import Attribute, Size, leaves_of
from pbcompress.surgery import Call, seeded, tensors_of

__all__ = ["Event", "Trace", "Work", "plain_kernels", "trace"]

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_READ_IN_FORWARD = (nn.LayerNorm, nn.RMSNorm, nn.RNNBase)  # torch's layers that read their sizes
_ATTENTION = torch.nn.functional.multi_head_attention_forward


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
    """

    name: str
    selects: tuple[tuple[int, int, Tensor], ...]
    scatters: tuple[tuple[int, int, Tensor], ...]


@dataclass(frozen=True)
class Check:
    """A size that the forward pass hands to an operation, and the dimension that it describes."""

    size: int
    labels: Tensor
    where: str


@dataclass(frozen=True)
class UserCall:
    """The call in the user's code that an operation is part of."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return getattr(self.func, "__name__", "")


@dataclass
class Trace:
    """What one forward pass says about a network.

    Attributes:
        coupling: The forest of labels.
        tensors: Labels of every dimension of every parameter and buffer that takes part, by name.
        works: Counted operations.
        events: Operations for the proof, in the order in which they ran.
        bindings: Attributes that are rewritten when channels go, and the labels that they count.
        uncounted: Operations that are not counted, with their number.
    """

    coupling: Coupling = field(default_factory=Coupling)
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bindings: dict[Attribute, Tensor] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    numbers: set[Attribute] = field(default_factory=set)
    uncounted: Counter[str] = field(default_factory=Counter)


def trace(network: nn.Module, call: Call) -> Trace:
    """Run ``network`` once in eval mode and return its structure.

    Args:
        network: A copy that the trace may prepare; its attributes are as before at the end.
        call: ``(args, kwargs)`` of one forward pass, on the network's device.

    Raises:
        CompressionError: The forward pass fails.
    """
    tracer = Tracer(network)
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.no_grad(),
        seeded("trace"),
        plain_kernels(network),
        _sized_attributes(network, tracer.number_matters),
        _module_names(network, tracer.path),
    ):
        warnings.simplefilter("ignore")
        args, kwargs = call
        try:
            with tracer.functions, tracer.operations:
                output = network(*args, **kwargs)
        except Exception as err:
            shapes = [tuple(t.shape) for t in tensors_of(call)]
            raise CompressionError(
                f"The model was run on one sample of example_inputs, shapes {shapes}, and its "
                f"forward failed: {err}. Give inputs whose first axis is the batch."
            ) from err
    for tensor in tensors_of(output):
        tracer.pin(tensor, "its width is the network's output")
    return tracer.result


class Tracer:
    """The state of a trace, and what the rules of operations call."""

    def __init__(self, network: nn.Module) -> None:
        self.result = Trace()
        self.coupling = self.result.coupling
        self.path: list[str] = []
        self.call: UserCall | None = None
        self.functions, self.operations = _Functions(self), _Operations(self)
        self._names: dict[int, str] = {}
        self._labels: Any = WeakTensorKeyDictionary()  # of tensors that are still in use
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            self._names.setdefault(id(tensor), name)

    @property
    def where(self) -> str:
        return self.path[-1] if self.path else ""

    def labels(self, tensor: Tensor) -> list[Labels]:
        """Return the labels of every dimension of a tensor."""
        found: list[Labels] | None = self._labels.get(tensor)
        if found is not None:
            return list(found)
        name = self._names.get(id(tensor))
        labels: list[Labels] = [None] * tensor.dim()
        if name is not None and (tensor.is_floating_point() or tensor.is_complex()):
            axes = [
                self.coupling.fresh(size) if size > 1 else torch.zeros(size, dtype=torch.long)
                for size in tensor.shape
            ]
            self.result.tensors[name] = axes
            labels = [axis if len(axis) > 1 else None for axis in axes]
        self._labels[tensor] = labels
        return list(labels)

    def set_labels(self, tensor: Tensor, labels: Sequence[Labels]) -> None:
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
    ) -> None:
        """Record an operation of which the proof runs only what is left."""
        self.result.events.append(
            Event(
                name,
                tuple((i, d, v) for i, d, v in selects if v is not None),
                tuple((i, d, v) for i, d, v in scatters if v is not None),
            )
        )

    def expect(self, size: int | None, labels: Labels) -> None:
        """Note that ``size`` must go on to be the number of ``labels`` left; None: it adapts."""
        if labels is None or size is None:
            return
        origin = size.origin if isinstance(size, Size) else None
        if origin is labels:
            return
        if isinstance(origin, Attribute):
            self.result.bindings.setdefault(origin, labels)
        self.result.checks.append(Check(size, labels, self.where))

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
        return size if labels is None else Size(size, labels, self.number_matters)

    def number_matters(self, size: Size) -> None:
        """Note that a size was used as a number, so that what it was computed from must stay."""
        for leaf in leaves_of(size):
            if isinstance(leaf, Tensor):
                self.result.checks.append(Check(len(leaf), leaf, self.where))
            else:
                self.result.numbers.add(leaf)


class _Functions(TorchFunctionMode):
    """Sees the calls of the user's code, with sizes as the code computed them."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tracer, kwargs = self.tracer, kwargs or {}
        outer = tracer.call
        tracer.call = UserCall(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        finally:
            tracer.call = outer
        if func == _SHAPE or (func is Tensor.size and type(result) is torch.Size):
            labels = tracer.labels(args[0])
            return torch.Size([tracer.size_of(v, n) for v, n in zip(labels, result, strict=True)])
        if func is Tensor.size:
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return tracer.size_of(tracer.labels(args[0])[dim], result)
        if func is _ATTENTION:
            for tensor in tensors_of((args, kwargs, result)):
                tracer.pin(tensor, f"nn.MultiheadAttention {tracer.where!r} keeps its width")
        return result


class _Operations(TorchDispatchMode):
    """Sees every operation that runs, and follows labels through it."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tracer = self.tracer
        name = func._schema.name.removeprefix("aten::")
        given = [tracer.labels(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **kwargs)
        follow = RULES.get(name, unknown)
        if follow is unknown and not any(v is not None for labels in given for v in labels):
            return result  # whatever it does, it does it to fixed sizes
        labels = follow(tracer, name, args, kwargs, result)  # type: ignore[no-untyped-call]
        if isinstance(result, Tensor):
            tracer.set_labels(result, labels)
        elif labels is not None:
            for tensor, own in zip(result, labels, strict=True):
                if isinstance(tensor, Tensor):
                    tracer.set_labels(tensor, own)
        return result


@contextmanager
def plain_kernels(network: nn.Module) -> Iterator[None]:
    """Run attention and recurrent layers as the operations that they consist of."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    one_dnn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(one_dnn)


@contextmanager
def _module_names(network: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the dotted name of the module that runs at the end of ``path``."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(partial(_enter, path, name)))
        handles.append(module.register_forward_hook(partial(_leave, path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(path: list[str], name: str, *_: object) -> None:
    path.append(name)


def _leave(path: list[str], *_: object) -> None:
    path.pop()


@contextmanager
def _sized_attributes(network: nn.Module, on_value: Callable[[Size], None]) -> Iterator[None]:
    """Let the integers that the modules of ``network`` hold remember whose they are."""
    changed: list[tuple[nn.Module, str, Any]] = []
    for module_name, module in network.named_modules():
        of_torch = type(module).__module__.startswith("torch.")
        if of_torch and not isinstance(module, _READ_IN_FORWARD):
            continue
        for name, value in list(vars(module).items()):
            sized = _sized(value, Attribute(module_name, name), on_value)
            if sized is not value:
                changed.append((module, name, value))
                vars(module)[name] = sized
    try:
        yield
    finally:
        for module, name, value in changed:
            vars(module)[name] = value


def _sized(value: Any, attribute: Attribute, on_value: Callable[[Size], None]) -> Any:
    if type(value) is int and value > 1:
        return Size(value, attribute, on_value)
    if type(value) in (tuple, list) and any(type(v) is int and v > 1 for v in value):
        items = (
            _sized(v, Attribute(attribute.module, attribute.name, i), on_value)
            if type(v) is int
            else v
            for i, v in enumerate(value)
        )
        return type(value)(items)
    return value
