"""What candidate dendrites read, and the errors of their layer, at places drawn at random."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.modules import preserved_mode, rest_
from pbcompress.dendrites.layer import DendriteLayer, Watcher, dendrite_layers
from pbcompress.errors import DivergedError
from pbcompress.recovery.candidate_inputs import draw_places, outputs_at, read_at, row_size
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.data_checks import check_loss

__all__ = ["Observed", "observe", "observe_together"]

_ELEMENTS = 2**24  # of inputs held for one layer, and for all layers of one pass fourfold


@dataclass(frozen=True)
class Observed:
    """A sample of one layer, finite values only.

    Attributes:
        inputs: Shape (groups, n, fan-in of a group): what the nodes of a group read.
        errors: dLoss/dOutput, shape (n, channels), as in a batch of mean size.
        earlier: Activations of each earlier set in all slots, shape (n, nodes); None: the set has
            no node.
        samples: Mean size of the batches.
        outputs: Outputs of the layer in a batch, samples x positions.
    """

    inputs: Tensor
    errors: Tensor
    earlier: tuple[Tensor | None, ...] = ()
    samples: float = 1.0
    outputs: float = 1.0

    def rows(self, index: slice) -> "Observed":
        """Return neighbouring rows, as views."""
        earlier = tuple(None if h is None else h[index] for h in self.earlier)
        inputs, errors = self.inputs[:, index], self.errors[index]
        return replace(self, inputs=inputs, errors=errors, earlier=earlier)

    def picked(self, index: Tensor) -> "Observed":
        """Return the rows of these numbers."""
        earlier = tuple(None if h is None else h.index_select(0, index) for h in self.earlier)
        inputs, errors = self.inputs.index_select(1, index), self.errors.index_select(0, index)
        return replace(self, inputs=inputs, errors=errors, earlier=earlier)


def observe(
    model: nn.Module, layers: Mapping[str, DendriteLayer], sample: Sample, rows: int
) -> Iterator[tuple[str, Observed]]:
    """Yield layers by name with a sample of what their newest set reads, and of their errors.

    The model runs in eval mode and is left as it is. Layers that no error reaches are left out.
    Memory is bounded: wide layers get fewer rows, and many layers take several passes over the
    batches.

    Args:
        model: Network with dendrites.
        layers: Layers of it for which `candidate_inputs.is_observable` is true.
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
) -> tuple[dict[str, Observed], list[float]]:
    """Return what `observe` yields, in one pass, and the loss of each batch.

    Every output of a layer, over samples, positions and calls, is as likely as any other to be
    among its rows. Where the first batch says little about the others, a layer may get only half of
    the rows that it could have.

    Args:
        model: Network with dendrites.
        layers: Layers of it, by name.
        sample: Batches, loss and forward.
        rows: Rows at most of the layers that are observed.

    Raises:
        DivergedError: A loss is not finite.
    """
    drawings = {name: _Drawing(layers[name], count) for name, count in rows.items()}
    losses: list[float] = []

    def visit(batch: Any) -> None:
        for drawing in drawings.values():
            drawing.open()
        loss = sample.task.loss(*sample.task.run(model, batch))
        _check(loss, f"batch {len(losses)} of Data.train")
        for drawing in drawings.values():
            drawing.close(sample.count)
        loss.backward()
        losses.append(float(loss.detach()))

    watched = {id(drawing.layer): drawing.watch for drawing in drawings.values()}
    with (
        torch.enable_grad(),
        preserved_mode(model, training=False),
        _fixed(model),
        _watched(model, watched),
    ):
        rest_(model)
        sample.each(model, visit)
    joined = {name: drawings[name].joined(len(losses)) for name in rows if drawings[name].parts}
    return joined, losses


def _check(loss: Any, where: str) -> None:
    if isinstance(loss, Tensor) and not bool(loss.isfinite().all()):
        raise DivergedError(
            f"The loss became {loss.tolist()} on {where} at the start of a dendrite phase. Lower "
            "OptimizerConfig.lr, or set max_grad_norm."
        )
    check_loss(loss, where)


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


@contextmanager
def _watched(model: nn.Module, watched: Mapping[int, Watcher]) -> Iterator[None]:
    """Show some layers to their watchers; no candidate trains or keeps a score."""
    layers = list(dendrite_layers(model).values())
    for layer in layers:
        layer.watcher = watched.get(id(layer), lambda y, read, earlier: y)
    try:
        yield
    finally:
        for layer in layers:
            layer.watcher = None


class _Drawing:
    """Rows of one layer, drawn while batches pass.

    Args:
        layer: The layer.
        rows: Rows at most.

    Attributes:
        parts: Rows of each call so far.
    """

    def __init__(self, layer: DendriteLayer, rows: int) -> None:
        self.layer, self._rows = layer, rows
        self.parts: list[Observed] = []
        self._anchor = torch.zeros((), requires_grad=True)  # errors are wanted without parameters
        self._expected = 0  # outputs of all batches, of which ``rows`` will be drawn
        self._credit = self._drawn = 0

    def open(self) -> None:
        """Begin the forward pass of a batch."""
        self._is_open, self._outputs = True, 0

    def close(self, batches: int) -> None:
        """End it: a checkpointed block runs again in the backward pass, and does not count."""
        self._is_open = False
        if not self._expected:
            self._expected = max(self._outputs * batches, self._rows)
            self._credit = int(torch.randint(self._expected, ()))  # small batches get some too

    def watch(self, y: Tensor, read: Tensor, earlier: list[Tensor | None]) -> Tensor:
        """Return y, whose error will be taken."""
        if self._is_open:
            self._outputs += y.numel() // self.layer.channels
        given = [None if h is None else h.detach() for h in earlier[: self.layer.num_sets - 1]]
        tap: Any = _Tap.apply
        tapped: Tensor = tap(y, self._anchor, self._take, read, *given)
        return tapped

    def _take(self, error: Tensor, read: Tensor, *earlier: Tensor | None) -> None:
        if self._is_open:  # a gradient that the forward pass takes is not that of the loss
            return
        layer = self.layer
        is_batched = error.dim() > 1 + layer.dims
        samples = len(error) if is_batched else 1
        if layer.dims and not is_batched:
            read, error = read[None], error[None]
            earlier = tuple(None if h is None else h[None] for h in earlier)
        outputs = error.numel() // layer.channels
        count, self._credit = divmod(self._credit + outputs * self._rows, self._expected)
        while self._drawn + count > self._rows:
            count = _half(count)
            self._halve()
        self._drawn += count
        places = draw_places(layer, error, count)
        seen = read_at(layer, read, places), outputs_at(layer, error, places)
        before = tuple(None if h is None else outputs_at(layer, h, places) for h in earlier)
        self.parts.append(Observed(*seen, before, samples, outputs))

    def _halve(self) -> None:
        """Draw half of the rows from now on, and forget half of those that there are."""
        self._expected *= 2
        for number, part in enumerate(self.parts):
            order = torch.randperm(len(part.errors))[: _half(len(part.errors))]
            self.parts[number] = part.picked(order.to(part.errors.device))
        self._drawn = sum(len(part.errors) for part in self.parts)

    def joined(self, batches: int) -> Observed:
        """Return the finite rows of all batches; the parts are used up."""
        parts, self.parts = self.parts, []
        working = torch.promote_types(parts[0].inputs.dtype, torch.float32)
        samples = sum(part.samples for part in parts) / len(parts)
        inputs = torch.cat([part.inputs for part in parts], 1).to(working)
        scaled = [part.errors.to(working) * (part.samples / samples) for part in parts]
        columns = zip(*(part.earlier for part in parts), strict=True)
        earlier = tuple(None if own[0] is None else torch.cat(own).to(working) for own in columns)
        outputs = sum(part.outputs for part in parts) / batches
        whole = Observed(inputs, torch.cat(scaled), earlier, samples, outputs)
        totals = [t.sum() for t in (inputs, whole.errors, *earlier) if t is not None]
        if bool(torch.stack(totals).isfinite().all()):
            return whole
        is_finite = inputs.isfinite().all(-1).all(0) & whole.errors.isfinite().all(-1)
        for own in earlier:
            is_finite &= True if own is None else own.isfinite().all(-1)
        return whole.picked(is_finite.nonzero()[:, 0])


def _half(count: int) -> int:
    """Return half of a count, rounded up or down by chance."""
    return (count + int(torch.randint(2, ()))) // 2


class _Tap(torch.autograd.Function):
    """Identity on an output, whose error is shown as it passes back."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        anchor: Tensor,
        take: Callable[..., None],
        *shown: Tensor | None,
    ) -> Tensor:
        """Return ``output``."""
        ctx.take = take
        ctx.save_for_backward(*shown)
        return output.clone()  # a view could not be changed in place by what follows

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        """Show the error and hand it on."""
        shown = ctx.saved_tensors  # once: a checkpointed block computes them anew
        ctx.take(errors[0], *shown)
        return errors[0], None, None, *[None] * len(shown)
