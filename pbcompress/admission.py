"""Which models are not taken: said before anything is tried, with the layer and what to do."""

import torch
from torch import Tensor, nn

from pbcompress.errors import CompressionError, UnsupportedLayerError

__all__ = ["check_model"]

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def check_model(model: object) -> None:
    """Raise unless a model can be copied, run and cut.

    Raises:
        CompressionError: It is no module.
        UnsupportedLayerError: It is wrapped, scripted, lazy, without data or wholly quantised.
    """
    if not isinstance(model, nn.Module):
        raise CompressionError(f"model must be a torch.nn.Module; found {type(model).__name__}.")
    for name, module in model.named_modules():
        found = _fault(name, module)
        if found is not None:
            raise _refused(name, *found)
    quantised = [n for n, m in model.named_modules() if type(m).__module__.startswith(_QUANTISED)]
    if quantised and not list(model.parameters()):
        raise _refused(
            quantised[0],
            "it is quantised, and so is every layer, so that no float weights are left to cut",
            "Compress the float model and quantise the result",
        )


def _fault(name: str, module: nn.Module) -> tuple[str, str] | None:
    kind = type(module).__name__
    if kind in _WRAPPERS and type(module).__module__.startswith("torch."):
        inner = f"model.{f'{name}.' if name else ''}{_WRAPPERS[kind]}"
        return f"it is wrapped in {kind}", f"Unwrap it ({inner}), and wrap the result again"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule, whose code is fixed", "Give the module that it was made from"
    own: list[Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if any(nn.parameter.is_lazy(tensor) for tensor in own):
        return "it is lazy and has no shape yet", "Run one forward pass on the model first"
    if any(tensor.is_meta for tensor in own):
        return "it is on the meta device and has no data", "Load its weights first"
    return None


def _refused(name: str, reason: str, advice: str) -> UnsupportedLayerError:
    where = f"the layer {name!r}" if name else "the model"
    return UnsupportedLayerError(
        f"A plan was asked for, and {where}: {reason}. {advice}.", name, reason
    )
