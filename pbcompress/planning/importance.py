"""How much each unit of a channel group matters.

A criterion gives every member of a group one non-negative number for each unit. Members are scaled
to mean 1, so that a wide reader does not drown the producer, and summed.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pbcompress.config.widths import Importance, WidthConfig
from pbcompress.core.modules import copy_model
from pbcompress.errors import CompressionError
from pbcompress.pruning.unit_choice import combined
from pbcompress.structure.channel_groups import ChannelGroup, Member
from pbcompress.structure.layer_geometry import is_depthwise
from pbcompress.training.batch_statistics import Sample, gradients, input_variances
from pbcompress.training.experiment import Experiment

__all__ = ["sample_for", "unit_scores"]

Energies = list[list[Tensor]]  # for each group, for each member that says something: (units,)

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


def sample_for(config: WidthConfig, experiment: Experiment | None) -> Sample | None:
    """Return the batches for the importance that ``config`` names, None if it takes none.

    Raises:
        CompressionError: It needs data, and there are none.
    """
    if config.importance not in _WITH_DATA:
        return None
    if experiment is None:
        raise CompressionError(
            f"WidthConfig(importance={config.importance!r}) was asked for, which looks at train "
            "batches, and no data was given. Pass data=pb.Data(train=..., val=...), or choose "
            "'magnitude' or 'bn_scale'."
        )
    batches, task, seed = experiment.data.train, experiment.task, experiment.seed
    return Sample(batches, task, config.importance_batches, seed)


def unit_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    by: Importance = "magnitude",
    sample: Sample | None = None,
) -> dict[str, Tensor]:
    """Return the importance of every unit of every group, scaled to mean 1 over the group.

    Args:
        model: The network; left as it is.
        groups: Its channel groups.
        by: The criterion, see `WidthConfig`.
        sample: Batches for the criteria that need some.

    Returns:
        For each group's name: shape (units,), float64, on the CPU.

    Raises:
        CompressionError: A loss has no finite gradient, or the batches cannot be used.

    Source:
        Sum over the members: Fang et al., DepGraph, section 3.3, https://arxiv.org/abs/2301.12900.
        "bn_scale": Liu et al., Network Slimming, https://arxiv.org/abs/1708.06519.
        "taylor": Molchanov et al., section 3, https://arxiv.org/abs/1906.10771.
        "fisher": Theis et al., https://arxiv.org/abs/1801.05787; batches take the place of samples.
        "variance": Polyak and Wolf, inbound pruning, https://doi.org/10.1109/ACCESS.2015.2494536.
    """
    if by == "magnitude":
        energies = _magnitudes(model, groups)
    elif by == "bn_scale":
        energies = _norm_scales(model, groups)
    else:
        assert sample is not None
        energies = _WITH_DATA[by](copy_model(model), groups, sample)
    silent = [index for index, of_members in enumerate(energies) if not of_members]
    if by != "magnitude" and silent:
        others = _magnitudes(model, [groups[index] for index in silent])
        for index, of_members in zip(silent, others, strict=True):
            energies[index] = of_members
    return {
        group.name: combined(of_members, group.width)
        for group, of_members in zip(groups, energies, strict=True)
    }


# --- criteria ------------------------------------------------------------------------------------


def _magnitudes(model: nn.Module, groups: Sequence[ChannelGroup]) -> Energies:
    """Squared weights that produce or read a unit."""
    return _Holdings(model, groups).sums(lambda weight: _real(_wide(weight)).square())


def _norm_scales(model: nn.Module, groups: Sequence[ChannelGroup]) -> Energies:
    """Absolute scales of the norm layers."""

    def is_norm(member: Member) -> bool:
        is_scale = member.dim == "out" or member.dim.startswith("weight:")
        return is_scale and isinstance(model.get_submodule(member.layer), _NORMS)

    return _Holdings(model, groups, is_norm).sums(lambda scale: _wide(scale).abs())


def _taylor(network: nn.Module, groups: Sequence[ChannelGroup], sample: Sample) -> Energies:
    """Squared first-order change of a batch's loss when a unit is scaled to zero.

    Squared batch by batch: at a minimum the mean over all batches is zero for every unit.
    """
    holdings = _Holdings(network, groups, with_bias=True)

    def squared_sums() -> Energies:
        return [[s.square() for s in of] for of in holdings.sums(_weight_times_gradient)]

    return _mean(gradients(network, sample, squared_sums))


def _fisher(network: nn.Module, groups: Sequence[ChannelGroup], sample: Sample) -> Energies:
    """Squared weights times their diagonal Fisher information."""
    holdings = _Holdings(network, groups, with_bias=True)

    def sums_of_squares() -> Energies:
        return holdings.sums(lambda weight: _weight_times_gradient(weight).square())

    return _mean(gradients(network, sample, sums_of_squares))


def _variances(network: nn.Module, groups: Sequence[ChannelGroup], sample: Sample) -> Energies:
    """Variance of what the layers that read a unit read."""
    readers = {m.layer for g in groups for m in g.members if _reads(network, m)}
    found = input_variances(network, sorted(readers), sample)
    return [
        [
            found[member.layer][member.positions].sum(1)
            for member in group.members
            if member.layer in found and _reads(network, member)
        ]
        for group in groups
    ]


def _reads(network: nn.Module, member: Member) -> bool:
    """Tell whether positions of a member are channels of the input that its layer gets."""
    layer = network.get_submodule(member.layer)
    if isinstance(layer, _TRANSPOSED):
        return member.dim == "weight:0"
    if is_depthwise(layer):
        return member.dim in ("out", "weight:0")
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        is_whole = getattr(layer, "groups", 1) == 1
        return member.dim == "in" or (member.dim == "weight:1" and is_whole)
    return False


_WITH_DATA: dict[str, Callable[[nn.Module, Sequence[ChannelGroup], Sample], Energies]] = {
    "taylor": _taylor,
    "fisher": _fisher,
    "variance": _variances,
}


def _weight_times_gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter).real
    return (_wide(parameter) * _wide(parameter.grad).conj()).real


def _mean(batches: Sequence[Energies]) -> Energies:
    """Return the mean over batches."""
    means = [
        [torch.stack(vectors).mean(0) for vectors in zip(*of_group, strict=True)]
        for of_group in zip(*batches, strict=True)
    ]
    if not all(mean.isfinite().all() for of_members in means for mean in of_members):
        raise CompressionError(
            "The gradient of Task.loss has a NaN or infinity on a batch of Data.train. Check the "
            "loss, or choose an importance without gradients, such as 'magnitude'."
        )
    return means


# --- what units hold -----------------------------------------------------------------------------


Place = tuple[int, int, int]  # a parameter, an axis of it, and the parts that lie along the axis


class _Holdings:
    """What the units of groups hold of the parameters, to sum any value of a parameter over it."""

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[ChannelGroup],
        select: Callable[[Member], bool] = lambda member: True,
        *,
        with_bias: bool = False,
    ) -> None:
        self.parameters: dict[int, nn.Parameter] = {}
        self.axes: dict[int, set[tuple[int, int]]] = {}
        self.members: list[list[tuple[list[Place], Tensor]]] = []
        modules = dict(network.named_modules(remove_duplicate=False))
        for group in groups:
            self.members.append([])
            for member in filter(select, group.members):
                places = []
                layer = modules[member.layer]
                for name, axis, parts in _held_by(layer, member, with_bias):
                    parameter = layer._parameters.get(name)
                    if parameter is not None:  # else a buffer, an attribute, or a computed weight
                        self.parameters[id(parameter)] = parameter
                        self.axes.setdefault(id(parameter), set()).add((axis, parts))
                        places.append((id(parameter), axis, parts))
                if places:
                    self.members[-1].append((places, member.positions))

    @torch.no_grad()
    def sums(self, value: Callable[[Tensor], Tensor]) -> Energies:
        """Return the sum of ``value`` of a parameter over what each unit of a member holds."""
        found: dict[Place, Tensor] = {}
        for key, parameter in self.parameters.items():
            kept = {axis for axis, _ in self.axes[key]}
            kept |= {0 for _, parts in self.axes[key] if parts > 1}  # where the parts lie
            values = _summed(value(parameter), kept)
            for axis, parts in self.axes[key]:
                found[key, axis, parts] = _along(values, axis, parts).cpu().double()

        def held(places: list[Place], positions: Tensor) -> Tensor:
            own = [found[place] for place in places]
            of_each = own[0] if len(own) == 1 else torch.stack(own).sum(0)
            return of_each[positions].sum(1)

        return [[held(*member) for member in of_group] for of_group in self.members]


def _held_by(layer: nn.Module, member: Member, with_bias: bool) -> Iterator[tuple[str, int, int]]:
    """Yield the names, axes and parts of the parameters that a member's units lie along."""
    if member.dim == "out":
        yield "weight", 0, 1
        if with_bias:
            yield "bias", 0, 1
    elif member.dim == "in":
        yield "weight", 1, getattr(layer, "groups", 1)
    elif not member.dim.startswith("@"):
        name, _, axis = member.dim.partition(":")
        yield name, int(axis), 1


def _wide(values: Tensor) -> Tensor:
    """Return values in float32 at least, so that sums and squares fit."""
    return values if values.element_size() >= 4 else values.float()


def _real(values: Tensor) -> Tensor:
    """Return the sizes of complex numbers, others as they are."""
    return values.abs() if values.is_complex() else values


def _summed(values: Tensor, kept: set[int]) -> Tensor:
    """Sum over every axis but ``kept``; all axes stay."""
    others = [d for d, size in enumerate(values.shape) if d not in kept and size != 1]
    return values.sum(others, keepdim=True) if others else values


def _along(values: Tensor, axis: int, parts: int) -> Tensor:
    """Sum over every other axis; a grouped convolution has a part of its input for each group."""
    return _summed(values.unflatten(0, (parts, -1)), {0, axis + 1}).flatten()
