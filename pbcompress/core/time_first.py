"""One sample of inputs whose first axis may be time: recurrent layers and attention of torch."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.inputs import Call, map_tensors, single_sample, tensors_of, to_device
from pbcompress.core.modules import device_of, plain_kernels, preserved_mode
from pbcompress.core.randomness import seeded

__all__ = ["one_sample"]


def one_sample(model: nn.Module, call: Call) -> Call:
    """Return a call with one sample: the first along the axis that is the batch.

    That is the first axis, unless a recurrent layer or one with ``batch_first=False`` gets fewer
    steps when it is cut: then it is time, and the second one is the batch, where there is one.

    Args:
        model: Left as it is.
        call: Inputs that it takes.

    Example:
        >>> inputs = Call((torch.zeros(9, 5, 4),), {})
        >>> one_sample(nn.LSTM(4, 8), inputs).args[0].shape
        torch.Size([9, 1, 4])
        >>> one_sample(nn.LSTM(4, 8, batch_first=True), inputs).args[0].shape
        torch.Size([1, 5, 4])
    """
    cut = single_sample(call, model)
    if call.batch_axes is not None:
        return cut
    layers = [module for module in model.modules() if _may_tell(module)]
    if not layers:
        return cut
    is_one = all(len(t) == 1 for t in tensors_of(call) if t.dim())
    other = map_tensors(call, _twice) if is_one else cut
    try:
        before = _steps(model, layers, call)
    except Exception:  # whatever it is, the run that follows says it
        return cut
    try:
        after = _steps(model, layers, other)
    except Exception:  # a mask, perhaps, whose first axis is the batch
        return _by_samples(model, layers, call, before) or cut
    for (steps, samples), (now, _) in zip(before, after, strict=False):
        if steps != now:
            return call if samples is None else map_tensors(call, partial(_first, samples))
    return cut


def _may_tell(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) or getattr(module, "batch_first", None) is False


def _twice(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() else tensor


def _by_samples(
    model: nn.Module,
    layers: Sequence[nn.Module],
    call: Call,
    seen: Sequence[tuple[int, int | None]],
) -> Call | None:
    """Return a call cut along the axes as long as the second one of layers that read time first."""
    samples = next((samples for _, samples in seen if samples is not None), None)
    if samples is None or all(getattr(layer, "batch_first", False) for layer in layers):
        return None
    cut = map_tensors(call, partial(_first, samples))
    try:
        _steps(model, layers, cut)
    except Exception:
        return None
    return cut


def _first(samples: int, tensor: Tensor) -> Tensor:
    """Return the first of so many samples along the second axis, else along the first."""
    if tensor.dim() > 1 and tensor.shape[1] == samples:
        return tensor[:, :1].clone()
    return tensor[:1].clone() if tensor.dim() and len(tensor) == samples else tensor


def _steps(
    model: nn.Module, layers: Sequence[nn.Module], call: Call
) -> list[tuple[int, int | None]]:
    """Return steps and samples in the first input of every run of some layers."""
    found: list[tuple[int, int | None]] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(iter(tensors_of((args, kwargs))), torch.zeros(()))
        if first.dim() == 2:
            found.append((len(first), None))
        elif first.dim() == 3:
            steps, samples = first.shape[:2]
            found.append((samples, steps) if getattr(layer, "batch_first", 0) else (steps, samples))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        args, kwargs = to_device(call, device_of(model))
        with (
            torch.no_grad(),
            seeded("one sample"),
            preserved_mode(model, training=False),
            plain_kernels(model),
        ):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
