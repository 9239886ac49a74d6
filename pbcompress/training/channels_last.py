"""Images in channels-last memory while a network trains: its convolutions then take less time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.inputs import few_samples, tensors_of
from pbcompress.core.modules import copy_model, device_of
from pbcompress.core.randomness import seeded
from pbcompress.training.batch_tensors import moved
from pbcompress.training.task import Task

__all__ = ["channels_last", "suits_channels_last", "takes_channels_last", "that_take_channels_last"]


@contextmanager
def takes_channels_last(*networks: nn.Module) -> Iterator[None]:
    """Give networks the images that they are called with in channels-last memory meanwhile.

    They compute the same, up to rounding and to what they draw at random. Convolutions hand the
    layout on, so the weights stay as they are.
    """
    handles = [n.register_forward_pre_hook(_convert, with_kwargs=True) for n in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def that_take_channels_last(
    networks: Sequence[nn.Module], batch: Any, task: Task
) -> tuple[nn.Module, ...]:
    """Return the networks that gain by such images: on a CPU, with 2-d convolutions, if they run.

    A train batch is tried, see `suits_channels_last`.
    """
    able = [n for n in networks if device_of(n).type == "cpu" and _has_convolutions(n)]
    return tuple(n for n in able if suits_channels_last(n, batch, task))


def suits_channels_last(network: nn.Module, batch: Any, task: Task) -> bool:
    """Tell whether a network computes the same with such images, and trains on them.

    Code that asks for a ``view`` of what a convolution returned does not. A copy runs on two
    samples, forward and backward, in both modes. Where that fails, the whole batch decides, because
    not every forward takes a part of one. What would end the process is not tried: `_overflows`.
    """
    if any(map(_overflows, network.modules())):
        return False
    batch = moved(batch, device_of(network))
    few = few_samples(batch, 2)  # an axis of one would hide how memory lies
    return _agrees(network, few, task) or (few is not batch and _agrees(network, batch, task))


def _agrees(network: nn.Module, batch: Any, task: Task) -> bool:
    copied = copy_model(network).eval()
    parameters = [p for p in copied.parameters() if p.requires_grad]

    def computed() -> list[Tensor]:
        with seeded("layout"):
            return tensors_of(task.run(copied, batch))

    def trained() -> list[Tensor]:
        found = computed()
        able = [t.sum() for t in found if t.requires_grad]
        if able:  # a teacher may be frozen
            torch.autograd.grad(able, parameters, allow_unused=True)
        return found

    try:
        with torch.enable_grad():
            plain = [t.detach().clone() for t in computed()]
            with takes_channels_last(copied):
                laid = [t.detach().clone() for t in trained()]
                copied.train()
                trained()
    except Exception:
        return False
    return len(plain) == len(laid) and all(map(_is_near, plain, laid))


def channels_last(image: Tensor) -> Tensor:
    """Return an image, shape (N, C, H, W), in channels-last memory.

    Example:
        >>> channels_last(torch.zeros(2, 1, 4, 4)).stride()
        (16, 1, 4, 1)
    """
    _, c, h, w = image.shape
    laid = image.contiguous(memory_format=torch.channels_last)
    return laid.as_strided(image.shape, (c * h * w, 1, w * c, c))  # also where there is one channel


def _convert(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Convert the arguments themselves: what is in a container may be waited for by its owner."""

    def convert(value: Any) -> Any:
        is_image = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
        return channels_last(value) if is_image else value

    return tuple(map(convert, args)), {name: convert(value) for name, value in kwargs.items()}


def _has_convolutions(network: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in network.modules())


def _overflows(layer: nn.Module) -> bool:
    """Tell whether torch writes past its memory in the backward pass of a convolution.

    Seen in torch 2.13 on a CPU without AVX-512: a strided 1x1 convolution of 2 to 7 input channels,
    with images in channels-last memory. The process dies, or goes on with damaged memory or wrong
    gradients (oneDNN issue 6035).
    """
    if not isinstance(layer, nn.Conv2d) or layer.in_channels >= 8:
        return False
    return max(layer.kernel_size) == 1 and max(layer.stride) > 1


def _is_near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    finite = one[one.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    tolerance = max(1e-3, 8 * torch.finfo(one.dtype).eps) * largest  # sums in another order
    return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)
