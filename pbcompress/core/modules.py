"""Find, replace and keep: the few operations on a model that everything else is made of."""

import copy
import dataclasses
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress.errors import CompressionError

__all__ = [
    "as_call",
    "channel_axis",
    "copy_model",
    "copy_sharing",
    "device_of",
    "kept_modes",
    "map_tensors",
    "matches",
    "parameter_count",
    "preserved_mode",
    "replace_module",
    "rest_",
    "seeded",
    "shared_parameter_names",
    "single_sample",
    "tensors_of",
    "to_device",
]

Call = tuple[tuple[Any, ...], dict[str, Any]]

_CACHES = ("transformers.cache_utils",)


def as_call(example_inputs: object) -> Call:
    """Return ``(args, kwargs)`` of one forward pass from a tensor, a tuple or list, or a dict.

    Example:
        >>> as_call({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
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

    args, kwargs = tree_map(changed, call)
    return args, kwargs


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


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter, the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def single_sample(call: Call) -> Call:
    """Return ``call`` with the first axis of every tensor cut to one: batch size 1."""
    return map_tensors(call, lambda t: t[:1].clone() if t.dim() else t)


def to_device(call: Call, device: torch.device | str) -> Call:
    """Return ``call`` with every tensor on ``device``."""
    return map_tensors(call, lambda t: t.detach().to(device))


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares no tensor with ``model``."""
    if not isinstance(model, nn.Module):
        raise CompressionError(f"model must be a torch.nn.Module; found {type(model).__name__}.")
    try:
        return copy.deepcopy(model, _detached(model))
    except Exception as err:
        raise CompressionError(
            "pbcompress works on a deep copy, so that your model stays as it is, and this model "
            f"cannot be copied: {err}. Remove non-leaf tensors, locks or open files from it."
        ) from err


def _detached(model: nn.Module) -> dict[int, Any]:
    """Return copies of what modules computed and hold, which deepcopy refuses: old weight norms."""
    held = [v for module in model.modules() for v in vars(module).values()]
    return {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and not v.is_leaf}


def copy_sharing(model: nn.Module) -> nn.Module:
    """Return a deep copy whose parameters are new objects on the storage of the old ones."""
    shared = {
        id(p): nn.Parameter(p.detach(), p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter
    }
    return copy.deepcopy(model, {**_detached(model), **shared})


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameter elements, shared parameters counted once."""
    return sum(p.numel() for p in model.parameters())


def shared_parameter_names(model: nn.Module) -> dict[str, str]:
    """Return each name of a parameter or buffer that is another name's tensor: alias to first."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            continue
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            aliases[name] = owner
    return aliases


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether ``name`` is one of ``patterns`` (``fnmatch``) or lies below one of them."""
    return any(fnmatchcase(name, p) or name.startswith(f"{p}.") for p in patterns)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``name`` of ``model``, under every name that the old one has."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):  # named_children skips repeats
            if child is old and parent is not module:
                setattr(parent, child_name, module)


def channel_axis(layer: nn.Module) -> int:
    """Return the output's channel axis, counted from the end: -1 for Linear, -3 for Conv2d."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return -1 - len(layer.kernel_size)
    return -1


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Give every module that ``model`` has now its mode back at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def preserved_mode(model: nn.Module, *, training: bool) -> Iterator[nn.Module]:
    """Put ``model`` into a mode, and give every module its former mode back at the end."""
    with kept_modes(model):
        yield model.train(training)


def rest_(model: nn.Module) -> None:
    """Put a network into eval mode, which gradients will pass through.

    Recurrent layers without dropout go into training mode, where they compute the same: cuDNN has a
    backward pass for no other.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and module.dropout == 0:
            module.train()


@contextmanager
def seeded(*seed: int | str) -> Iterator[None]:
    """Seed Python, NumPy and torch (CPU and CUDA), and give their former states back at the end.

    Args:
        seed: Values that together name the random stream, e.g. ``(0, "neuron", 3)``.

    Example:
        >>> with seeded(1, "a"):
        ...     first = torch.rand(2)
        >>> with seeded(1, "a"):
        ...     bool(torch.equal(first, torch.rand(2)))
        True
    """
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    value = random.Random(repr(seed)).getrandbits(32)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(value)
            random.seed(value)
            if numpy:
                numpy.random.seed(value)
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
