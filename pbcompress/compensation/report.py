"""What a compensation did: the error of every layer before and after."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from pbcompress.core.text_tables import figure, render_text

__all__ = ["CompensationReport", "ReaderError"]


@dataclass(frozen=True)
class ReaderError:
    """How far what a layer puts out is from what the original's does.

    A layer that does not show its sums is told by what it reads.

    Attributes:
        before: Squared error over the variance of the original's, with all weights as the cut left
            them: 0 is none, 1 is as bad as a constant.
        after: The same with the weights of all layers fitted.
        strength: Of the ridge, relative to the mean diagonal of the Gram matrix; None: the weights
            stayed as they were.
        rows: Samples and positions that the errors are of; no regression saw them.
    """

    before: float
    after: float
    strength: float | None
    rows: int


@dataclass(frozen=True)
class CompensationReport:
    """What `compensate_` did; ``print`` it for a table.

    Attributes:
        layers: The error of every layer that was fitted, by its name.
        left: What reads narrowed channels too and was left as it was, with the reason.
        sum_bytes: The most that sums of products took at a time.
    """

    layers: Mapping[str, ReaderError]
    left: Mapping[str, str]
    sum_bytes: int

    @property
    def summary(self) -> str:
        """The mean error over layers before and after, in a sentence."""
        if not self.layers:
            return "No layer reads narrowed channels that could be fitted."
        before, after = (
            statistics.mean(getattr(layer, when) for layer in self.layers.values())
            for when in ("before", "after")
        )
        return (
            f"{len(self.layers)} layers that read narrowed channels were fitted: their mean error "
            f"fell from {figure(before)} to {figure(after)} of the variance."
        )

    def __str__(self) -> str:
        head = ("layer", "error before", "after", "ridge")
        rows = [
            (name, figure(e.before), figure(e.after), f"{e.strength:g}" if e.strength else "-")
            for name, e in self.layers.items()
        ]
        text = render_text([head, *rows])
        return "\n".join([text, *(f"{name} is left: {why}" for name, why in self.left.items())])
