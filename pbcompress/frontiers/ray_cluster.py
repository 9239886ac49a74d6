"""Targets on a Ray cluster. The only module that imports Ray, where it is needed."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import torch

from pbcompress.errors import CompressionError, first_line

__all__ = ["RayExecutor", "ray_module"]

RETRIES = 3  # of a target whose worker died


def ray_module() -> Any:
    """Return Ray.

    Raises:
        CompressionError: It is not installed.
    """
    try:
        import ray
    except ImportError as err:
        raise CompressionError(
            "Ray was to run the targets, and it is not installed. Install pbcompress[ray]."
        ) from err
    return ray


class RayExecutor:
    """Runs functions on the cluster that this process is connected to, or on one of its own.

    A function whose worker died is called again, up to `RETRIES` times, on another.

    Args:
        device: Where a function trains; it gets a GPU if that is one, or if nothing is said and
            the cluster has some.

    Raises:
        CompressionError: Ray is not installed, or its cluster cannot be reached.
    """

    def __init__(self, device: str | torch.device | None) -> None:
        self._ray = ray_module()
        self._is_own = not self._ray.is_initialized()
        if self._is_own:
            self._begin()
        has_gpus = self._ray.cluster_resources().get("GPU", 0) >= 1
        wants_gpu = has_gpus if device is None else torch.device(device).type == "cuda"
        self._options = {"max_retries": RETRIES, "num_gpus": int(wants_gpu)}
        self._sent: dict[int, Any] = {}
        self._calls: list[Any] = []

    def _begin(self) -> None:
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except Exception as err:
            raise CompressionError(
                "A Ray cluster was to run the targets, and none could be reached or started: "
                f"{first_line(err)}. Call ray.init yourself, and then the same again."
            ) from err

    def submit(self, function: Callable[..., Any], /, shared: Any, *args: Any) -> "Future[Any]":
        """Call a function on the cluster.

        Args:
            function: To call.
            shared: Its first argument, which is sent once for all calls.
            args: Its further arguments.
        """
        if id(shared) not in self._sent:
            self._sent[id(shared)] = self._ray.put(shared)
        remote = self._ray.remote(**self._options)(function)
        call = remote.remote(self._sent[id(shared)], *args)
        self._calls.append(call)
        future: Future[Any] = call.future()
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        for call in self._calls:
            self._ray.cancel(call, force=True)  # does nothing to one that is over
        if self._is_own:
            self._ray.shutdown()
