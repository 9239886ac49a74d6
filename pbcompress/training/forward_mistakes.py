"""What went wrong in a call of a network on a batch, and what to write instead."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pbcompress.errors import CompressionError, first_line
from pbcompress.training.first_mistakes import NUMPY, described, is_numpy

__all__ = ["forward_error"]

_CHANNELS = re.compile(r"to have (\d+) channels")


@contextmanager
def forward_error(network: nn.Module, batch: Any, where: str) -> Iterator[None]:
    """Say of an error of a forward pass which batch it was, and what to write.

    Args:
        network: What runs.
        batch: What went in.
        where: Names the batch, such as "the first batch of Data.train".
    """
    try:
        yield
    except CompressionError as err:
        raise CompressionError(f"This was {where}. {err}") from err
    except Exception as err:
        raise CompressionError(
            f"The network was to run on {where}, which is {described(batch)}, and failed "
            f"({type(err).__name__}: {first_line(err)}). {_advice(network, batch, err)}"
        ) from err


def _advice(network: nn.Module, batch: Any, err: Exception) -> str:
    text, leaves = str(err), tree_leaves(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(map(is_numpy, leaves)):
        return f"It takes tensors: write {NUMPY}."
    if "dtype" in text or "type (" in text or "scalar type" in text:
        return _of_types(network, tensors)
    channels = _CHANNELS.search(text)
    if channels is not None and tensors:
        return _of_channels(int(channels[1]), tensors[0])
    if "index out of range" in text:
        is_pair = isinstance(batch, tuple | list) and len(batch) == 2
        advice = _of_indices(network, tree_leaves(batch[0] if is_pair else batch))
        if advice:
            return advice
    return (
        "Give inputs of the shape that it takes, the batch on the first axis, or "
        "Task(forward=...) that takes (model, batch) and returns (output, target)."
    )


def _of_types(network: nn.Module, tensors: list[Tensor]) -> str:
    short = {p.dtype for p in network.parameters()} & {torch.float16, torch.bfloat16}
    dtypes = {tensor.dtype for tensor in tensors}
    if short and torch.float32 in dtypes:
        name = str(short.pop()).removeprefix("torch.")
        return (
            f"The weights are {name}: write model.float(). "
            'EngineConfig(precision="bf16") then trains in mixed precision.'
        )
    what = "x.float() for values, x.long() for indices"
    what = "x.float()" if torch.float64 in dtypes else what
    return f"Inputs must have the type of the weights: write {what}."


def _of_channels(channels: int, images: Tensor) -> str:
    wanted = "Images must be (N, channels, height, width)"
    if images.dim() == 4 and images.shape[-1] == channels:
        return f"{wanted}: write x.permute(0, 3, 1, 2)."
    if images.dim() == 3 and channels == 1:
        return f"{wanted}: write x.unsqueeze(1)."
    return f"Give inputs with {channels} channels on axis 1."


def _of_indices(network: nn.Module, inputs: list[Any]) -> str:
    """Return what indices are too large for the smallest embedding; "": it is something else."""
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    whole = [t for t in tensors if not t.is_floating_point() and not t.is_complex() and t.numel()]
    rows = [m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)]
    if not whole or not rows:
        return ""
    least, most = min(int(t.min()) for t in whole), max(int(t.max()) for t in whole)
    if least >= 0 and most < min(rows):
        return ""
    return (
        f"Indices go from {least} to {most}, and an nn.Embedding has {min(rows)} rows: give "
        f"indices from 0 to {min(rows) - 1}, or an embedding with a row for each."
    )
