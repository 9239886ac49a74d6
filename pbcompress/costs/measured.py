"""Parameters and FLOPs of a model, by two counters. The only module that imports fvcore."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pbcompress.core.inputs import Call, as_call, outputs_of, to_device
from pbcompress.core.modules import (
    copy_model,
    copy_sharing,
    device_of,
    parameter_count,
    plain_kernels,
)
from pbcompress.core.randomness import seeded
from pbcompress.core.scripted import scripts_as_python
from pbcompress.core.time_first import one_sample
from pbcompress.core.turns import in_turn
from pbcompress.costs.flop_counters import LayerCost, by_kind, explain
from pbcompress.costs.product_counts import PRODUCTS
from pbcompress.errors import CompressionError

__all__ = ["LayerCost", "ModelCost", "input_shapes", "measure"]


@dataclass(frozen=True)
class ModelCost:
    """Cost of one forward pass at batch size 1 in eval mode.

    Attributes:
        params: Parameter elements, shared ones counted once.
        flops: Multiply-adds: one multiply-add is one FLOP, as fvcore counts. Work that no output
            depends on is left out, as exported files leave it out.
        uncounted_ops: Operations that are not in ``flops``, with their number of calls.
        input_shapes: Shape of every input tensor, by position or name.
        by_layer: Cost of each layer by its dotted name, in the order of registration.
        by_operation: ``flops`` by kind of operation; empty where the cost was predicted.
        dispatched: The same by torch's FlopCounterMode, which sees convolutions, matrix products
            and attention alone, called as functions too. None where it was not counted.
    """

    params: int
    flops: int
    uncounted_ops: Mapping[str, int]
    input_shapes: Mapping[str, tuple[int, ...]]
    by_layer: Mapping[str, LayerCost]
    by_operation: Mapping[str, int] = field(default_factory=dict)
    dispatched: Mapping[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "params": self.params,
            "flops": self.flops,
            "uncounted_ops": dict(self.uncounted_ops),
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "layers": {name: dict(vars(layer)) for name, layer in self.by_layer.items()},
            "by_operation": dict(self.by_operation),
            "dispatched": None if self.dispatched is None else dict(self.dispatched),
        }

    def __str__(self) -> str:
        skipped = ", ".join(f"{name} x{count}" for name, count in self.uncounted_ops.items())
        return (
            f"{self.params:,} parameters, {self.flops:,} FLOPs (1 multiply-add = 1 FLOP, batch 1)"
            + (f"; not counted: {skipped}" if skipped else "")
            + (f"\n{self.explanation}" if self.explanation else "")
        )

    @property
    def explanation(self) -> str:
        """Why the two counts differ, by operation; "" where they do by at most 2 %."""
        if self.dispatched is None:
            return ""
        return explain(self.by_operation, self.dispatched, self.uncounted_ops)


class _Positional(nn.Module):
    """Calls a model with named inputs from positional tensors, which is what tracing takes."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        args, kwargs = call
        self._leaves, self._spec = torch.utils._pytree.tree_flatten((args, kwargs))
        self._slots = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self._leaves[i] for i in self._slots)

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for slot, tensor in zip(self._slots, tensors, strict=True):
            leaves[slot] = tensor
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, self._spec)
        output = self.model(*args, **kwargs)
        return tuple(outputs_of(output)) or output  # no cache beside them, which has no trace


@in_turn
def measure(model: nn.Module, example_inputs: object) -> ModelCost:
    """Return parameters and FLOPs of ``model``, by layer and in total.

    The count is made on a deep copy in eval mode with the first sample of ``example_inputs``:
    training mode would move BatchNorm statistics, and a larger batch would scale the count.

    Args:
        model: Any network; left as it is.
        example_inputs: A tensor, a tuple of positional or a dict of named inputs. The first axis
            of every tensor is the batch; the second one where a layer of torch without
            ``batch_first`` reads the first as time.

    Returns:
        The cost, with the operations that the counter does not know listed beside it.

    Raises:
        CompressionError: The forward pass fails on one sample of ``example_inputs``.

    Example:
        >>> cost = measure(nn.Linear(3, 2), torch.zeros(5, 3))
        >>> cost.params, cost.flops
        (8, 6)
    """
    network = copy_model(model).eval()
    device = device_of(network)
    call = to_device(one_sample(network, as_call(example_inputs)), device)
    wrapped = _Positional(network, call)
    inputs = wrapped.tensors
    if any(t.dim() and not len(t) for t in inputs):
        raise CompressionError("example_inputs holds no sample; give a batch of at least one.")
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        seeded("measure"),
        plain_kernels(network),
        scripts_as_python(),
    ):
        warnings.simplefilter("ignore")  # fvcore needs torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        try:
            wrapped(*inputs)
        except Exception as err:
            shapes = [tuple(t.shape) for t in inputs]
            raise CompressionError(
                f"The model was run on one sample of example_inputs, shapes {shapes}, and its "
                f"forward failed: {err}. Give inputs whose first axis is the batch, "
                "or say which axes are: pb.Example(inputs, batch_axes={}) for none."
            ) from err
        try:
            analysis = FlopCountAnalysis(wrapped, inputs)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.tracer_warnings("none").set_op_handle(**PRODUCTS)
            _take_any_name(analysis)
            by_module, by_operation = analysis.by_module(), analysis.by_operator()
            uncounted = dict(sorted(analysis.unsupported_ops().items()))
            dispatched = _dispatched(network, call, device)
        except Exception as err:
            raise CompressionError(
                f"The model was traced to count its FLOPs, and cannot be: {err}. Give the plain "
                "module, not compiled or scripted, with tensors, tuples or dicts as outputs."
            ) from err
    named = {unquote(name, errors="surrogatepass"): n for name, n in by_module.items()}
    flops = {name.removeprefix("model").removeprefix("."): n for name, n in named.items()}
    return ModelCost(
        params=parameter_count(network),
        flops=int(by_module[""]),
        uncounted_ops=uncounted,
        input_shapes=input_shapes(call),
        by_layer=_layers(network, flops),
        by_operation=by_kind(by_operation),
        dispatched=dispatched,
    )


def _take_any_name(analysis: Any) -> None:
    """Give the counter names of modules in letters and percent signs, as addresses have them.

    It notes names in the trace, where a slash divides them and a NUL ends them.
    """
    names = {
        key: quote(name, "", errors="surrogatepass") for key, name in analysis._aliases.items()
    }
    analysis._aliases = names | {name: name for name in names.values()}


def _dispatched(network: nn.Module, call: Call, device: torch.device) -> dict[str, int] | None:
    """Return what torch's own counter sees at the dispatcher, by kind of operation.

    It counts on the meta device, where nothing is computed. A network that reads values of its
    tensors is run where it lives; attention in its plain form, since the fused one has no formula
    on every device. None for a network that runs in neither way.
    """
    for place in ("meta", device):
        copied, (args, kwargs) = copy_sharing(network).to(place), to_device(call, place)
        plain = sdpa_kernel(SDPBackend.MATH)
        try:
            with plain, plain_kernels(copied), FlopCounterMode(display=False) as counter:
                copied(*args, **kwargs)
        except Exception:  # a network does anything with values that are not there
            continue
        counts = counter.get_flop_counts().get("Global", {})
        return by_kind({str(operation): flops // 2 for operation, flops in counts.items()})
    return None


def input_shapes(call: Call) -> dict[str, tuple[int, ...]]:
    """Name every tensor by position or name; one inside a dict or list also by its place there."""
    args, kwargs = call
    named = {**{str(i): a for i, a in enumerate(args)}, **kwargs}
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(named)
    return {
        ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): tuple(t.shape)
        for path, t in leaves
        if isinstance(t, Tensor)
    }


def _layers(network: nn.Module, flops: Mapping[str, float]) -> dict[str, LayerCost]:
    counted: set[int] = set()
    layers: dict[str, LayerCost] = {}
    for name, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(id(p) for p in own)
        children = sum(
            int(flops.get(f"{name}.{child}" if name else child, 0))
            for child, _ in module.named_children()
        )
        work = int(flops.get(name, 0)) - children
        if own or (work > 0 and not list(module.children())):
            width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
            kind = type(module).__name__
            layers[name] = LayerCost(kind, sum(p.numel() for p in own), work, width)
    return layers
