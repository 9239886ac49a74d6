"""Whether an exported file computes what its network computes."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pbcompress.errors import CompressionError, ExportMismatchError, first_line
from pbcompress.localization import first_difference
from pbcompress.runtime import Session
from pbcompress.surgery import Call, map_tensors, seeded, tensors_of

__all__ = ["batch_size", "is_batched", "prove", "resized"]

RANDOM_SEEDS = (0, 1, 2)
# float32 sums in another order; mismatches of structure are orders of magnitude larger
TOLERANCE = 1e-4


def is_batched(leaf: object) -> bool:
    """Tell whether a value is a tensor with a first axis."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def batch_size(call: Call) -> int:
    """Return the length of the first axis of the inputs."""
    return next((len(leaf) for leaf in tree_leaves(call) if is_batched(leaf)), 1)


def resized(call: Call, size: int) -> Call:
    """Return the inputs with the first axis repeated or cut to ``size``."""

    def resize(t: Tensor) -> Tensor:
        if not t.dim() or len(t) == size:
            return t
        return torch.cat([t] * math.ceil(size / len(t)))[:size].clone()

    return map_tensors(call, resize)


def prove(
    network: nn.Module, draft: Path, calls: Sequence[Call], sizes: Sequence[int]
) -> tuple[float, float, int]:
    """Run a file beside its network.

    Args:
        network: What was exported.
        draft: The file; its folder takes what is needed to name a layer.
        calls: Inputs.
        sizes: Batch sizes.

    Returns:
        The largest absolute and relative difference, and the number of comparisons.

    Raises:
        ExportMismatchError: The outputs differ by more than rounding.
        CompressionError: One of the two does not run.
    """
    try:
        return _compare(network, Session(draft), calls, sizes)
    except ExportMismatchError as err:
        call, copy = resized(calls[0], sizes[-1]), draft.with_name("traced.onnx")
        where = first_difference(network, draft, call, TOLERANCE, copy)
        if where is None:
            raise
        raise ExportMismatchError(
            f"{err} The first layer that differs is {where}.", max_difference=err.max_difference
        ) from err


def _compare(
    network: nn.Module, session: Session, calls: Sequence[Call], sizes: Sequence[int]
) -> tuple[float, float, int]:
    worst = worst_relative = 0.0
    checks = 0
    for size in sizes:
        for call in _inputs(calls, size):
            expected, found = _run_both(network, session, call, size)
            for name, wanted, got in zip(session.output_names, expected, found, strict=True):
                difference, relative = _differ(name, size, wanted.numpy(), got)
                worst, worst_relative = max(worst, difference), max(worst_relative, relative)
            checks += 1
    return worst, worst_relative, checks


def _run_both(
    network: nn.Module, session: Session, call: Call, size: int
) -> tuple[list[Tensor], list[Any]]:
    args, kwargs = call
    try:
        with torch.no_grad():
            expected = tensors_of(network(*args, **kwargs))
        return expected, session.run(session.feeds(tensors_of(call)))
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            f"The exported file and the model were to be run at batch size {size}, and one of them "
            f"failed: {first_line(err)}. Pass dynamic_batch=False if the batch size is fixed."
        ) from err


def _inputs(calls: Sequence[Call], size: int) -> Iterator[Call]:
    yield from (resized(call, size) for call in calls)
    for seed in RANDOM_SEEDS:
        with seeded("parity", seed, size):
            call = map_tensors(
                resized(calls[0], size),
                lambda t: torch.randn_like(t) if t.is_floating_point() else t,
            )
        yield call


def _differ(name: str, size: int, wanted: Any, got: Any) -> tuple[float, float]:
    """Return the absolute and relative difference of one output; raise if it is no rounding."""
    problem, difference = "", math.inf
    if wanted.shape != got.shape:
        problem = f"has shape {got.shape} instead of {wanted.shape}"
    elif not np.array_equal(np.isfinite(wanted), np.isfinite(got)):
        problem = "has NaN or infinity in other places"
    elif wanted.size == 0:
        return 0.0, 0.0
    else:
        finite = np.isfinite(wanted)
        gap = np.abs(wanted[finite].astype(np.float64) - got[finite].astype(np.float64))
        difference = float(gap.max(initial=0.0))
        scale = float(np.abs(wanted[finite].astype(np.float64)).max(initial=0.0))
        relative = difference / max(scale, 1e-6)
        if relative <= TOLERANCE:
            return difference, relative
        problem = f"differs by {difference:.3e} where values reach {scale:.3e}"
    raise ExportMismatchError(
        f"The exported file was compared with torch at batch size {size}, and its output {name!r} "
        f"{problem}. No file was kept; report the layers of this network as a bug.",
        max_difference=difference,
    )
