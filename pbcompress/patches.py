"""What candidate dendrites read, compute of it, and what is wrong behind them.

All at positions drawn at random: rows.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.dendrite import DendriteLayer, Watcher
from pbcompress.forms import ChannelAffine, FeatureNorm, GroupedLinear
from pbcompress.nodes import BatchNorm, groups_of
from pbcompress.statistics import Sample
from pbcompress.surgery import preserved_mode
from pbcompress.task import check_loss

__all__ = [
    "Observed",
    "fan_in",
    "is_observable",
    "map_rows",
    "observe",
    "observe_together",
    "patches",
]

_NORM_DIMS: dict[type, int] = {
    FeatureNorm: 0,
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
}
_ELEMENTS = 2**24  # of patches held for one layer, and for all layers of one pass fourfold


@dataclass(frozen=True)
class Observed:
    """A sample of one layer, finite values only.

    Attributes:
        inputs: Shape (groups, n, fan-in of a group): what the nodes of a group read.
        errors: dLoss/dOutput, shape (n, channels), as in a batch of mean size.
        heard: Of each earlier set, its activations in all slots, shape (n, nodes); None: silent.
        samples: Mean size of the batches.
        outputs: Outputs of the layer in a batch, samples x positions.
    """

    inputs: Tensor
    errors: Tensor
    heard: tuple[Tensor | None, ...] = ()
    samples: float = 1.0
    outputs: float = 1.0

    def rows(self, index: slice) -> "Observed":
        """Return neighbouring rows, as views."""
        heard = tuple(None if h is None else h[index] for h in self.heard)
        inputs, errors = self.inputs[:, index], self.errors[index]
        return replace(self, inputs=inputs, errors=errors, heard=heard)

    def picked(self, index: Tensor) -> "Observed":
        """Return the rows of these numbers."""
        heard = tuple(None if h is None else h.index_select(0, index) for h in self.heard)
        inputs, errors = self.inputs.index_select(1, index), self.errors.index_select(0, index)
        return replace(self, inputs=inputs, errors=errors, heard=heard)


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
    places = places.reshape(*places.shape, *[1] * dims)
    index = places[:, 0]  # of a position of all samples together, for each tap
    for d in range(dims):
        taps = torch.arange(conv.kernel_size[d], device=x.device) * conv.dilation[d]
        taps = taps.reshape([-1 if axis == d else 1 for axis in range(dims)])
        index = index * x.shape[2 + d] + places[:, 1 + d] * conv.stride[d] + taps
    channels = x.movedim(1, -1).flatten(0, -2)
    read: Tensor = channels.index_select(0, index.flatten()).unflatten(0, index.shape)
    return read.movedim(-1, 1)


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


def map_rows(branch: nn.Module, inputs: Tensor) -> Tensor:
    """Return the sums of a dendrite set's nodes for rows, shape (n, nodes).

    Args:
        branch: The input map of a set that has all of its nodes; no transposed convolution.
        inputs: Shape (groups, n, fan-in of a group), as `Observed` has them.
    """
    modules: list[Any] = [m for m in branch.modules() if not isinstance(m, nn.Sequential)]
    first, *others = modules
    z: Tensor
    if isinstance(first, BatchNorm | ChannelAffine):  # a tied map
        z, others = inputs[..., 0].T, modules
    else:
        z = _first_sums(first, inputs.to(first.weight.dtype))
    for module in others:
        if isinstance(module, BatchNorm | ChannelAffine):
            z = module(z.reshape(*z.shape, *[1] * _dims(module))).flatten(1)
        else:
            z = functional.linear(z, module.weight.flatten(1), module.bias)
    return z


def _dims(channelwise: nn.Module) -> int:
    """Return how many spatial axes a norm or affine map expects."""
    if isinstance(channelwise, ChannelAffine):
        return channelwise.dims
    return _NORM_DIMS[type(channelwise)]


def _first_sums(module: Any, inputs: Tensor) -> Tensor:
    if isinstance(module, GroupedLinear):
        weight = module.weight
    elif len(inputs) == 1:
        return functional.linear(inputs[0], module.weight.flatten(1), module.bias)
    else:
        weight = module.weight.flatten(1).unflatten(0, (len(inputs), -1)).mT
    z = (inputs @ weight).transpose(0, 1).flatten(1)
    return z if module.bias is None else z + module.bias


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


def fan_in(layer: DendriteLayer) -> int:
    """Return how many numbers a row of ``Observed.inputs`` has, over all groups."""
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
    waiting = {n: max(min(rows, _ELEMENTS // fan_in(layer)), 1) for n, layer in layers.items()}
    while waiting:
        chosen: dict[str, int] = {}
        held = 0
        while waiting and (not chosen or held < 3 * _ELEMENTS):
            name = next(iter(waiting))
            chosen[name] = waiting.pop(name)
            held += chosen[name] * fan_in(layers[name])
        yield from observe_together(model, layers, sample, chosen)[0].items()


def observe_together(
    model: nn.Module, layers: Mapping[str, DendriteLayer], sample: Sample, rows: Mapping[str, int]
) -> tuple[dict[str, Observed], float]:
    """Return what `observe` yields, for the layers that ``rows`` names, and the mean loss."""
    calls: list[_Call] = []
    losses: list[float] = []
    parts: dict[str, list[Observed]] = {name: [] for name in rows}

    def visit(batch: Any) -> None:
        calls.clear()
        loss = sample.task.loss(*sample.task.run(model, batch))
        check_loss(loss)
        outputs = [call.output for call in calls]
        errors: Any = torch.autograd.grad(loss, outputs, allow_unused=True)
        times = Counter(call.name for call in calls)
        for call, error in zip(calls, errors, strict=True):
            if error is not None:
                count = max(rows[call.name] // (sample.count * times[call.name]), 1)
                parts[call.name].append(_observed(layers[call.name], call, error, count))
        losses.append(float(loss.detach()))

    chosen = {name: layers[name] for name in rows}
    with torch.enable_grad(), preserved_mode(model, training=False), _watched(chosen, calls):
        sample.each(model, visit)
    calls.clear()
    count = len(losses)
    joined = {name: _joined(parts.pop(name), count) for name in rows if parts[name]}
    return joined, sum(losses) / count


class _Call(NamedTuple):
    """One call of a layer, with a batch axis."""

    name: str
    output: Tensor
    read: Tensor
    heard: list[Tensor | None]


@contextmanager
def _watched(layers: Mapping[str, DendriteLayer], calls: list[_Call]) -> Iterator[None]:
    """Note every call of ``layers``, whose candidates are silent and keep no score meanwhile."""

    def watcher(name: str, layer: DendriteLayer) -> Watcher:
        def note(y: Tensor, read: Tensor, heard: list[Tensor | None]) -> Tensor:
            own = y if y.requires_grad else y.detach().requires_grad_()
            quiet = [None if h is None else h.detach() for h in heard[: layer.num_sets - 1]]
            if layer.dims and y.dim() < layer.dims + 2:  # a sample without a batch axis
                own, read = own[None], read[None]
                quiet = [None if h is None else h[None] for h in quiet]
            calls.append(_Call(name, own, read, quiet))
            return own.reshape(y.shape).clone()  # may be changed in place

        return note

    try:
        for name, layer in layers.items():
            layer.watcher = watcher(name, layer)
        yield
    finally:
        for layer in layers.values():
            layer.watcher = None


def _observed(layer: DendriteLayer, call: _Call, error: Tensor, count: int) -> Observed:
    places = _places(layer, call.output, count)
    heard = tuple(None if h is None else _at(layer, h, places) for h in call.heard)
    read, own = _inputs(layer, call.read, places), _at(layer, error, places)
    return Observed(read, own, heard, len(error), error.numel() / layer.channels)


def _joined(parts: list[Observed], batches: int) -> Observed:
    working = torch.promote_types(parts[0].inputs.dtype, torch.float32)
    samples = sum(part.samples for part in parts) / len(parts)
    inputs = torch.cat([part.inputs for part in parts], 1).to(working)
    scaled = [part.errors.to(working) * (part.samples / samples) for part in parts]
    columns = zip(*(part.heard for part in parts), strict=True)
    heard = tuple(None if own[0] is None else torch.cat(own).to(working) for own in columns)
    outputs = sum(part.outputs for part in parts) / batches
    whole = Observed(inputs, torch.cat(scaled), heard, samples, outputs)
    if bool((inputs.sum() + whole.errors.sum()).isfinite()):
        return whole
    is_finite = inputs.isfinite().all(-1).all(0) & whole.errors.isfinite().all(-1)
    return whole.picked(is_finite.nonzero()[:, 0])
