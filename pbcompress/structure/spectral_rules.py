"""Fourier transforms, windows that overlap, and complex numbers as pairs."""

import math
from typing import Any

from torch import Tensor

from pbcompress.structure.rule_table import Axes, RuleTable, unknown
from pbcompress.structure.tracer import Tracer

__all__ = ["RULES"]

RULES = RuleTable()
rule = RULES.entry


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A Fourier transform along some dimensions, of every row of the others alone."""
    x = t.labels(args[0])
    for dim in args[1]:
        t.coupling.pin(x[dim], f"a Fourier transform in {t.where!r} goes along it")
        x[dim] = None
    return x


@rule("as_strided")
def frames(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Any:
    """Overlapping windows of what lies within the leading dimensions, as a spectrogram has them."""
    image: Tensor = args[0]
    x, kept = t.labels(image), 0
    same_start = image.storage_offset() == out.storage_offset()
    while (
        kept < min(image.dim(), out.dim())
        and same_start
        and ((image.shape[kept], image.stride(kept)) == (out.shape[kept], out.stride(kept)))
    ):
        kept += 1
    rest = sum((n - 1) * s for n, s in zip(out.shape[kept:], out.stride()[kept:], strict=True))
    if kept and rest >= min(image.stride()[:kept]):
        return unknown(t, name, args, kwargs, out)  # it reads across them
    for labels in x[kept:]:
        t.coupling.pin(labels, f"windows are taken along it in {t.where!r}")
    return [*x[:kept], *[None] * (out.dim() - kept)]


@rule("unfold_backward")
def overlap(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A sum of overlapping windows along one dimension."""
    x, dim = t.labels(args[0]), args[2] % out.dim()
    for labels in (x[dim], x[-1]):
        t.coupling.pin(labels, f"windows are taken along it in {t.where!r}")
    return [None if d == dim else labels for d, labels in enumerate(x[:-1])]


@rule("col2im")
def col2im(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Windows that are added to an image: every channel has the positions of one."""
    x, taps = t.labels(args[0]), math.prod(args[2])
    t.coupling.pin(x[-1], f"it is a spatial dimension in {t.where!r}")
    reason = f"a fold in {t.where!r} takes whole windows"
    channels, inner = t.coupling.split(x[-2], args[0].shape[-2] // taps, taps, reason)
    t.coupling.pin(inner, reason)
    return [*x[:-2], channels, None, None]


@rule("im2col")
def im2col(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x = t.labels(args[0])
    for labels in x[-2:]:
        t.coupling.pin(labels, f"it is a spatial dimension in {t.where!r}")
    own = x[-3].repeat_interleave(math.prod(args[1])) if x[-3] is not None else None
    return [*x[:-3], own, None]


@rule("view_as_real", "view_as_complex")
def view_as_real(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Complex numbers as pairs on a further axis, and back."""
    x = t.labels(args[0])
    if name == "view_as_real":
        return [*x, None]
    t.coupling.pin(x[-1], f"its channels are real and imaginary parts in {t.where!r}")
    return x[:-1]
