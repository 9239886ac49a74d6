"""IDX files of random images."""

import struct

import torch
from torch import Tensor


def idx_bytes(values: Tensor) -> bytes:
    shape = tuple(values.shape)
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    return header + bytes(values.flatten().tolist())


def random_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
