"""Ridge regression from sums of products, its strength chosen on other samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["STRENGTHS", "Fit", "Moments", "best_fit", "ridge"]

STRENGTHS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, relative to the mean of the diagonal of the Gram matrix."""
TIE = 1e-9  # of the targets' energy: errors below are rounding, and the weakest ridge wins
MORE = 0.01  # this much more error on other rows is borne for a stronger ridge


class Moments:
    """Sums of products of features and targets, in float64, for several groups at once.

    A feature that is always 1 comes last, so that the sums hold the means and the number of rows.

    Args:
        groups: Regressions side by side.
        features: Of each.
        targets: Of each.
        device: Where the sums are.
    """

    def __init__(
        self, groups: int, features: int, targets: int, device: torch.device | str = "cpu"
    ) -> None:
        wide = features + 1
        self.xx = torch.zeros(groups, wide, wide, dtype=torch.float64, device=device)
        self.tx = torch.zeros(groups, targets, wide, dtype=torch.float64, device=device)
        self.tt = torch.zeros((), dtype=torch.float64, device=device)

    @staticmethod
    def bytes_of(groups: int, features: int, targets: int) -> int:
        """Return the size of the sums."""
        return 8 * (groups * (features + 1) * (features + 1 + targets) + 1)

    @property
    def rows(self) -> int:
        """Number of rows that were added."""
        return int(self.xx[0, -1, -1])

    def add(self, x: Tensor, t: Tensor) -> None:
        """Take in features and targets, of shape (rows, groups, features or targets)."""
        x = x.to(self.xx).transpose(0, 1)
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        t = t.to(self.xx).transpose(0, 1)
        self.xx += x.transpose(1, 2) @ x
        self.tx += t.transpose(1, 2) @ x
        self.tt += t.square().sum()

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Return the sum of squared errors of ``weight @ x + bias``."""
        whole = torch.cat([weight, bias[..., None]], -1)
        explained = (whole * (whole @ self.xx - 2 * self.tx)).sum()
        return max(float(self.tt + explained), 0.0)


@dataclass(frozen=True)
class Fit:
    """A solution.

    Attributes:
        weight: Shape (groups, targets, features), float64.
        bias: Shape (groups, targets).
        strength: Of the ridge; None: the weights are those of the start.
    """

    weight: Tensor
    bias: Tensor
    strength: float | None


def ridge(
    moments: Moments, weight: Tensor, bias: Tensor, strength: float, *, fits_bias: bool
) -> tuple[Tensor, Tensor] | None:
    """Return the weights and biases that minimise the squared error and the distance to a start.

    The penalty is ``strength`` times the mean diagonal of the Gram matrix times the squared
    distance to ``weight``, for each group; the bias is free of it.

    Args:
        moments: Of the rows.
        weight: Start, shape (groups, targets, features).
        bias: Start, shape (groups, targets).
        strength: Above 0.
        fits_bias: Whether the bias is fitted; else it stays.

    Returns:
        Both, or None where the Gram matrix is not positive even so.
    """
    gram, cross = moments.xx[:, :-1, :-1], moments.tx[..., :-1]
    sums, totals = moments.xx[:, :-1, -1], moments.tx[..., -1]
    count = moments.xx[0, -1, -1]
    if fits_bias:
        gram = gram - sums[:, :, None] * sums[:, None, :] / count
        cross = cross - totals[:, :, None] * sums[:, None, :] / count
    else:
        cross = cross - bias[..., None] * sums[:, None, :]
    size = gram.diagonal(dim1=1, dim2=2).mean(1)
    size = torch.where(size > 0, size, size.max().clamp(min=1e-300))  # features that are all zero
    damped = gram + torch.diag_embed((strength * size)[:, None].expand(-1, gram.shape[1]))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():
        return None
    missing = cross - weight @ gram
    found = weight + torch.cholesky_solve(missing.transpose(1, 2), factor).transpose(1, 2)
    if fits_bias:
        bias = (totals - (found @ sums[..., None]).squeeze(-1)) / count
    return found, bias


def best_fit(fit: Moments, held: Moments, weight: Tensor, bias: Tensor, *, fits_bias: bool) -> Fit:
    """Return the strongest ridge regression that is as good as the best on other rows.

    Features may depend on each other: behind a LayerNorm they sum up to nothing. Rows tell nothing
    of weights along such a direction, and without a ridge these become as large as rounding
    allows. The outputs hide it, until the network trains. The start is the strongest of all.

    Args:
        fit: Rows that are fitted.
        held: Other rows, which choose.
        weight: Start, as in `ridge`.
        bias: Start, as in `ridge`.
        fits_bias: See `ridge`.
    """
    candidates = list[Fit]()
    for strength in STRENGTHS:
        found = ridge(fit, weight, bias, strength, fits_bias=fits_bias)
        if found is not None and all(part.isfinite().all() for part in found):
            candidates.append(Fit(*found, strength))
    candidates.append(Fit(weight, bias, None))
    errors = [held.error(one.weight, one.bias) for one in candidates]
    rounding = TIE * float(held.tt)
    pairs = list(zip(candidates, errors, strict=True))
    if errors[-1] > rounding:
        for one, error in pairs:
            if error <= rounding:
                return one
    enough = (1 + MORE) * min(errors) + rounding
    return next((one for one, error in reversed(pairs) if error <= enough), candidates[-1])
