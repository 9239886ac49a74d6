"""The cut network, fitted to the original in closed form: a training has to beat it."""

import logging
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pbcompress.compensation.compensate import compensate_
from pbcompress.compensation.report import CompensationReport
from pbcompress.core.processes import Processes
from pbcompress.errors import first_line
from pbcompress.planning.width_plan import WidthPlan
from pbcompress.pruning.shrinking import shrink
from pbcompress.training.experiment import Experiment
from pbcompress.training.loop import evaluate
from pbcompress.training.task import Batches, CheckedData, Data, Task

__all__ = ["CALIBRATION_BATCHES", "FittedNetwork", "compensated_by_all_", "fitted_network"]

CALIBRATION_BATCHES = 32
HELD_BYTES = 2**28  # of batches in memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedNetwork:
    """A network that was cut and fitted, and not trained.

    Attributes:
        network: In eval mode.
        compensation: What was fitted.
        score: On validation, higher is better.
    """

    network: nn.Module
    compensation: CompensationReport
    score: float


def compensated_by_all_(
    processes: Processes,
    network: nn.Module,
    original: nn.Module,
    plan: WidthPlan,
    data: Data | Batches,
    task: Task,
    *,
    batches: int,
    seed: int,
) -> CompensationReport:
    """Call `compensate_` in every process, and give all what it made in the first."""
    report = processes.each(
        lambda: compensate_(network, original, plan, data, task, batches=batches, seed=seed)
    )
    processes.share(network, weights=True)
    return processes.agreed(report)


def fitted_network(
    original: nn.Module, plan: WidthPlan, of: Experiment, processes: Processes
) -> FittedNetwork | None:
    """Cut a network and fit it to the original; None where that is not possible.

    Args:
        original: The original.
        plan: Its plan.
        of: Data, task and seed.
        processes: They fit and score it.
    """
    network = shrink(original, plan).eval()
    try:
        report = compensated_by_all_(
            processes,
            *(network, original, plan, of.data, of.task),
            batches=_batches(of),
            seed=of.seed,
        )
        score = of.task.score(evaluate(network, of.data.val, of.task, processes)[0])
    except Exception as err:  # a training can do without it
        logger.warning(
            "No layer of the cut network was fitted to the original: %s", first_line(err)
        )
        return None
    return FittedNetwork(network, report, score) if report.layers else None


def _batches(of: Experiment) -> int:
    """Return how many batches fit into memory."""
    first = of.data.first if isinstance(of.data, CheckedData) else None
    tensors = [leaf for leaf in tree_leaves(first) if isinstance(leaf, torch.Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(min(CALIBRATION_BATCHES, HELD_BYTES // max(size, 1)), 1)
