"""The state of any optimizer as tensors and JSON, so that a resumed run goes on bit by bit.

An optimizer remembers in its ``state_dict``, in attributes, and in what those remember (a scheduler
of its own, an optimizer inside of it). All of it is kept, or the optimizer is refused.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pbcompress.errors import CompressionError

__all__ = ["optimizer_state", "restore_optimizer_"]

ROWS: dict[str, type[Any]] = {"list": list, "tuple": tuple}
MAPS: dict[str, type[Any]] = {"dict": dict, "counts": Counter}
CONSTANT = (torch.device, torch.dtype, nn.Module)


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], Any]:
    """Return all that an optimizer remembers.

    Returns:
        Tensors by name, and JSON that says where they belong.

    Raises:
        CompressionError: It remembers something that cannot be written down.
    """
    kind = type(optimizer).__name__
    tensors: dict[str, Tensor] = {}
    keepers = _keepers(optimizer)
    if optimizer._optimizer_step_post_hooks or optimizer._optimizer_step_pre_hooks:
        raise _refused(kind, "hooks of its step", "Put them into a step() of its class")
    if hasattr(optimizer.step, "_wrapped_by_lr_sched") and not keepers:
        raise _refused(kind, "a scheduler elsewhere", "Make it an attribute of the optimizer")
    parts = {"": optimizer.state_dict()} | {n: k.state_dict() for n, k in keepers.items()}
    own = {n: v for n, v in _own(optimizer).items() if n not in keepers}
    rest = {name: _encoded(part, tensors, f"{kind}.{name}") for name, part in parts.items()}
    return tensors, {"parts": rest, "own": _encoded(own, tensors, kind)}


def restore_optimizer_(optimizer: Optimizer, tensors: Mapping[str, Tensor], rest: Any) -> None:
    """Take up `optimizer_state`, in an optimizer that was made in the same way."""
    for name, value in _decoded(rest["own"], tensors).items():
        setattr(optimizer, name, value)
    keepers = _keepers(optimizer)
    for name, part in rest["parts"].items():
        _take_up_(keepers[name] if name else optimizer, _decoded(part, tensors))


def _take_up_(owner: Any, saved: Mapping[str, Any]) -> None:
    """Set a state in place: what torch loads has the precision of the weights, and new groups."""
    is_plain = isinstance(owner, Optimizer) and (
        type(owner).load_state_dict is Optimizer.load_state_dict
        and type(owner).state_dict is Optimizer.state_dict
    )
    if not is_plain:
        owner.load_state_dict(saved)
        return
    for group, own in zip(owner.param_groups, saved["param_groups"], strict=True):
        group.update({name: value for name, value in own.items() if name != "params"})
    every = dict(enumerate(p for group in owner.param_groups for p in group["params"]))
    owner.state.clear()
    for key, state in saved["state"].items():
        owner.state[every.get(key, key)] = state


def _own(optimizer: Optimizer) -> dict[str, Any]:
    """Return what the class of an optimizer added to its attributes, without what stays."""

    def stays(value: Any) -> bool:
        is_parameter = isinstance(value, nn.Parameter)
        is_held = isinstance(value, list | tuple) and any(
            isinstance(item, nn.Parameter) for item in value
        )
        return is_parameter or is_held or callable(value) or isinstance(value, CONSTANT)

    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    of_torch = {*vars(plain), "step", "_opt_called"}  # the last two are a scheduler's
    added = {n: v for n, v in vars(optimizer).items() if n not in of_torch}
    return {n: v for n, v in added.items() if _remembers(v) or not stays(v)}


def _remembers(value: Any) -> bool:
    """Tell whether a value can give its state and take it up."""
    can = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    return can and not isinstance(value, type | nn.Module)


def _keepers(optimizer: Optimizer) -> dict[str, Any]:
    return {name: value for name, value in _own(optimizer).items() if _remembers(value)}


def _encoded(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """Return a value as JSON; tensors go to ``tensors``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if type(value) in ROWS.values():
        return {type(value).__name__: [_encoded(v, tensors, place) for v in value]}
    if isinstance(value, Mapping):
        pairs = [
            [_encoded(k, tensors, place), _encoded(v, tensors, f"{place}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"counts" if isinstance(value, Counter) else "dict": pairs}
    found = f"a value of type {type(value).__name__}"
    raise _refused(place, found, "Leave the checkpoint (run_dir) out")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.cpu() if value["cpu"] else tensor
    ((kind, parts),) = value.items()
    if kind in ROWS:
        return ROWS[kind](_decoded(part, tensors) for part in parts)
    return MAPS[kind]({_key(_decoded(k, tensors)): _decoded(v, tensors) for k, v in parts})


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _refused(what: str, found: str, advice: str) -> CompressionError:
    return CompressionError(
        f"A checkpoint was to keep the optimizer, and {what} has {found}, whose state cannot be "
        f"written down. {advice}, or use an optimizer of torch.optim."
    )
