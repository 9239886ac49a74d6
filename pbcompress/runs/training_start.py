"""What a training starts from, and what it has to beat: layers fitted to the original's."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pbcompress.compensation.compensate import compensate_
from pbcompress.compensation.report import CompensationReport
from pbcompress.core.modules import copy_model
from pbcompress.planning.width_plan import WidthPlan
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from pbcompress.training.experiment import Experiment
from pbcompress.training.loop import evaluate
from pbcompress.training.snapshots import put_weights_, weights_of
from pbcompress.training.task import CheckedData

__all__ = ["CALIBRATION_BATCHES", "TrainingStart", "training_start_"]

CALIBRATION_BATCHES = 32
HELD_BYTES = 2**28  # of batches in memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingStart:
    """What was done before a training.

    Attributes:
        compensation: What was fitted, and the training starts from; None: from the cut alone.
        rival: A fitted network that the training has to beat; None: there is none.
    """

    compensation: CompensationReport | None = None
    rival: "Rival | None" = None


@dataclass(frozen=True)
class Rival:
    """The same network, fitted to the original and not trained.

    Attributes:
        compensation: What was fitted.
        score: On validation, higher is better.
        weights: By name.
    """

    compensation: CompensationReport
    score: float
    weights: dict[str, Tensor]

    def put_weights_(self, network: nn.Module) -> None:
        """Give its weights to the network."""
        put_weights_(network, self.weights)


def training_start_(
    network: nn.Module,
    original: nn.Module,
    plan: WidthPlan,
    of: Experiment,
    batches: int | str,
) -> TrainingStart:
    """Prepare a cut network for its training, in place.

    Args:
        network: What ``shrink(original, plan)`` gave.
        original: The original.
        plan: Its plan.
        of: Data, task and seed.
        batches: ``RecoveryConfig.compensation_batches``.
    """
    report = None
    rival = _rival(network, original, plan, of) if batches == "auto" else None
    if batches and batches != "auto":
        report = compensate_(
            network, original, plan, of.data, of.task, batches=int(batches), seed=of.seed
        )
    reestimate_batchnorm_(network, of.data, of.task, seed=of.seed)
    return TrainingStart(report, rival)


def _rival(
    network: nn.Module, original: nn.Module, plan: WidthPlan, of: Experiment
) -> Rival | None:
    """Return a copy of the cut network, fitted to the original; None where that is not possible."""
    fitted = copy_model(network)
    try:
        report = compensate_(
            fitted, original, plan, of.data, of.task, batches=_batches(of), seed=of.seed
        )
        score = of.task.score(evaluate(fitted, of.data.val, of.task)[0])
    except Exception as err:  # a training can do without it
        logger.warning("No layer of the cut network was fitted to the original: %s", err)
        return None
    return Rival(report, score, weights_of(fitted)) if report.layers else None


def _batches(of: Experiment) -> int:
    """Return how many batches fit into memory."""
    first = of.data.first if isinstance(of.data, CheckedData) else None
    tensors = [leaf for leaf in tree_leaves(first) if isinstance(leaf, torch.Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(min(CALIBRATION_BATCHES, HELD_BYTES // max(size, 1)), 1)
