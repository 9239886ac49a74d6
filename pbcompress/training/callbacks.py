"""Hooks that watch a training."""

from typing import Any

__all__ = ["Callback"]


class Callback:
    """Hooks into `compress` and `recover_`: override what you need, and draw no random numbers."""

    def on_stage(self, stage: str, total_epochs: int) -> None:
        """Run when a stage of training begins, with the most epochs that it can take."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Run after every epoch, with its line of the history."""

    def on_end(self) -> None:
        """Run when training is over."""
