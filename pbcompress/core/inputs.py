"""The inputs of one forward pass: tensors at any depth, mapped, moved, cut to one sample."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pbcompress.errors import CompressionError

__all__ = [
    "BatchAxes",
    "Call",
    "Example",
    "as_call",
    "batch_places",
    "few_samples",
    "map_tensors",
    "outputs_of",
    "single_sample",
    "tensors_of",
    "to_device",
    "with_values",
]

_BESIDE_LOGITS = ("hidden_state", "hidden_states", "attentions", "model_output")
_CACHES = ("transformers.cache_utils",)


# The axis of each argument that is the batch, by its name or place; arguments that are not named
# have none. None in place of a mapping: it is not said.
BatchAxes = Mapping[str | int, int]


@dataclass(frozen=True)
class Example:
    """Inputs of one forward pass, with the axes that are the batch.

    It can be given wherever ``example_inputs`` are taken. Without it the first axis of every
    tensor is the batch.

    Args:
        inputs: A tensor, a tuple of positional or a dict of named inputs.
        batch_axes: For each argument of ``forward`` that has a batch, by its name or its place,
            the axis. The others are never cut: an empty dict says that nothing is a batch.

    Example:
        >>> nodes, edges = torch.zeros(30, 4), torch.zeros(2, 90, dtype=torch.long)
        >>> Example((nodes, edges), batch_axes={}).batch_axes
        {}
    """

    inputs: Any
    batch_axes: BatchAxes


@dataclass(frozen=True)
class Call:
    """The inputs of one forward pass, as the network is called with them.

    Attributes:
        args: Positional ones.
        kwargs: Named ones.
        batch_axes: Which axes are the batch, where that was said; see `Example`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch_axes: BatchAxes | None = dataclasses.field(default=None, repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.args, self.kwargs))

    @property
    def example_inputs(self) -> Any:
        """The same as a user gives them: a tuple, or a dict where they are named.

        Raises:
            CompressionError: Some are positional and some are named.
        """
        if self.args and self.kwargs:
            raise CompressionError(
                "Task.forward calls the model with positional and named inputs at once. Pass "
                "example_inputs as a tuple or a dict."
            )
        given = self.kwargs or self.args
        return given if self.batch_axes is None else Example(given, self.batch_axes)


def as_call(example_inputs: object) -> Call:
    """Return the call that a tensor, a tuple or list, or a dict stands for; a `Call` is one.

    Example:
        >>> as_call({"x": 1})
        Call(args=(), kwargs={'x': 1})
    """
    if isinstance(example_inputs, Call):
        return example_inputs
    if isinstance(example_inputs, Example):
        return replace(as_call(example_inputs.inputs), batch_axes=example_inputs.batch_axes)
    if isinstance(example_inputs, Tensor):
        return Call((example_inputs,), {})
    if isinstance(example_inputs, Mapping):
        return Call((), dict(example_inputs))
    if isinstance(example_inputs, tuple | list):
        return Call(tuple(example_inputs), {})
    raise CompressionError(
        "example_inputs must be the inputs of one forward pass: a tensor, a tuple of positional "
        f"or a dict of named inputs, or an Example. Found {type(example_inputs).__name__}."
    )


def map_tensors(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    """Return ``call`` with every tensor at any depth replaced by ``change(tensor)``."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        other = copy.copy(leaf)
        for name, value in vars(leaf).items():
            object.__setattr__(other, name, tree_map(changed, value))  # it may be frozen
        return other

    args, kwargs = tree_map(changed, tuple(call))
    return Call(args, kwargs, call.batch_axes)


def tensors_of(values: object) -> list[Tensor]:
    """Return the tensors at any depth of ``values``, in order, attributes of objects included.

    A cache of keys and values is passed over: it goes back into the network, whose widths it has.
    """
    return list(_tensors_within(values, set()))


def outputs_of(result: object) -> list[Tensor]:
    """Return the tensors that a network gives out, without states beside its logits.

    Where a mapping has logits, other values by the name of hidden states or of the output of a
    part are how they came about: their width is not the network's.
    """
    names = list(result) if isinstance(result, Mapping) else []
    if isinstance(result, Mapping) and any(str(name).startswith("logits") for name in names):
        result = {n: v for n, v in result.items() if not str(n).endswith(_BESIDE_LOGITS)}
    return tensors_of(result)


def _tensors_within(values: object, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            yield leaf
        elif type(leaf).__module__.startswith(_CACHES):
            continue
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module) and not callable(leaf):
            seen.add(id(leaf))
            slots = [n for kind in type(leaf).__mro__ for n in getattr(kind, "__slots__", ())]
            held = {name: getattr(leaf, name, None) for name in slots}
            held.update(getattr(leaf, "__dict__", {}))
            if held:
                yield from _tensors_within(held, seen)


def batch_places(network: nn.Module, call: Call) -> dict[int, int]:
    """Return the axis that is the batch, by the number of each tensor of a call that has one.

    Raises:
        CompressionError: ``batch_axes`` names an argument or an axis that is not there.
    """
    tensors = tensors_of(call)
    if call.batch_axes is None:
        return {i: 0 for i, t in enumerate(tensors) if t.dim()}
    given: dict[str | int, Any] = dict(enumerate(call.args))
    given.update(call.kwargs)
    with suppress(TypeError, ValueError):  # it has no signature, or another one
        given.update(inspect.signature(network.forward).bind(*call.args, **call.kwargs).arguments)
    numbers = {id(t): i for i, t in enumerate(tensors)}
    places = {}
    for name, axis in call.batch_axes.items():
        for tensor in tensors_of(given.get(name)):
            if -tensor.dim() <= axis < tensor.dim():
                places[numbers[id(tensor)]] = axis % tensor.dim()
                continue
            raise CompressionError(
                f"batch_axes says that axis {axis} of {name!r} is the batch; its shape is "
                f"{tuple(tensor.shape)}."
            )
        if name not in given:
            raise CompressionError(
                f"batch_axes names {name!r}; forward was called with "
                f"{', '.join(map(repr, given))}. Use the names or places of its arguments."
            )
    return places


def single_sample(call: Call, network: nn.Module | None = None, count: int = 1) -> Call:
    """Return ``call`` with the batch of every tensor cut to one sample, or to ``count``.

    Args:
        call: The inputs.
        network: What takes them, where ``batch_axes`` may name its arguments.
        count: Samples that stay, at most.
    """
    places = batch_places(network or nn.Identity(), call)
    numbers = {id(t): i for i, t in enumerate(tensors_of(call))}

    def cut(t: Tensor) -> Tensor:
        axis = places.get(numbers[id(t)])
        return t if axis is None else t.narrow(axis, 0, min(count, t.shape[axis])).clone()

    return map_tensors(call, cut)


def few_samples(batch: Any, count: int) -> Any:
    """Return the first samples of a batch; the batch itself where they are not known.

    They are known where all that is in the batch is tensors of one length, more than ``count``.

    Example:
        >>> images, classes = few_samples((torch.zeros(64, 3, 8, 8), torch.zeros(64)), 2)
        >>> images.shape, classes.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """
    lengths = {_length(leaf) for leaf in tree_leaves(batch)}
    if len(lengths) != 1 or lengths.pop() <= count:
        return batch
    return tree_map_only(Tensor, lambda t: t[:count], batch)


def _length(leaf: Any) -> int:
    is_plain = isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.dim() > 0
    return len(leaf) if is_plain else 0


def with_values(call: Call) -> Call:
    """Return ``call`` with numbers on the CPU in place of every tensor on the meta device."""

    def real(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view(tensor.shape)

    return map_tensors(call, real)


def to_device(call: Call, device: torch.device | str) -> Call:
    """Return ``call`` with every tensor on ``device``."""
    return map_tensors(call, lambda t: t.detach().to(device))
