"""The readers of narrowed channels, refitted to what they put out before the cut."""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.compensation.readers import find_readers
from pbcompress.compensation.refit import refit_
from pbcompress.compensation.report import CompensationReport
from pbcompress.core.modules import copy_model, device_of
from pbcompress.core.randomness import seeded
from pbcompress.core.turns import in_turn
from pbcompress.dendrites.attention_projections import open_attention_
from pbcompress.errors import CompressionError, UnsupportedLayerError
from pbcompress.pruning.cuts import check_cuts, kept_of
from pbcompress.pruning.shrinking import Steps
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.first_mistakes import in_batch
from pbcompress.training.task import Batches, Data, Task

__all__ = ["compensate_"]


@in_turn
def compensate_(
    small: nn.Module,
    model: nn.Module,
    plan: Steps,
    data: Data | Batches,
    task: Task | None = None,
    *,
    batches: int = 32,
    max_bytes: int = 2**30,
    seed: int = 0,
) -> CompensationReport:
    """Fit the weights that read narrowed channels to what they put out before the cut, in place.

    Layer after layer in the order of the forward pass, each by a ridge regression in closed form:
    from what the layer reads in the narrowed network, all earlier layers refitted, to what the
    original puts out there. Labels are not looked at and nothing is trained. The strength of the
    ridge is chosen on every fourth sample, which no regression sees; a layer that none makes better
    keeps its weights. Leave BatchNorm statistics as they are: measured anew they cost a little.

    Linear layers and convolutions of every kind are fitted, the projections of attention (those of
    `torch.nn.MultiheadAttention` too), and what the first recurrent layer reads. A convolution with
    many weights in a filter, a transposed one and a recurrent layer get a map between channels
    merged into their weights. The mean that goes with the removed channels is put into the bias; in
    a layer without bias into the mean of the BatchNorm right behind it; where there is neither, it
    stays lost as far as weights cannot make it good.

    Args:
        small: What ``shrink(model, plan)`` gave; its weights are changed, and the means of its
            BatchNorm layers.
        model: The original; left as it is.
        plan: The plan, or what has its ``steps``.
        data: ``Data``, whose train split is used, or batches. A batch may be inputs alone (a tensor
            or a dict).
        task: How a model runs on a batch; the default takes ``(inputs, targets)``.
        batches: Batches at most, at least 1, which are kept in memory.
        max_bytes: Bound on the sums of products that are kept at a time, at least 1.
        seed: Names the order of the batches.

    Returns:
        The error of every reader before and after, and what was left alone and why.

    Raises:
        StateMismatchError: The plan is not of ``model``.
        CompressionError: There is no batch, it is not what ``task`` takes, or ``small`` is not the
            network of the plan. After this and any error of the networks nothing was changed.

    Example:
        >>> import pbcompress as pb
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> plan = pb.plan_widths(net, torch.zeros(1, 8), 0.5)
        >>> small = pb.shrink(net, plan)
        >>> report = compensate_(small, net, plan, [torch.randn(64, 8) for _ in range(4)])
        >>> report.layers["2"].after < report.layers["2"].before
        True

    Source:
        Least squares after pruning: He et al., Channel Pruning, 2017,
        https://arxiv.org/abs/1707.06168; layer after layer on the narrowed network's own inputs:
        Frantar and Alistarh, SparseGPT, 2023, https://arxiv.org/abs/2301.00774.
    """
    if batches < 1 or max_bytes < 1:
        raise ValueError(
            f"batches was given as {batches} and max_bytes as {max_bytes}; both must be at least 1."
        )
    check_cuts(model, plan.steps)
    pair = _Pair(small, model, plan)
    held: list[Any] = []
    sample = Sample(data.train if isinstance(data, Data) else data, task or Task(), batches, seed)
    sample.each(pair.left, held.append)
    runs = [partial(_run_batch, sample.task, batch, number) for number, batch in enumerate(held)]
    with seeded("compensate", seed):
        report = refit_(pair.whole, pair.left, *pair.readers, runs, max_bytes)
    pair.hand_back_(small)
    return report


def _run_batch(task: Task, batch: Any, number: int, network: nn.Module) -> object:
    with in_batch(f"batch {number} of those that are fitted on"):
        return task.outputs(network, batch)


class _Pair:
    """Copies of the original and of the narrowed network, their attention as layers.

    Args:
        small: The narrowed network.
        model: The original.
        plan: Its cuts.
    """

    def __init__(self, small: nn.Module, model: nn.Module, plan: Steps) -> None:
        self.whole, self.left = copy_model(model).to(device_of(small)), copy_model(small)
        kept = kept_of(self.whole, plan.steps)
        self.own = self.left.state_dict(keep_vars=True)
        for name, parameter in self.whole.named_parameters():
            shape = list(parameter.shape)
            for axis, indices in kept.get(parameter, {}).items():
                shape[axis] = len(indices)
            found = self.own.get(name)
            if not isinstance(found, Tensor) or list(found.shape) != shape:
                raise CompressionError(
                    f"small was to be the model cut by the plan, with a {name!r} of shape "
                    f"{tuple(shape)}; found {getattr(found, 'shape', 'none')}. Pass what "
                    "shrink(model, plan) gave, before dendrites grow."
                )
        with suppress(UnsupportedLayerError):  # what stays closed is told as left
            open_attention_(self.whole)
            open_attention_(self.left)
        self.whole.eval()
        self.left.eval()
        self.readers = find_readers(self.whole, kept)

    @torch.no_grad()
    def hand_back_(self, small: nn.Module) -> None:
        """Copy what has changed into the user's network."""
        for name, tensor in small.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and not torch.equal(tensor, self.own[name]):
                tensor.copy_(self.own[name])
