"""One forward pass that follows labels instead of channels: what a network's structure is.

Every dimension of every parameter starts with labels of its own. Each operation says how the
labels of its results follow from those of its operands, and which of them it couples. The sizes
that the forward pass computes are noted beside the labels that they count, so that a shape that
is written into the code keeps its channels.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from pbcompress.core.deadline import Deadline
from pbcompress.core.inputs import Call, outputs_of, tensors_of
from pbcompress.core.modules import plain_kernels
from pbcompress.core.operation_mode import OperationMode
from pbcompress.core.randomness import seeded
from pbcompress.core.scripted import scripts_as_python
from pbcompress.errors import CompressionError, first_line
from pbcompress.structure.attention_rules import attention_layer
from pbcompress.structure.cached_functions import sizes_uncached
from pbcompress.structure.compute_rules import elementwise
from pbcompress.structure.dimensions import STATED, stated_sizes, weight_name
from pbcompress.structure.rule_table import unknown
from pbcompress.structure.rules import RULES
from pbcompress.structure.sizes import Attribute, Reader, Size, leaves_of
from pbcompress.structure.tracer import Trace, Tracer, UserCall

__all__ = ["trace"]

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
# Layers of torch whose forward reads their sizes
_READ_IN_FORWARD = (
    *(nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.RNNCellBase, nn.Transformer),
    *(nn.Unflatten, nn.Fold),
)
_LEAVES_TORCH = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__)
_COUNTS = (Tensor.numel, Tensor.nelement)
_ATTENTION = torch.nn.functional.multi_head_attention_forward
_SCALED = torch.nn.functional.scaled_dot_product_attention
_NORMS = (nn.functional.rms_norm, nn.functional.instance_norm)
_NOTED = {_SHAPE, Tensor.size, *_COUNTS, *_LEAVES_TORCH, *_NORMS, _SCALED, _ATTENTION}


def trace(network: nn.Module, call: Call, deadline: Deadline | None = None) -> Trace:
    """Run ``network`` once in eval mode and return its structure.

    Args:
        network: A copy that the trace may prepare; its attributes are as before at the end.
        call: ``(args, kwargs)`` of one forward pass, on the network's device.
        deadline: Bound on the time of the pass.

    Raises:
        CompressionError: The forward pass fails, or takes too long.
    """
    tracer, failed = Tracer(network), None
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.no_grad(),
        seeded("trace"),
        plain_kernels(network),
        _sized_attributes(network, tracer),
        sizes_uncached(network),
        _module_names(network, tracer.path),
        scripts_as_python(partial(_pin_scripted, tracer)),
    ):
        warnings.simplefilter("ignore")
        args, kwargs = call
        try:
            with _Functions(tracer), _Operations(tracer, deadline):
                output = network(*args, **kwargs)
        except CompressionError:
            raise
        except Exception as err:
            failed = err
    if failed is not None:
        raise _failure(network, call, tracer.where, failed) from failed
    outputs = outputs_of(output)
    if not outputs and not tracer.left_torch:
        raise CompressionError(
            f"The model returned a {type(output).__name__}, in which no tensor was found. "
            "Let it return tensors, or tuples, dicts or dataclasses of them."
        )
    for tensor in outputs:
        tracer.pin(tensor, "its width is the network's output")
    for labels, reason in list(tracer.weights.kept(tracer.coupling)):
        tracer.coupling.pin(labels, reason)
    if outputs:
        kept = [*outputs, *network.parameters(), *network.buffers(), *tensors_of(call)]
        used = tracer.used.used(kept)  # writes to a buffer, or an input, are results too
        works = enumerate(tracer.result.works)
        tracer.result.works = [work for number, work in works if number in used]
    _keep_alternatives(network, tracer.result)
    _bind_stated_sizes(network, tracer)
    return tracer.result


def _failure(network: nn.Module, call: Call, where: str, err: Exception) -> CompressionError:
    """Return what is wrong with a pass that failed: the inputs, or what was to be followed."""
    shapes = [tuple(t.shape) for t in tensors_of(call)]
    ran = f"The model was run on one sample of example_inputs, shapes {shapes}"
    try:
        with torch.no_grad(), seeded("trace"):
            network(*call.args, **call.kwargs)
    except Exception as own:
        return CompressionError(
            f"{ran}, and its forward failed: {first_line(own)}. Give inputs whose first axis is "
            "the batch, or say which axes are: pb.Example(inputs, batch_axes={}) for none."
        )
    return CompressionError(
        f"{ran}, and that went well, but its operations cannot be followed in {where!r}: "
        f"{first_line(err)}. Write what runs there in plain operations of torch for the plan."
    )


def _bind_stated_sizes(network: nn.Module, tracer: Tracer) -> None:
    """Let the sizes that the code read from layers of torch count what they are the sizes of."""
    traced, modules = tracer.result, dict(network.named_modules())
    leaves = [leaf for check in traced.checks for leaf in leaves_of(check.size)]
    for attribute in dict.fromkeys([*leaves, *traced.bindings]):
        if not isinstance(attribute, Attribute) or attribute.name not in STATED:
            continue
        layer = modules[attribute.module]
        weight = weight_name(layer, attribute.module, tracer.names, traced.tensors)
        sizes = stated_sizes(layer, traced.tensors[weight]) if weight in traced.tensors else {}
        counted = sizes.get(attribute.name)
        if counted is not None and len(counted) == getattr(layer, attribute.name):
            bound = traced.bindings.get(attribute, counted)
            tracer.couple(bound, counted, f"the code reads a size of {attribute.module!r}")
            traced.bindings[attribute] = counted
            traced.stated.add(attribute)


def _pin_scripted(tracer: Tracer, name: str, inputs: Any) -> None:
    """Keep what a scripted function reads; what it returns then has fixed sizes."""
    where = f"the scripted function {name!r} in {tracer.where!r}"
    for tensor in tensors_of(inputs):
        tracer.pin(tensor, f"{where} cannot be followed: call the Python that it was made from")


def _keep_alternatives(network: nn.Module, traced: Trace) -> None:
    """Pin what could meet a layer that the code passed over after it had read a value.

    On other inputs such a layer (another expert) may run. What it would read and write is not
    known, but has the sizes of its parameters.
    """
    passed: dict[int, str] = {}
    for name, parameter in network.named_parameters() if traced.decisions else ():
        inside = any(name.startswith(f"{where}." if where else "") for where in traced.decisions)
        if inside and name not in traced.tensors:
            passed.update(dict.fromkeys(parameter.shape, name.rpartition(".")[0]))
    for axes in traced.tensors.values() if passed else ():
        for labels in axes:
            if len(labels) > 1 and len(labels) in passed:
                traced.coupling.pin(labels, f"{passed[len(labels)]!r} may read it on other inputs")


class _Functions(TorchFunctionMode):
    """Sees the calls of the user's code, with sizes as the code computed them."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tracer, kwargs = self.tracer, kwargs or {}
        outer = tracer.call
        tracer.call = UserCall(func, args, kwargs)
        is_layer = func is _ATTENTION and isinstance(tracer.module, nn.MultiheadAttention)
        if is_layer:
            with _disable_current_modes():
                attention_layer(tracer, *args, **kwargs)
        tracer.trusts = is_layer
        try:
            result = func(*args, **kwargs)
        finally:
            tracer.call, tracer.trusts = outer, False
        if is_layer or func not in _NOTED:
            return result
        with _disable_current_modes():  # which would take what is noted for a step of the network
            return self._noted(func, args, kwargs, result)

    def _noted(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> Any:
        """Note what a call says beyond its operations; return its result, sizes with origins."""
        tracer = self.tracer
        if func == _SHAPE or (func is Tensor.size and type(result) is torch.Size):
            labels = tracer.labels(args[0], is_use=False)
            return torch.Size([tracer.size_of(v, n) for v, n in zip(labels, result, strict=True)])
        if func is Tensor.size:
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return tracer.size_of(tracer.labels(args[0], is_use=False)[dim], result)
        if func in _COUNTS:
            sizes = zip(tracer.labels(args[0], is_use=False), args[0].shape, strict=True)
            return math.prod(tracer.size_of(v, n) for v, n in sizes)
        if func in _LEAVES_TORCH:
            tracer.left_torch = True
            tracer.pin(args[0], f"its values leave torch in {tracer.where!r}")
        if func is nn.functional.rms_norm:  # runs as several operations, which have no sizes
            given = args[1] if len(args) > 1 else kwargs["normalized_shape"]
            labels = tracer.labels((*args, *kwargs.values())[0])
            for size, own in zip(given, labels[-len(given) :], strict=True):
                tracer.expect(size, own)
        if func is nn.functional.instance_norm:
            tracer.expect_attribute("num_features", (*args, *kwargs.values())[0], 1)
        if func is _SCALED and kwargs.get("scale") is None and len(args) < 7:
            where = f"the attention {tracer.where!r}" if tracer.where else "the attention"
            reason = f"{where} scales by the size of its heads, where it is given no scale="
            tracer.coupling.pin(tracer.labels((*args, *kwargs.values())[0])[-1], reason)
        if func is _ATTENTION:
            for tensor in tensors_of((args, kwargs, result)):
                tracer.pin(tensor, f"the attention function in {tracer.where!r} keeps its width")
        return result


class _Operations(OperationMode):
    """Sees every operation that runs, and follows labels through it."""

    def __init__(self, tracer: Tracer, deadline: Deadline | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer, self.deadline = tracer, deadline

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tracer = self.tracer
        if self.deadline is not None:
            self.deadline.check(f"Planning, in the forward pass at {tracer.where!r},")
        name = func._schema.name.removeprefix("aten::")
        tracer.result.operations.append(name)
        if name.endswith("_"):
            tracer.labels(args[0])  # before its shape may change
        result = func(*args, **kwargs)
        with _disable_current_modes():  # one around the trace has nothing to do with labels
            are_weights, counted = args in tracer.weights, len(tracer.result.works)
            self._follow(name, func, args, kwargs, result)
            tracer.weights.follow(args, result, are_weights=are_weights)
            work = range(counted, len(tracer.result.works))
            tracer.used.follow(func, args, kwargs, result, work)
        return result

    def _follow(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        tracer = self.tracer
        follow = RULES.get(name, elementwise if torch.Tag.pointwise in func.tags else unknown)
        if follow is unknown:
            given = [tracer.labels(t) for t in tensors_of((args, kwargs))]
            if not any(labels is not None for own in given for labels in own):
                if isinstance(result, Tensor):
                    tracer.set_labels(result, [None] * result.dim())
                return  # whatever it does, it does it to fixed sizes
        labels = follow(tracer, name, args, kwargs, result)  # type: ignore[no-untyped-call]
        if isinstance(result, Tensor):
            tracer.set_labels(result, labels)
        elif labels is not None:
            for tensor, own in zip(result, labels, strict=True):
                if isinstance(tensor, Tensor):
                    tracer.set_labels(tensor, own)


@contextmanager
def _module_names(network: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the dotted name of the module that runs at the end of ``path``."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(partial(_enter, path, name), prepend=True))
        handles.append(module.register_forward_hook(partial(_leave, path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(path: list[str], name: str, *_: object) -> None:
    path.append(name)


def _leave(path: list[str], *_: object) -> None:
    path.pop()


@contextmanager
def _sized_attributes(network: nn.Module, reader: Reader) -> Iterator[None]:
    """Let the integers that the modules of ``network`` hold remember whose they are."""
    changed: list[tuple[nn.Module, str, Any]] = []
    for module_name, module in network.named_modules():
        of_torch = type(module).__module__.startswith("torch.")
        held = vars(module)
        reads_none = of_torch and not isinstance(module, _READ_IN_FORWARD)
        names = [name for name in STATED if name in held] if reads_none else list(held)
        for name in names:
            value = held[name]
            sized = _sized(value, Attribute(module_name, name), reader)
            if sized is not value:
                changed.append((module, name, value))
                held[name] = sized
    try:
        yield
    finally:
        for module, name, value in changed:
            vars(module)[name] = value


def _sized(value: Any, attribute: Attribute, reader: Reader) -> Any:
    if type(value) is int and value > 1:
        return Size(value, attribute, reader)
    if type(value) in (tuple, list, torch.Size) and any(type(v) is int and v > 1 for v in value):
        items = (
            _sized(v, Attribute(attribute.module, attribute.name, i), reader)
            if type(v) is int
            else v
            for i, v in enumerate(value)
        )
        return type(value)(items)
    return value
