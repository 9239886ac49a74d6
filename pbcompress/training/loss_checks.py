"""The losses of an epoch, and whether they and their data are finite."""

import math

import torch
from torch import Tensor

from pbcompress.core.processes import Processes
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.training.batch_tensors import finite_parts, not_finite

__all__ = ["BATCHES", "LossChecks"]

BATCHES = 50  # that a GPU computes before the host waits for it


class LossChecks:
    """Sums up the losses of an epoch, and names the first batch that spoils them.

    On a CPU every batch is checked before the network sees it, and every loss before its gradients.
    Elsewhere a look at a number makes the host wait for the device, so that both are checked once
    in `BATCHES` batches and at the end.

    Args:
        processes: Of several, all stop together: at the end.
        device: Of the losses.

    Attributes:
        total: Sum of the losses.
        count: Batches that were taken.

    Example:
        >>> checks = LossChecks(Processes(), torch.device("cpu"))
        >>> checks.take_data([torch.ones(2)], "batch 0")
        >>> checks.take_loss(torch.tensor(0.5))
        >>> checks.total, checks.count
        (0.5, 1)
    """

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self.total, self.count = 0.0, 0
        self._processes, self._is_late = processes, device.type != "cpu"
        self._places: list[str] = []
        self._are_finite: list[list[Tensor]] = []
        self._losses: list[Tensor] = []
        self._bad: list[CompressionError] = []

    def take_data(self, batch: object, place: str) -> None:
        """Take note of a batch before it is used; ``place`` names it."""
        self._places.append(place)
        self._are_finite.append(list(finite_parts(batch)))
        if not self._is_late and self._processes.world == 1 and not self._has_finite_data(-1):
            raise not_finite(place)

    def take_loss(self, loss: Tensor) -> None:
        """Take the loss of that batch."""
        value = loss.detach().reshape(())
        for is_finite in self._are_finite[-1]:
            value = torch.where(is_finite.to(value.device), value, math.nan)
        self._losses.append(value)
        if not self._is_late or len(self._losses) >= BATCHES:
            self.settle()

    def settle(self) -> None:
        """Check what was not checked yet.

        Raises:
            CompressionError: Data are not finite, and this is the only process.
            DivergedError: Data are, and a loss is not.
        """
        values: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        for index, value in enumerate(values):
            if not math.isfinite(value):
                self._bad.append(self._reason(index, value))
                if self._processes.world == 1:
                    raise self._bad[0]
            self.total, self.count = self.total + value, self.count + 1
        for held in (self._places, self._are_finite, self._losses):
            held.clear()

    def mean(self) -> float:
        """Return the mean loss over all processes.

        Raises:
            CompressionError: In all of them, what `settle` found in one.
        """
        mean = self._processes.mean(self.total / self.count)
        if not math.isfinite(mean):
            raise self._first_bad()
        return mean

    def _reason(self, index: int, value: float) -> CompressionError:
        place = self._places[index]
        if not self._has_finite_data(index):
            return not_finite(place)
        return DivergedError(
            f"The loss became {value} on {place}, whose data are finite. Lower OptimizerConfig.lr, "
            "or set max_grad_norm."
        )

    def _has_finite_data(self, index: int) -> bool:
        return all(map(bool, self._are_finite[index]))

    def _first_bad(self) -> CompressionError:
        """Return, in every process, why the loss of one of them is not finite; data come first."""
        found = [err for own in self._processes.gathered(self._bad) for err in own]
        found.sort(key=lambda err: isinstance(err, DivergedError))
        lost = DivergedError("The mean loss of an epoch is too large. Lower OptimizerConfig.lr.")
        return found[0] if found else lost
