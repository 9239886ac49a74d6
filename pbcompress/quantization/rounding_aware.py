"""Training in the arithmetic of an int8 file, so that the weights suit their rounding.

The graph rounds where the file has QuantizeLinear: weights by channel, values by observed ranges.
What was trained is exported in float32 and calibrated anew, so its file has no scales of a kind of
its own.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from pbcompress.config.recovery import OptimizerConfig, RecoveryConfig
from pbcompress.core.inputs import Call, batch_places, map_tensors, tensors_of
from pbcompress.core.modules import copy_model, device_of
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError, first_line
from pbcompress.training.batch_tensors import moved_and_checked
from pbcompress.training.distillation import make_objective
from pbcompress.training.engine import Engine
from pbcompress.training.loop import Stepper, evaluate, make_optimizer, train_epoch
from pbcompress.training.snapshots import weights_of
from pbcompress.training.task import Batches, Data, Task, seeded_generators

__all__ = ["fake_quantized", "observe_", "train_quantized"]

aten = torch.ops.aten
# Products: the places of input and weight among the arguments, and the weight's channel axis.
PRODUCTS: dict[Any, tuple[int, int, int]] = {
    aten.linear.default: (0, 1, 0),
    aten.matmul.default: (0, 1, -1),
    aten.addmm.default: (1, 2, -1),
    aten.bmm.default: (0, 1, -1),
    **{
        getattr(getattr(aten, f"conv{n}d"), kind): (0, 1, 0)
        for n in (1, 2, 3)
        for kind in ("default", "padding")
    },
    aten.conv_transpose1d.default: (0, 1, 1),
    aten.conv_transpose2d.input: (0, 1, 1),
    aten.conv_transpose3d.input: (0, 1, 1),
}
# ONNX Runtime takes these into the range of the product before them.
FOLDED = (aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default)


class _Activation(nn.Module):
    """Rounds values to 256 levels between the least and the largest that were observed.

    A gradient passes where a value is within.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.is_observing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.is_observing:
            self.low = torch.minimum(self.low, x.detach().amin())
            self.high = torch.maximum(self.high, x.detach().amax())
            return x
        scale = ((self.high - self.low) / 255).clamp(min=torch.finfo(x.dtype).tiny)
        zero = (-self.low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


class _Weight(nn.Module):
    """Rounds weights to levels that are symmetric around zero, with a scale for each channel."""

    def __init__(self, axis: int, bits: int) -> None:
        super().__init__()
        self.axis, self.most = axis, {8: 127, 7: 64}[bits]  # as ONNX Runtime's tool rounds

    def forward(self, weight: Tensor) -> Tensor:
        axis = self.axis % weight.dim()
        rows = weight.detach().abs().movedim(axis, 0).flatten(1)
        scale = (rows.amax(1) / self.most).clamp(min=torch.finfo(weight.dtype).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zero, axis, -self.most, self.most
        )


def fake_quantized(network: nn.Module, call: Call, bits: int) -> fx.GraphModule:
    """Return the graph of a network, with its parameters' names, whose products are rounded.

    Weights are rounded on every pass; what products read and give is rounded to the ranges that
    `observe_` finds, after a ReLU where one follows.

    Args:
        network: In the form that is exported; its graph holds copies of its weights.
        call: Inputs of one forward pass.
        bits: Of a weight: 8, or 7 for kernels whose sums would overflow.

    Raises:
        CompressionError: torch.export does not take the network.
    """
    network = copy_model(network)
    call = _of_two_samples(network, call)
    args, kwargs = call
    bound = inspect.signature(network.forward).bind(*args, **kwargs)
    places = batch_places(network, call)
    axes = {id(t): {places[i]: Dim.AUTO} for i, t in enumerate(tensors_of(call)) if i in places}
    shapes = tree_map(lambda leaf: axes.get(id(leaf)), dict(bound.arguments))
    try:
        with seeded("export"):
            traced = torch.export.export(network, args, kwargs, dynamic_shapes=shapes).module()
    except Exception as err:
        raise CompressionError(
            f"The network was to be trained in 8 bits and torch.export could not trace it: "
            f"{first_line(err)}. Leave recover_epochs out."
        ) from err
    assert isinstance(traced, fx.GraphModule)
    _insert_(traced, bits)
    return fx.GraphModule(traced, traced.graph)  # a plain one has train() and eval()


def _of_two_samples(network: nn.Module, call: Call) -> Call:
    """Return inputs whose batch is no single sample: torch.export would fix the size at one."""
    places = batch_places(network, call)
    numbers = {id(t): i for i, t in enumerate(tensors_of(call))}

    def doubled(tensor: Tensor) -> Tensor:
        axis = places.get(numbers[id(tensor)])
        if axis is None or tensor.shape[axis] != 1:
            return tensor
        return torch.cat([tensor, tensor], axis)

    return map_tensors(call, doubled)


def _insert_(traced: fx.GraphModule, bits: int) -> None:
    graph, rounded = traced.graph, dict[fx.Node, fx.Node]()

    def add(value: fx.Node, module: nn.Module) -> fx.Node:
        name = f"rounding_{len(rounded)}"
        traced.add_module(name, module)
        with graph.inserting_after(value):
            new = graph.call_module(name, (value,))
        value.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        rounded[value] = rounded[new] = new
        return new

    for node in list(graph.nodes):
        if node.target not in PRODUCTS:
            continue
        read, held, axis = PRODUCTS[node.target]
        for place in (read, held):
            value: Any = node.args[place]
            if value not in rounded:
                is_weight = place == held and value.op == "get_attr"
                add(value, _Weight(axis, bits) if is_weight else _Activation())
        users = list(node.users)
        is_folded = len(users) == 1 and users[0].target in FOLDED
        result = users[0] if is_folded else node
        if result not in rounded:
            add(result, _Activation())
    graph.lint()


def observe_(twin: fx.GraphModule, train: Batches, task: Task, samples: int) -> None:
    """Set the ranges of values to those of the first ``samples`` training samples."""
    ranges = [module for module in twin.modules() if isinstance(module, _Activation)]
    for module in ranges:
        module.low, module.high = torch.zeros_like(module.low), torch.zeros_like(module.high)
        module.is_observing = True
    seen = 0
    with torch.no_grad(), seeded("calibration"), seeded_generators(train, 0):
        for batch in train:
            batch = moved_and_checked(batch, device_of(twin), "a batch of Data.train")
            output, _ = task.run(twin, batch)
            seen += max((len(t) for t in tensors_of(output) if t.dim()), default=1)
            if seen >= samples:
                break
    for module in ranges:
        module.is_observing = False


def train_quantized(
    network: nn.Module,
    call: Call,
    data: Data,
    task: Task,
    *,
    epochs: int,
    bits: int,
    samples: int,
    lr: float = 1e-3,
) -> nn.Module:
    """Return a copy of a network that was trained under the rounding of its int8 file.

    Ranges are observed anew before every epoch and every score; the epoch with the best
    validation metric counts, rounding included. All parameters train, BatchNorm stays folded.

    Args:
        network: In the form that is exported, in eval mode, on the device that trains.
        call: Inputs of one forward pass.
        data: ``train`` trains and gives ranges, ``val`` is scored.
        task: Loss and metric.
        epochs: Passes over ``data.train``, at least 1.
        bits: See `fake_quantized`.
        samples: See `observe_`.
        lr: Peak learning rate of AdamW, which falls to zero along a cosine.

    Raises:
        CompressionError: torch.export does not take the network, or the loss cannot be used.
        DivergedError: A loss was not finite.
    """
    twin = fake_quantized(network, call, bits)
    twin.requires_grad_()
    parameters = list(twin.parameters())
    config = RecoveryConfig(epochs=epochs, optimizer=OptimizerConfig(lr=lr))
    optimizer = make_optimizer(parameters, config.optimizer, is_dendrite=False)
    stepper = Stepper(Engine(), twin, optimizer, config, length=epochs)
    objective = make_objective(task, config.distillation, None)
    best: tuple[float, dict[str, Tensor]] | None = None
    for epoch in range(epochs):
        stepper.epoch = epoch
        observe_(twin, data.train, task, samples)
        train_epoch(stepper, data.train, objective, seed=("int8", epoch))
        observe_(twin, data.train, task, samples)
        score = task.score(evaluate(twin, data.val, task)[0])
        if best is None or score > best[0]:
            best = score, weights_of(twin)
    assert best is not None
    trained = copy_model(network)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(best[1][name])
    return trained
