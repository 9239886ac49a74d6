"""A bound on the time that work may take, with a message that says where it was."""

import time
from collections.abc import Callable

from pbcompress.errors import CompressionError

__all__ = ["Deadline"]


class Deadline:
    """Raises when work takes longer than it may.

    Args:
        seconds: Time from now on; None: no bound.
        advice: What the caller can do about it, a sentence.
        clock: Seconds that only grow.

    Example:
        >>> Deadline(60, "Ask for less.").check("planning")
    """

    def __init__(
        self, seconds: float | None, advice: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.advice, self._clock = seconds, advice, clock
        self._start = clock()

    def check(self, doing: str) -> None:
        """Raise if the time is over.

        Raises:
            CompressionError: It is over; the message names ``doing``.
        """
        if self.seconds is not None and self._clock() - self._start > self.seconds:
            raise CompressionError(
                f"{doing} was to take at most {self.seconds:g} seconds and is not done. "
                f"{self.advice}"
            )
