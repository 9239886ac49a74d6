"""Find, replace and keep: the few operations on a model that everything else is made of."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.copying import deep_copy
from pbcompress.core.flexible_attention import plain_flex_attention
from pbcompress.errors import CompressionError

__all__ = [
    "channel_axis",
    "check_names",
    "copy_model",
    "copy_sharing",
    "device_of",
    "dtype_like",
    "has_no_data",
    "kept_modes",
    "matches",
    "names_of",
    "parameter_count",
    "plain_attention",
    "plain_kernels",
    "preserved_mode",
    "replace_module",
    "rest_",
    "shared_parameter_names",
]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter that has data, else the CPU."""
    devices = (p.device for p in model.parameters() if not p.is_meta)
    return next(devices, torch.device("cpu"))


def copy_model(model: nn.Module, sharing: Collection[nn.Parameter] = ()) -> nn.Module:
    """Return a deep copy that shares no tensor with ``model``.

    Args:
        model: Any network.
        sharing: Parameters of which the copy has new objects on the same storage.
    """
    if not isinstance(model, nn.Module):
        raise CompressionError(f"model must be a torch.nn.Module; found {type(model).__name__}.")
    try:
        return deep_copy(model, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in sharing})
    except Exception as err:
        raise CompressionError(
            "pbcompress works on a deep copy, so that your model stays as it is, and this model "
            f"cannot be copied: {err}. Remove non-leaf tensors, locks or open files from it."
        ) from err


def copy_sharing(model: nn.Module) -> nn.Module:
    """Return a deep copy whose parameters are new objects on the storage of the old ones."""
    shared = {
        id(p): nn.Parameter(p.detach(), p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter
    }
    return deep_copy(model, shared)


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


def names_of(model: nn.Module) -> dict[str, list[str]]:
    """Return every name that a parameter has, by the first of them."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return names


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


def has_no_data(model: nn.Module) -> bool:
    """Tell whether every parameter of a model is on the meta device."""
    are_meta = (parameter.is_meta for parameter in model.parameters())
    return next(are_meta, False) and all(are_meta)


def dtype_like(tensor: Tensor, real: torch.dtype) -> torch.dtype:
    """Return the dtype of a tensor whose numbers have the precision of ``real``.

    Example:
        >>> dtype_like(torch.zeros(2, dtype=torch.complex64), torch.float64)
        torch.complex128
    """
    if tensor.is_complex():
        return real.to_complex()
    return real if tensor.is_floating_point() else tensor.dtype


def check_names(model: nn.Module) -> None:
    """Raise if torch would take the name of a layer or tensor for code.

    torch.fx writes names between quotes into Python that it then runs.
    """
    for name in [n for n, _ in model.named_modules()] + list(model.state_dict()):
        if not name.isprintable() or set(name) & set('"\\'):
            raise CompressionError(
                f"A network was to be traced by torch, and {name!r} is the name of a part of it. "
                "Torch writes names into code that it runs: take quotes, backslashes and control "
                "characters out of the name."
            )


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
def plain_attention() -> Iterator[None]:
    """Run the attention of torch as the operations that it consists of.

    Masks are used as they are. Torch would look whether one is causal, which a graph cannot.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    looks: Any = torch.nn.modules.transformer
    detect = looks._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    looks._detect_is_causal_mask = _is_said_to_be_causal
    try:
        with plain_flex_attention():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        looks._detect_is_causal_mask = detect


def _is_said_to_be_causal(
    mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    return is_causal is True


@contextmanager
def plain_kernels(network: nn.Module) -> Iterator[None]:
    """Run attention and recurrent layers as the operations that they consist of."""
    one_dnn = torch._C._get_mkldnn_enabled()
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        torch._C._set_mkldnn_enabled(False)
    try:
        with plain_attention():
            yield
    finally:
        torch._C._set_mkldnn_enabled(one_dnn)
