"""The inputs of one forward pass: tensors at any depth, mapped, moved, cut to one sample."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pbcompress.errors import CompressionError

__all__ = [
    "Call",
    "as_call",
    "few_samples",
    "map_tensors",
    "single_sample",
    "tensors_of",
    "to_device",
]

_CACHES = ("transformers.cache_utils",)


class Call(NamedTuple):
    """The inputs of one forward pass, as the network is called with them.

    Attributes:
        args: Positional ones.
        kwargs: Named ones.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def example_inputs(self) -> tuple[Any, ...] | dict[str, Any]:
        """The same as a user gives them: a tuple, or a dict where they are named.

        Raises:
            CompressionError: Some are positional and some are named.
        """
        if self.args and self.kwargs:
            raise CompressionError(
                "Task.forward calls the model with positional and named inputs at once. Pass "
                "example_inputs as a tuple or a dict."
            )
        return self.kwargs or self.args


def as_call(example_inputs: object) -> Call:
    """Return the call that a tensor, a tuple or list, or a dict stands for; a `Call` is one.

    Example:
        >>> as_call({"x": 1})
        Call(args=(), kwargs={'x': 1})
    """
    if isinstance(example_inputs, Call):
        return example_inputs
    if isinstance(example_inputs, Tensor):
        return Call((example_inputs,), {})
    if isinstance(example_inputs, Mapping):
        return Call((), dict(example_inputs))
    if isinstance(example_inputs, tuple | list):
        return Call(tuple(example_inputs), {})
    raise CompressionError(
        "example_inputs must be the inputs of one forward pass: a tensor, a tuple of positional "
        f"or a dict of named inputs. Found {type(example_inputs).__name__}."
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
    return Call(args, kwargs)


def tensors_of(values: object) -> list[Tensor]:
    """Return the tensors at any depth of ``values``, in order, attributes of objects included.

    A cache of keys and values is passed over: it goes back into the network, whose widths it has.
    """
    return list(_tensors_within(values, set()))


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


def single_sample(call: Call) -> Call:
    """Return ``call`` with the first axis of every tensor cut to one: batch size 1."""
    return map_tensors(call, lambda t: t[:1].clone() if t.dim() else t)


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


def to_device(call: Call, device: torch.device | str) -> Call:
    """Return ``call`` with every tensor on ``device``."""
    return map_tensors(call, lambda t: t.detach().to(device))
