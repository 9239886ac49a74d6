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


@dataclass(frozen=True, init=False)
class Checkpoint:
    """Where `recover_` keeps its state, and which run that state must be of.

    Attributes:
        path: The file, replaced after every epoch.
        fingerprint: Identifies the call; a file with another is refused. `compress` has one of
            network, plan, data, task and choices; in a call of your own any name of the run will
            do, because the state of another network is refused in any case.

    Example:
        >>> Checkpoint("state.safetensors", "small network, seed 0").path.name
        'state.safetensors'
    """

    path: Path
    fingerprint: str

    def __init__(self, path: str | Path, fingerprint: str = "") -> None:
        object.__setattr__(self, "path", Path(path))
        object.__setattr__(self, "fingerprint", fingerprint)

    def read(
        self, device: torch.device, processes: Processes | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the state of a former run of this call; None without a file.

        The first process reads, and tells the others, who may not see its disk.

        Raises:
            StateMismatchError: The file is not whole, of another kind, version or call.
        """
        processes = processes or Processes()
        saved = processes.first(self._read)
        if saved is None:
            return None
        tensors, state = saved
        world = state.get("processes", processes.world)
        if world != processes.world:
            raise StateMismatchError(
                f"{self.path} is a checkpoint of {world} process(es), and this training has "
                f"{processes.world}: the batches of a step would be others. Start {world}, or "
                "move the file away to start anew."
            )
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
