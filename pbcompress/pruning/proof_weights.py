"""The weights of the two networks of a proof: disturbed, and of large ones no copy is kept.

A large weight is made from the model's own, block of rows by block, for each operation that reads
it: in the precision of the proof, with noise, and then masked or sliced.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pbcompress.core.blanks import Blanks
from pbcompress.core.copying import deep_copy
from pbcompress.core.modules import parameter_count
from pbcompress.core.randomness import seeded
from pbcompress.core.streamed import StreamedWeights
from pbcompress.pruning.cuts import LayerCut, cut_all_
from pbcompress.pruning.weight_norms import is_computed
from pbcompress.structure.dimensions import Kept, keep

__all__ = [
    "ProofNetwork",
    "Rows",
    "cut_copy",
    "disturbed_copy",
    "masked",
    "sliced",
    "streamed_parameters",
]

NOISE = 65_537  # numbers of the disturbance; prime, so that no two rows of a weight get the same
BLOCK = 2**20  # elements that are worked on at once
HELD = 2**24  # elements of small weights, of which copies are kept
SHARE = 0.02  # of all, if that is more
MADE = 0.02  # size of the weights of a model that has none
OFFSET = 7919  # between the noise of two of them


class ProofNetwork:
    """A network of which some weights are streamed.

    Attributes:
        network: Has stand-ins for them.
        make: By the ``id`` of a stand-in what makes its weight.
    """

    def __init__(self, network: nn.Module, blanks: Blanks) -> None:
        self.network = network
        self.make: dict[int, Callable[[], Tensor]] = {}
        self._blanks = blanks

    def running(self) -> AbstractContextManager[Any]:
        """Return what the network runs in."""
        return StreamedWeights(self.make) if self.make else nullcontext()

    def to_(self, change: Callable[[Tensor], torch.dtype]) -> None:
        """Give every tensor another dtype."""

        def converted(tensor: Tensor) -> Tensor:
            if id(tensor) in self.make:
                return self._blanks.like(tensor.shape, tensor.device, change(tensor))
            return tensor.to(change(tensor))

        self.network._apply(converted)


class Rows(Protocol):
    """Gives rows of a disturbed weight."""

    shape: torch.Size

    def __call__(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows of it, as a tensor of its own."""


class _Disturbed:
    """The rows of a weight with noise of about the size that they have."""

    def __init__(self, weight: Tensor, noise: Tensor) -> None:
        self.shape, self._weight, self._noise = weight.shape, weight.detach(), noise

    def __call__(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        rows = self._weight if not self.shape else self._weight[start:stop]
        rows = rows.to(dtype, copy=True, memory_format=torch.contiguous_format)
        numbers = torch.view_as_real(rows) if rows.is_complex() else rows
        size = _size_of(numbers, 2)
        if not math.isfinite(size):
            size = _size_of(numbers.nan_to_num_(0, 0, 0), 1)  # squares of some are too large
        width = numbers.numel() // max(stop - start, 1)
        _add_noise_(numbers, self._noise, start * width, max(size, 0.01))
        return rows

    def whole(self) -> Tensor:
        """Return all rows at once, for a weight of which a copy is kept."""
        return self(0, self.shape[0] if self.shape else 1, self._weight.dtype)


class _Made:
    """The rows of a weight that a model without data has in the proof: noise, in vectors plus 1."""

    def __init__(self, weight: Tensor, noise: Tensor, number: int) -> None:
        self.shape, self._noise, self._number = weight.shape, noise, number

    def __call__(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        rows = torch.full(shape, float(len(self.shape) < 2), dtype=dtype)
        width = rows.numel() // max(stop - start, 1)
        _add_noise_(rows, self._noise, start * width + OFFSET * self._number, MADE)
        return rows


def _size_of(numbers: Tensor, power: int) -> float:
    """Return a power mean of the absolute values, in one pass without a copy of them."""
    half = torch.float32 if numbers.dtype.itemsize < 4 else None
    total: float = torch.linalg.vector_norm(numbers, power, dtype=half).item()
    return total / math.pow(max(numbers.numel(), 1), 1 / power)


def _add_noise_(numbers: Tensor, noise: Tensor, offset: int, size: float) -> None:
    own, flat = noise[offset % NOISE :], numbers.view(-1)
    own = own if own.dtype == flat.dtype and own.device == flat.device else own.to(flat)
    for part in flat.split(NOISE) if flat.numel() > NOISE else (flat,):
        part.add_(own[: part.numel()], alpha=size)


def streamed_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of which a proof keeps no copy: all but the smallest.

    Those that a weight is computed from are none of them.
    """
    kept = {p for m in model.modules() if is_computed(m) for p in m.parameters()}
    others = sorted((p for p in model.parameters() if p not in kept), key=Tensor.numel)
    left = max(HELD, int(SHARE * parameter_count(model)))
    streamed = set()
    for parameter in others:
        left -= parameter.numel()
        if left < 0 and type(parameter) is nn.Parameter:
            streamed.add(parameter)
    return streamed


def disturbed_copy(
    model: nn.Module, blanks: Blanks
) -> tuple[ProofNetwork, dict[nn.Parameter, Rows]]:
    """Return a network of the model's architecture with noise on every weight.

    Args:
        model: Left as it is. Where it is on the meta device, weights are made up.
        blanks: What stand-ins are made of.

    Returns:
        The network, in which the large weights have stand-ins and no maker yet, and what gives
        their rows.
    """
    with seeded("disturb"):
        noise = torch.randn(NOISE).repeat(2)
    streamed = streamed_parameters(model)
    new: dict[int, nn.Parameter] = {}
    rows: dict[nn.Parameter, Rows] = {}
    for number, parameter in enumerate(model.parameters()):
        is_number = parameter.is_floating_point() or parameter.is_complex()
        trains = parameter.requires_grad and is_number
        if parameter in streamed or parameter.is_meta:
            blank = blanks.like(parameter.shape, parameter.device, parameter.dtype)
            stands_in = new[id(parameter)] = nn.Parameter(blank, trains)
            is_made = parameter.is_meta
            source = _Made(parameter, noise, number) if is_made else _Disturbed(parameter, noise)
            rows[stands_in] = source
        elif is_number and type(parameter) is nn.Parameter:
            new[id(parameter)] = nn.Parameter(_Disturbed(parameter, noise).whole(), trains)
    network = deep_copy(model, dict(new))
    made = set(new.values())
    for parameter in network.parameters():
        if parameter not in made and (parameter.is_floating_point() or parameter.is_complex()):
            parameter.data = _Disturbed(parameter, noise).whole()
    return ProofNetwork(network, blanks), rows


def cut_copy(
    original: ProofNetwork,
    rows: Mapping[nn.Parameter, Rows],
    kept: Mapping[nn.Parameter, Kept],
    steps: Sequence[LayerCut],
    blanks: Blanks,
) -> ProofNetwork:
    """Return the cut network; of streamed weights the shapes are cut, and the rest as it is made.

    Args:
        original: Made by `disturbed_copy`.
        rows: What gives the rows of its streamed weights.
        kept: What stays of each of its parameters that the cuts change.
        steps: The cuts.
        blanks: What stand-ins are made of.
    """
    shared = {
        id(p): nn.Parameter(p.detach().to("meta") if p in rows else p.detach(), p.requires_grad)
        for p in original.network.parameters()
        if type(p) is nn.Parameter
    }
    network = deep_copy(original.network, dict(shared))
    names = {name: p for name, p in original.network.named_parameters() if p in rows}
    cut_all_(network, steps)
    proof = ProofNetwork(network, blanks)
    new: dict[int, nn.Parameter] = {}
    for name, own in names.items():
        old = network.get_parameter(name)
        blank = blanks.like(old.shape, own.device, old.dtype)
        new[id(old)] = stands_in = nn.Parameter(blank, old.requires_grad)
        proof.make[id(stands_in)] = partial(sliced, rows[own], stands_in, kept.get(own, {}))
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in new:
                module._parameters[name] = new[id(parameter)]
    return proof


def masked(rows: Rows, stands_in: Tensor, lost: Mapping[int, Tensor]) -> Tensor:
    """Return a weight with zeros in place of what is lost along its axes."""
    whole = _joined(rows, stands_in.dtype)
    for axis, index in lost.items():
        whole.index_fill_(axis, index.to(whole.device), 0)
    return whole


def sliced(rows: Rows, stands_in: Tensor, kept: Kept) -> Tensor:
    """Return what stays of a weight along its axes."""
    return _joined(rows, stands_in.dtype, kept)


def _joined(rows: Rows, dtype: torch.dtype, kept: Kept | None = None) -> Tensor:
    """Return rows as one tensor; of each block what stays, before the next is made."""
    if not rows.shape:
        return rows(0, 1, dtype)
    kept = kept or {}
    shape = [len(kept[a]) if a in kept else size for a, size in enumerate(rows.shape)]
    along = {axis: index for axis, index in kept.items() if axis > 0}
    whole, filled = None, 0
    for start, stop in _blocks(rows.shape):
        stays = kept.get(0)
        if stays is not None:
            stays = stays[(stays >= start) & (stays < stop)] - start
            if not len(stays):
                continue
        block = rows(start, stop, dtype)
        block = keep(block, along if stays is None else {0: stays, **along})
        if whole is None:
            whole = block if block.shape == tuple(shape) else block.new_empty(shape)
        if whole is not block:
            whole[filled : filled + len(block)] = block
        filled += len(block)
    return rows(0, 0, dtype) if whole is None else whole


def _blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield bounds of rows, each about `BLOCK` elements."""
    step = max(1, BLOCK // max(math.prod(shape[1:]), 1))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
