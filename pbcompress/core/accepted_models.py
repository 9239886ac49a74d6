"""Which models are not taken: said before anything is tried, with the layer and what to do."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pbcompress.core.modules import has_no_data
from pbcompress.errors import CompressionError, UnsupportedLayerError

__all__ = ["check_model", "check_whole"]

_DISTRIBUTED = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "FSDPModule": "",  # fully_shard changes the class of the module itself
}
_WRAPPERS = _DISTRIBUTED | {"OptimizedModule": "_orig_mod"}
_SHARDED = "sharded", "Pass the model as it is before fully_shard"
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def check_model(model: object, *, may_lack_data: bool = False) -> None:
    """Raise unless a model can be copied, run and cut.

    Args:
        model: Anything.
        may_lack_data: Whether it may be on the meta device as a whole.

    Raises:
        CompressionError: It is no module.
        UnsupportedLayerError: It is wrapped, scripted, lazy, without data or wholly quantised.
    """
    if not isinstance(model, nn.Module):
        raise CompressionError(f"model must be a torch.nn.Module; found {type(model).__name__}.")
    modules = list(model.named_modules())
    may_lack_data = may_lack_data and has_no_data(model)
    plain = set(filter(_is_plain, {type(module) for _, module in modules}))
    for name, module in modules:
        found = None if type(module) in plain else _fault_of_kind(name, module)
        found = found or _fault_of_tensors(_own(module), may_lack_data)
        if found is not None:
            raise _refused(name, *found)
    quantised = [n for n, m in modules if type(m).__module__.startswith(_QUANTISED)]
    if quantised and not list(model.parameters()):
        raise _refused(
            quantised[0],
            "it is quantised, and so is every layer, so that no float weights are left to cut",
            "Compress the float model and quantise the result",
        )


def check_whole(model: nn.Module) -> None:
    """Raise unless each process has the whole of ``model``, which can grow only then.

    Raises:
        CompressionError: The model is wrapped for several processes, or its parameters are sharded.
    """
    for name, module in model.named_modules():
        if (spread := _spread(name, module)) is not None:
            found, advice = spread
            raise CompressionError(
                "A whole model was expected, since dendrites add parameters to it, and "
                f"{_place(name)} is {found}. {advice}, and start one process for each device with "
                "torchrun: it is wrapped for distributed training anew in every phase. Sharding is "
                "not supported."
            )


def _spread(name: str, module: nn.Module) -> tuple[str, str] | None:
    """Return how a module is wrapped or sharded for several processes, and what to do."""
    kind = _wrapper(type(module), _DISTRIBUTED)
    if kind is not None and _DISTRIBUTED[kind]:
        return f"wrapped in {kind}", f"Pass the module inside ({_inner(name, _DISTRIBUTED[kind])})"
    if kind is not None or any(hasattr(tensor, "placements") for tensor in _own(module)):
        return _SHARDED
    return None


def _wrapper(kind: type[nn.Module], wrappers: Mapping[str, str]) -> str | None:
    kinds = (k.__name__ for k in kind.__mro__ if k.__module__.startswith("torch."))
    return next((kind for kind in kinds if kind in wrappers), None)


def _is_plain(kind: type[nn.Module]) -> bool:
    """Tell whether modules of a class can only be refused for their tensors."""
    return _wrapper(kind, _WRAPPERS) is None and not issubclass(kind, torch.jit.ScriptModule)


def _inner(name: str, attribute: str) -> str:
    return f"model.{f'{name}.' if name else ''}{attribute}"


def _own(module: nn.Module) -> list[Tensor]:
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None]


def _place(name: str) -> str:
    return f"the layer {name!r}" if name else "the model"


def _fault_of_kind(name: str, module: nn.Module) -> tuple[str, str] | None:
    kind = _wrapper(type(module), _WRAPPERS)
    if kind is not None and _WRAPPERS[kind]:
        inner = _inner(name, _WRAPPERS[kind])
        return f"it is wrapped in {kind}", f"Unwrap it ({inner}), and wrap the result again"
    if (spread := _spread(name, module)) is not None:
        return f"it is {spread[0]}", spread[1]
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule, whose code is fixed", "Give the module that it was made from"
    return None


def _fault_of_tensors(own: Sequence[Tensor], may_lack_data: bool) -> tuple[str, str] | None:
    if any(hasattr(tensor, "placements") for tensor in own):
        return f"it is {_SHARDED[0]}", _SHARDED[1]
    if any(nn.parameter.is_lazy(tensor) for tensor in own):
        return "it is lazy and has no shape yet", "Run one forward pass on the model first"
    if not may_lack_data and any(tensor.is_meta for tensor in own):
        return "it is on the meta device and has no data", "Load its weights first"
    return None


def _refused(name: str, reason: str, advice: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"A plan was asked for, and {_place(name)}: {reason}. {advice}.", name, reason
    )
