"""One cut as data, carrying out a list of them, and the proof that a list is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.errors import StateMismatchError
from pbcompress.geometry import LayerGeometry, is_depthwise
from pbcompress.grouping import Dim, cut_, is_cuttable
from pbcompress.surgery import (
    Call,
    channel_axis,
    copy_model,
    map_tensors,
    seeded,
    tensors_of,
)

__all__ = ["LayerCut", "check_cuts", "cut_all_", "layer_width", "proof_failure"]

PROOF_RUNS = ((False, 1), (False, 4), (True, 2))  # whether in training mode, and the batch size
PROOF_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class LayerCut:
    """The channels that one dimension of one layer loses.

    Attributes:
        layer: Dotted name.
        dim: "out" or "in".
        removed: Indices along the dimension before the cut, ascending.
        width: Size of the dimension before the cut.
    """

    layer: str
    dim: Dim
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


def layer_width(layer: nn.Module, dim: Dim) -> int:
    """Return the channels of a layer along one dimension."""
    geometry = LayerGeometry.of(layer)
    return geometry.out_width if dim == "out" else geometry.in_width


def check_cuts(model: nn.Module, steps: Sequence[LayerCut]) -> None:
    """Raise unless every cut fits ``model``.

    Raises:
        StateMismatchError: A layer is missing, of another kind or width, or a cut names channels
            that cannot be.
    """
    modules = dict(model.named_modules())
    for step in steps:
        layer = modules.get(step.layer)
        if layer is None:
            found = "no such layer"
        elif not is_cuttable(layer):
            found = f"a {type(layer).__name__}"
        else:
            found = f"width {layer_width(layer, step.dim)}"
        if found != f"width {step.width}":
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


def cut_all_(model: nn.Module, steps: Sequence[LayerCut]) -> None:
    """Carry out cuts in place."""
    for step in steps:
        cut_(model.get_submodule(step.layer), step.dim, step.removed)


def proof_failure(model: nn.Module, steps: Sequence[LayerCut], call: Call) -> str | None:
    """Return how ``model`` without the channels of ``steps`` is wrong, or None if it is right.

    A network that does not read some channels computes the same as one that does not have them, so
    a sliced copy is held against a copy whose weights on the removed inputs are zero: in the
    network's outputs and in what every reader of removed channels puts out. Both have disturbed
    weights, so that a layer that starts at zero hides nothing. In training mode, where dropout
    draws differ, the sliced copy need only run and keep the shapes.

    Args:
        model: The network before the cuts; left as it is.
        steps: The cuts.
        call: One sample. It is run as it is, and repeated with random values for float inputs.
    """
    masked = _disturbed(model)
    sliced = copy_model(masked)
    try:
        cut_all_(sliced, steps)
    except Exception as err:
        return f"its layers cannot be sliced ({_first_line(err)})"
    for step in steps:
        if step.dim == "in":
            _zero_inputs(masked.get_submodule(step.layer), step.removed)
    reference = _Witness(masked, steps, is_cut=False)
    candidate = _Witness(sliced, steps, is_cut=True)
    for dtype, tolerance in PROOF_TOLERANCE.items():
        proofs = 0
        for training, copies in PROOF_RUNS:
            try:
                expected = reference.outputs(call, dtype, training, copies)
            except Exception:
                continue  # the original does not take this dtype or batch either
            proofs += 1
            try:
                found = candidate.outputs(call, dtype, training, copies)
            except Exception as err:
                where = " in training mode" if training else ""
                return f"the forward pass{where} fails without its channels ({_first_line(err)})"
            failure = _difference(expected, found, None if training else tolerance)
            if failure is not None:
                return failure
        if proofs:
            return None
    return None


class _Witness:
    """Runs a copy and collects its outputs and those of the layers that read removed channels."""

    def __init__(self, network: nn.Module, steps: Sequence[LayerCut], *, is_cut: bool) -> None:
        self.network = network
        self.seen: list[Tensor] = []
        gone = {s.layer: s.removed for s in steps if s.dim == "out" and not is_cut}
        for name in {s.layer for s in steps if s.dim == "in"}:
            hook = partial(self._record, frozenset(gone.get(name, ())))
            network.get_submodule(name).register_forward_hook(hook)

    def _record(self, gone: frozenset[int], layer: nn.Module, _: object, output: Tensor) -> None:
        axis = channel_axis(layer)
        kept = [i for i in range(output.shape[axis]) if i not in gone]
        self.seen.append(output.index_select(axis, torch.tensor(kept, device=output.device)))

    def outputs(self, call: Call, dtype: torch.dtype, training: bool, copies: int) -> list[Tensor]:
        """Return all tensors; training mode comes last, as it moves BatchNorm statistics."""

        def change(t: Tensor) -> Tensor:
            batch = torch.cat([t] * copies) if t.dim() else t
            if not t.is_floating_point():
                return batch
            return batch.to(dtype) if copies == 1 else torch.randn_like(batch, dtype=dtype)

        self.seen.clear()
        self.network.train(training).to(dtype)
        with torch.no_grad(), seeded("proof", copies):
            args, kwargs = map_tensors(call, change)
            output = self.network(*args, **kwargs)
        return tensors_of(output) + self.seen


def _disturbed(model: nn.Module) -> nn.Module:
    network = copy_model(model)
    with seeded("disturb"), torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.nan_to_num_(0, 0, 0)
                size = parameter.abs().mean().clamp(min=0.01)
                parameter.add_(torch.randn_like(parameter) * size)
    return network


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]


def _zero_inputs(layer: nn.Module, removed: Sequence[int]) -> None:
    weight: Tensor = layer.weight.data  # type: ignore[assignment]
    groups = int(getattr(layer, "groups", 1)) if not is_depthwise(layer) else 1
    columns, rows = weight.shape[1], weight.shape[0] // groups
    for index in removed:
        group, column = divmod(index, columns)
        weight[group * rows : (group + 1) * rows, column] = 0


def _difference(
    expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float | None
) -> str | None:
    if [t.shape for t in expected] != [t.shape for t in found]:
        return "the shape of the network's output depends on its channels"
    if tolerance is None:
        return None
    for a, b in zip(expected, found, strict=True):
        if not (a.is_floating_point() or a.is_complex()):
            is_same = torch.equal(a, b)
        else:  # where random inputs give no number, there is nothing to compare
            finite = torch.isfinite(a)
            scale = a[finite].abs().max().item() if finite.any() else 0.0
            atol = tolerance * max(scale, 1e-12)
            is_same = torch.allclose(a[finite], b[finite], rtol=0, atol=atol)
        if not is_same:
            return "the network mixes its channels in a way that slicing does not follow"
    return None
