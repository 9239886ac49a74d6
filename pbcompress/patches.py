"""What candidate dendrites read and what is wrong behind them, at positions drawn at random."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.dendrite import DendriteLayer
from pbcompress.nodes import groups_of
from pbcompress.statistics import Sample
from pbcompress.surgery import preserved_mode
from pbcompress.task import check_loss

__all__ = ["Observed", "is_observable", "observe", "patches"]

_ELEMENTS = 2**24  # of patches held for one layer, and for all layers of one pass fourfold


@dataclass(frozen=True)
class Observed:
    """A sample of one layer, finite values only.

    Attributes:
        inputs: Shape (groups, n, fan-in of a group): what the nodes of a group read.
        errors: dLoss/dOutput, shape (n, channels).
    """

    inputs: Tensor
    errors: Tensor


def is_observable(layer: DendriteLayer) -> bool:
    """Tell whether the newest set of a layer reads patches of its input, or its neuron's sum."""
    is_transposed = isinstance(layer.base_layer, nn.modules.conv._ConvTransposeNd)
    return layer.config.form == "tied" or not is_transposed


def patches(conv: Any, x: Tensor, places: Tensor) -> Tensor:
    """Return what a convolution reads for some of its outputs.

    Args:
        conv: A Conv1d, Conv2d or Conv3d.
        x: Its input, shape (N, in_channels, *size).
        places: Shape (n, 1 + dims): sample and output position.

    Returns:
        Shape (n, in_channels, *kernel_size).
    """
    dims = len(conv.kernel_size)
    is_zeros = conv.padding_mode == "zeros"
    mode = "constant" if is_zeros else conv.padding_mode
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    index = [places[:, 0].reshape(-1, *[1] * dims)]
    for d in range(dims):
        taps = torch.arange(conv.kernel_size[d], device=x.device) * conv.dilation[d]
        start = places[:, 1 + d] * conv.stride[d]
        shape = [-1 if axis == d else 1 for axis in range(dims)]
        index.append(start.reshape(-1, *[1] * dims) + taps.reshape(1, *shape))
    return x.movedim(1, -1)[tuple(index)].movedim(-1, 1)


def _inputs(layer: DendriteLayer, read: Tensor, places: Tensor) -> Tensor:
    """Return the rows of ``Observed.inputs`` at ``places`` (sample and position)."""
    if layer.config.form == "tied":
        return _at(layer, read, places).T[:, :, None]
    base: Any = layer.base_layer
    groups = groups_of(layer.dendrites[-1])
    if layer.dims == 0:
        rows = read.reshape(-1, read.shape[-1])[places[:, 0]]
    else:
        rows = patches(base, read, places)
    return rows.reshape(len(rows), groups, -1).transpose(0, 1)


def _at(layer: DendriteLayer, output: Tensor, places: Tensor) -> Tensor:
    """Return the channels of an output at ``places``, shape (n, channels)."""
    channels = output.movedim(-1 - layer.dims, -1)
    if layer.dims == 0:
        channels = channels.reshape(-1, output.shape[-1])
    return channels[tuple(places.T)]


def _places(layer: DendriteLayer, output: Tensor, count: int) -> Tensor:
    """Draw ``count`` outputs of a layer without repeats, or take all of them."""
    shape = output.movedim(-1 - layer.dims, -1).shape[:-1]
    shape = shape if layer.dims else torch.Size([math.prod(shape)])
    total = math.prod(shape)
    flat = torch.randperm(total)[:count].sort().values if total > count else torch.arange(total)
    return torch.stack(torch.unravel_index(flat, shape), 1).to(output.device)


def _fan_in(layer: DendriteLayer) -> int:
    base: Any = layer.base_layer
    return (
        layer.channels
        if layer.config.form == "tied"
        else base.weight[0].numel() * max(getattr(base, "groups", 1), 1)
    )


def observe(
    model: nn.Module, layers: Mapping[str, DendriteLayer], sample: Sample, rows: int
) -> Iterator[tuple[str, Observed]]:
    """Yield layers by name with a sample of what their newest set reads, and of their errors.

    The model runs in eval mode and is left as it is. Layers that no error reaches are left out.
    Memory is bounded: wide layers get fewer rows, and where many layers are asked for the batches
    are gone through several times.

    Args:
        model: Network with dendrites.
        layers: Layers of it for which `is_observable` is true.
        sample: Batches, loss and forward.
        rows: Rows of a layer at most.
    """
    waiting = list(layers)
    while waiting:
        chosen: list[str] = []
        held = 0
        while waiting and (not chosen or held < 3 * _ELEMENTS):
            chosen.append(waiting.pop(0))
            held += min(_ELEMENTS, rows * _fan_in(layers[chosen[-1]]))
        found = _observe(model, {name: layers[name] for name in chosen}, sample, rows)
        yield from ((name, found.pop(name)) for name in chosen if name in found)


def _observe(
    model: nn.Module, layers: Mapping[str, DendriteLayer], sample: Sample, rows: int
) -> dict[str, Observed]:
    calls: list[tuple[str, Tensor, Tensor]] = []
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def visit(batch: Any) -> None:
        calls.clear()
        loss = sample.task.loss(*sample.task.run(model, batch))
        check_loss(loss)
        outputs = [output for _, _, output in calls]
        errors: Any = torch.autograd.grad(loss, outputs, allow_unused=True)
        for (name, read, output), error in zip(calls, errors, strict=True):
            if error is None:
                continue
            layer = layers[name]
            count = max(min(rows, _ELEMENTS // _fan_in(layer)) // sample.count, 1)
            places = _places(layer, output, count)
            own = _inputs(layer, read, places), _at(layer, error, places)
            parts[name].append(own)

    with torch.enable_grad(), preserved_mode(model, training=False), _heard(layers, calls):
        sample.each(model, visit)
    calls.clear()
    return {name: _joined(of_layer) for name, of_layer in parts.items() if of_layer}


@contextmanager
def _heard(
    layers: Mapping[str, DendriteLayer], calls: list[tuple[str, Tensor, Tensor]]
) -> Iterator[None]:
    """Note every call of ``layers``, whose candidates are silent and keep no score meanwhile."""

    def hook(name: str) -> Callable[..., Tensor]:
        def note(layer: DendriteLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            own = output if output.requires_grad else output.detach().requires_grad_()
            read = layer.base_layer(args[0]) if layer.config.form == "tied" else args[0]
            is_batched = layer.dims == 0 or output.dim() == layer.dims + 2
            read, own = (t if is_batched else t[None] for t in (read.detach(), own))
            calls.append((name, read, own))
            return own.reshape(output.shape).clone()  # may be changed in place

        return note

    candidates = {name: layer.candidate for name, layer in layers.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(setattr, layer, "candidate", candidates[name])
            layer.candidate = None
            stack.callback(layer.register_forward_hook(hook(name)).remove)
        yield


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Observed:
    working = torch.promote_types(parts[0][0].dtype, torch.float32)
    inputs = torch.cat([i for i, _ in parts], 1).to(working)
    errors = torch.cat([e for _, e in parts]).to(working)
    is_finite = inputs.isfinite().all(-1).all(0) & errors.isfinite().all(-1)
    return Observed(inputs[:, is_finite], errors[is_finite])
