"""The file in which a recovery keeps its state between two epochs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pbcompress.core.bounded_files import is_file
from pbcompress.core.processes import Processes
from pbcompress.core.tensor_files import read_tensors
from pbcompress.errors import StateMismatchError

__all__ = ["CHECKPOINT_FORMAT", "Checkpoint"]

CHECKPOINT_FORMAT = 7


@dataclass(frozen=True)
class Checkpoint:
    """Where a recovery keeps its state, and which run that state must be of.

    Attributes:
        path: The file, replaced after every epoch.
        fingerprint: Identifies the call, the plan included; a file with another is refused.
    """

    path: Path
    fingerprint: str

    def read(
        self, device: torch.device, processes: Processes | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the state of a former run of this call; None without a file.

        The first process reads, and tells the others, who may not see its disk.

        Raises:
            StateMismatchError: The file is not whole, of another kind, version or call.
        """
        saved = (processes or Processes()).first(self._read)
        if saved is None:
            return None
        tensors, state = saved
        return {name: tensor.to(device) for name, tensor in tensors.items()}, state

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.path
        if not is_file(path):
            return None
        tensors, state = read_tensors(path)
        if "growth" not in state:
            raise StateMismatchError(
                f"{path} was to be a checkpoint and is another file of pbcompress. Choose another "
                "run_dir, or move the file away."
            )
        if state.get("format") != CHECKPOINT_FORMAT:
            raise StateMismatchError(
                f"{path} is a checkpoint of version {state.get('format')}; this pbcompress reads "
                f"{CHECKPOINT_FORMAT}. Finish the run with the version that began it."
            )
        if state.get("fingerprint") != self.fingerprint:
            raise StateMismatchError(
                f"{path} belongs to another model, data, task, target, plan, configuration or seed "
                "than this call. Choose another run_dir, or move this one away to start anew."
            )
        return tensors, state
