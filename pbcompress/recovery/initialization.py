"""Closed-form first weights of candidates, from the second-order statistics of inputs and errors.

At a trained network the error of a neuron is uncorrelated with its inputs, as far as the neuron's
own gradient is zero. What a hinge can still find shows first in M_c = E[(e_c - mean) z z^T], the
error-weighted second moments of the whitened inputs z: its eigenvectors of largest eigenvalue, in
absolute value, are the directions along which the error bends.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig, LowRank, Shared, Tied
from pbcompress.core.randomness import seeded
from pbcompress.core.turns import in_turn
from pbcompress.dendrites.forms import ChannelAffine, GroupedLinear
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers
from pbcompress.dendrites.nodes import BatchNorm, node_weight
from pbcompress.dendrites.signals import ACTIVATIONS
from pbcompress.errors import CompressionError
from pbcompress.recovery.candidate_inputs import is_observable
from pbcompress.recovery.observation import Observed, observe
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.task import Batches, Task, batch_count

__all__ = ["initialize_candidates_"]

OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of a node's sum, in its standard deviations
RIDGE = 1e-3  # of the largest variance: directions below it are noise
_ROWS_PER_DIRECTION = 32
_EXACT = 1024  # fan-in up to which all eigenvectors are computed


@in_turn
def initialize_candidates_(
    model: nn.Module,
    batches: Batches,
    task: Task | None = None,
    *,
    batches_used: int = 16,
    rows: int = 32768,
    directions: int = 32,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Give the newest dendrite sets first weights in closed form, in place.

    For every node, directions of the whitened inputs are tried: those of the largest eigenvalues of
    the error-weighted second moments and that of the first moments, both ways and with a few
    offsets. The node gets the best of them by |r| with its error on the sample, or keeps
    its random weights where they are better. Only weights of the newest sets change. Call it at
    the start of a dendrite phase; of a pool the first candidate changes.

    Args:
        model: Network with dendrites whose newest set adds nothing yet (U = 0).
        batches: Batches of the train split, or a loader of them.
        task: Loss and forward; the default is classification.
        batches_used: Batches at most, at least 1; the model runs in eval mode.
        rows: Outputs (samples and positions) that are looked at in a layer, at most.
        directions: Whitened directions at most.
        seed: Seed of the order of batches and of the positions.

    Returns:
        By layer, the mean |r| on the sample before and after. Layers that no error reaches, and
        transposed convolutions, keep their weights and are missing.

    Raises:
        CompressionError: There is no set, it adds to the output already, or there is no batch;
            nothing has changed.
        DivergedError: The loss of a batch is not finite; nothing has changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> data = [(torch.randn(64, 4), torch.randint(2, (64,))) for _ in range(4)]
        >>> from pbcompress import attach_dendrites_
        >>> names = attach_dendrites_(net)
        >>> found = initialize_candidates_(net, data)
        >>> all(after >= before for before, after in found.values())
        True

    Source:
        The moments are those of Li, On principal Hessian directions for data visualization and
        dimension reduction, 1992, with the error in the place of the response.
    """
    layers = dendrite_layers(model)
    if not layers:
        raise CompressionError(
            "initialize_candidates_ found no dendrites. Call attach_dendrites_ first."
        )
    for name, layer in layers.items():
        if bool(layer.gains[-1].any()):
            raise CompressionError(
                f"The newest dendrite set of {name!r} adds to the output already (its U is not "
                "zero). Call initialize_candidates_ at the start of a dendrite phase."
            )
    for name, value in (("batches_used", batches_used), ("rows", rows), ("directions", directions)):
        if value < 1:
            raise ValueError(f"{name} was given as {value}; it must be at least 1.")
    sample = Sample(
        batches, task or Task(), min(batches_used, batch_count(batches) or batches_used), seed
    )
    able = {name: layer for name, layer in layers.items() if is_observable(layer)}
    found: dict[str, tuple[float, float]] = {}
    for name, observed in observe(model, able, sample, rows):
        with torch.no_grad(), seeded("directions", seed, name):
            if len(observed.errors) >= 2:
                found[name] = _initialize_(layers[name], observed, directions)
    return found


@dataclass
class _Best:
    """The best sum of each node so far: v^T z + offset in whitened directions, and its |r|."""

    r: Tensor
    direction: Tensor
    offset: Tensor


def _initialize_(layer: DendriteLayer, seen: Observed, directions: int) -> tuple[float, float]:
    """Give the newest set of a layer its weights; return mean |r| before and after."""
    config, (maker, norm) = layer.config, _parts(layer.dendrites[-1])
    mean = seen.inputs.mean(1, keepdim=True)
    inputs = seen.inputs - mean
    basis = _whitening(inputs, directions)
    errors = _standardised(seen.errors)
    groups = len(inputs)
    own = (
        errors.expand(groups, -1, -1) if isinstance(config.form, Shared) else _split(errors, groups)
    )
    z = inputs @ basis
    if isinstance(config.form, LowRank):
        basis = basis @ _common(_moments(z, own))[..., : config.form.rank]
        z = inputs @ basis
    has_offset = norm is not None or maker.bias is not None
    shift = None if has_offset else (mean @ basis)[:, 0]
    best = _search(z, own, config, shift)
    before = _scores(_random_sums(layer, seen, maker, norm), own, config)
    won = best.r > before
    if isinstance(config.form, LowRank):  # its nodes share a map
        won = (best.r.mean() > before.mean()).expand_as(won)
    _write_(layer, best, basis, mean, won)
    return float(before.mean()), float(torch.where(won, best.r, before).mean())


def _parts(branch: nn.Module) -> tuple[Any, Any]:
    """Return the map that makes the nodes and the BatchNorm behind it; a tied map may be both."""
    modules = _leaves(branch)
    norm = modules[-1] if isinstance(modules[-1], BatchNorm) else None
    makers = modules[:-1] if norm is not None and len(modules) > 1 else modules
    return makers[-1], norm


def _leaves(branch: nn.Module) -> list[Any]:
    return [m for m in branch.modules() if not isinstance(m, nn.Sequential)]


def _split(errors: Tensor, groups: int) -> Tensor:
    """Return errors as (groups, n, nodes of a group)."""
    return errors.reshape(len(errors), groups, -1).transpose(0, 1)


def _standardised(values: Tensor) -> Tensor:
    """Return values with mean zero and variance one along the rows; a constant becomes zero."""
    largest = values.abs().amax(-2, keepdim=True)
    scaled = values / torch.where(largest > 0, largest, 1)  # a sum of these can be held
    centred = scaled - scaled.mean(-2, keepdim=True)
    unit = centred.abs().amax(-2, keepdim=True)
    centred = centred / torch.where(unit > 0, unit, 1)  # and a square of these
    std = centred.square().mean(-2, keepdim=True).sqrt()
    is_alive = unit > 8 * torch.finfo(values.dtype).eps
    return torch.where(is_alive, centred / torch.where(std > 0, std, 1), 0)


def _whitening(inputs: Tensor, directions: int) -> Tensor:
    """Return maps of shape (groups, fan-in, k) to k directions of variance one."""
    _, n, width = inputs.shape
    unit = inputs.abs().amax().clamp(min=torch.finfo(inputs.dtype).tiny)
    inputs = inputs / unit  # squares can be held
    count = max(min(directions, width, n // _ROWS_PER_DIRECTION), 1)
    if width <= _EXACT:
        values, vectors = torch.linalg.eigh((inputs.mT @ inputs).double() / n)
        values, vectors = values[:, -count:].flip(-1), vectors[..., -count:].flip(-1)
    else:
        _, singular, vectors = torch.svd_lowrank(inputs, q=count, niter=2)
        values = singular.double().square() / n
    values = values[:, None].clamp(min=0)
    keep = values > values.amax(-1, keepdim=True) * RIDGE
    scale = torch.where(keep, 1 / torch.where(keep, values, 1).sqrt(), 0)
    basis: Tensor = (vectors * (scale / unit)).to(inputs.dtype)
    return basis


def _moments(z: Tensor, errors: Tensor) -> Tensor:
    """Return E[e_c z z^T], shape (groups, channels, k, k)."""
    groups, n, k = z.shape
    total = z.new_zeros(groups, k * k, errors.shape[-1])
    step = max(2**22 // (groups * k * k), 1)
    for first in range(0, n, step):
        part = z[:, first : first + step]
        products = (part[..., None] * part[..., None, :]).flatten(-2)
        total += products.mT @ errors[:, first : first + step]
    moments: Tensor = (total / n).mT.unflatten(-1, (k, k))
    return moments


def _common(moments: Tensor) -> Tensor:
    """Return the eigenvectors of the sum of squared moments over the channels, largest first."""
    squares = (moments @ moments).sum(1)
    _, vectors = torch.linalg.eigh(squares.double())
    return torch.Tensor.to(vectors.flip(-1), moments.dtype)


def _search(z: Tensor, errors: Tensor, config: DendriteConfig, shift: Tensor | None) -> _Best:
    """Return the best direction and offset of every node.

    Args:
        z: Whitened inputs, shape (groups, n, k).
        errors: Standardised, shape (groups, n, channels of a group).
        config: Form, nodes and activation.
        shift: Whitened mean, shape (groups, k), where a node cannot have an offset of its own.
    """
    moments, form = _moments(z, errors), config.form
    if isinstance(form, Shared):
        common = _common(moments).mT  # (1, k, k): one direction a row
        turns = [common[:, torch.arange(form.nodes) % common.shape[1]]]
        turns[0] = turns[0] * _both_ways(form.nodes, common.shape[1]).to(z)
    else:
        eigen = torch.linalg.eigh(moments.double())
        order = eigen.eigenvalues.abs().argsort(-1, descending=True)
        vectors = eigen.eigenvectors.gather(-1, order[..., None, :].expand_as(moments))
        linear = (z.mT @ errors).mT / z.shape[1]
        turns = [vectors[..., i].to(z.dtype) for i in range(min(2, z.shape[-1]))]
        length = linear.norm(dim=-1, keepdim=True)
        turns.append(linear / torch.where(length > 0, length, 1))
    best: _Best | None = None
    for direction in turns:
        sums = z @ direction.mT
        for sign in (1.0, -1.0):
            fixed = None if shift is None else (sign * direction * shift[:, None]).sum(-1)
            for offset in OFFSETS if fixed is None else (0.0,):
                added = torch.full_like(sums[:, 0], offset) if fixed is None else fixed
                r = _scores(sign * sums + added[:, None], errors, config)
                tried = _Best(r, sign * direction, added)
                best = tried if best is None else _better(tried, best)
    assert best is not None
    return best


def _both_ways(nodes: int, directions: int) -> Tensor:
    return torch.where(torch.arange(nodes) // directions % 2 == 0, 1, -1)[:, None]


def _better(one: _Best, other: _Best) -> _Best:
    wins = one.r > other.r
    return _Best(
        torch.where(wins, one.r, other.r),
        torch.where(wins[..., None], one.direction, other.direction),
        torch.where(wins, one.offset, other.offset),
    )


def _scores(sums: Tensor, errors: Tensor, config: DendriteConfig) -> Tensor:
    """Return |r| of every node, shape (groups, nodes); of shared nodes the mean over channels."""
    a = _standardised(ACTIVATIONS[config.activation](sums))
    if isinstance(config.form, Shared):
        return ((a.mT @ errors) / a.shape[1]).abs().mean(-1)
    return (a * errors).mean(1).abs()


def _random_sums(layer: DendriteLayer, seen: Observed, maker: Any, norm: Any) -> Any:
    """Return the sums of the nodes with the weights that they have, shape (groups, n, nodes)."""
    if isinstance(layer.config.form, Tied):
        sums = seen.inputs
    elif isinstance(layer.config.form, LowRank):
        down, up = (node_weight(m).flatten(1) for m in (_leaves(layer.dendrites[-1])[0], maker))
        sums = seen.inputs @ down.T.to(seen.inputs) @ up.T.to(seen.inputs)
    else:
        weight = node_weight(maker).flatten(1).unflatten(0, (len(seen.inputs), -1))
        sums = seen.inputs @ weight.mT.to(seen.inputs)
    if norm is not None:
        sums = _standardised(sums)
    last = norm if norm is not None else maker
    if isinstance(last, BatchNorm | ChannelAffine):
        sums = sums * last.weight.unflatten(0, (len(sums), 1, -1))
    if last.bias is None:
        return sums
    return sums + last.bias.unflatten(0, (len(sums), 1, -1))


def _write_(layer: DendriteLayer, best: _Best, basis: Tensor, mean: Tensor, won: Tensor) -> None:
    """Write the directions of the nodes that won, at the scale of the random weights."""
    branch, form = layer.dendrites[-1], layer.config.form
    maker, norm = _parts(branch)
    weight = basis @ best.direction.mT  # (groups, fan-in, nodes)
    offset = best.offset - (mean @ weight)[:, 0]
    flat = won.flatten()

    def put(parameter: Tensor, values: Tensor) -> None:
        mask = flat.reshape(-1, *[1] * (parameter.dim() - 1))
        parameter.copy_(torch.where(mask, values.reshape(parameter.shape), parameter))

    if isinstance(form, Tied):
        put(maker.weight, best.direction.flatten() if norm is not None else weight.flatten())
        if maker.bias is None:
            return
        put(maker.bias, best.offset.flatten() if norm is not None else offset.flatten())
        return
    scale = torch.ones_like(best.offset)
    if isinstance(form, LowRank):
        if bool(won.all()):
            down = _leaves(branch)[0].weight
            down.copy_(_padded(basis[0].mT, len(down)).reshape(down.shape))
        weight = _padded(best.direction, form.rank, -1).mT
    elif (
        layer.config.activation in ("relu", "linear") or norm is not None
    ):  # r is the same at any scale
        former = node_weight(maker).flatten(1).norm(dim=1).reshape(scale.shape)
        size = weight.norm(dim=1)
        scale = torch.where(size > 0, former / torch.where(size > 0, size, 1), 1)
    weight = (weight * scale[:, None]).mT.flatten(0, 1)
    if isinstance(maker, GroupedLinear):
        mask = won[:, None]
        new = weight.unflatten(0, (len(won), -1)).mT
        maker.weight.copy_(torch.where(mask, new, maker.weight))
    else:
        put(maker.weight, weight)
    if norm is not None:
        if norm.bias is not None:
            put(norm.bias, best.offset)
        put(norm.weight, torch.ones_like(norm.weight))
    elif maker.bias is not None:
        put(maker.bias, offset * scale)


def _padded(values: Tensor, size: int, axis: int = 0) -> Tensor:
    """Return values with zeros behind them up to ``size`` along an axis."""
    shape = [*values.shape]
    shape[axis] = size - shape[axis]
    return torch.cat([values, values.new_zeros(shape)], axis)
