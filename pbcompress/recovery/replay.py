"""A dendrite phase from memory: neurons rest, so what candidates see need be computed only once.

Rows are drawn as errors pass back, which also works under activation checkpointing. Candidates
would overfit too few rows; if memory holds no more, the phase passes through the network.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import nn

from pbcompress.config.dendrites import Shared
from pbcompress.core.randomness import seeded
from pbcompress.dendrites.correlation import Centred, centred, listen, process_count
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.signals import activate, add_links
from pbcompress.recovery.candidate_inputs import fan_in, is_observable, map_rows, row_size
from pbcompress.recovery.observation import Observed, observe_together
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.loop import Stepper

__all__ = ["Replay", "share_rows"]

# Fewer are overfitted, and more bring nothing new: see docs/benchmarks/positions.md.
ROWS_PER_INPUT, ENOUGH_ROWS = 512, 2**17


def share_rows(
    sizes: Mapping[str, int], available: Mapping[str, int], memory: float
) -> dict[str, int]:
    """Return how many rows each layer gets: equally many; what one cannot use goes to the others.

    Args:
        sizes: Bytes of a row, by layer.
        available: Rows that there are, by layer.
        memory: Bytes in all.

    Example:
        >>> share_rows({"a": 10, "b": 10}, {"a": 3, "b": 100}, memory=200)
        {'a': 3, 'b': 17}
    """
    shared: dict[str, int] = {}
    by_need = sorted(sizes, key=lambda name: available[name])
    for number, name in enumerate(by_need):
        equal = memory / sum(sizes[other] for other in by_need[number:])
        taken = min(equal, available[name])
        shared[name] = int(taken)
        memory -= taken * sizes[name]
    return {name: shared[name] for name in sizes}


class Replay:
    """What candidates read and the errors of their neurons, drawn once, and steps on them.

    A step descends on the objective of `correlation.CorrelationProbe`, for rows drawn
    from all samples and positions in place of those of one batch. A layer that is called several
    times has the rows of all calls.

    Args:
        model: Network in a dendrite phase; its base network has been trained and rests.
        sample: Train split, loss and forward.
        rows: Rows at most, by layer.

    Attributes:
        batches: How many there were.
    """

    def __init__(self, model: nn.Module, sample: Sample, rows: Mapping[str, int]) -> None:
        layers = dendrite_layers(model)
        found, losses = observe_together(model, layers, sample, rows)
        self.batches, self._loss = len(losses), sum(losses) / len(losses)
        self._held: list[_Held] = []
        with seeded("rows", sample.seed):
            for name in list(found):
                seen = found.pop(name)
                if len(seen.errors) == 0:  # none was finite
                    continue
                seen = seen.picked(torch.randperm(len(seen.errors)).to(seen.errors.device))
                errors = centred(seen.errors, -1)
                self._held.append(_Held(layers[name], replace(seen, errors=errors.values), errors))

    @classmethod
    def within(cls, model: nn.Module, sample: Sample, gibibytes: float) -> Self | None:
        """Return a replay whose rows fit in memory; None where a layer would have too few.

        Too few are fewer than the layer has outputs and than 512 for each number that a node reads.
        While the rows are drawn, those of one layer at a time are there twice.
        """
        layers = dendrite_layers(model)
        if gibibytes == 0 or not all(map(is_observable, layers.values())):
            return None
        most = {name: max(ENOUGH_ROWS, ROWS_PER_INPUT * fan_in(m)) for name, m in layers.items()}
        first = replace(sample, count=1)
        one, _ = observe_together(model, layers, first, dict.fromkeys(layers, 1))
        outputs = {name: math.ceil(seen.outputs * sample.count) for name, seen in one.items()}
        wanted = {name: min(outputs.get(name, most[name]), most[name]) for name in layers}
        size = max(next(model.parameters()).element_size(), 4)
        sizes = {name: size * _numbers(layer) for name, layer in layers.items()}
        rows = share_rows(sizes, wanted, gibibytes * 2**30)
        if any(rows[name] < _enough(layer, wanted[name]) for name, layer in layers.items()):
            return None
        made = cls(model, sample, rows)  # the first batch may have been unlike the others
        for held in made._held:
            if len(held.seen.errors) < _enough(held.layer, held.seen.outputs * made.batches):
                return None
        return made

    def epoch(
        self, stepper: Stepper, *, steps: int, seed: tuple[int | str, ...]
    ) -> tuple[float, int]:
        """Train the candidates for some steps, in the mode that they are in.

        Args:
            stepper: Takes the steps, each on the rows of ``accumulate`` batches.
            steps: Optimizer steps.
            seed: Names where in the rows an epoch begins.

        Returns:
            Mean loss of the network on the train split, and the number of steps.
        """
        with seeded(*seed), torch.enable_grad():
            starts = [int(torch.randint(2**31, ())) for _ in self._held]
            for step in range(steps):
                stepper.begin_step((step + 0.5) / steps)
                for held, start in zip(self._held, starts, strict=True):
                    _learn(held, held.slice(start, step, stepper.accumulate))
                stepper.step()
        return self._loss, steps


def _enough(layer: DendriteLayer, outputs: float) -> float:
    """Return how many rows keep candidates from overfitting: all, if there are fewer."""
    return min(outputs, ROWS_PER_INPUT * fan_in(layer))


def _numbers(layer: DendriteLayer) -> int:
    """Return how many numbers a row of a layer has."""
    earlier = layer.num_sets - 1 if layer.config.cascade else 0
    return row_size(layer) + layer.channels + layer.nodes * earlier


class _Held(NamedTuple):
    """Rows of a layer in a random order; the scale of their errors is found once."""

    layer: DendriteLayer
    seen: Observed
    errors: Centred

    def slice(self, start: int, step: int, accumulate: int = 1) -> slice:
        """Return the rows of one step, the number that its batches would show: neighbours, no copy.

        Steps follow each other through the rows from an offset that ``start`` gives, so those of
        one round share none.
        """
        total, own = len(self.seen.errors), math.ceil(self.seen.outputs) * process_count()
        count = min(min(self.layer.config.scored_rule.samples or own, own) * accumulate, total)
        rounds = total // count
        first = start % (total - rounds * count + 1) + step % rounds * count
        return slice(first, first + count)


def _learn(held: _Held, index: slice) -> None:
    """Add gradients and scores of the candidates of a layer, for some of its rows."""
    layer, seen = held.layer, held.seen.rows(index)
    activations = [
        activate(
            add_links(map_rows(branch, seen.inputs), links, seen.earlier, 0),
            layer.config.activation,
        )
        for branch, links in layer.candidates
    ]
    assert layer.pool is not None
    leaf = layer.pool.leaf
    with torch.no_grad():
        scores, gradients = listen(
            [a.detach() for a in activations],
            held.errors._replace(values=seen.errors - seen.errors.mean(0)),
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad,
            axis=-1,
            pairwise=not isinstance(layer.config.form, Shared),
            samples=seen.samples,
        )
        leaf.grad = scores if leaf.grad is None else leaf.grad + scores
    torch.autograd.backward(activations, gradients)
