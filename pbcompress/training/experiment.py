"""What a network learns from: data, task and seed, which travel together."""

from dataclasses import dataclass

from pbcompress.core.randomness import whole_seed
from pbcompress.training.task import Data, Task

__all__ = ["Experiment"]


@dataclass(frozen=True)
class Experiment:
    """The data, the task on them, and the seed of everything random.

    Attributes:
        data: Batches to train, decide and test on.
        task: Loss and metric.
        seed: Seed of everything random.
    """

    data: Data
    task: Task
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))
