"""A progress bar for long training. The only module that imports tqdm."""

import sys
from typing import Any

from tqdm import tqdm

from pbcompress.core.text_tables import figure
from pbcompress.training.callbacks import Callback

__all__ = ["ProgressBar"]

SECONDS_BETWEEN_LINES = 10  # where the output is a log and not a terminal


class ProgressBar(Callback):
    """Shows stage, phase and last validation metric on the standard error stream."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_stage(self, stage: str, total_epochs: int) -> None:
        """Open a bar for the stage."""
        self.on_end()
        pause = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        self._bar = tqdm(
            total=total_epochs,
            desc=f"training ({stage})",
            unit="epoch",
            file=sys.stderr,
            mininterval=pause,
            maxinterval=max(pause, 10),
        )

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Advance by one epoch."""
        self._bar.set_postfix_str(
            f"{record['kind']} phase, val {figure(record['metric'])}", refresh=False
        )
        self._bar.update()

    def on_end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
