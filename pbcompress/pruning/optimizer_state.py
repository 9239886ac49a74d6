"""The state of optimizers, cut along with the parameters that it belongs to.

State of its parameter's shape belongs to single weights and is cut with them; one element or a
plain value belongs to the whole tensor and stays. Anything else is refused before the first change,
so this holds for optimizers that nobody here knows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pbcompress.errors import CompressionError
from pbcompress.structure.dimensions import Kept, keep

__all__ = ["check_optimizers", "move_optimizers_"]

Cut = Mapping[nn.Parameter, Kept]  # what stays of a parameter


def check_optimizers(optimizers: Sequence[Optimizer], cut: Cut) -> None:
    """Raise unless every state of a parameter in ``cut`` can be cut with it.

    Raises:
        CompressionError: Something is no optimizer, or its state is not by element.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise CompressionError(
                f"optimizer was given as a {type(optimizer).__name__}; it must be a "
                "torch.optim.Optimizer, or several of them in a list."
            )
        for parameter in _cut_of(optimizer, cut):
            for name, value in optimizer.state.get(parameter, {}).items():
                if not (_is_by_element(value, parameter) or _is_by_tensor(value)):
                    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else "parts"
                    raise CompressionError(
                        f"{type(optimizer).__name__} was to be cut with the model; its state "
                        f"{name!r} has {found} for a parameter of shape {tuple(parameter.shape)}, "
                        "so it does not belong to single weights. Shrink without optimizer=, and "
                        "make a new one from the parameters afterwards."
                    )


def move_optimizers_(
    optimizers: Sequence[Optimizer], cut: Cut, new: Mapping[nn.Parameter, nn.Parameter]
) -> None:
    """Let optimizers hold the new parameters, with the state of what is left.

    Args:
        optimizers: Checked by `check_optimizers`.
        cut: What stays of each parameter that was cut.
        new: The parameter in place of each of them.
    """
    for optimizer in optimizers:
        for parameter in _cut_of(optimizer, cut):
            state = optimizer.state.pop(parameter, None)
            if state is not None:
                optimizer.state[new[parameter]] = {
                    name: keep(value, cut[parameter]) if _is_by_element(value, parameter) else value
                    for name, value in state.items()
                }
        for group in optimizer.param_groups:
            group["params"][:] = [new.get(p, p) for p in group["params"]]


def _cut_of(optimizer: Optimizer, cut: Cut) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p in cut]


def _is_by_element(value: Any, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _is_by_tensor(value: Any) -> bool:
    """Tell whether a state holds for a whole tensor: a step count, a flag, nothing yet."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, bool | int | float | str)
