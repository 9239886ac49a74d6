"""What a few batches show of a network: gradients, variances, BatchNorm statistics."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pbcompress.core.modules import channel_axis, device_of, preserved_mode, rest_
from pbcompress.core.randomness import seeded, whole_seed
from pbcompress.core.turns import in_turn
from pbcompress.errors import CompressionError
from pbcompress.training.batch_tensors import moved_and_checked
from pbcompress.training.data_checks import check_loss
from pbcompress.training.task import Batches, Data, Task, check_split, seeded_generators

__all__ = ["Sample", "gradients", "input_variances", "reestimate_batchnorm_"]

Read = TypeVar("Read")
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Sample:
    """The first few batches of a split in a fixed random order.

    Attributes:
        batches: The split.
        task: How a model runs on a batch.
        count: Batches at most.
        seed: Names the order, and all else that is random.
    """

    batches: Batches
    task: Task
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))

    def each(self, network: nn.Module, visit: Callable[[Any], object]) -> int:
        """Call ``visit`` with every batch on the device of ``network``; return how many.

        Raises:
            CompressionError: There is no batch, or a NaN or infinity in one, whose number is said.
        """
        check_split(self.batches, "train")
        device, seen = device_of(network), 0
        with seeded("sample", self.seed), seeded_generators(self.batches, self.seed):
            for batch in islice(self.batches, self.count):
                visit(moved_and_checked(batch, device, f"batch {seen} of Data.train"))
                seen += 1
        if seen == 0:
            raise CompressionError("Data.train yielded no batch. Give at least one.")
        return seen


def gradients(network: nn.Module, sample: Sample, read: Callable[[], Read]) -> list[Read]:
    """Return ``read()`` after the backward pass of each batch, with that batch's gradients.

    Args:
        network: A copy, which is used up: every parameter requires grad, and the mode is eval.
        sample: Batches, loss and forward.
        read: Reads the gradients of ``network``.
    """
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    rest_(network)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    found: list[Read] = []

    def visit(batch: Any) -> None:
        network.zero_grad(set_to_none=True)
        loss = sample.task.loss(*sample.task.run(network, batch))
        check_loss(loss, f"batch {len(found)} of Data.train")
        loss.backward()
        found.append(read())

    with torch.enable_grad():
        sample.each(network, visit)
    return found


class _Moments:
    """Mean and squared deviations of channels, merged batch by batch in float64.

    Source:
        Chan, Golub and LeVeque, Updating formulae, 1979, equation 2.1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.deviations = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take in values of shape (N, channels)."""
        if len(values) == 0:
            return
        values = values if values.element_size() >= 4 else values.float()
        variance, mean = torch.var_mean(values, 0, correction=0)
        total = self.count + len(values)
        step = mean.cpu().double() - self.mean
        own = variance.cpu().double() * len(values)
        self.deviations = self.deviations + own + step**2 * (self.count * len(values) / total)
        self.mean = self.mean + step * (len(values) / total)
        self.count = total


def input_variances(network: nn.Module, layers: Sequence[str], sample: Sample) -> dict[str, Tensor]:
    """Return the variance of each channel that a layer reads, over samples and positions.

    Args:
        network: A network, left as it is; it runs in eval mode.
        layers: Names of Linear layers and convolutions.
        sample: Batches and forward.

    Returns:
        By layer, shape (input channels,), float64; layers that no batch reached are missing.
    """
    moments = {name: _Moments() for name in layers}

    def observe(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                values = args[0].detach().movedim(channel_axis(layer), -1)
                moments[name].add(values.reshape(-1, values.shape[-1]))

        return hook

    with ExitStack() as stack, torch.no_grad(), preserved_mode(network, training=False):
        for name in layers:
            handle = network.get_submodule(name).register_forward_pre_hook(observe(name))
            stack.callback(handle.remove)
        sample.each(network, lambda batch: sample.task.run(network, batch))
    return {name: m.deviations / m.count for name, m in moments.items() if m.count}


@in_turn
def reestimate_batchnorm_(
    model: nn.Module,
    data: Data | Batches,
    task: Task | None = None,
    *,
    batches: int = 32,
    seed: int = 0,
) -> int:
    """Measure the running statistics of all BatchNorm layers anew, as plain means over batches.

    After channels are removed, the statistics that a network carries are those of another network;
    right ones bring back a good part of its accuracy without training. Only BatchNorm layers run in
    training mode, so dropout is off; modes, momenta and weights stay as they are, and so do layers
    that keep no statistics or that the forward pass does not reach. ``num_batches_tracked`` counts
    the batches that were used.

    Args:
        model: Changed in place: the buffers of its BatchNorm layers.
        data: ``Data``, whose train split is used, or batches, which may be inputs alone.
        task: How the model runs on a batch; the default takes ``(inputs, targets)``.
        batches: Batches at most, at least 1; each counts alike.
        seed: Names the order of the batches.

    Returns:
        Batches that were used; 0 if there are no statistics to measure.

    Raises:
        CompressionError: There is no batch, or it is not what ``task`` takes. After this and any
            error of the model itself the statistics are as before.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).eval()
        >>> reestimate_batchnorm_(net, [(torch.tensor([[3.0], [5.0]]), None)])
        1
        >>> net[0].running_mean.item(), net[0].running_var.item()
        (4.0, 2.0)

    Source:
        Wu and Johnson, Rethinking "Batch" in BatchNorm, section 3, https://arxiv.org/abs/2105.07576;
        after pruning: Li et al., EagleEye, https://arxiv.org/abs/2007.02491.
    """
    if batches < 1:
        raise ValueError(f"batches was given as {batches}; it must be at least 1.")
    layers = [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    if not layers:
        return 0
    split = data.train if isinstance(data, Data) else data
    sample = Sample(split, task or Task(), batches, seed)
    with torch.no_grad(), preserved_mode(model, training=False), _averaging(layers):
        return sample.each(model, lambda batch: sample.task.outputs(model, batch))


@contextmanager
def _averaging(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers take the mean over batches; on an error, and where none came, nothing changes."""
    former = [{k: b.clone() for k, b in layer.named_buffers(recurse=False)} for layer in layers]
    momenta = [layer.momentum for layer in layers]

    def put_back(which: Callable[[Any], bool]) -> None:
        for layer, buffers in zip(layers, former, strict=True):
            if which(layer):
                for name, value in buffers.items():
                    getattr(layer, name).copy_(value)

    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's cumulative mean
            layer.train()
        yield
        put_back(lambda layer: layer.num_batches_tracked == 0)
    except BaseException:
        put_back(lambda layer: True)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
