"""The objective of a dendrite phase: correlate a node's activation with its neuron's error."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["COUNT", "GAIN", "SLOPE", "CorrelationProbe", "R", "correlate", "score_leaf"]

R, GAIN, SLOPE, COUNT = range(4)  # the rows of a score leaf


def correlate(
    activation: Tensor,
    error: Tensor,
    *,
    pairwise: bool = True,
    direction: Tensor | None = None,
    axis: int = -1,
) -> tuple[Tensor, Tensor]:
    """Return Pearson's r of every node, and the gradient that descends on -|r|.

    With the means and standard deviations s over the n samples (batch and positions),

        d(-|r|)/da = -sign(r) [ (e - mean e) / (s_a s_e) - r (a - mean a) / s_a^2 ] / n

    Args:
        activation: Shape (n, nodes), or any shape with the nodes on ``axis``.
        error: dLoss/dOutput, shape (n, channels), or as ``activation`` with the channels.
        pairwise: Node c belongs to channel c (nodes == channels). Otherwise every node serves all
            channels, and the objective is the sum of |r| over them.
        direction: What takes the sign's place is ``sign(direction + r)``: the sum of r so far. Same
            shape as r; None is zero.
        axis: Axis of nodes and channels, counted from the end.

    Returns:
        r of shape (nodes,), or (nodes, channels) if not pairwise, between -1 and 1, and the
        gradient, of the shape of ``activation``. A constant activation or error has r = 0 and no
        gradient.

    Source:
        Fahlman and Lebiere, The Cascade-Correlation Learning Architecture, 1990, equation 1, per
        neuron as in Brenner and Itti, Perforated Backpropagation, 2025, section 3.

    Example:
        >>> a = torch.tensor([[0.0], [1.0], [2.0]])
        >>> correlate(a, -3 * a)[0].round(decimals=3)
        tensor([-1.])
    """
    e, _ = _standardize(error, axis)
    r, gradient, _ = _correlate(activation, e, axis, pairwise, direction)
    return r, gradient


def _correlate(
    activation: Tensor, e: Tensor, axis: int, pairwise: bool, direction: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return r, the gradient and the activation's standard deviation; ``e`` is standardised."""
    a, a_std = _standardize(activation, axis)
    n = max(a.numel() // max(a.shape[axis], 1), 1)
    by_channel = [1] * (-1 - axis)
    r = (_own_products(a, e, axis) if pairwise else _products(a, e, axis)) / n
    r = r.clamp(-1, 1)
    sign = torch.sign(r if direction is None else direction + r)
    scale = -torch.where(a_std > 0, 1 / (n * torch.where(a_std > 0, a_std, 1)), 0)
    if pairwise:
        ascent = e.addcmul(a, r.reshape(-1, *by_channel), value=-1)
        ascent.mul_((sign * scale).reshape(-1, *by_channel))
    else:
        wanted = e.movedim(axis, -1) @ (sign * scale[:, None]).T
        ascent = wanted.movedim(-1, axis)
        ascent = ascent - a * ((sign * r).sum(1) * scale).reshape(-1, *by_channel)
    return r, ascent, a_std


def _own_products(a: Tensor, e: Tensor, axis: int) -> Tensor:
    """Return the inner product of every node with its own channel."""
    others = [d for d in range(-a.dim(), 0) if d != axis]
    return (a * e).sum(others) if others else a * e


def _products(a: Tensor, e: Tensor, axis: int) -> Tensor:
    """Return the inner product of every node with every channel."""
    samples = [t.movedim(axis, -1).reshape(-1, t.shape[axis]) for t in (a, e)]
    return samples[0].T @ samples[1]


def _standardize(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return (values - mean) / std by channel and std; a constant gives zeros and zero."""
    if values.numel() == 0:
        return values, values.new_zeros(values.shape[axis])
    others = [d for d in range(-values.dim(), 0) if d != axis]
    if not others:  # a single sample
        return torch.zeros_like(values), torch.zeros_like(values)
    std, mean = torch.std_mean(values, others, correction=0, keepdim=True)
    info = torch.finfo(values.dtype)
    alive = std > (mean.abs() * 4 * info.eps).clamp(min=info.tiny)
    inverse = torch.where(alive, 1 / torch.where(alive, std, 1), 0)
    centred = values - mean
    offset = centred.mean(others, keepdim=True)  # what rounding left in the first mean
    standard = torch.addcmul(-offset * inverse, centred, inverse)
    return standard, torch.where(alive, std, 0).flatten()


def score_leaf(like: Tensor, *shape: int) -> Tensor:
    """Return the tensor whose gradient sums the scores of candidates over a phase.

    Its rows are ``R`` (r), ``GAIN`` (r times the standard deviation of the error: how fast the loss
    falls for each standard deviation that the node adds), ``SLOPE`` (the gain U of the
    least-squares fit of the node to the negative error of a sample) and ``COUNT`` (of batches).

    Args:
        like: Gives device and dtype; at least float32, since many batches are summed.
        shape: (candidates, nodes), or (candidates, nodes, channels) for shared nodes.
    """
    working = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros(4, *shape, dtype=working, device=like.device).requires_grad_()


class CorrelationProbe(torch.autograd.Function):
    """Identity on a layer's output that trains candidates on the error passing back through it.

    Forward takes the output y, a *score leaf* (see `score_leaf`), the channel axis, whether each
    node has a channel of its own, and the activations of the candidates in the pool. Backward
    returns the error unchanged for y, the gradient of `correlate` for every activation, and the
    batch's scores for the leaf. So sums over the phase are in ``score.grad`` by autograd's own
    means: one backward pass, no hook, no stored graph.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, score: Tensor, axis: int, pairwise: bool, *activations: Tensor
    ) -> Tensor:
        """Return ``output``; ``axis`` is the channel axis of all tensors."""
        so_far = torch.zeros_like(score) if score.grad is None else score.grad.clone()
        ctx.save_for_backward(so_far, *activations)
        ctx.axis, ctx.pairwise = axis, pairwise
        return output.clone()  # a view could not be changed in place by what follows

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of output, score leaf and activations."""
        (error,) = errors
        so_far, *activations = ctx.saved_tensors
        working = torch.promote_types(activations[0].dtype, torch.float32)
        e, e_std = _standardize(error.to(working), ctx.axis)
        samples = len(error) if error.dim() > -ctx.axis else 1  # the loss is their mean
        gradients, scores = [], []
        for directions, activation in zip(so_far[R].to(working), activations, strict=True):
            r, gradient, a_std = _correlate(
                activation.to(working), e, ctx.axis, ctx.pairwise, directions
            )
            std = a_std if ctx.pairwise else a_std[:, None]
            gain = r * e_std
            slope = torch.where(std > 0, -samples * gain / torch.where(std > 0, std, 1), 0)
            scores.append(torch.stack([r, gain, slope, torch.ones_like(r)]))
            gradients.append(gradient.to(activation.dtype))
        return error, torch.stack(scores, 1).to(so_far.dtype), None, None, *gradients
