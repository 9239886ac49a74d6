"""The objective of a dendrite phase: correlate a node's activation with its neuron's error.

What a dendrite step costs beyond its products is the number of small operations. So means are taken
once, sums are plain sums of products, and values are in units of their mean size, which holds
squares at any scale. Errors at the positions of a window are copied first, because sums over a
tensor with gaps take two to three times as long.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pbcompress.dendrites.positions import Window

__all__ = [
    "COUNT",
    "GAIN",
    "SLOPE",
    "Centred",
    "CorrelationProbe",
    "R",
    "centred",
    "correlate",
    "listen",
    "mean_scores",
    "node_scores",
    "process_count",
    "score_leaf",
]

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
        gradient, and so has one whose deviations are less than 16 times the rounding of its mean.

    Source:
        Fahlman and Lebiere, The Cascade-Correlation Learning Architecture, 1990, equation 1, per
        neuron as in Brenner and Itti, Perforated Backpropagation, 2025, section 3.

    Example:
        >>> a = torch.tensor([[0.0], [1.0], [2.0]])
        >>> correlate(a, -3 * a)[0].round(decimals=3)
        tensor([-1.])
    """
    r, gradient, _ = _correlate(activation, centred(error, axis), axis, pairwise, direction)
    return r, gradient


class Centred(NamedTuple):
    """Values minus their mean, in units of the mean size of what is left, by channel.

    The samples of all processes count. Numbers of channels broadcast with the values.

    Attributes:
        values: Of the shape that they had.
        factor: What they were multiplied by.
        variance: Of each channel, thus multiplied.
        inverse: One over its root; 0 for a constant, up to rounding, and for what is not finite.
        n: Number of samples.
    """

    values: Tensor
    factor: Tensor
    variance: Tensor
    inverse: Tensor
    n: Tensor | int


def _correlate(
    activation: Tensor, error: Centred, axis: int, pairwise: bool, direction: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return r, the gradient, and one over the standard deviation of the activation."""
    own = centred(activation, axis)
    a, e, of_error = own.values, error.values, error.inverse
    steep = own.inverse * own.factor
    scale = steep / own.n
    if pairwise:
        r = (_mean(a * e, axis, own.n) * (own.inverse * of_error)).clamp_(-1, 1)
        pull = torch.sign(r if direction is None else direction.reshape(r.shape) + r) * scale
        gradient = a.mul_(pull * r * own.inverse).addcmul_(e, pull * of_error, value=-1)
        return r.flatten(), gradient, steep.flatten()
    by_node, by_channel = own.inverse.reshape(-1, 1), of_error.flatten()
    r = (_total(_products(a, e, axis)) * (by_node / own.n * by_channel)).clamp_(-1, 1)
    sign = torch.sign(r if direction is None else direction + r)
    gradient = a.mul_((sign * r).sum(1).reshape(scale.shape) * scale * own.inverse)
    wanted = (sign * scale.reshape(-1, 1) * by_channel).T
    gradient.sub_((e.movedim(axis, -1) @ wanted).movedim(-1, axis))
    return r, gradient, steep.reshape(-1, 1)


def process_count() -> int:
    """Return how many processes train together; 1 without torch.distributed."""
    is_shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_shared else 1


def _total(values: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if process_count() > 1:
        torch.distributed.all_reduce(values)
    return values


def _products(a: Tensor, e: Tensor, axis: int) -> Tensor:
    """Return the inner product of every node with every channel."""
    samples = [t.movedim(axis, -1).reshape(-1, t.shape[axis]) for t in (a, e)]
    return samples[0].T @ samples[1]


def centred(values: Tensor, axis: int) -> Centred:
    """Return what a channel's values are beside their mean, safe at any scale.

    Few and plain operations: ``torch.std_mean`` and the largest value of each channel take many
    times as long on a CPU.
    """
    n: Tensor | int = values.numel() // max(values.shape[axis], 1)
    if process_count() > 1:
        n = _total(torch.tensor(float(n), dtype=values.dtype, device=values.device)).clamp(min=1)
    elif n < 2:  # no two samples
        zeros = torch.zeros_like(values)
        nothing = _sum(zeros, axis)
        return Centred(zeros, nothing + 1, nothing, nothing, 1)
    info = torch.finfo(values.dtype)
    mean = _mean(values, axis, n)
    own = values - mean
    size = _sum(own.abs().div_(n), axis)  # a sum of all might be too large
    factor = size.clamp_(min=info.tiny).reciprocal_()
    own.mul_(factor)
    variance = _mean(own * own, axis, n)
    # As much as rounding of the mean leaves. In its own unit a channel has one, or is too small.
    least = (mean * factor).mul_(16 * info.eps).square_().clamp_(min=0.5)
    inverse = torch.where(variance > least, variance.rsqrt(), 0)
    return Centred(own, factor, variance, inverse, n)


def _mean(values: Tensor, axis: int, n: Tensor | int) -> Tensor:
    """Return the mean of every channel over the n samples of all processes."""
    others = _others(values, axis)
    if process_count() == 1 and others and values.numel():
        return values.mean(others, keepdim=True)  # one operation
    return _sum(values, axis) / n


def _sum(values: Tensor, axis: int) -> Tensor:
    others = _others(values, axis)
    return _total(values.sum(others, keepdim=True) if others else values.clone())


def _others(values: Tensor, axis: int) -> list[int]:
    return [d for d in range(-values.dim(), 0) if d != axis]


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


def mean_scores(sums: Tensor) -> Tensor:
    """Return the mean of every row of a score leaf's sums over its batches."""
    return sums[:COUNT] / sums[COUNT].clamp(min=1)


def node_scores(means: Tensor) -> Tensor:
    """Return |r| of every candidate node, shape (candidates, nodes); shared nodes: the mean."""
    r = means[R].abs()
    return r if r.dim() == 2 else r.mean(-1)


class CorrelationProbe(torch.autograd.Function):
    """Identity on a layer's output that trains candidates on the error passing back through it.

    Forward takes the output y, a *score leaf* (see `score_leaf`), the channel axis, whether each
    node has a channel of its own, and the activations of the candidates in the pool at the
    positions of a window. Backward returns the error unchanged for y, the gradient of `correlate`
    for every activation, and the batch's scores for the leaf. So autograd itself sums the scores of
    a phase in ``score.grad``: one backward pass, no hook, no stored graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        score: Tensor,
        axis: int,
        pairwise: bool,
        loss_scale: float,
        window: Window,
        *activations: Tensor,
    ) -> Tensor:
        """Return ``output``.

        Args:
            ctx: Of autograd.
            output: What the layer returns.
            score: See `score_leaf`.
            axis: Channel axis of all tensors, counted from the end.
            pairwise: Whether each node has a channel of its own.
            loss_scale: What the loss is multiplied by; the gradients of the activations are too.
            window: Where the activations are.
            activations: Of the candidates in the pool.
        """
        so_far = torch.zeros_like(score) if score.grad is None else score.grad.clone()
        ctx.save_for_backward(so_far, *activations)
        ctx.how = (axis, pairwise, loss_scale, window)
        return output.detach()  # the same memory, and no view, which nobody could change in place

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of output, score leaf and activations."""
        (error,) = errors
        so_far, *activations = ctx.saved_tensors
        axis, pairwise, loss_scale, window = ctx.how
        samples = len(error) if error.dim() > -axis else 1  # the loss is their mean
        working = torch.promote_types(activations[0].dtype, torch.float32)
        with torch.no_grad():  # also where the graph of the backward pass is kept
            seen = window.take(error).to(working, copy=not window.is_whole)  # sums want no gaps
            scores, gradients = listen(
                activations, centred(seen, axis), so_far,
                axis=axis, pairwise=pairwise, samples=samples, loss_scale=loss_scale,
            )  # fmt: skip
        return error, scores, None, None, None, None, *gradients


def listen(
    activations: Sequence[Tensor],
    error: Centred,
    so_far: Tensor,
    *,
    axis: int,
    pairwise: bool,
    samples: float,
    loss_scale: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """Return the scores of a batch, to be added to a leaf's sums, and every candidate's gradient.

    Args:
        activations: Of the candidates in the pool.
        error: dLoss/dOutput where the activations are, centred; at least in float32.
        so_far: The sums, see `score_leaf`.
        axis: Channel axis of all tensors, counted from the end.
        pairwise: Whether each node has a channel of its own.
        samples: Samples whose mean the loss is, in this process.
        loss_scale: What the loss is multiplied by; the gradients are too.
    """
    e_std = (error.variance.sqrt() / (error.factor * loss_scale)).flatten()
    count: Tensor | float = samples
    if process_count() > 1:  # their batches may differ; the slope must not
        count = _total(e_std.new_tensor(float(samples))) / process_count()
    gradients, scores = [], []
    factor = loss_scale * process_count()  # several processes will take the mean
    for directions, activation in zip(so_far[R].to(e_std.dtype), activations, strict=True):
        own = activation.to(e_std.dtype)
        r, gradient, steep = _correlate(own, error, axis, pairwise, directions)
        gain = r * e_std
        slope = gain * steep * -count
        score = torch.stack([r, gain, slope, torch.ones_like(r)])
        scores.append(score.masked_fill_(gain.isnan(), 0))  # an error overflowed: does not count
        gradient = gradient if factor == 1 else gradient.mul_(factor)
        gradients.append(gradient.to(activation.dtype))
    return torch.stack(scores, 1).to(so_far.dtype), gradients
