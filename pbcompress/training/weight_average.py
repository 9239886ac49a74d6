"""A moving average of the weights while they train: steadier than the weights of any one step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]

UPDATES = 50  # of a horizon, at most: more change nothing and take time
WARMUP = 10  # updates until the weights of the start are about forgotten


class WeightAverage:
    """The exponential moving average of what trains, and of the statistics of its norms.

    Call `update` after each optimizer step, and score the network within `applied`. An average
    bears a higher learning rate than the weights themselves, and the best of several averages is
    chosen less by chance than the best of several single steps.

    Args:
        model: Network that trains; its parameters that require a gradient are averaged.
        horizon: Steps over which is averaged, at least 1.

    Attributes:
        steps: Calls of `update` so far.

    Raises:
        ValueError: ``horizon`` is below 1.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> average = WeightAverage(net, horizon=10)
        >>> for _ in range(500):
        ...     _ = nn.init.ones_(net.weight)
        ...     average.update()
        >>> _ = nn.init.zeros_(net.weight)
        >>> with average.applied():
        ...     torch.allclose(net.weight, torch.ones(1, 2))
        True
        >>> net.weight.tolist()
        [[0.0, 0.0]]

    Source:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; for the
        weights of networks, Morales-Brotons et al., Exponential Moving Average of Weights in Deep
        Learning, 2024, https://arxiv.org/abs/2411.18704.
    """

    def __init__(self, model: nn.Module, horizon: float) -> None:
        if not horizon >= 1:
            raise ValueError(f"horizon was given as {horizon:g}; it must be at least 1 step.")
        self.horizon, self.steps = horizon, 0
        self._own = _averaged(model)
        self._mean = [_kept(tensor) for tensor in self._own]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.steps += 1
        every = max(int(self.horizon / UPDATES), 1)
        if self.steps % every or not self._own:
            return
        count = self.steps // every
        decay = min(max(1 - every / self.horizon, 0.0), count / (count + WARMUP))
        now = [own.to(mean.dtype) for own, mean in zip(self._own, self._mean, strict=True)]
        get_ema_multi_avg_fn(decay)(self._mean, now, torch.tensor(count))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average, and its own weights back at the end."""
        former = [own.detach().clone() for own in self._own]
        self._put_(self._mean)
        try:
            yield
        finally:
            self._put_(former)

    @torch.no_grad()
    def _put_(self, values: Sequence[Tensor]) -> None:
        for own, value in zip(self._own, values, strict=True):
            own.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return the average for `restore`; ``steps`` is kept apart."""
        return {str(number): mean for number, mean in enumerate(self._mean)}

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take up `state`."""
        self.steps = steps
        for number, mean in enumerate(self._mean):
            mean.copy_(state[str(number)])


def _averaged(model: nn.Module) -> list[Tensor]:
    """Return what moves in training: weights, and the statistics of norms."""
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    return [*(p for p in model.parameters() if p.requires_grad), *statistics]


def _kept(tensor: Tensor) -> Tensor:
    """Return a copy that small steps are not lost in."""
    value = tensor.detach().clone()
    return value.float() if value.is_floating_point() and value.element_size() < 4 else value
