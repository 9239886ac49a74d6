"""Targets on an executor: a pool of processes, a cluster, or whatever has its ``submit``."""

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from pbcompress.core.processes import world_size
from pbcompress.errors import CompressionError, first_line
from pbcompress.frontiers.ray_cluster import RayExecutor, ray_module
from pbcompress.frontiers.targets import Shared, Target, run

__all__ = ["Place", "check_executor", "run_elsewhere"]

Place = Executor | Literal["ray"] | None


class _Submits(Protocol):
    def submit(self, function: Any, /, *args: Any) -> "Future[Any]": ...


def check_executor(executor: object, shared: Shared, *, has_folder: bool) -> None:
    """Raise unless targets can be run, here or on an executor.

    Args:
        executor: As `frontier` takes it.
        shared: What is sent.
        has_folder: Whether the frontier has a folder.

    Raises:
        CompressionError: They cannot.
    """
    if world_size() > 1:
        raise CompressionError(
            f"frontier was called in one of {world_size()} processes. Call compress in them, once "
            "for each target, or frontier in one process with an executor."
        )
    if executor is None:
        return
    if executor != "ray" and not callable(getattr(executor, "submit", None)):
        raise CompressionError(
            f"executor was given as {executor!r:.80}; it must be 'ray', an object with submit, as "
            "concurrent.futures has, or None for this process."
        )
    if not has_folder:
        raise CompressionError(
            "An executor was given and no run_dir. Networks come back through that folder, and a "
            "worker that dies goes on from it: pass run_dir, on a disk that all workers see."
        )
    if executor == "ray":
        ray_module()
    if isinstance(executor, ProcessPoolExecutor):
        try:
            pickle.dumps(shared)
        except Exception as err:  # of many kinds
            raise CompressionError(
                "Model, data, task and choices were to be sent to other processes and cannot be: "
                f"{first_line(err)}. Define functions and classes in a module of their own."
            ) from err


def run_elsewhere(
    executor: Any, shared: Shared, targets: Sequence[Target]
) -> Iterator[tuple[Target, str | None]]:
    """Run targets on an executor, and yield each when it is over, with what `run` returned.

    Raises:
        CompressionError: A target failed; the others were run first.
    """
    failure: CompressionError | None = None
    futures: dict[Future[Any], Target] = {}
    with _opened(executor, shared) as pool:
        try:
            for target in targets:
                futures[_sent(pool, shared, target)] = target
            for future in as_completed(futures):
                target, err = futures[future], future.exception()
                if err is None:
                    yield target, future.result()
                elif failure is None:
                    failure = _told(target, err)
        finally:
            for future in futures:
                future.cancel()
    if failure is not None:
        raise failure


def _sent(pool: _Submits, shared: Shared, target: Target) -> "Future[Any]":
    try:
        return pool.submit(run, shared, target)
    except Exception as err:  # it has ended, or lost its workers
        raise _told(target, err) from err


@contextmanager
def _opened(executor: Any, shared: Shared) -> Iterator[_Submits]:
    if executor != "ray":
        yield executor  # whose end is its owner's
        return
    with RayExecutor(shared.device) as pool:
        yield pool


def _told(target: Target, err: BaseException) -> CompressionError:
    """Return what to raise for an error that came out of an executor."""
    origin = getattr(err, "cause", None) or err  # Ray's errors have it
    error = CompressionError(
        f"The target {target.name} was run elsewhere and failed with {type(origin).__name__}: "
        f"{first_line(origin)}. What was finished stays in {target.folder.parent}; the same call, "
        "with an executor that still runs, goes on."
    )
    error.__cause__ = err
    return error
