"""Images in channels-last memory while a network trains: its convolutions then take less time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pbcompress.surgery import copy_model, device_of, seeded
from pbcompress.task import Data, Task, first_batch, moved

__all__ = ["channels_last", "is_same_in_channels_last", "takes_channels_last"]

_TOLERANCE = 1e-3  # of the largest output: another order of sums, in half precision too


@contextmanager
def takes_channels_last(*networks: nn.Module) -> Iterator[None]:
    """Give networks their images in channels-last memory meanwhile.

    What they compute is the same. Convolutions hand the layout on, so the weights stay as they are.
    """
    handles = [n.register_forward_pre_hook(_convert, with_kwargs=True) for n in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_same_in_channels_last(network: nn.Module, data: Data, task: Task) -> bool:
    """Tell whether a network has 2-d convolutions and runs with such images as with others.

    Code that asks for a ``view`` of what a convolution returned does not. One batch of the train
    split is tried, forward and backward, on a copy.
    """
    if not any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in network.modules()):
        return False
    device = device_of(network)
    batch = moved(first_batch(data.train, "train"), device)
    copied = copy_model(network).to(device).eval()
    with seeded("layout"), torch.no_grad():
        output, _ = task.run(copied, batch)
    try:
        with seeded("layout"), takes_channels_last(copied), torch.enable_grad():
            other, target = task.run(copied, batch)
            loss = task.loss(other, target)
            if loss.requires_grad:  # that of a teacher need not
                loss.backward()
    except Exception:
        return False
    pairs = zip(tree_leaves(output), tree_leaves(other), strict=True)
    return all(_is_near(a, b) for a, b in pairs if isinstance(a, Tensor))


def channels_last(image: Tensor) -> Tensor:
    """Return an image, shape (N, C, H, W), in channels-last memory.

    Example:
        >>> channels_last(torch.zeros(2, 1, 4, 4)).stride()
        (16, 1, 4, 1)
    """
    _, c, h, w = image.shape
    laid = image.contiguous(memory_format=torch.channels_last)
    return laid.as_strided(image.shape, (c * h * w, 1, w * c, c))  # also told of one channel


def _convert(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def convert(tensor: Tensor) -> Tensor:
        return channels_last(tensor) if tensor.dim() == 4 and tensor.is_floating_point() else tensor

    return tree_map_only(Tensor, convert, (args, kwargs))


def _is_near(one: Tensor, other: Tensor) -> bool:
    other = other.detach()
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(one.abs().max()) if one.numel() else 0.0
    return bool(((one - other).abs() <= _TOLERANCE * largest).all())
