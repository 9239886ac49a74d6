"""Scalars for TensorBoard."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pbcompress.training.callbacks import Callback

__all__ = ["TensorBoard"]

_SCALARS = ("loss", "metric", "lr", "sets", "correlation", "improved")


class TensorBoard(Callback):
    """Writes every epoch of `compress` or `recover_`, as one of their ``callbacks``.

    Tags are ``stage/name``, for example ``dendrites/metric``. In dendrite phases
    ``dendrites/score/LAYER/median`` and ``.../best`` are |r| of the candidates of each layer.

    Args:
        log_dir: Folder of the event files.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self._log_dir = str(log_dir)
        self._writer: SummaryWriter | None = None
        self._epochs: dict[str, int] = {}

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Write the numbers of one epoch."""
        if self._writer is None:
            self._writer = SummaryWriter(self._log_dir)
        stage = record["stage"]
        step = self._epochs[stage] = self._epochs.get(stage, -1) + 1
        for name in _SCALARS:
            if name in record:
                self._writer.add_scalar(f"{stage}/{name}", record[name], step)
        for layer, deciles in record.get("scores", {}).items():
            self._writer.add_scalar(f"{stage}/score/{layer}/median", deciles[5], step)
            self._writer.add_scalar(f"{stage}/score/{layer}/best", deciles[-1], step)

    def on_end(self) -> None:
        """Write what is pending and close the file; a later stage opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
