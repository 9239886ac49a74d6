"""Tensors that have a shape and no numbers: all of them lie on memory that is never touched."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Blanks"]


class Blanks:
    """Makes tensors that take no memory, whatever their size.

    Example:
        >>> blanks = Blanks()
        >>> a = blanks.like(torch.Size([3, 4]), torch.device("cpu"), torch.float32)
        >>> a.shape, a.is_contiguous()
        (torch.Size([3, 4]), True)
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a contiguous tensor; in place of the meta device it is on the CPU."""
        return self._first(shape.numel(), device, dtype).view(shape)

    def strided(
        self, shape: torch.Size, stride: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return a tensor of given strides."""
        last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        reach = last + 1 if shape.numel() else 0
        return self._first(reach, device, dtype).as_strided(shape, stride)

    def _first(self, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        place = torch.device("cpu") if device.type == "meta" else device
        memory = self._memory.get((place, dtype))
        if memory is None or len(memory) < size:
            memory = self._memory[place, dtype] = torch.empty(size, device=place, dtype=dtype)
        return memory[:size]
