"""A device that this machine does not have: tensors on it hold their values on the CPU.

Inside of `PretendedDevice` a tensor may be moved to "pretended", and whatever is computed from it
stays there. As on a real GPU, an operation whose tensors are on two devices is an error, so is a
generator of another device, and so is ``numpy()``. All values are those of a CPU, to the last bit.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["DEVICE", "OnDevice", "PretendedDevice", "on_host"]

NAME = "pretended"
backend_registration._setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)
SYNCHRONISING = (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default)


class OnDevice(Tensor):
    """A tensor on the device; ``host`` has its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(),
            dtype=host.dtype, device=DEVICE,
        )  # fmt: skip
        made.host = host
        return made

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        own = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
        return super().__getitem__(own)

    def tolist(self) -> Any:
        """Wait for the device, as ``cpu()`` does."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """Refuse, as CUDA does."""
        raise TypeError("can't convert a tensor of a device to numpy; use cpu() first")

    def __repr__(self) -> str:
        return f"OnDevice({self.host})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a pretended device ran outside of PretendedDevice")


class PretendedDevice(TorchDispatchMode):
    """Compute on the device what has tensors there, and what is made there.

    Attributes:
        waits: How often the host waited for the device, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._patched = ExitStack()

    def __enter__(self) -> Self:
        for name in ("tensor", "as_tensor"):
            own = patch.object(torch, name, _on_host_first(getattr(torch, name)))
            self._patched.enter_context(own)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patched.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_there = any(isinstance(t, OnDevice) for t in tensors)
        wanted = kwargs.get("device")
        goes_there = is_there if wanted is None else torch.device(wanted).type == NAME
        if not (is_there or goes_there):
            return func(*args, **kwargs)
        moves = func in (aten._to_copy.default, aten.copy_.default)
        if func in SYNCHRONISING or (is_there and not goes_there):
            self.waits[str(func)] += 1
        elif not moves:
            _check_devices(func, tensors)
            _check_generator(func, kwargs.get("generator"))
        own = dict(kwargs) | ({} if wanted is None else {"device": _host_device(wanted)})
        out = func(*on_host(args), **on_host(own))
        if func._schema.is_mutable:
            return _same_objects(out, tensors)
        return _on_device(out) if goes_there else out


def _on_host_first(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make tensors of Python's numbers on the CPU first: torch does it where no mode sees it."""

    def made(*args: Any, device: Any = None, **rest: Any) -> Tensor:
        if device is None:
            return make(*args, **rest)
        return make(*args, device=_host_device(device), **rest).to(device)

    return made


def on_host(values: Any) -> Any:
    """Return values of any structure with the CPU's tensors in place of the device's."""
    return tree_map(lambda leaf: leaf.host if isinstance(leaf, OnDevice) else leaf, values)


def _on_device(values: Any) -> Any:
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, values)


def _same_objects(out: Any, tensors: list[Tensor]) -> Any:
    """Return what an operation in place gives: the tensors that it was given."""
    given = {id(on_host(tensor)): tensor for tensor in tensors}
    is_any_there = any(isinstance(tensor, OnDevice) for tensor in tensors)

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return given[id(leaf)] if id(leaf) in given else OnDevice(leaf) if is_any_there else leaf

    return tree_map(own, out)


def _host_device(wanted: Any) -> torch.device:
    device = torch.device(wanted)
    return torch.device("cpu") if device.type == NAME else device


def _check_devices(func: Any, tensors: list[Tensor]) -> None:
    """Raise where tensors do not meet; numbers as tensors, and indices, may come from the CPU."""
    elsewhere = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
    if elsewhere and not (func in INDEXED and isinstance(tensors[0], OnDevice)):
        raise RuntimeError(f"{func} got tensors on {DEVICE} and on {elsewhere[0].device}")


def _check_generator(func: Any, generator: torch.Generator | None) -> None:
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"{func} on {DEVICE} got a generator of {generator.device}")
