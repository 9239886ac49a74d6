"""Which channels must go together, and how one layer is cut. The only module on torch-pruning.

torch-pruning traces the graph and slices layers. What it is known to do wrong (landscape of tools,
November 2026: frozen parameters vanish, tied ones are untied, unknown operations pass as
elementwise, a tensor input is unpacked) is kept out here: the trace runs on a copy with gradients
on and an explicit forward, and a group is used only where every operation it meets is known.
"""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.dependency.index_mapping import _ConcatIndexMapping, _FlattenIndexMapping

from pbcompress.errors import CompressionError
from pbcompress.geometry import LayerGeometry, is_depthwise
from pbcompress.surgery import (
    Call,
    copy_model,
    map_tensors,
    seeded,
    tensors_of,
)

__all__ = ["ChannelGroup", "Grouping", "Member", "cut_", "find_groups", "is_cuttable"]

Dim = Literal["out", "in"]
Reached = tuple[nn.Module, Dim, list[int], list[int]]  # its indices, and their root channels

_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BY_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.PReLU)

# Operations, by the name of their autograd node, that treat every channel alike and alone.
_ELEMENTWISE = frozenset(
    (
        *("Abs", "Add", "Clamp", "ClampMin", "ClampMax", "Div", "Elu", "Exp", "Gelu"),
        *("Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "LogSigmoid", "Maximum"),
        *("Minimum", "Mish", "Mul", "NativeDropout", "Neg", "Pow", "Relu", "Relu6", "Rsqrt"),
        *("Sigmoid", "Silu", "Softplus", "Sqrt", "Sub", "Tanh", "Where"),
        *("AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D"),
        *("AvgPool2D", "AvgPool3D", "MaxPool2DWithIndices", "MaxPool3DWithIndices"),
        *("MkldnnMaxPool2D", "MkldnnMaxPool3D", "MkldnnAvgPool2D", "Mean", "Sum", "Amax"),
        *("UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleLinear1D"),
        *("UpsampleBilinear2D", "UpsampleBicubic2D", "UpsampleTrilinear3D", "ConstantPadNd"),
        *("ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D", "ReplicationPad2D"),
        *("Alias", "Clone", "ToCopy", "Squeeze", "Unsqueeze", "UnsafeView", "T"),
    )
)
# What F.linear consists of on inputs of rank 3 and more: part of a Linear, never on its own.
_INSIDE_LINEAR = frozenset(["Addmm", "Mm", "Bmm"])


@dataclass(frozen=True)
class Member:
    """One dimension of one layer that a group narrows.

    Attributes:
        layer: Dotted name.
        dim: "out" or "in"; layers that work channel by channel have only "out".
        positions: For each unit of the group, its indices along the dimension.
    """

    layer: str
    dim: Dim
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that keep or lose the same units.

    Attributes:
        name: The first layer that produces these channels.
        width: Units that can go one by one (a unit is a channel, or one channel of every group
            of a grouped convolution).
        members: Every layer dimension that the units reach.
    """

    name: str
    width: int
    members: tuple[Member, ...]

    @property
    def channels_per_unit(self) -> int:
        """Channels of the first layer that one unit holds."""
        return len(self.members[0].positions[0])


@dataclass(frozen=True)
class Grouping:
    """All groups that may be narrowed, and the producing layers that may not, with the reason."""

    groups: tuple[ChannelGroup, ...]
    left_alone: Mapping[str, str]


class _NotPrunableError(Exception):
    """Carries the reason why a group keeps its width."""


def is_cuttable(layer: nn.Module) -> bool:
    """Tell whether `cut_` can narrow a layer: of a known kind, its weight a plain parameter."""
    return type(layer) in _MIXING + _BY_CHANNEL and "weight" in layer._parameters


def find_groups(model: nn.Module, call: Call) -> Grouping:
    """Trace one forward pass and return the coupled channel groups of ``model``.

    Args:
        model: Any network; a copy is traced.
        call: ``(args, kwargs)`` of one forward pass, on the model's device.

    Returns:
        The groups in the order of the layers, and what is left alone and why.

    Raises:
        CompressionError: The forward pass fails, or no parameter takes part in it.
    """
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = copy_model(model).eval()
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)  # a frozen parameter is invisible to the trace
        with seeded("trace"):
            graph = _trace(network, map_tensors(call, torch.clone))
    names = {module: name for name, module in network.named_modules()}
    tied = _tied_modules(network)
    groups: list[ChannelGroup] = []
    left_alone: dict[str, str] = {}
    taken: set[tuple[str, Dim, int]] = set()
    produced: set[str] = set()
    for root in _roots(graph, names):
        name = names[root]
        if name in produced:
            continue
        try:
            group = _read_group(graph, root, names, tied)
            cells = {
                (m.layer, m.dim, i) for m in group.members for unit in m.positions for i in unit
            }
            if cells & taken:
                raise _NotPrunableError("its channels overlap those of another group")
        except _NotPrunableError as reason:
            left_alone[name] = str(reason)
            continue
        taken |= cells
        produced |= {m.layer for m in group.members if m.dim == "out"}
        groups.append(group)
    used = set(graph.module2node)
    for module, name in names.items():
        if type(module) in _MIXING and module not in used:
            left_alone[name] = "the forward pass does not reach it"
    return Grouping(tuple(groups), {k: v for k, v in left_alone.items() if k not in produced})


def _trace(network: nn.Module, call: Call) -> tp.DependencyGraph:
    args, kwargs = call

    def forward(module: nn.Module, _: object) -> list[Tensor]:
        try:
            output = module(*args, **kwargs)
        except Exception as err:
            raise CompressionError(
                f"The model was run on the example inputs and its forward failed: {err}. "
                "Give example_inputs that the model accepts."
            ) from err
        tensors = [t for t in tensors_of(output) if t.grad_fn is not None]
        if not tensors:
            raise CompressionError(
                "The model was traced and none of its outputs depends on a parameter, so no width "
                "can change. Give a network with Linear or convolution layers."
            )
        return tensors

    graph = tp.DependencyGraph().build_dependency(network, args, forward_fn=forward, verbose=False)
    for node in graph.module2node.values():
        if isinstance(node.module, ops._ConcatOp):
            _map_concatenation(node)
        elif isinstance(node.module, ops._ReshapeOp) and node.inputs:
            _map_reshape(node)
    return graph


def _map_concatenation(node: Any) -> None:
    """Set the channel offsets of a concatenation from the shapes that autograd recorded.

    torch-pruning infers them from the layers around, which fails before and after a flatten.
    """
    sources = node.grad_fn.next_functions
    if len(_shape(node.grad_fn)) < 2 or len(sources) != len(node.inputs):
        return  # refused by _check_concatenation
    node.type = ops.OPTYPE.ELEMENTWISE  # so that torch-pruning does not infer again
    start = 0
    done: list[Any] = []
    for source, (gradient, slot) in zip(node.inputs, sources, strict=True):
        offset = (start, start + _shape(gradient, slot)[1])
        start = offset[1]
        _map_link(node, source, 1, partial(_ConcatIndexMapping, offset), done)


def _map_reshape(node: Any) -> None:
    """Set how many positions a flatten makes of a channel from the recorded shapes."""
    before, after = _shape(*node.grad_fn.next_functions[0]), _shape(node.grad_fn)
    stride = math.prod(before[2:]) if _flattens(before, after) else 1
    node.type = ops.OPTYPE.ELEMENTWISE
    if stride > 1:
        _map_link(node, node.inputs[0], 0, partial(_FlattenIndexMapping, stride), [])
    else:
        _map_link(node, node.inputs[0], 0, lambda reverse: None, [])


def _map_link(
    node: Any, source: Any, place: int, make: Callable[..., Any], done: list[Any]
) -> None:
    """Put an index mapping on the first link not yet done between two nodes, in both directions."""
    for owner, target, reverse in ((node, source, True), (source, node, False)):
        for link in owner.dependencies:
            if link.target is target and not any(link is other for other in done):
                link.index_mapping[place] = make(reverse=reverse)
                done.append(link)
                break


def _flattens(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    return len(before) > 2 and len(after) == 2 and before[0] == after[0]


def _shape(gradient: Any, slot: int = 0) -> tuple[int, ...]:
    """Shape of the tensor that an autograd node produced in the forward pass."""
    return tuple(gradient._input_metadata[slot].shape)


def _roots(graph: tp.DependencyGraph, names: Mapping[nn.Module, str]) -> Iterator[nn.Module]:
    order = {module: i for i, module in enumerate(names)}
    layers = [m for m in graph.module2node if isinstance(m, nn.Module) and m in order]
    for module in sorted(layers, key=order.__getitem__):
        if isinstance(module, (*_MIXING, nn.modules.conv._ConvNd)) and not is_depthwise(module):
            yield module


def _tied_modules(network: nn.Module) -> set[nn.Module]:
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for module in network.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append(module)
    return {module for modules in owners.values() if len(modules) > 1 for module in modules}


def _read_group(
    graph: tp.DependencyGraph,
    root: nn.Module,
    names: Mapping[nn.Module, str],
    tied: set[nn.Module],
) -> ChannelGroup:
    pruner = graph.get_pruner_of_module(root)
    width = pruner.get_out_channels(root)
    _check_reach(graph, graph.module2node[root], pruner.prune_out_channels, names, tied)
    try:
        items = graph.get_pruning_group(root, pruner.prune_out_channels, list(range(width)))
    except Exception as err:
        raise _NotPrunableError(f"torch-pruning cannot follow its channels ({err})") from err
    layers: list[Reached] = []
    for item in items:
        node, handler = item.dep.target, item.dep.handler
        if node.module in names:
            if isinstance(node.module, nn.PReLU) and node.module.num_parameters == 1:
                continue  # one slope for all channels
            dim = _check_layer(graph, node, handler, names, tied)
            layers.append((node.module, dim, item.idxs, item.root_idxs))
        else:
            _check_operation(node)
    units = _units(width, layers)
    members = tuple(
        Member(names[reached[0]], reached[1], _positions(reached, names, units))
        for reached in layers
    )
    if len(units) < 2:
        raise _NotPrunableError("it has one channel, or one per group of a grouped convolution")
    return ChannelGroup(names[root], len(units), members)


def _check_reach(
    graph: tp.DependencyGraph,
    root: Any,
    prune: Any,
    names: Mapping[nn.Module, str],
    tied: set[nn.Module],
) -> None:
    """Refuse a group that meets something unknown before its channels are followed.

    torch-pruning follows lists of channels, and in the reshapes of an attention these grow without
    bound. This walk follows layers alone. It does not go back from a concatenation into its other
    sources, which have channels of their own.
    """
    seen, stack = {(root, prune)}, [(root, prune)]
    while stack:
        node, trigger = stack.pop()
        for link in node.dependencies:
            step = (link.target, link.handler)
            goes_back = isinstance(node.module, ops._ConcatOp) and link.target in node.inputs
            if step in seen or goes_back or not link.is_triggered_by(trigger):
                continue
            if link.target.module in names:
                _check_layer(graph, link.target, link.handler, names, tied)
            else:
                _check_operation(link.target)
            seen.add(step)
            stack.append(step)


def _check_layer(
    graph: tp.DependencyGraph,
    node: Any,
    handler: Any,
    names: Mapping[nn.Module, str],
    tied: set[nn.Module],
) -> Dim:
    module, name = node.module, names[node.module]
    kind = type(module).__name__
    if not is_cuttable(module):
        raise _NotPrunableError(f"its channels reach {name!r} ({kind}), which keeps its width")
    if module in tied:
        raise _NotPrunableError(f"its channels reach {name!r}, which shares a parameter")
    pruner = graph.get_pruner_of_module(module)
    dim: Dim = "out" if handler == pruner.prune_out_channels else "in"
    if dim == "out" and not node.outputs and type(module) in _MIXING:
        raise _NotPrunableError("its width is the network's output")
    return dim


def _check_operation(node: Any) -> None:
    module, gradient = node.module, node.grad_fn
    if isinstance(module, nn.Parameter):
        raise _NotPrunableError("its channels meet a parameter that belongs to no layer")
    if isinstance(module, ops._OutputOp):
        raise _NotPrunableError("its width is the network's output")
    if isinstance(module, ops._ReshapeOp):
        return _check_reshape(node)
    name = gradient.name().rstrip("0123456789").removesuffix("Backward") if gradient else "Unknown"
    if isinstance(module, ops._ConcatOp):
        return _check_concatenation(node)
    if isinstance(module, ops._ElementWiseOp):
        if name in _ELEMENTWISE:
            return _check_reduction(name, gradient)
        if name in _INSIDE_LINEAR and any(type(n.module) in _MIXING for n in node.outputs):
            return None
    raise _NotPrunableError(f"its channels meet the operation {name}, whose channels are not known")


def _check_concatenation(node: Any) -> None:
    dim = node.grad_fn._saved_dim
    axis = dim - 2**64 if dim >= 2**63 else dim  # a negative dim is saved as unsigned
    if axis % len(_shape(node.grad_fn)) != 1:
        raise _NotPrunableError(f"its channels meet a concatenation along axis {axis}")
    sources = [f for f, _ in node.grad_fn.next_functions]
    if any(f is None or "AccumulateGrad" in f.name() for f in sources):
        raise _NotPrunableError("its channels are concatenated with an input of the network")


def _check_reshape(node: Any) -> None:
    if not node.inputs and all(isinstance(n.module, nn.PReLU) for n in node.outputs):
        return  # its slopes, which are a member of the group
    before = _shape(*node.grad_fn.next_functions[0]) if node.inputs else ()
    after = _shape(node.grad_fn)
    keeps_axis = len(before) > 1 and len(after) > 1 and before[1] == after[1]
    joins_tokens = bool(before) and before[-1] == after[-1] and min(len(before), len(after)) == 2
    if not (keeps_axis or _flattens(before, after) or joins_tokens):
        raise _NotPrunableError(f"its channels meet a reshape of {before} into {after}")


def _check_reduction(name: str, gradient: Any) -> None:
    if name not in ("Mean", "Sum", "Amax") or not hasattr(gradient, "_saved_dim"):
        return
    sizes = _shape(*gradient.next_functions[0])
    dims = gradient._saved_dim
    for dim in dims if isinstance(dims, tuple | list) else (dims,):
        axis = dim - 2**64 if dim >= 2**63 else dim
        if len(sizes) >= 4 and axis % len(sizes) == 1:
            raise _NotPrunableError("its channels are reduced to one")


def _units(width: int, layers: Sequence[Reached]) -> list[list[int]]:
    """Join channels that a grouped convolution can only lose together: one of every group."""
    leader = list(range(width))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for module, dim, idxs, roots in layers:
        if type(module) not in _MIXING or is_depthwise(module) or getattr(module, "groups", 1) == 1:
            continue
        geometry = LayerGeometry.of(module)
        size = geometry.out_width if dim == "out" else geometry.in_width
        if len(idxs) != size:
            raise _NotPrunableError("a grouped convolution reads it together with other channels")
        per_group = size // geometry.groups
        first: dict[int, int] = {}
        for index, root in zip(idxs, roots, strict=True):
            leader[find(root)] = find(first.setdefault(index % per_group, root))
    units: dict[int, list[int]] = defaultdict(list)
    for channel in range(width):
        units[find(channel)].append(channel)
    return list(units.values())


def _positions(
    reached: Reached, names: Mapping[nn.Module, str], units: list[list[int]]
) -> tuple[tuple[int, ...], ...]:
    module, dim, idxs, roots = reached
    geometry = LayerGeometry.of(module)
    size = geometry.out_width if dim == "out" else geometry.in_width
    by_root: dict[int, list[int]] = defaultdict(list)
    for index, root in zip(idxs, roots, strict=True):
        by_root[root].append(index)
    if len(set(idxs)) != len(idxs) or max(idxs) >= size:
        raise _NotPrunableError(f"its channels do not fit {names[module]!r}")
    positions = tuple(tuple(sorted(i for r in unit for i in by_root[r])) for unit in units)
    if len(Counter(len(p) for p in positions)) != 1 or not positions[0]:
        raise _NotPrunableError(f"its channels reach {names[module]!r} unevenly")
    return positions


def cut_(layer: nn.Module, dim: Dim, removed: Sequence[int]) -> None:
    """Remove channels of one layer in place; whether its parameters train stays as it was.

    Args:
        layer: A Linear, a convolution, a BatchNorm or a PReLU.
        dim: Which dimension loses channels.
        removed: Indices along it.
    """
    trains = {name: p.requires_grad for name, p in layer.named_parameters(recurse=False)}
    kind = ops.module2type(layer)
    if isinstance(layer, nn.modules.conv._ConvNd) and not is_depthwise(layer):
        kind = ops.OPTYPE.CONV  # torch-pruning takes out_channels == groups for depthwise
    pruner = tp.pruner.function.PrunerBox[kind]
    prune = pruner.prune_out_channels if dim == "out" else pruner.prune_in_channels
    prune(layer, list(removed))
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.requires_grad_(trains[name])
