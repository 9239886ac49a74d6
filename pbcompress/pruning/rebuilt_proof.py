"""Whether a network that is made from other sizes computes what a cut one does."""

from collections.abc import Sequence

import torch
from torch import nn

from pbcompress.core.blanks import Blanks
from pbcompress.core.inputs import Call, map_tensors, outputs_of
from pbcompress.core.modules import dtype_like, plain_kernels
from pbcompress.core.randomness import seeded
from pbcompress.pruning.cuts import LayerCut, kept_of
from pbcompress.pruning.proof_weights import ProofNetwork, cut_copy, disturbed_copy

__all__ = ["computes_the_same"]


def computes_the_same(
    model: nn.Module, steps: Sequence[LayerCut], network: nn.Module, call: Call
) -> bool:
    """Tell whether a network with the weights of a cut model has its outputs, bit by bit.

    Its parameters and the buffers that are saved are those of the cut model; the other buffers and
    every number in its code are its own.

    Args:
        model: The network before the cuts, in eval mode; left as it is.
        steps: The cuts.
        network: Made from other sizes, its parameters without data. It is used up.
        call: One sample.
    """
    blanks = Blanks()
    original, rows = disturbed_copy(model, blanks)
    cut = cut_copy(original, rows, kept_of(original.network, steps), steps, blanks)
    other = _with_weights(network, cut, blanks)
    try:
        found = [_outputs(one, call) for one in (cut, other)]
    except Exception:  # it does not run, so it does not compute the same
        return False
    return len(found[0]) == len(found[1]) and all(map(_are_equal, *found))


def _with_weights(network: nn.Module, cut: ProofNetwork, blanks: Blanks) -> ProofNetwork:
    other = ProofNetwork(network, blanks)
    given = dict(cut.network.named_parameters(remove_duplicate=False))
    saved = cut.network.state_dict(keep_vars=True)
    for name, module in network.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for own in module._parameters:
            if f"{prefix}{own}" in given:
                module._parameters[own] = given[f"{prefix}{own}"]
        for own in module._buffers:
            if f"{prefix}{own}" in saved:
                module._buffers[own] = saved[f"{prefix}{own}"]
    other.make = cut.make
    return other


def _outputs(proof: ProofNetwork, call: Call) -> list[torch.Tensor]:
    real = torch.float32
    proof.to_(lambda tensor: dtype_like(tensor, real))
    sample = map_tensors(call, lambda tensor: tensor.to(dtype_like(tensor, real)))
    with torch.no_grad(), seeded("rebuilt"), plain_kernels(proof.network), proof.running():
        return outputs_of(proof.network(*sample.args, **sample.kwargs))


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
