"""Operations whose result depends on how many channels there are, run on those that remain."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pbcompress.core.operation_mode import OperationMode
from pbcompress.structure.tracer import Event, Trace

__all__ = ["OtherPathError", "Remaining", "gone_along"]

OTHER_PATH = "the forward pass takes another path when it is run again"


class OtherPathError(Exception):
    """The forward pass ran other operations than when it was traced."""


class Remaining(OperationMode):
    """Lets operations that depend on the number of channels see only those that remain."""

    def __init__(self, traced: Trace, gone: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {event.name for event in traced.events}
        self.events = [self._with_places(event, traced, gone) for event in traced.events]
        self.traced_path = traced.operations
        self.start()

    def start(self) -> None:
        """Forget what ran."""
        self.step = 0
        self.operations: list[str] = []

    @staticmethod
    def _with_places(event: Event, traced: Trace, gone: Tensor) -> tuple[str, Any, Any, float]:
        def places(axes: Sequence[tuple[int, int, Tensor]]) -> list[tuple[int, int, Tensor]]:
            kept = [(i, d, ~gone_along(traced, v, gone)) for i, d, v in axes]
            return [(i, d, k) for i, d, k in kept if not k.all()]

        return event.name, places(event.selects), places(event.scatters), event.fill

    def finish(self) -> None:
        """Check that every operation of the trace has run."""
        if self.step < len(self.events):
            raise OtherPathError(OTHER_PATH)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        self.operations.append(name)
        if name not in self.names:
            return func(*args, **kwargs)
        if self.step >= len(self.events) or self.events[self.step][0] != name:
            raise OtherPathError(OTHER_PATH)
        _, selects, scatters, fill = self.events[self.step]
        self.step += 1
        if not selects:
            return func(*args, **kwargs)
        given = list(args)
        for place, dim, kept in selects:
            index = kept.nonzero().squeeze(1).to(given[place].device)
            given[place] = given[place].index_select(dim, index)
        given = _fit(name, given)
        result = func(*given, **kwargs)
        results = [result] if isinstance(result, Tensor) else list(result)
        for place, dim, kept in scatters:
            index = kept.nonzero().squeeze(1).to(results[place].device)
            shape = list(results[place].shape)
            shape[dim] = len(kept)
            full = results[place].new_full(shape, fill)
            results[place] = full.index_copy(dim, index, results[place])
        return results[0] if isinstance(result, Tensor) else tuple(results)


def _fit(name: str, args: list[Any]) -> list[Any]:
    """Set the sizes among the arguments of a norm to those of its selected input."""
    if name in ("native_layer_norm", "_fused_rms_norm"):
        args[1] = list(args[0].shape[-len(args[1]) :])
    elif name == "native_group_norm":
        args[0] = args[0].contiguous()
        args[4] = args[0].shape[1]
    return args


def gone_along(traced: Trace, labels: Tensor, gone: Tensor) -> Tensor:
    """Tell for every position of a dimension whether it is removed."""
    return torch.stack([gone[part] for part in traced.coupling.parts(labels)]).any(0)
