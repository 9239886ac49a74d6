"""One cut as data, and carrying out a list of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.errors import StateMismatchError
from pbcompress.pruning.slicing import cut_, keep_in_step, owners_of
from pbcompress.pruning.weight_norms import is_computed, normed_weights, refresh_
from pbcompress.structure.dimensions import Kept, dimension_size, parameter_axes, what_stays

__all__ = ["LayerCut", "check_cuts", "cut_all_", "kept_of"]


@dataclass(frozen=True)
class LayerCut:
    """What one dimension of one layer loses.

    Attributes:
        layer: Dotted name.
        dim: "out" or "in" of a plain layer, "NAME:AXIS" of a parameter or buffer, or "@NAME" of an
            integer attribute that counts what is cut (heads).
        removed: Indices along the dimension before the cut, ascending.
        width: Size of the dimension before the cut.
    """

    layer: str
    dim: str
    removed: tuple[int, ...]
    width: int

    def to_list(self) -> list[Any]:
        """Return the cut as JSON data."""
        return [self.layer, self.dim, self.width, list(self.removed)]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> "LayerCut":
        """Rebuild a cut from `to_list`."""
        layer, dim, width, removed = data
        return cls(layer, dim, tuple(removed), width)

    @property
    def width_after(self) -> int:
        """Size of the dimension after the cut."""
        return self.width - len(self.removed)


def check_cuts(model: nn.Module, steps: Sequence[LayerCut]) -> None:
    """Raise unless every cut fits ``model``.

    Raises:
        StateMismatchError: A layer is missing, of another kind or width, or a cut names channels
            that cannot be.
    """
    modules = dict(model.named_modules())
    for step in steps:
        size = dimension_size(model, step.layer, step.dim)
        if size != step.width:
            layer = modules.get(step.layer)
            found = f"a {type(layer).__name__}" if layer is not None else "no such layer"
            found = f"width {size}" if size is not None else found
            raise StateMismatchError(
                f"The plan cuts {step.layer!r} ({step.dim}, width {step.width}); this model has "
                f"{found} there. Apply a plan to the architecture that it was made for."
            )
        indices = set(step.removed)
        if not indices < set(range(step.width)) or len(indices) != len(step.removed):
            raise StateMismatchError(
                f"The plan cuts {len(step.removed)} of the {step.width} channels of {step.layer!r} "
                f"({step.dim}), which are repeated, out of range or all. Make the plan again."
            )


def kept_of(model: nn.Module, steps: Sequence[LayerCut]) -> dict[nn.Parameter, Kept]:
    """Return every parameter that cuts change, with the indices that stay along its axes.

    Args:
        model: The network before the cuts.
        steps: Cuts that fit it.
    """
    kept: dict[nn.Parameter, dict[int, Tensor]] = defaultdict(dict)
    for step in steps:
        for parameter, axis, size in parameter_axes(model, step.layer, step.dim):
            removed = torch.tensor(step.removed, dtype=torch.long) % size
            kept[parameter][axis] = what_stays(size, removed)
    return dict(kept)


def cut_all_(model: nn.Module, steps: Sequence[LayerCut]) -> None:
    """Carry out cuts in place.

    Attributes come first: a layer of torch sets those that it knows from its weights, again.
    Weights that are kept stay what they were, also those that are computed.
    """
    weights = normed_weights(model)
    kept = kept_of(model, steps) if weights else {}
    normed = [(n, n.norms(kept[n.direction])) for n in weights if n.direction in kept]
    owners = owners_of(model)
    for step in sorted(steps, key=lambda step: not step.dim.startswith("@")):
        cut_(model, step.layer, step.dim, step.removed, owners)
    for weight, norms in normed:
        weight.keep_weight_(norms)
    layers = [f".{step.layer}.".partition(".parametrizations.")[0].strip(".") for step in steps]
    for name in dict.fromkeys(layers):
        module = model.get_submodule(name)
        if is_computed(module):
            refresh_(module)
            keep_in_step(module)
    if any(step.dim == "@num_heads" for step in steps):
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder):
                _keep_tensors_plain_(module)


def _keep_tensors_plain_(encoder: nn.TransformerEncoder) -> None:
    """Let an encoder do without nested tensors where a layer has an odd number of heads.

    Torch decides so when it makes one; layers with odd heads do not take them.
    """
    heads = [getattr(getattr(layer, "self_attn", None), "num_heads", 0) for layer in encoder.layers]
    if any(count % 2 for count in heads):
        encoder.use_nested_tensor = False
