"""What `frontier` returns: a network for every target, side by side."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pbcompress.config.budget import Budget
from pbcompress.core.markdown import without_controls
from pbcompress.core.text_tables import Table, figure, render_text, signed_figure
from pbcompress.costs.headline import Speed
from pbcompress.errors import CompressionError
from pbcompress.frontiers.picture import frontier_picture
from pbcompress.report.headline import speed
from pbcompress.runs.contenders import Score, Split
from pbcompress.runs.facts import Metric, NetworkFacts, RunFacts

__all__ = ["Frontier", "FrontierPoint"]

By = Literal["params", "flops", "latency"]
SAME = 1e-6  # relative: metrics come from sums in float32


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The network of one target.

    Attributes:
        target: Its name, such as "params-0.25".
        budget: What was asked for.
        facts: All that is known of its run.
        model: Trained, on the CPU, in eval mode.
        run_dir: The folder of its run, which `load` and ``pbcompress report`` take; None where the
            frontier had none.
    """

    target: str
    budget: Budget
    facts: RunFacts = field(repr=False)
    model: nn.Module = field(repr=False)
    run_dir: Path | None

    @property
    def params(self) -> int:
        """Parameters."""
        return self.facts.after.cost.params

    @property
    def flops(self) -> int:
        """Multiply-adds of one sample."""
        return self.facts.after.cost.flops

    @property
    def speed(self) -> Speed | None:
        """How many times as fast as the original, as measured or expected; None: not known."""
        return speed(self.facts)

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds of a run in ONNX Runtime; None where it was not exported and timed."""
        shipped = self.facts.shipped
        return shipped.latency_after.median if shipped else None

    @property
    def drop(self) -> float | None:
        """How much of the validation metric was lost; below 0 it got better. None: no metric."""
        before, after = self.facts.before.score, self.facts.after.score
        if before is None or after is None:
            return None
        lost = before.val - after.val
        return lost if self.facts.metric.higher_is_better else -lost

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        score, speed = self.facts.after.score, self.speed
        return {
            "target": self.target,
            "budget": self.budget.to_dict(),
            "params": self.params,
            "flops": self.flops,
            "speed": speed and {"ratio": speed.ratio, "known": speed.known},
            "latency_ms": self.latency_ms,
            "val": score and score.val,
            "test": score and score.test,
            "drop": self.drop,
            "run_dir": None if self.run_dir is None else str(self.run_dir),
        }


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Networks for several targets; ``print(frontier)`` shows them side by side.

    Attributes:
        points: One for each target that was reached, from the most parameters to the fewest.
        diverged: Targets whose training diverged, with what it said.
    """

    points: tuple[FrontierPoint, ...]
    diverged: Mapping[str, str] = field(default_factory=dict)

    @property
    def before(self) -> NetworkFacts:
        """The original."""
        return self.points[0].facts.before

    @property
    def metric(self) -> Metric:
        """What the networks were scored by."""
        return self.points[0].facts.metric

    def smallest(self, max_drop: float, by: By = "params") -> FrontierPoint:
        """Return the smallest network that loses at most so much on validation.

        Args:
            max_drop: In the unit of the metric, whichever its direction: 0.01 is one point of an
                accuracy, or 0.01 more of a loss.
            by: What is to be small: parameters, multiply-adds, or the time of a run.

        Raises:
            CompressionError: Every network loses more, there is no metric, or no time is known.
            ValueError: ``max_drop`` is not a number from 0, or ``by`` is something else.
        """
        if not 0 <= max_drop < math.inf:
            raise ValueError(f"max_drop was given as {max_drop!r}; it must be a number from 0.")
        sizes = self._sizes(by)
        drops = [point.drop for point in self.points if point.drop is not None]
        if not drops:
            raise CompressionError(
                "A network was to be picked by what it loses, and no metric was measured. Give the "
                "frontier data with labels."
            )
        good = [
            (size, point)
            for size, point in zip(sizes, self.points, strict=True)
            if point.drop is not None
            and (point.drop <= max_drop or math.isclose(point.drop, max_drop, rel_tol=SAME))
        ]
        if not good:
            raise CompressionError(
                f"A network that loses at most {max_drop:g} of {self.metric.name} on validation "
                f"was asked for; the least that one loses is {figure(min(drops))}. Allow more, "
                "train longer, or add a larger target."
            )
        return min(good, key=lambda pair: pair[0])[1]

    def _sizes(self, by: By) -> list[float]:
        if by == "params":
            return [point.params for point in self.points]
        if by == "flops":
            return [point.flops for point in self.points]
        if by != "latency":
            raise ValueError(f"by was given as {by!r}; it must be 'params', 'flops' or 'latency'.")
        speeds = [point.speed for point in self.points]
        known = [1 / speed.ratio for speed in speeds if speed is not None]
        if len(known) < len(speeds):
            raise CompressionError(
                "A network was to be picked by latency, which is not known of every target. Pick "
                "by params or flops."
            )
        return known

    def plot(self, path: str | Path) -> None:
        """Write a picture: the metric against parameters, multiply-adds and, if timed, latency.

        Args:
            path: A file that ends in .svg or .png.

        Raises:
            CompressionError: There is no metric, the ending is another one, matplotlib is not
                installed, or the file cannot be written.
        """
        frontier_picture([point.facts for point in self.points], Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        score = self.before.score
        return {
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "before": {
                "params": self.before.cost.params,
                "flops": self.before.cost.flops,
                "val": score and score.val,
                "test": score and score.test,
            },
            "points": [point.to_dict() for point in self.points],
            "diverged": dict(self.diverged),
        }

    def __str__(self) -> str:
        lines = [render_text(self._table())]
        lines += [f"{name} is not there: {why}" for name, why in self.diverged.items()]
        return "\n".join(map(_lines_kept, lines))

    def _table(self) -> Table:
        name, score, cost = self.metric.name, self.before.score, self.before.cost
        header = ("target", "parameters", "of before", "FLOPs", "of before", "speed", "ms")
        scores = (_on(score, "val"), _on(score, "test"))
        rows = [
            (*header, f"{name}, val", f"{name}, test", "lost, val"),
            ("(original)", f"{cost.params:,}", "", f"{cost.flops:,}", "", "", "", *scores, ""),
        ]
        return [*rows, *map(_row, self.points)]


def _row(point: FrontierPoint) -> tuple[str, ...]:
    cost, score, speed = point.facts.before.cost, point.facts.after.score, point.speed
    return (
        point.target,
        f"{point.params:,}",
        f"{point.params / cost.params:.1%}",
        f"{point.flops:,}",
        f"{point.flops / cost.flops:.1%}" if cost.flops else "",
        f"{speed.shown}x {speed.known}" if speed else "",
        "" if point.latency_ms is None else f"{point.latency_ms:.3f}",
        _on(score, "val"),
        _on(score, "test"),
        "" if point.drop is None else signed_figure(point.drop),
    )


def _on(score: Score | None, split: Split) -> str:
    value = score.on(split) if score else None
    return "" if value is None else figure(value)


def _lines_kept(text: str) -> str:
    return "\n".join(map(without_controls, text.splitlines()))
