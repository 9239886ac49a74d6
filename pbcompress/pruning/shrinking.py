"""Carry out a plan: on the network, on a copy, and on the optimizers that train it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from pbcompress.core.model_config import write_numbers_
from pbcompress.core.modules import copy_model
from pbcompress.core.turns import in_turn
from pbcompress.pruning.cuts import LayerCut, check_cuts, cut_all_, kept_of
from pbcompress.pruning.optimizer_state import check_optimizers, move_optimizers_

__all__ = ["Steps", "shrink", "shrink_"]


class Steps(Protocol):
    """A plan: what has cuts."""

    @property
    def steps(self) -> tuple[LayerCut, ...]:
        """The cuts, one for each dimension of each layer that changes."""

    @property
    def stated(self) -> Mapping[str, int]:
        """What the config of the shrunk network states."""


@in_turn
def shrink_(
    model: nn.Module,
    plan: Steps | Sequence[LayerCut],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> None:
    """Apply a plan in place. Parameters are new objects: name the optimizers that hold them.

    The config that the model carries states the new widths, where the plan says which.

    Args:
        model: A network of the architecture that was planned for.
        plan: The plan, or its steps.
        optimizer: Optimizers whose state (momentum, second moments) is cut with the weights, so
            that training goes on. They hold the new parameters afterwards; what they hold of other
            models stays. None: make new ones afterwards.

    Raises:
        StateMismatchError: A layer of the plan is missing or has another width; nothing was cut.
        CompressionError: An optimizer keeps state that does not belong to single weights (factored
            second moments, LBFGS); nothing was cut.

    Example:
        >>> import torch, pbcompress as pb
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> adam = torch.optim.Adam(net.parameters())
        >>> net(torch.ones(4, 8)).sum().backward()
        >>> adam.step()
        >>> pb.shrink_(net, pb.plan_widths(net, torch.zeros(1, 8), 50), optimizer=adam)
        >>> net[0].out_features, adam.state[net[0].weight]["exp_avg"].shape
        (4, torch.Size([4, 8]))
    """
    steps = tuple(plan) if isinstance(plan, Sequence) else plan.steps
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    optimizers: list[Any] = [one for one in several if one is not None]
    check_cuts(model, steps)
    kept = kept_of(model, steps) if optimizers else {}
    check_optimizers(optimizers, kept)
    names = {name: p for name, p in model.named_parameters() if p in kept}
    cut_all_(model, steps)
    new = {parameter: model.get_parameter(name) for name, parameter in names.items()}
    move_optimizers_(optimizers, kept, new)
    if not isinstance(plan, Sequence):
        write_numbers_(model, plan.stated)


@in_turn
def shrink(model: nn.Module, plan: Steps) -> nn.Module:
    """Return a pruned deep copy of ``model``; see `shrink_`.

    Args:
        model: A network of the architecture that was planned for; left as it is.
        plan: The plan.

    Returns:
        The narrower copy, with new parameters, in the mode that ``model`` is in.

    Raises:
        StateMismatchError: A layer of the plan is missing or has another width.

    Example:
        >>> import torch, pbcompress as pb
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> plan = pb.plan_widths(net, torch.zeros(1, 8), 50)
        >>> pb.shrink(net, plan)(torch.zeros(3, 8)).shape
        torch.Size([3, 2])
    """
    small = copy_model(model)
    shrink_(small, plan)
    return small
