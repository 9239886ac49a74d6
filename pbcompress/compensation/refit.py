"""Layer after layer: sums of products on the narrowed network's own inputs, and their solution."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from pbcompress.compensation.passes import Forward, norms_behind
from pbcompress.compensation.readers import Reader
from pbcompress.compensation.report import CompensationReport, ReaderError
from pbcompress.compensation.ridge import Fit, Moments, best_fit
from pbcompress.compensation.sweeps import HELD_OUT, Sweeps
from pbcompress.compensation.views import View, view_of

__all__ = ["refit_"]


def refit_(
    whole: nn.Module,
    left: nn.Module,
    readers: Mapping[str, Reader],
    unread: Mapping[str, str],
    forwards: Sequence[Forward],
    max_bytes: int,
) -> CompensationReport:
    """Fit the readers of narrowed channels in place, each on what it reads once all before it are.

    Args:
        whole: The original, in eval mode.
        left: The narrowed network, in eval mode; its weights are changed.
        readers: What reads narrowed channels, by name.
        unread: What does and cannot be fitted, with the reason.
        forwards: What runs a network, for each batch.
        max_bytes: Bound on the sums that are kept at a time.
    """
    work = _Work(whole, left, readers, unread, forwards, max_bytes)
    before = work.errors()
    for block in work.blocks():
        work.fit_(block)
    after = work.errors()
    layers = {
        name: ReaderError(before[name].share, after[name].share, fit.strength, after[name].rows)
        for name, fit in work.fits.items()
    }
    return CompensationReport(layers, work.unread, work.sum_bytes)


class _Error:
    """Squared errors of rows, and what the variance of their targets is computed from."""

    def __init__(self) -> None:
        self.rows, self.lost = 0, 0.0
        self.sums: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, targets: Tensor, found: Tensor) -> None:
        """Take in rows."""
        self.rows += len(targets)
        self.lost += float((targets - found).square().sum())
        self.squares = self.squares + targets.square().sum(0)
        self.sums = self.sums + targets.sum(0)

    @property
    def share(self) -> float:
        """The error over the variance."""
        spread = torch.as_tensor(self.squares - self.sums**2 / max(self.rows, 1))
        variance = float(spread.clamp(min=0).sum())
        if variance:
            return self.lost / variance
        return math.inf if self.lost else 0.0


class _Work:
    """The networks, and what is known of their layers; see `refit_`."""

    def __init__(
        self,
        whole: nn.Module,
        left: nn.Module,
        readers: Mapping[str, Reader],
        unread: Mapping[str, str],
        forwards: Sequence[Forward],
        max_bytes: int,
    ) -> None:
        self.left, self.max_bytes, self.sum_bytes = left, max_bytes, 0
        self.unread, self.fits = dict(unread), dict[str, Fit]()
        self.views: dict[str, View] = {}
        modules = {name: reader.name for name, reader in readers.items()}
        for name, reader in readers.items():
            pair = whole.get_submodule(reader.name), left.get_submodule(reader.name)
            view = view_of(reader, *pair, max_bytes)
            if _bytes(view) > max_bytes:
                self.unread[name] = f"its sums take {_bytes(view):,} bytes, above max_bytes"
            else:
                self.views[name] = view
        self.sweeps = Sweeps(whole, left, self.views, modules, forwards, max_bytes)
        self.unread |= self.sweeps.refused
        order = self.sweeps.order
        self.views = {n: self.views[n] for n in sorted(order, key=order.__getitem__)}
        self.views = {n: v for n, v in self.views.items() if n not in self.unread}
        behind = norms_behind(left, forwards[0], {modules[name] for name in self.views})
        self.norms: dict[str, nn.Module] = {
            name: left.get_submodule(behind[modules[name]])
            for name, view in self.views.items()
            if modules[name] in behind and not view.has_bias
        }

    def blocks(self) -> Iterator[list[str]]:
        """Yield the readers of one tensor, as many at a time as ``max_bytes`` has room for."""
        for _, names in groupby(self.views, key=self.sweeps.order.__getitem__):
            block: list[str] = []
            for name in names:
                if block and sum(_bytes(self.views[n]) for n in [*block, name]) > self.max_bytes:
                    yield block
                    block = []
                block.append(name)
            yield block

    def fit_(self, block: Sequence[str]) -> None:
        """Sum up what some layers read, solve, and write their weights."""
        sums: dict[str, tuple[Moments, Moments]] = {}
        for name in block:
            view = self.views[name]
            sizes = view.groups, view.features, view.targets
            device = self.sweeps.device
            sums[name] = Moments(*sizes, device), Moments(*sizes, device)
        self.sum_bytes = max(self.sum_bytes, sum(_bytes(self.views[name]) for name in block))

        def use(name: str, x: Tensor, t: Tensor, is_held: Tensor) -> None:
            for moments, chosen in zip(sums[name], (~is_held, is_held), strict=True):
                moments.add(x[chosen], t[chosen])

        self.sweeps.sweep(block, use)
        for name, (fit, held) in sums.items():
            view, norm = self.views[name], self.norms.get(name)
            too_few = not (fit.rows and held.rows)
            if too_few or name in self.sweeps.refused:
                why = f"it needs at least {HELD_OUT} samples"
                self.unread[name] = self.sweeps.refused.get(name, why)
                continue
            fits_bias = view.has_bias or norm is not None
            self.fits[name] = best_fit(fit, held, *view.start(), fits_bias=fits_bias)
            if self.fits[name].strength is not None:
                with torch.no_grad():
                    view.write_(self.fits[name], norm)

    def errors(self) -> dict[str, _Error]:
        """Return the errors of all readers as they are, on the rows that are held out."""
        errors = {name: _Error() for name in self.views}

        def use(name: str, x: Tensor, t: Tensor, is_held: Tensor) -> None:
            view, fit = self.views[name], self.fits.get(name)
            weight, bias = (fit.weight, fit.bias) if fit else view.start()
            found = torch.einsum("rgf,gtf->rgt", x[is_held].double(), weight) + bias
            errors[name].add(t[is_held].double(), found)

        self.sweeps.sweep(list(self.views), use)
        return errors


def _bytes(view: View) -> int:
    """Return the size of the sums of a regression: of rows to fit, and of rows that choose."""
    return 2 * Moments.bytes_of(view.groups, view.features, view.targets)
