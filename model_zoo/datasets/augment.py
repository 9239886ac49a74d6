"""Random changes to whole batches of images."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

__all__ = ["random_crop_and_flip"]


def random_crop_and_flip(images: Tensor, *, padding: int = 4) -> Tensor:
    """Shift every image at random, and mirror every second one on average.

    Each image is padded with zeros, cropped back to its size at a place of its own, and flipped
    left to right with probability 1/2. Draws from torch's global random generator of the CPU, also
    for images on another device.

    Args:
        images: Batch of shape ``(B, C, H, W)`` and any dtype; not changed.
        padding: Largest shift, in pixels, in each of the four directions.

    Returns:
        New batch of the same shape and dtype.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> random_crop_and_flip(torch.ones(1, 1, 2, 3), padding=0)
        tensor([[[[1., 1., 1.],
                  [1., 1., 1.]]]])
    """
    batch, channels, height, width = images.shape
    top = torch.randint(2 * padding + 1, (batch, 1))
    left = torch.randint(2 * padding + 1, (batch, 1))
    is_flipped = torch.rand(batch, 1) < 0.5

    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    columns = left + torch.where(is_flipped, columns.flip(1), columns)

    padded = F.pad(images, (padding,) * 4)
    places = (
        torch.arange(batch).view(batch, 1, 1, 1),
        torch.arange(channels).view(1, channels, 1, 1),
        rows.view(batch, 1, height, 1),
        columns.view(batch, 1, 1, width),
    )
    return padded[tuple(place.to(images.device) for place in places)]
