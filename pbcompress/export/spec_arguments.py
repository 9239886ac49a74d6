"""Arguments of an operation, checked against its schema before torch sees them.

Torch trusts what calls it: a number where a type belongs, or a stride of nothing, ends the process.
So every argument must be of the kind that the schema names, and within what its name can mean.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "MAKERS", "check_call", "check_sizes"]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
MAKERS = ("arange", "full", "ones", "scalar_tensor", "zeros")  # of tensors from nothing
MOST_AXES = 16
MOST_ELEMENTS = 2**36  # of one tensor
MOST_VALUES = 2**14  # of one list, tensors that an operation returns, steps of a recurrent layer
MOST_INT = 2**31 - 1
WORDS = {
    "padding": {"same", "valid"},
    "rounding_mode": {"floor", "trunc"},
    "approximate": {"none", "tanh"},
    "mode": {"constant", "reflect", "replicate", "circular"},
}
EQUATION = re.compile(r"[a-zA-Z., >-]{1,200}")
SIZES = ("size", "sizes", "shape", "output_size", "repeats", "split_sizes")
FROM_ONE = (
    *("stride", "dilation", "kernel_size", "groups", "num_groups", "group", "N", "HxW", "chunks"),
    *("split_size", "upscale_factor", "downscale_factor", "step", "num_layers"),
)
FROM_ZERO = ("padding", "output_padding", "k", "length", "repeats", "output_size")
ANY_INT = ("start", "end")  # a slice ends at the largest number that there is
SCALES = ("scales", "scales_h", "scales_w", "scales_d", "scale_factors")
ONLY_FALSE = ("pin_memory", "train", "sparse", "scale_grad_by_freq")
ONLY_ZERO = ("dropout", "dropout_p")


@dataclass(frozen=True)
class _Slot:
    """An argument of a schema."""

    name: str
    kind: str
    is_list: bool
    is_optional: bool
    takes_none: bool
    is_named: bool
    has_default: bool
    most: int | None


def check_call(
    form: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> None:
    """Raise unless an operation can take some arguments.

    Args:
        form: An overload of torch.
        args: Values by position.
        kwargs: Values by name.
        device: On which all tensors must be.

    Raises:
        ValueError: An argument is missing, unknown, of another kind, or out of range.

    Example:
        >>> add = torch.ops.aten.add.Tensor
        >>> check_call(add, [torch.ones(1), torch.ones(1)], {}, torch.device("cpu"))
        >>> check_call(add, [torch.ones(1), "1"], {}, torch.device("cpu"))
        Traceback (most recent call last):
        ValueError: other is '1' and must be a Tensor
    """
    slots = _slots(form)
    by_place = [slot for slot in slots if not slot.is_named]
    given = dict(zip((slot.name for slot in by_place), args, strict=False))
    if len(args) > len(by_place) or given.keys() & kwargs.keys():
        raise ValueError(f"it has {len(args)} arguments by place, more than it takes")
    given |= kwargs
    unknown = given.keys() - {slot.name for slot in slots}
    if unknown:
        raise ValueError(f"it takes no {min(unknown)!r:.40}")
    for slot in slots:
        if slot.name in given:
            _check_slot(slot, given[slot.name], device)
        elif not slot.has_default:
            raise ValueError(f"{slot.name} is missing")
    packet = form._schema.name.removeprefix("aten::")
    if packet in MAKERS and given.get("device") is None:
        raise ValueError("device is missing")  # or a run on shapes would make numbers
    if packet in _RULES:
        defaults = {a.name: a.default_value for a in form._schema.arguments}
        _RULES[packet]({**defaults, **given})


@cache
def _slots(form: Any) -> tuple[_Slot, ...]:
    slots = []
    for argument in form._schema.arguments:
        kind, is_optional, is_list, takes_none = str(argument.real_type), False, False, False
        if kind.startswith("Optional["):
            kind, is_optional = kind[9:-1], True
        if kind.startswith("List["):
            kind, is_list = kind[5:-1], True
        if kind.startswith("Optional["):  # the indices of index
            kind, takes_none = kind[9:-1], True
        slots.append(
            _Slot(
                name=argument.name,
                kind=kind,
                is_list=is_list,
                is_optional=is_optional,
                takes_none=takes_none,
                is_named=argument.kwarg_only,
                has_default=argument.has_default_value(),
                most=argument.N,
            )
        )
    return tuple(slots)


def _check_slot(slot: _Slot, value: Any, device: torch.device) -> None:
    if value is None and slot.is_optional:
        return
    if not slot.is_list:
        _check_leaf(slot, value, device)
        return
    if not isinstance(value, list | tuple) or len(value) > MOST_VALUES:
        raise ValueError(f"{slot.name} is {value!r:.40} and must be a list")
    if slot.kind == "int" and slot.most is not None and len(value) > max(slot.most, MOST_AXES):
        raise ValueError(f"{slot.name} has {len(value)} numbers")
    for leaf in value:
        if leaf is not None or not slot.takes_none:
            _check_leaf(slot, leaf, device)
    if slot.name in SIZES and math.prod(abs(n) for n in value if n) > MOST_ELEMENTS:
        raise ValueError(f"{slot.name} is {list(value)!r:.60}, which is too large")


def _check_leaf(slot: _Slot, value: Any, device: torch.device) -> None:
    fits: bool = _KINDS[slot.kind](slot.name, value, device)
    if not fits:
        raise ValueError(f"{slot.name} is {_shown(value)} and must be a {slot.kind}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{value!r:.40}"


def _is_tensor(name: str, value: Any, device: torch.device) -> bool:
    if name == "other" and not isinstance(value, Tensor):  # torch makes a tensor of a number
        return _is_number(name, value, device)
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.dtype in DTYPES.values()
        and value.device == device
        and value.dim() <= MOST_AXES
        and value.numel() <= MOST_ELEMENTS
    )


def _is_int(name: str, value: Any, _: torch.device) -> bool:
    if type(value) is not int:
        return False
    if name in ANY_INT:
        return -(2**63) <= value < 2**63
    least = 1 if name in FROM_ONE else 0 if name in FROM_ZERO else -MOST_INT
    return least <= value <= MOST_INT


def _is_float(name: str, value: Any, _: torch.device) -> bool:
    if type(value) not in (int, float) or (type(value) is int and abs(value) > 2**53):
        return False
    if name in SCALES:
        return bool(1 / 2**16 <= value <= 2**16)
    return bool(value == 0) if name in ONLY_ZERO else True


def _is_number(name: str, value: Any, _: torch.device) -> bool:
    return type(value) in (bool, float) or (type(value) is int and -(2**63) <= value < 2**63)


def _is_word(name: str, value: Any, _: torch.device) -> bool:
    if not isinstance(value, str):
        return False
    return bool(EQUATION.fullmatch(value)) if name == "equation" else value in WORDS.get(name, ())


_KINDS: dict[str, Callable[[str, Any, torch.device], bool]] = {
    "Tensor": _is_tensor,
    "int": _is_int,
    "float": _is_float,
    "number": _is_number,
    "bool": lambda name, value, _: type(value) is bool and not (value and name in ONLY_FALSE),
    "str": _is_word,
    "ScalarType": lambda _, value, __: value in DTYPES.values(),
    "Layout": lambda _, value, __: value is torch.strided,
    "Device": lambda _, value, device: value == device,
    "MemoryFormat": lambda _, value, __: isinstance(value, torch.memory_format),
}


def check_sizes(result: Any) -> tuple[int, int]:
    """Return the elements and the bytes of what an operation returned.

    Raises:
        ValueError: It is no tensor, number or list of them, or a tensor is too large.

    Example:
        >>> check_sizes((torch.zeros(3), torch.zeros(2, 2)))
        (7, 28)
    """
    if isinstance(result, Tensor):
        if not _is_tensor("", result, result.device):
            raise ValueError(f"it returns {_shown(result)}, which no network needs")
        return result.numel(), result.numel() * result.element_size()
    if isinstance(result, list | tuple):
        sizes = [check_sizes(part) for part in result]
        return sum(n for n, _ in sizes), sum(n for _, n in sizes)
    if type(result) not in (int, float) or abs(result) > 2**63:
        raise ValueError(f"it returns {result!r:.40}, which no network needs")
    return 0, 0


# --- what a schema does not say -------------------------------------------------------------------

_Values = Mapping[str, Any]


def _at_most(count: float, what: str) -> None:
    if not count <= MOST_VALUES:
        raise ValueError(f"it makes {count:.4g} {what}; at most {MOST_VALUES:,} are allowed")


def _size(tensor: Tensor, axis: int) -> int:
    """Return the size of an axis; 0 where there is no such axis, which torch then says."""
    return tensor.shape[axis] if -tensor.dim() <= axis < tensor.dim() else 0


def _unbind(values: _Values) -> None:
    _at_most(_size(values["self"], values["dim"]), "tensors")


def _split(values: _Values) -> None:
    step = values["split_size"] if "split_size" in values else values["split_sizes"]
    if isinstance(step, int):
        _at_most(_size(values["self"], values["dim"]) / step, "tensors")


def _chunk(values: _Values) -> None:
    _at_most(values["chunks"], "tensors")


def _arange(values: _Values) -> None:
    start, end, step = values.get("start") or 0, values["end"], values.get("step", 1)
    if not (step and abs((end - start) / step) <= MOST_ELEMENTS):
        raise ValueError(f"it counts from {start} to {end} by {step}")


def _recurrent(values: _Values) -> None:
    first = values["input"]
    steps = _size(first, 1 if values["batch_first"] else 0)
    _at_most(steps * values["num_layers"], "steps")
    width = (4 if values["has_biases"] else 2) * (2 if values["bidirectional"] else 1)
    if len(values["params"]) != values["num_layers"] * width:
        raise ValueError(f"params has {len(values['params'])} tensors")


def _running(values: _Values) -> None:
    if values["use_input_stats"] and values["running_mean"] is not None:
        raise ValueError("it would change its running statistics")


def _sampled(values: _Values) -> None:
    if values["interpolation_mode"] not in (0, 1, 2) or values["padding_mode"] not in (0, 1, 2):
        raise ValueError("it has a mode that is not known")


def _normed(values: _Values) -> None:
    v, g, axis = values["v"], values["g"], values["dim"]
    sizes = {-1: 1, 0: _size(v, 0), v.dim() - 1: _size(v, -1)}  # what its kernel knows
    if not v.numel() or g.numel() != sizes.get(axis) or v.dtype != g.dtype:
        raise ValueError(f"g has {g.numel()} elements along axis {axis} of {tuple(v.shape)}")


def _repeated(values: _Values) -> None:
    if values["self"].numel() * values["repeats"] > MOST_ELEMENTS:
        raise ValueError(f"repeats is {values['repeats']}, which is too large")


_RULES: dict[str, Callable[[_Values], None]] = {
    "unbind": _unbind,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "arange": _arange,
    "instance_norm": _running,
    "repeat_interleave": _repeated,
    "_weight_norm": _normed,
    **dict.fromkeys(("gru", "lstm", "rnn_relu", "rnn_tanh"), _recurrent),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), _sampled),
}
