"""The proof that a list of cuts is right: the sliced network computes what the original does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from pbcompress.core.blanks import Blanks
from pbcompress.core.inputs import Call, map_tensors, outputs_of, tensors_of
from pbcompress.core.modules import (
    channel_axis,
    dtype_like,
    parameter_count,
    plain_kernels,
)
from pbcompress.core.randomness import seeded
from pbcompress.core.scripted import scripts_as_python
from pbcompress.errors import first_line
from pbcompress.pruning.cuts import LayerCut, kept_of
from pbcompress.pruning.proof_weights import ProofNetwork, Rows, cut_copy, disturbed_copy, masked
from pbcompress.pruning.remaining import OtherPathError, Remaining, gone_along
from pbcompress.pruning.weight_norms import computed_weights, is_computed, normed_weights
from pbcompress.structure.dimensions import what_stays
from pbcompress.structure.layer_geometry import LayerGeometry
from pbcompress.structure.tracer import Trace

__all__ = ["proof_failure"]

BATCHES = (2, 1)  # the first that the original takes
WEIGHTS = 1e-4  # of a weight's largest number, in the precision that it has
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}
LARGE = 128  # pixels a side from which an image is large
SMALL = (32, 64)  # pixels a side of the crops that are tried first


def proof_failure(
    model: nn.Module,
    traced: Trace,
    gone: Tensor,
    steps: Sequence[LayerCut],
    call: Call,
    params: int,
) -> str | None:
    """Return how ``model`` without the channels of ``steps`` is wrong, or None if it is right.

    A sliced copy is held against the original in which everything that belongs to a removed
    channel is zero, and in which an operation whose result depends on the number of channels (a
    norm, a product of two activations) sees the others alone. They must agree in the outputs and
    in what every reader of removed channels puts out, and weights that are computed from others
    must be what they were. Both have disturbed weights, so that a layer that starts at zero hides
    nothing. In training mode, where dropout draws differ, the sliced copy need only run and keep
    the shapes.

    Where the network takes small images and runs the very operations of the trace on them, small
    ones do.

    Large weights are made for the operation that reads them and freed after it, so that the proof
    takes little memory beside the model, in whatever precision that has.

    Args:
        model: The network before the cuts, in eval mode; left as it is.
        traced: The structure that the cuts were read from.
        gone: For every label of ``traced``, whether it is removed.
        steps: The cuts.
        call: One sample. It is run with a second one of random values for float inputs.
        params: How many parameters the cut network has as predicted.
    """
    blanks = Blanks()
    original, rows = disturbed_copy(model, blanks)
    network = original.network
    computes = any(map(is_computed, network.modules()))
    kept = kept_of(network, steps) if rows or computes else {}
    weights = computed_weights(network, kept) if computes else {}
    try:
        cut = cut_copy(original, rows, kept, steps, blanks)
    except Exception as err:
        return f"its layers cannot be sliced ({first_line(err)})"
    found = parameter_count(cut.network)
    if found != params:
        return f"{params:,} parameters were predicted and {found:,} are left"
    if (changed := _changed(weights, computed_weights(cut.network))) is not None:
        return f"what is left of the weight {changed!r} would change, as it is computed from all"
    normed = [(weight, weight.norms()) for weight in normed_weights(network)]
    _mask_(original, rows, cut.network, traced, gone)
    for weight, norms in normed:
        weight.keep_weight_(norms)
    reference = _Witness(original, steps, Remaining(traced, gone))
    candidate = _Witness(cut, steps, None)
    failure: str | None = None
    for dtype, tolerance in TOLERANCE.items():
        try:
            failure = _compared(reference, candidate, call, dtype, tolerance)
        except LookupError:
            continue  # the original does not take this dtype
        if failure is None:
            break
    return failure or _training_failure(reference, candidate, call, dtype)


def _changed(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return the name of a weight that is not what it was."""
    for name, weight in expected.items():
        own = found.get(name)
        if own is None or _difference([weight.nan_to_num()], [own.nan_to_num()], WEIGHTS):
            return name
    return None


def _small_samples(call: Call) -> Iterator[Call]:
    """Yield cropped samples, if any image is large."""

    def is_large(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dim() == 4 and min(tensor.shape[2:]) >= LARGE

    def corner(size: int, tensor: Tensor) -> Tensor:
        return tensor[..., :size, :size] if is_large(tensor) else tensor

    if any(map(is_large, tensors_of(call))):
        for size in SMALL:
            yield map_tensors(call, partial(corner, size))


def _expected(reference: "_Witness", call: Call, dtype: torch.dtype) -> tuple[Call, int, Any]:
    """Return the cheapest sample and batch that the original takes, with what it computes.

    Raises:
        OtherPathError: It takes another path than when it was traced.
        LookupError: It takes none.
    """
    for small in _small_samples(call):
        try:
            expected = reference.outputs(small, dtype, False, 2)
        except Exception:
            continue  # it needs the size that was given
        if reference.took_the_traced_path:
            return small, 2, expected
    other_path: OtherPathError | None = None
    for copies in BATCHES:
        try:
            return call, copies, reference.outputs(call, dtype, False, copies)
        except OtherPathError as err:
            other_path = err  # of another batch size, perhaps
        except Exception:
            continue
    raise other_path or LookupError


def _compared(
    reference: "_Witness", candidate: "_Witness", call: Call, dtype: torch.dtype, tolerance: float
) -> str | None:
    """Return how the two differ, None if they do not.

    Raises:
        LookupError: The original does not take this dtype.
    """
    try:
        sample, copies, expected = _expected(reference, call, dtype)
    except OtherPathError as err:
        return str(err)
    try:
        found = candidate.outputs(sample, dtype, False, copies)
    except Exception as err:
        return f"the forward pass fails without its channels ({first_line(err)})"
    if reference.around != candidate.around:  # means over channels of other layers
        same = [a == b for a, b in zip(reference.around, candidate.around, strict=True)]
        same = [True] * (len(expected) - len(same)) + same
        expected = [t for t, is_same in zip(expected, same, strict=True) if is_same]
        found = [t for t, is_same in zip(found, same, strict=True) if is_same]
    return _difference(expected, found, tolerance)


def _training_failure(
    reference: "_Witness", candidate: "_Witness", call: Call, dtype: torch.dtype
) -> str | None:
    for sample in (*_small_samples(call), call):
        found, what = None, ""
        try:
            found = candidate.shapes(sample, dtype, training=True)
        except Exception as err:
            what = f"fails without its channels ({first_line(err)})"
        if found is not None and found == candidate.shapes_in_eval:
            return None
        try:
            expected = reference.shapes(sample, dtype, training=True)
        except Exception:
            continue  # the original does not train on these inputs
        if found is not None and found != expected:
            what = "has outputs whose shape depends on its channels"
        return f"the forward pass in training mode {what}" if what else None
    return None


def _mask_(
    original: ProofNetwork,
    rows: Mapping[nn.Parameter, Rows],
    cut: nn.Module,
    traced: Trace,
    gone: Tensor,
) -> None:
    """Set to zero whatever belongs to a removed channel."""
    network = original.network
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    in_use = {p.data_ptr() for p in cut.parameters()}
    dimensions = [
        (name, axis) for name, axes in traced.tensors.items() for axis in range(len(axes))
    ]
    lost: dict[Tensor, dict[int, Tensor]] = {own: {} for own in rows}
    for place, index in _places(traced, [traced.tensors[n][axis] for n, axis in dimensions], gone):
        name, axis = dimensions[place]
        if tensors[name] in lost:
            lost[tensors[name]][axis] = index
            continue
        tensor = tensors[name].data
        if tensor.data_ptr() in in_use:  # the cuts have missed it
            tensor = tensors[name].data = tensor.clone()
        tensor.index_fill_(axis, index.to(tensor.device), 0)
    for stands_in, source in rows.items():
        original.make[id(stands_in)] = partial(masked, source, stands_in, lost[stands_in])


def _places(
    traced: Trace, dimensions: Sequence[Tensor], gone: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Yield every dimension that loses something, by its number, with the indices that it loses."""
    if not dimensions:
        return
    lost = gone_along(traced, torch.cat(list(dimensions)), gone).nonzero().squeeze(1)
    sizes = torch.tensor([labels.numel() for labels in dimensions])
    ends = sizes.cumsum(0)
    of_each = torch.searchsorted(ends, lost, right=True)
    owners, counts = of_each.unique_consecutive(return_counts=True)
    indices = (lost - (ends - sizes)[of_each]).split(counts.tolist())
    yield from zip(owners.tolist(), indices, strict=True)


class _Witness:
    """Runs a copy and collects its outputs, and the channel means of readers of removed ones."""

    def __init__(
        self, proof: ProofNetwork, steps: Sequence[LayerCut], remaining: Remaining | None
    ) -> None:
        self.proof, self.network, self.remaining = proof, proof.network, remaining
        self.training = False
        self.shapes_in_eval: list[torch.Size] = []
        self.seen: list[Tensor] = []
        self.around: list[list[int]] = []  # the sizes that each of them is a mean over
        is_cut = remaining is None
        gone = {s.layer: s.removed for s in steps if s.dim == "out" and not is_cut}
        for name in {s.layer: None for s in steps if s.dim == "in"}:
            layer = self.network.get_submodule(name)
            layer.register_forward_hook(partial(self._record, _others(layer, gone.get(name))))

    def _record(
        self, remaining: Tensor | None, layer: nn.Module, _: object, output: Tensor
    ) -> None:
        if self.training:  # whose outputs are not compared
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(output):
            return  # it has no values outside of the transform that the code runs it in
        axis = channel_axis(layer) % output.dim()
        others = [dim for dim in range(output.dim()) if dim != axis]
        with _disable_current_modes():  # which would take it for a step of the network
            means = output.mean(others) if others else output.clone()
            if remaining is not None:
                means = means.index_select(0, remaining.to(means.device))
            self.seen.append(means)
        self.around.append([output.shape[dim] for dim in others])

    def _has(self, dtype: torch.dtype) -> bool:
        modules = self.network.modules()
        tensors = (t for m in modules for t in (*m._parameters.values(), *m._buffers.values()))
        return all(t is None or t.dtype == dtype_like(t, dtype) for t in tensors)

    @property
    def took_the_traced_path(self) -> bool:
        """Tell whether the last run in eval mode was of the same operations as the trace."""
        seen = self.remaining
        return seen is not None and seen.operations == seen.traced_path

    def outputs(self, call: Call, dtype: torch.dtype, training: bool, copies: int) -> list[Tensor]:
        """Return all tensors; training mode comes last, as it moves BatchNorm statistics."""

        def change(t: Tensor) -> Tensor:
            more = [t] * (copies - 1) if t.dim() else []
            if t.is_floating_point() or t.is_complex():
                own = dtype_like(t, dtype)
                t, more = t.to(own), [torch.randn_like(other, dtype=own) for other in more]
            return torch.cat([t, *more]) if more else t

        self.seen.clear()
        self.around.clear()
        if training != self.training:
            self.network.train(training)
            self.training = training
        if not self._has(dtype):
            self.proof.to_(partial(dtype_like, real=dtype))
        mode: Any = nullcontext()
        if self.remaining is not None and not training:
            mode = self.remaining
            mode.start()
        with torch.no_grad(), seeded("proof", copies), plain_kernels(self.network):
            args, kwargs = map_tensors(call, change)
            scripts = nullcontext() if self.remaining is None else scripts_as_python()
            with self.proof.running(), mode, scripts:
                output = self.network(*args, **kwargs)
        if isinstance(mode, Remaining):
            mode.finish()
        tensors = outputs_of(output)
        if not training:
            self.shapes_in_eval = [t.shape for t in tensors]
        return tensors + self.seen

    def shapes(self, call: Call, dtype: torch.dtype, *, training: bool) -> list[torch.Size]:
        """Return the shapes of the network's outputs on two samples."""
        return [t.shape for t in self.outputs(call, dtype, training, 2)]


def _others(layer: nn.Module, gone: Sequence[int] | None) -> Tensor | None:
    """Return the outputs of a layer that remain, None if all do."""
    if gone is None:
        return None
    return what_stays(LayerGeometry.of(layer).out_width, gone)


def _difference(
    expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float
) -> str | None:
    if [t.shape for t in expected] != [t.shape for t in found]:
        return "the shape of the network's output depends on its channels"
    for a, b in zip(expected, found, strict=True):
        if not (a.is_floating_point() or a.is_complex()):
            is_same = torch.equal(a, b)
        else:  # where random inputs give no number, there is nothing to compare
            finite = torch.isfinite(a)
            if not finite.all():
                if torch.isfinite(b[~finite]).any():
                    return "zeros in place of its channels give nothing that can be compared"
                a, b = a[finite], b[finite]
            scale = a.abs().max().item() if a.numel() else 0.0
            is_same = torch.allclose(a, b, rtol=0, atol=tolerance * max(scale, 1e-12))
        if not is_same:
            return (
                "the network mixes its channels, or computes with their number, in a way that "
                "slicing does not follow"
            )
    return None
