"""The exceptions that pbcompress raises for what a caller can cause.

Every message has three parts: what was asked, what was found, what to do. It is one line of bounded
length that moves no cursor, whatever of a file or of another library's error is in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "CompressionError",
    "DivergedError",
    "ExportMismatchError",
    "StateMismatchError",
    "TargetUnreachableError",
    "UnsupportedLayerError",
    "UnwritableError",
    "a_few",
    "brief",
    "first_line",
]

MOST_WORDS = 2000  # characters of a message
MOST_OF_OTHERS = 400  # characters of another library's error in it


def a_few(names: Sequence[str], most: int = 4) -> str:
    """Return the first of some names, and how many there are beyond them.

    Example:
        >>> a_few(["a", "b", "c"], 2)
        "'a', 'b' and 1 more"
    """
    shown = ", ".join(f"{name!r:.80}" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def brief(text: object, most: int) -> str:
    r"""Return a text for a message: one line, the middle of a long one left out.

    Args:
        text: A text, or an error.
        most: Characters that it may have.

    Example:
        >>> brief("a\nb\x1b[2J", 20), brief("x" * 5000 + "; must be 1", 21)
        ('a b\ufffd[2J', 'xxxxxxxx ... ust be 1')
    """
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(text).split()))
    half = (most - 5) // 2
    return line if len(line) <= most else f"{line[:half]} ... {line[-half:]}"


class CompressionError(Exception):
    """Root of all errors of pbcompress.

    Example:
        >>> issubclass(TargetUnreachableError, (CompressionError, ValueError))
        True
    """

    def __init__(self, message: str) -> None:
        super().__init__(brief(message, MOST_WORDS))

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), str(self), vars(self))


def _remade(
    kind: type[CompressionError], message: str, attributes: Mapping[str, Any]
) -> CompressionError:
    """Return an error as another process raised it, whatever its constructor takes."""
    error = kind.__new__(kind, message)
    vars(error).update(attributes)
    return error


class UnwritableError(CompressionError):
    """A file or folder could not be written: the disk is full, or the place is read-only."""


class TargetUnreachableError(CompressionError, ValueError):
    """The target is below the smallest network that the layers allow, or no target at all.

    Attributes:
        smallest: The smallest reachable number of parameters, or where a latency or a file size
            cannot be reached the smallest of these; None where the target was not a number below
            the original, and nothing was searched.
    """

    def __init__(self, message: str, smallest: float | None) -> None:
        super().__init__(message)
        self.smallest = smallest


class UnsupportedLayerError(CompressionError, ValueError):
    """A layer was asked for something that its kind does not allow.

    Attributes:
        layer: Dotted name of the layer.
        reason: Why it cannot be done.
    """

    def __init__(self, message: str, layer: str, reason: str) -> None:
        super().__init__(message)
        self.layer = layer
        self.reason = reason


class StateMismatchError(CompressionError, RuntimeError):
    """A file on disk does not belong to this model, call or version."""


class ExportMismatchError(CompressionError, RuntimeError):
    """The exported network does not compute what the torch network computes.

    Attributes:
        max_difference: Largest absolute difference of any output element.
    """

    def __init__(self, message: str, max_difference: float) -> None:
        super().__init__(message)
        self.max_difference = max_difference


class DivergedError(CompressionError, RuntimeError):
    """Training produced a loss that is not a finite number."""


def first_line(err: BaseException) -> str:
    """Return the first line of what an error, or what caused it, says, in brief."""
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return brief(lines[0] if lines else type(err).__name__, MOST_OF_OTHERS).rstrip(".")
