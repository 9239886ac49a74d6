"""The objective of a dendrite phase: correlate a node's activation with its neuron's error."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["CorrelationProbe", "correlate"]


def correlate(
    activation: Tensor, error: Tensor, *, pairwise: bool = True, direction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return Pearson's r of every node, and the gradient that descends on -|r|.

    With the means and standard deviations s over the n samples (batch and positions),

        d(-|r|)/da = -sign(r) [ (e - mean e) / (s_a s_e) - r (a - mean a) / s_a^2 ] / n

    Args:
        activation: Shape (n, nodes).
        error: dLoss/dOutput, shape (n, channels).
        pairwise: Node c belongs to channel c (nodes == channels). Otherwise every node serves all
            channels, and the objective is the sum of |r| over them.
        direction: What takes the sign's place is ``sign(direction + r)``: the sum of r so far. Same
            shape as r; None is zero.

    Returns:
        r of shape (nodes,), or (nodes, channels) if not pairwise, between -1 and 1, and the
        gradient of shape (n, nodes). A constant activation or error has r = 0 and no gradient.

    Source:
        Fahlman and Lebiere, The Cascade-Correlation Learning Architecture, 1990, equation 1, per
        neuron as in Brenner and Itti, Perforated Backpropagation, 2025, section 3.

    Example:
        >>> a = torch.tensor([[0.0], [1.0], [2.0]])
        >>> correlate(a, -3 * a)[0].round(decimals=3)
        tensor([-1.])
    """
    n = max(activation.shape[0], 1)
    a, a_std = _standardize(activation)
    e, _ = _standardize(error)
    r = (a * e).sum(0) / n if pairwise else a.T @ e / n
    r = r.clamp(-1, 1)
    sign = torch.sign(r if direction is None else direction + r)
    ascent = sign * (e - r * a) if pairwise else e @ sign.T - a * (sign * r).sum(1)
    alive = a_std > 0
    scale = torch.where(alive, 1 / (n * torch.where(alive, a_std, 1)), 0)
    return r, -ascent * scale


def _standardize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values - mean) / std by column and std; a constant column gives zeros and zero."""
    if len(values) == 0:
        return values, values.sum(0)
    info = torch.finfo(values.dtype)
    shifted = values - values[:1]  # a constant becomes exactly zero
    peak = shifted.abs().amax(0)
    alive = peak > (values.abs().amax(0) * 4 * info.eps).clamp(min=info.tiny)
    unit = shifted / torch.where(alive, peak, 1)  # its squares neither under- nor overflow
    centred = unit - unit.mean(0)
    std = centred.square().mean(0).sqrt()
    standard = torch.where(alive, centred / torch.where(alive, std, 1), 0)
    return standard, torch.where(alive, std * peak, 0)


class CorrelationProbe(torch.autograd.Function):
    """Identity on a layer's output that trains a candidate on the error passing back through it.

    Forward takes the output y, the candidate's activation, and a *score leaf*: a tensor that
    requires grad, of the shape of r with one row more. Backward returns the error unchanged for y,
    the gradient of `correlate` for the activation, and r for the score leaf, with a last row of
    ones that counts the batches. So the sum of r is in ``score.grad`` by autograd's own means: one
    backward pass, no hook, no stored graph.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, activation: Tensor, score: Tensor, axis: int, pairwise: bool
    ) -> Tensor:
        """Return ``output``; ``axis`` is the channel axis of both tensors."""
        so_far = torch.zeros_like(score) if score.grad is None else score.grad.clone()
        ctx.save_for_backward(activation, so_far)
        ctx.axis, ctx.pairwise = axis, pairwise
        return output.clone()  # a view could not be changed in place by what follows

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of output, activation and score."""
        (error,) = errors
        activation, so_far = ctx.saved_tensors
        working = torch.promote_types(activation.dtype, torch.float32)
        a = activation.movedim(ctx.axis, -1)
        r, gradient = correlate(
            a.reshape(-1, a.shape[-1]).to(working),
            error.movedim(ctx.axis, -1).reshape(-1, error.shape[ctx.axis]).to(working),
            pairwise=ctx.pairwise,
            direction=so_far[:-1].to(working),
        )
        gradient = gradient.reshape(a.shape).movedim(-1, ctx.axis).to(activation.dtype)
        counted = torch.cat([r, torch.ones_like(r[:1])]).to(so_far.dtype)
        return error, gradient, counted, None, None
