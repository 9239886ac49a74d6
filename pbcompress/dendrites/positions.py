"""Which positions of a layer's output its candidates look at in one step of a dendrite phase.

A candidate is computed by a convolution of longer strides. Copies of its input cost more than its
products: so the input is cropped where the window begins inside the image, zeros are those of the
convolution itself where they can be, and a 1x1 convolution reads the positions of the window alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Window", "position_axes"]

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def position_axes(layer: nn.Module, output: Tensor, dims: int) -> tuple[int, ...]:
    """Return the axes of a layer's output between batch and channels, counted from the end.

    None for a single sample without a batch axis, and for a transposed convolution, whose outputs
    cannot be had one by one.

    Args:
        layer: A Linear or a convolution.
        output: What it returned.
        dims: Its spatial axes; 0 for a Linear.

    Example:
        >>> position_axes(nn.Linear(3, 4), torch.zeros(2, 7, 4), dims=0)
        (-2,)
    """
    if dims == 0:
        return tuple(range(1 - output.dim(), -1))
    is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    return () if is_transposed or output.dim() != dims + 2 else tuple(range(-dims, 0))


@dataclass(frozen=True)
class Window:
    """Every k-th position along each axis.

    Neighbouring positions of an image hold nearly the same, so a step needs only some of them, and
    a candidate is computed at these alone.

    Attributes:
        axes: Of positions, counted from the end.
        steps: k of each axis; 1 is all positions.
        offsets: First position along each axis, below its k.
    """

    axes: tuple[int, ...]
    steps: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def drawn(cls, sizes: Sequence[int], axes: tuple[int, ...], least: int) -> Self:
        """Return the widest window that leaves about ``least`` samples, at a random offset.

        The offset is drawn from torch's random state, as dropout draws its mask, so it is the same
        where a checkpointed forward pass is repeated. A compiled one always takes the middle,
        because each offset would be compiled anew.

        Args:
            sizes: Of the batch and of the axes of positions.
            axes: Of positions, counted from the end.
            least: Samples, batch x positions; 0: all positions.

        Example:
            >>> Window.drawn((64, 32, 32), (-2, -1), least=4096).steps
            (4, 4)
            >>> Window.drawn((32, 16, 16), (-2, -1), least=4096).steps
            (2, 1)
        """
        steps = _widest(sizes[1:], math.prod(sizes) // least if least else 1)
        number = math.prod(steps)
        if number == 1 or torch.compiler.is_compiling():
            return cls(axes, steps, tuple(k // 2 for k in steps))
        place, offsets = int(torch.randint(number, ())), []
        for k in steps:
            place, offset = divmod(place, k)
            offsets.append(offset)
        return cls(axes, steps, tuple(offsets))

    @property
    def is_whole(self) -> bool:
        """Whether it leaves out no position."""
        return max(self.steps, default=1) == 1

    def take(self, output: Tensor) -> Tensor:
        """Return a tensor at these positions: a view."""
        index: list[Any] = [slice(None)] * output.dim()
        for axis, offset, step in zip(self.axes, self.offsets, self.steps, strict=True):
            index[axis] = slice(offset, None, step)
        return output[tuple(index)]

    def run(self, branch: nn.Module, x: Tensor) -> Tensor:
        """Return what a dendrite's map computes of ``x`` at these positions."""
        if self.is_whole:
            return branch(x)  # type: ignore[no-any-return]
        if isinstance(branch, nn.Sequential):
            first, *rest = branch
            z = self.run(first, x)
            for module in rest:
                z = module(z)
            return z
        if isinstance(branch, nn.modules.conv._ConvNd) and not _is_pointwise(branch):
            return self._convolved(branch, x)
        return branch(self.take(x))  # type: ignore[no-any-return]

    def _convolved(self, conv: Any, x: Tensor) -> Tensor:
        """Return a convolution with longer strides, from the first position on.

        Where its own zeros can stand for those that the first position needs, and for what is
        before it, nothing is copied: outputs in front are computed and left out.
        """
        pads = list(conv._reversed_padding_repeated_twice)
        if conv.padding_mode != "zeros":
            x, pads = functional.pad(x, pads, mode=conv.padding_mode), [0] * len(pads)
        paddings, strides, places = [], [], [slice(None)] * 2
        for axis, (offset, step) in enumerate(zip(self.offsets, self.steps, strict=True)):
            size, stride = x.shape[2 + axis], conv.stride[axis]
            left, right = pads[-2 - 2 * axis : len(pads) - 2 * axis]
            span = (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
            count = 1 + ((size + left + right - span) // stride - offset) // step
            start, stride = left - offset * stride, stride * step  # below zero it crops
            if start < -size:  # it begins in the zeros behind the image
                return self.take(conv(x))
            missing = (count - 1) * stride - start + span - size  # zeros behind the last position
            padding = start % stride
            padding += math.ceil(max(missing - padding, 0) / stride) * stride
            if padding < span:  # more of them has no fast kernel
                first = (padding - start) // stride
                pads[-2 - 2 * axis : len(pads) - 2 * axis] = [0, 0]
            else:
                padding, first = 0, 0
                pads[-2 - 2 * axis : len(pads) - 2 * axis] = [start, max(missing, 0)]
            paddings.append(padding)
            strides.append(stride)
            places.append(slice(first, first + count))
        x = functional.pad(x, pads) if any(pads) else x
        run = _CONV[len(strides)]
        z = run(x, conv.weight, conv.bias, strides, paddings, conv.dilation, conv.groups)
        return z[tuple(places)]


def _is_pointwise(conv: Any) -> bool:
    """Tell whether an output depends on the input at its own position alone."""
    return set(conv.kernel_size + conv.stride) == {1} and not any(
        conv._reversed_padding_repeated_twice
    )


def _widest(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Return k of each axis, much alike, whose product is ``most`` at most."""
    even = int(most ** (1 / max(len(sizes), 1)) - 1e-6)
    steps = [max(min(even, size), 1) for size in sizes]
    product = math.prod(steps)
    while True:
        for axis in sorted(range(len(steps)), key=steps.__getitem__):
            wider = product // steps[axis] * (steps[axis] + 1)
            if steps[axis] < sizes[axis] and wider <= most:
                steps[axis] += 1
                product = wider
                break
        else:
            return tuple(steps)
