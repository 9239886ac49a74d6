"""The processes that work on one call: what one of them does for all, and what they agree on.

The only module that knows torch's groups of processes, beside `dendrites.correlation`, which sums
scores over them. What is told travels through a group of its
own, on the CPU, that waits for days: one process may plan or export while the others wait. An error
in one process is raised by all, so that none waits for a process that has gone.

No function given to `Processes.each` or `Processes.first` may itself talk to other processes: one
that fails would leave the others in the middle of that talk.
"""

import atexit
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from pbcompress.errors import CompressionError, first_line

__all__ = ["OtherProcessError", "Processes", "join_processes", "world_size"]

PATIENCE = timedelta(days=7)  # of who waits for the others; the connection to one that died closes

T = TypeVar("T")


class Processes:
    """One process, which agrees with itself.

    Attributes:
        rank: Number of this process.
        world: Number of processes.

    Example:
        >>> alone = Processes()
        >>> alone.first(lambda: 1), alone.each(lambda: 2), alone.gathered(3)
        (1, 2, [3])
    """

    rank = 0
    world = 1

    def first(self, function: Callable[[], T]) -> T:
        """Call a function in the first process alone, and return in all what it returned."""
        return function()

    def each(self, function: Callable[[], T]) -> T:
        """Call a function in every process; an error in one of them is raised by all."""
        return function()

    def gathered(self, value: T) -> list[T]:
        """Return what each process gave, by number."""
        return [value]

    def agreed(self, value: T) -> T:
        """Return what the first process gave."""
        return value

    def numbers(self, value: float) -> list[float]:
        """Return the number that each process gave; faster than `gathered`."""
        return [value]

    def mean(self, value: float) -> float:
        """Return the mean of a number over processes."""
        return sum(self.numbers(value)) / self.world

    @contextmanager
    def held_by_first(self, context: AbstractContextManager[Any]) -> Iterator[None]:
        """Enter a context in the first process alone, for what all of them do meanwhile."""
        with ExitStack() as stack:
            self.first(lambda: stack.enter_context(context))
            yield

    def share(self, model: nn.Module, *, weights: bool = False) -> None:
        """Give all processes the buffers of the first one, and its weights where that is said."""


class _Joined(Processes):
    """One of several processes of torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = _group_for_words(dist.group.WORLD)

    def first(self, function: Callable[[], T]) -> T:
        result: Any = None, b""
        error = None
        if self.rank == 0:
            result, error = _tried(lambda: _with_message(function()))
        self._raise_any(error)
        message = self.agreed(result[1])
        found: T = result[0] if self.rank == 0 else pickle.loads(message)
        return found

    def each(self, function: Callable[[], T]) -> T:
        result: Any
        result, error = _tried(function)
        self._raise_any(error)
        found: T = result
        return found

    def _raise_any(self, error: BaseException | None) -> None:
        """Raise in all processes if there is an error in one of them.

        All raise alike, because callers go on after some errors. One that is not of this package
        is never gone on from, so it goes before others.
        """
        has_failed = torch.tensor(int(error is not None))
        dist.all_reduce(has_failed, group=self._group)
        if not has_failed:
            return
        if error is not None and not isinstance(error, CompressionError):
            self.gathered(_told(self.rank, error))
            raise error
        found = [err for err in self.gathered(error) if err is not None]
        raise next(
            (err for err in found if isinstance(err, OtherProcessError)), found[0]
        ) from error

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, self._group)
        return found

    def agreed(self, value: T) -> T:
        result = [value]
        dist.broadcast_object_list(result, 0, self._group)
        return result[0]

    def numbers(self, value: float) -> list[float]:
        found = [torch.zeros((), dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(found, torch.tensor(value, dtype=torch.float64), group=self._group)
        return [float(number) for number in found]

    def share(self, model: nn.Module, *, weights: bool = False) -> None:
        for tensor in [*model.buffers(), *(model.parameters() if weights else ())]:
            values = tensor.detach()
            dense = values.contiguous()
            dist.broadcast(dense, 0)
            if dense is not values:
                values.copy_(dense)


def _with_message(value: T) -> tuple[T, bytes]:
    """Return a value and what is sent of it; what cannot be sent fails before the others wait."""
    return value, pickle.dumps(value)


def _tried(function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return function(), None
    except BaseException as err:  # an interrupt too would leave the others waiting
        return None, err


class OtherProcessError(CompressionError):
    """An error of another process that is none of this package."""


def _told(rank: int, error: BaseException) -> OtherProcessError:
    """Return an error as the other processes raise it."""
    said = f"{type(error).__name__}: {first_line(error)}"
    return OtherProcessError(f"Process {rank} of this call stopped, and all stop with it: {said}.")


@lru_cache(maxsize=1)
def _group_for_words(world: Any) -> Any:
    """Return the group that words travel through, one for as long as the processes are joined."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def world_size() -> int:
    """Return the number of processes that train together: of torch.distributed, or torchrun's."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def join_processes() -> Processes:
    """Return the processes that this one was started with; they are joined if they were not."""
    if world_size() == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group()  # gloo on CPUs, NCCL on GPUs
        atexit.register(_leave)
    return _Joined()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
