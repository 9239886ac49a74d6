"""What candidate dendrites read and what is wrong behind them, at places drawn at random."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.dendrite import DendriteLayer, Watcher
from pbcompress.patches import draw_places, outputs_at, read_at, row_size
from pbcompress.statistics import Sample
from pbcompress.surgery import preserved_mode
from pbcompress.task import check_loss

__all__ = ["Observed", "observe", "observe_together"]

_ELEMENTS = 2**24  # of inputs held for one layer, and for all layers of one pass fourfold


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


def observe(
    model: nn.Module, layers: Mapping[str, DendriteLayer], sample: Sample, rows: int
) -> Iterator[tuple[str, Observed]]:
    """Yield layers by name with a sample of what their newest set reads, and of their errors.

    The model runs in eval mode and is left as it is. Layers that no error reaches are left out.
    Memory is bounded: wide layers get fewer rows, and where many layers are asked for the batches
    are gone through several times.

    Args:
        model: Network with dendrites.
        layers: Layers of it for which `pbcompress.patches.is_observable` is true.
        sample: Batches, loss and forward.
        rows: Rows of a layer at most.
    """
    waiting = {n: max(min(rows, _ELEMENTS // row_size(layer)), 1) for n, layer in layers.items()}
    while waiting:
        chosen: dict[str, int] = {}
        held = 0
        while waiting and (not chosen or held < 3 * _ELEMENTS):
            name = next(iter(waiting))
            chosen[name] = waiting.pop(name)
            held += chosen[name] * row_size(layers[name])
        yield from observe_together(model, layers, sample, chosen)[0].items()


def observe_together(
    model: nn.Module,
    layers: Mapping[str, DendriteLayer],
    sample: Sample,
    rows: Mapping[str, int],
    check: Callable[[Any], None] = check_loss,
) -> tuple[dict[str, Observed], list[float]]:
    """Return what `observe` yields, in one pass, and the loss of each batch.

    Args:
        model: Network with dendrites.
        layers: Layers of it, by name.
        sample: Batches, loss and forward.
        rows: Rows at most of the layers that are observed.
        check: Raises where a loss is of no use.
    """
    watch = _Watch({name: layers[name] for name in rows}, rows, sample.count)
    losses: list[float] = []

    def visit(batch: Any) -> None:
        watch.begin()
        loss = sample.task.loss(*sample.task.run(model, batch))
        check(loss)
        watch.end()
        loss.backward()
        losses.append(float(loss.detach()))

    with torch.enable_grad(), preserved_mode(model, training=False), _fixed(model), watch:
        sample.each(model, visit)
    return watch.taken(len(losses)), losses


@contextmanager
def _fixed(model: nn.Module) -> Iterator[None]:
    """Let no parameter take a gradient meanwhile."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Watch:
    """Takes rows of layers, whose candidates are silent and keep no score meanwhile."""

    def __init__(
        self, layers: Mapping[str, DendriteLayer], rows: Mapping[str, int], batches: int
    ) -> None:
        self._layers, self._rows = layers, rows
        self._batches, self._batch = batches, 0
        self._parts: dict[str, list[Observed]] = {name: [] for name in layers}
        self._anchor = torch.zeros((), requires_grad=True)  # errors are wanted without parameters

    def __enter__(self) -> None:
        for name, layer in self._layers.items():
            layer.watcher = self._watcher(name, layer)

    def __exit__(self, *_: object) -> None:
        for layer in self._layers.values():
            layer.watcher = None

    def begin(self) -> None:
        """Count the calls of the next batch from now on."""
        self._calls: Counter[str] = Counter()
        self._shown: Counter[str] = Counter()
        self._batch += 1
        self._is_forward = True

    def end(self) -> None:
        """Count no further ones: a checkpointed block runs again in the backward pass."""
        self._is_forward = False

    def _watcher(self, name: str, layer: DendriteLayer) -> Watcher:
        def note(y: Tensor, read: Tensor, heard: list[Tensor | None]) -> Tensor:
            self._calls[name] += self._is_forward
            quiet = [None if h is None else h.detach() for h in heard[: layer.num_sets - 1]]

            def take(error: Tensor) -> None:
                count = self._quota(name)
                self._parts[name].append(_taken(layer, read, quiet, error, count))

            tap: Any = _Tap.apply
            tapped: Tensor = tap(y, self._anchor, take)
            return tapped

        return note

    def _quota(self, name: str) -> int:
        """Return the rows of one call: all calls together give as many as were asked for."""
        of_batch = _part(self._rows[name], self._batch, self._batches)
        self._shown[name] += 1
        return _part(of_batch, self._shown[name], self._calls[name])

    def taken(self, batches: int) -> dict[str, Observed]:
        """Return the rows of all batches, by layer."""
        parts = self._parts
        return {name: _joined(parts.pop(name), batches) for name in self._layers if parts[name]}


def _part(total: int, number: int, parts: int) -> int:
    """Return the size of one part, numbered from 1, of so many equal ones."""
    return total * number // parts - total * (number - 1) // parts


class _Tap(torch.autograd.Function):
    """Identity on an output, whose error is shown as it passes back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        """Return ``output``."""
        ctx.take = take
        return output.clone()  # a view could not be changed in place by what follows

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        """Show the error and hand it on."""
        ctx.take(errors[0])
        return errors[0], None, None


def _taken(
    layer: DendriteLayer, read: Tensor, heard: list[Tensor | None], error: Tensor, count: int
) -> Observed:
    """Return some rows of one call."""
    if layer.dims and error.dim() < layer.dims + 2:  # a sample without a batch axis
        read, error = read[None], error[None]
        heard = [None if h is None else h[None] for h in heard]
    places = draw_places(layer, error, count)
    return Observed(
        read_at(layer, read, places),
        outputs_at(layer, error, places),
        tuple(None if h is None else outputs_at(layer, h, places) for h in heard),
        samples=len(error),
        outputs=error.numel() / layer.channels,
    )


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
