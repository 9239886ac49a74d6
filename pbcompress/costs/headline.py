"""What is said first of a smaller network: size, work, speed, and each bound beside what it has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pbcompress.config.budget import Budget
from pbcompress.costs.measured import ModelCost

__all__ = ["Bound", "Exported", "Speed", "bounds_of", "first_lines"]

BLOCK = 8  # channels that a runtime computes at once, at least
MANY_FLOPS = 0.7  # of the original: no great speed-up is to be had
TINY_MS = 0.2
SURE = 0.9  # as fast, as expected: what a table of operators can tell from 1
NO_TIME = "its speed is not known (nothing was timed)"


@dataclass(frozen=True)
class Speed:
    """The speed of a network in ONNX Runtime on a CPU, the original's being 1.

    Attributes:
        ratio: The original's time by the network's; above 1 is faster.
        known: Whether it was measured, or is expected by a table of operators.
        threads: Of the runtime.
        original_ms: Milliseconds of the original; None where it was not timed.
        note: What is not in it, in words.

    Example:
        >>> print(Speed(1.876, "expected"))
        expected 1.9 times as fast in ONNX Runtime on a CPU (not timed)
        >>> print(Speed(0.62, "measured"), Speed(0.62, "measured").is_slower)
        measured 0.62 times as fast in ONNX Runtime on a CPU (1 thread, batch 1) True
    """

    ratio: float
    known: Literal["measured", "expected"]
    threads: int = 1
    original_ms: float | None = None
    note: str = ""

    @property
    def shown(self) -> str:
        """The ratio in as many digits as are known."""
        return f"{self.ratio:.2f}" if self.known == "measured" else f"{self.ratio:.2g}"

    @property
    def is_slower(self) -> bool:
        """Whether the network takes longer than the original, as far as can be told."""
        return float(self.shown) < (1 if self.known == "measured" else SURE)

    def __str__(self) -> str:
        how = "not timed"
        if self.known == "measured":
            how = f"{self.threads} thread{'s' if self.threads > 1 else ''}, batch 1"
        how += f", {self.note}" if self.note else ""
        times = "just as fast" if float(self.shown) == 1 else f"{self.shown} times as fast"
        return f"{self.known} {times} in ONNX Runtime on a CPU ({how})"


@dataclass(frozen=True)
class Exported:
    """Two exported networks as measured: milliseconds of a run and bytes of the file."""

    milliseconds: tuple[float, float]
    file_bytes: tuple[int, int]


def first_lines(
    before: ModelCost, after: ModelCost, speed: Speed | None, unknown: str = NO_TIME, more: str = ""
) -> tuple[str, ...]:
    """Return size, work and speed in a line; where it is slower, a line before that says so.

    Args:
        before: The original.
        after: The smaller network.
        speed: Of the smaller one; None if it is not known.
        unknown: What to say then.
        more: What else belongs into the line.
    """
    sizes = [("parameters", before.params, after.params)]
    sizes += [("multiply-adds", before.flops, after.flops)] if before.flops else []
    parts = [f"{100 * b / a:.1f} % of the {unit} ({a:,} -> {b:,})" for unit, a, b in sizes]
    if speed is None or not speed.is_slower:
        return (", ".join(filter(None, [*parts, unknown if speed is None else str(speed), more])),)
    start = "SLOWER" if speed.known == "measured" else "Likely SLOWER"
    help_ = "; ".join(_advice(before, after, speed))
    warning = f"{start} than the original: {speed}. What may help: {help_}."
    return warning, ", ".join(filter(None, [*parts, more]))


def _advice(before: ModelCost, after: ModelCost, speed: Speed) -> Iterator[str]:
    """Yield what could make a network faster, as far as its numbers tell."""
    pairs = [
        (old.width, new.width)
        for name, old in before.by_layer.items()
        if (new := after.by_layer.get(f"{name}.base_layer") or after.by_layer.get(name))
    ]
    cut = [new for old, new in pairs if old is not None and new is not None and new < old]
    odd = sum(width % BLOCK != 0 for width in cut)
    if odd:
        yield (
            f"widths in multiples of {BLOCK}, which {odd} of {len(cut)} narrowed layers lack "
            f"(WidthConfig(round_to={BLOCK}))"
        )
    if any(f"{name}.base_layer" in after.by_layer for name in before.by_layer):
        yield "no dendrites, which add operations (DendriteConfig(max_sets=0))"
    if before.flops and after.flops > MANY_FLOPS * before.flops:
        yield (
            f"fewer multiply-adds, of which {100 * after.flops / before.flops:.0f} % are left "
            '(Budget(params=..., flops=...), or WidthConfig(allocation="fast"))'
        )
    if speed.original_ms is not None and speed.original_ms < TINY_MS:
        yield (
            f"a larger batch: at {speed.original_ms:.2g} ms a run, the network may be too small "
            "for its size to change its speed at batch 1 (pbcompress bench --batch 32)"
        )
    else:
        yield "a larger batch, where yours is (pbcompress bench --batch 32)"


@dataclass(frozen=True)
class Bound:
    """A bound that was asked for, and what was reached.

    Attributes:
        unit: Of both.
        asked: As the user wrote it: a number, or a share of the original.
        limit: As a number; None if the original is not known in this unit.
        reached: What the network has; None if it was not measured.
    """

    unit: str
    asked: float
    limit: float | None
    reached: float | None

    @property
    def most(self) -> str:
        """The bound in words."""
        share = f"{self.asked:,} of the original" if self.asked < 1 else ""
        if self.limit is None:
            return f"at most {share} in {self.unit}"
        limit = f"{self.limit:,}" if isinstance(self.limit, int) else f"{self.limit:.4g}"
        return f"at most {limit} {self.unit}" + (f" ({share})" if share else "")

    def __str__(self) -> str:
        if self.reached is None or self.limit is None:
            return f"{self.most}, not measured"
        reached = f"{self.reached:,}" if isinstance(self.reached, int) else f"{self.reached:.4g}"
        over = ", MORE THAN THE BOUND" if self.reached > self.limit else ""
        used = 100 * self.reached / self.limit if self.limit else math.inf
        return f"{self.most}, reached {reached} ({used:.1f} % of it{over})"


def bounds_of(
    budget: Budget, before: ModelCost, after: ModelCost, exported: Exported | None
) -> tuple[Bound, ...]:
    """Return the bounds of a budget that were asked for, each with what was reached.

    Args:
        budget: What was asked for.
        before: The original.
        after: The smaller network.
        exported: Both as they ship; None where that was not measured.
    """
    milliseconds, file_bytes = (
        (exported.milliseconds, exported.file_bytes) if exported else ((None, None), (None, None))
    )
    rows: list[tuple[str, float | None, float | None, float | None]] = [
        ("parameters", budget.params, before.params, after.params),
        ("FLOPs", budget.flops, before.flops, after.flops),
        ("ms of latency", budget.latency_ms, *milliseconds),
        ("bytes of file", budget.file_bytes, *file_bytes),
    ]
    return tuple(
        Bound(unit, asked, _limit(asked, full, whole=unit != "ms of latency"), reached)
        for unit, asked, full, reached in rows
        if asked is not None
    )


def _limit(asked: float, full: float | None, *, whole: bool) -> float | None:
    if asked >= 1:
        return int(asked) if whole else asked
    if full is None:
        return None
    return int(asked * full) if whole else asked * full
