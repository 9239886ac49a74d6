"""The structure of a model and the proofs of its cuts, with weights and without.

A model without data is traced by shapes alone. Its cuts are proven on a replica, in which layers
that are alike are two, with random weights; and only as far as the replica has the groups that the
whole has.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pbcompress.core.blanks import Blanks
from pbcompress.core.collector import collection_paused
from pbcompress.core.deadline import Deadline
from pbcompress.core.inputs import Call
from pbcompress.core.model_config import built, config_of
from pbcompress.core.modules import copy_model, copy_sharing, has_no_data
from pbcompress.core.operation_mode import OperationMode
from pbcompress.core.shapes_only import ShapesOnly
from pbcompress.costs.closed_form import model_cost
from pbcompress.planning.width_search import Removed
from pbcompress.pruning.cuts import LayerCut
from pbcompress.pruning.proof import proof_failure
from pbcompress.pruning.proof_weights import streamed_parameters
from pbcompress.pruning.rebuilt_proof import computes_the_same
from pbcompress.pruning.replica import Replica, replica_of
from pbcompress.structure.channel_groups import ChannelGroup, Grouping, Member, find_groups

__all__ = ["EVERY_LAYER", "Prover"]

EVERY_LAYER = "every layer, with its weights"
OTHER_GROUP = "it reaches other layers in the whole network than in a part of it"


class Prover:
    """Reads the structure of one model and proves cuts of it.

    Args:
        model: Left as it is.
        call: One sample.
        attention: What attention loses.
        deadline: Bound on the time of it all.

    Attributes:
        has_data: Whether the model has weights.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        attention: Literal["heads", "dimensions"],
        deadline: Deadline,
    ) -> None:
        self.call, self.deadline, self.attention = call, deadline, attention
        self.has_data = not has_no_data(model)
        large = streamed_parameters(model) if self.has_data else set()
        self.network = copy_model(model, large) if self.has_data else _with_buffers(model)
        self.network.eval()
        self._shared = set(map(_storage, large))
        self.replica = Replica(self.network, {}) if self.has_data else replica_of(self.network)

    @property
    def proven(self) -> str:
        """What a proof is of."""
        if self.has_data:
            return EVERY_LAYER
        return f"with random weights {str(self.replica) or 'on every layer'}"

    @collection_paused()
    def groups(self) -> Grouping:
        """Return the channel groups of the model."""
        return self._groups_of(self.network)

    @collection_paused()
    def failure(
        self, grouping: Grouping, removed: Removed, steps: Sequence[LayerCut], params: int
    ) -> str | None:
        """Return how a model without some units is wrong, None if it is right.

        Args:
            grouping: The groups as they are narrowed.
            removed: Units, by the name of their group.
            steps: The cuts that take them out.
            params: How many parameters are left as predicted.
        """
        self.deadline.check("Planning, in the proof of its cuts,")
        network, found = self.network, grouping
        if not self.has_data:
            network, found = self.replica.network, self._replicated
            known = {group.name: group for group in found.groups}
            for group in grouping.groups:
                if group.name in removed and not self._is_same(group, known.get(group.name)):
                    return OTHER_GROUP
            steps = self.steps_of_part(steps)
            lost = {name: len(units) for name, units in removed.items()}
            widths = [group.width - lost.get(group.name, 0) for group in found.groups]
            params = model_cost(network, found, widths, {}).params
        gone = torch.zeros(found.trace.coupling.size, dtype=torch.bool)
        for name, units in removed.items():
            if name in found.units:
                gone[found.units[name][units]] = True
        return proof_failure(network, found.trace, gone, steps, self.call, params)

    def states(self, steps: Sequence[LayerCut], network: nn.Module) -> bool:
        """Tell whether a network of other sizes computes what the cut model does."""
        network.eval()
        if self.has_data:
            return computes_the_same(self.network, steps, network, self.call)
        part = replica_of(network).network
        steps = self.steps_of_part(steps)
        return computes_the_same(self.replica.network, steps, part, self.call)

    def steps_of_part(self, steps: Sequence[LayerCut]) -> list[LayerCut]:
        """Return the cuts of those layers that the replica has."""
        return [step for step in steps if self.replica.has(step.layer)]

    def _groups_of(self, network: nn.Module) -> Grouping:
        mode: Any = _Writes(self._shared) if self._shared else nullcontext()
        if not self.has_data:
            network, blanks = copy_sharing(network), Blanks()
            _give_blanks_(network, blanks)
            mode = ShapesOnly(network, blanks)
        with mode:
            return find_groups(network, self.call, attention=self.attention, deadline=self.deadline)

    @cached_property
    def _replicated(self) -> Grouping:
        return self._groups_of(self.replica.network)

    def _is_same(self, whole: ChannelGroup, part: ChannelGroup | None) -> bool:
        """Tell whether the part of a group that the replica has is the replica's group."""
        there = {(m.layer, m.dim): m for m in whole.members if self.replica.has(m.layer)}
        if part is None:
            return not there  # of layers that others stand for
        own = {(m.layer, m.dim): m for m in part.members}
        return own.keys() == there.keys() and all(_is_equal(own[k], there[k]) for k in own)


class _Writes(OperationMode):
    """Lets a forward pass that writes to weights write to a copy of them.

    Args:
        shared: Where the weights of the model lie.
    """

    def __init__(self, shared: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shared = shared
        self._written: dict[Any, list[int]] = {}  # by operation: places of its arguments

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in self._written:
            self._written[func] = [
                place
                for place, argument in enumerate(func._schema.arguments)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
        for given in (args[place] for place in self._written[func] if place < len(args)):
            if isinstance(given, Tensor) and _storage(given) in self.shared:
                given.data = given.clone()
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_equal(a: Member, b: Member) -> bool:
    return torch.equal(a.positions, b.positions)


def _with_buffers(model: nn.Module) -> nn.Module:
    """Return a network on the meta device whose buffers have numbers, where they can be known."""
    config = config_of(model)
    if config is not None:
        try:
            return built(model, config)
        except Exception:  # its class is not made from a config alone
            pass
    network = copy_sharing(model)
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = _made(buffer)
    return network


def _made(buffer: Tensor) -> Tensor:
    if not buffer.is_floating_point():
        return torch.zeros(buffer.shape, dtype=buffer.dtype)  # positions, counts, flags
    return torch.linspace(0.5, 1.5, buffer.numel(), dtype=buffer.dtype).view(buffer.shape)


def _give_blanks_(network: nn.Module, blanks: Blanks) -> None:
    """Put in place of every parameter one that has its shape, on the CPU."""
    new: Mapping[int, nn.Parameter] = {
        id(p): nn.Parameter(blanks.like(p.shape, p.device, p.dtype), p.requires_grad)
        for p in network.parameters()
    }
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = new[id(parameter)]
