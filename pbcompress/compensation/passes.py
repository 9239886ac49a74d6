"""Runs a network on a batch and shows what its layers read and put out."""

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.modules import plain_kernels

__all__ = ["Forward", "Visit", "norms_behind", "run"]

Forward = Callable[[nn.Module], object]  # runs a network on one batch
Visit = Callable[[str, int, Any, Any], None]  # layer, number of its call, its input, its output


class _Enough(BaseException):
    """No error: a forward pass has shown all that was asked for."""


def run(
    network: nn.Module,
    forward: Forward,
    layers: Collection[str],
    visit: Visit,
    calls: Mapping[str, int] | None = None,
) -> None:
    """Run a forward pass and visit every call of some layers.

    Args:
        network: The network, in eval mode.
        forward: Runs it on a batch.
        layers: Names.
        visit: Called after each call; it must copy what it keeps.
        calls: How often each layer is called; the pass ends with the last of these calls. None:
            it runs to its end.
    """
    seen = dict.fromkeys(layers, 0)
    last = None if calls is None else sum(calls[name] for name in layers)

    def hook(name: str) -> Callable[..., None]:
        def visited(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            visit(name, seen[name], args[0] if args else next(iter(kwargs.values())), output)
            seen[name] += 1
            if sum(seen.values()) == last:
                raise _Enough

        return visited

    with ExitStack() as stack:
        for name in layers:
            module = network.get_submodule(name)
            handle = module.register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        with torch.no_grad(), plain_kernels(network):
            try:
                forward(network)
            except _Enough:
                return


def norms_behind(network: nn.Module, forward: Forward, layers: Collection[str]) -> dict[str, str]:
    """Return the BatchNorm that reads the very output of a layer, for the layers that have one.

    Each call of either must be with the other.
    """
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    read: dict[str, list[str]] = defaultdict(list)

    def put_out(name: str, _: int, x: Any, y: Any) -> None:
        calls[name] += 1
        if isinstance(y, Tensor):
            outputs[name] = weakref.ref(y)

    def hook(norm: str) -> Callable[..., None]:
        def reads(_: nn.Module, args: Any) -> None:
            behind = (name for name, output in outputs.items() if args and output() is args[0])
            read[norm].append(next(behind, ""))

        return reads

    with ExitStack() as stack:
        for name, module in network.named_modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and module.running_mean is not None:
                stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        run(network, forward, layers, put_out)
    return {
        found[0]: norm
        for norm, found in read.items()
        if len(set(found)) == 1 and found[0] and len(found) == calls[found[0]]
    }
