"""What an operation that moves elements around does to their labels: one rule for each kind."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pbcompress.structure.given_sizes import given_sizes, is_product
from pbcompress.structure.labels import Labels
from pbcompress.structure.rule_table import Axes, RuleTable, broadcast, unknown
from pbcompress.structure.tracer import Tracer

__all__ = ["RULES"]

RULES = RuleTable()
rule = RULES.entry


@rule("view", "_unsafe_view", "_reshape_alias")
def view(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Flatten and unflatten: neighbouring axes are merged, then split."""
    image: Tensor = args[0]
    if out.dtype != image.dtype:
        return unknown(t, name, args, kwargs, out)  # type: ignore[no-any-return]
    old, new = list(image.shape), list(out.shape)
    labels = regroup(t, t.labels(image), old, new)
    sizes = given_sizes(t, new)
    for size, own in zip(sizes, labels, strict=True):
        t.expect(size, own)
    return labels


def regroup(t: Tracer, x: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    """Return the labels of a reshape from sizes ``old`` to ``new``."""
    labels: Axes = []
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        a = b = 1
        if i < len(old):
            a, i = a * old[i], i + 1
        if j < len(new):
            b, j = b * new[j], j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        labels += _reblock(t, x[start_i:i], old[start_i:i], new[start_j:j])
    return labels


def _reblock(t: Tracer, x: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    if list(old) == list(new):
        return list(x)
    flat: Labels = None
    size = 1
    for labels, count in zip(x, old, strict=True):
        flat = t.coupling.merge(flat, size, labels, count)
        size *= count
    labels_out: Axes = []
    for count in new:
        size //= max(count, 1)
        reason = f"a reshape in {t.where!r} mixes its channels"
        first, flat = t.coupling.split(flat, count, size, reason)
        labels_out.append(first)
    return labels_out


@rule("expand")
def expand(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Copies along dimensions of size one, which get the channels that the size counts."""
    image: Tensor = args[0]
    labels = broadcast(t, [image], tuple(out.shape))
    added = out.dim() - image.dim()
    if is_product(t):  # whose other operand has the channels that the copies are for
        copied = [d < added or image.shape[d - added] == 1 for d in range(out.dim())]
        pairs = zip(copied, labels, out.shape, strict=True)
        return [t.coupling.fresh(n) if is_new and n > 1 else v for is_new, v, n in pairs]
    for dim, size in enumerate(given_sizes(t, out.shape)):
        if size is not None and (dim < added or image.shape[dim - added] == 1):
            is_mask = t.trusts and size > 1  # of a layer of torch, for as many heads as there are
            labels[dim] = t.coupling.fresh(size) if is_mask else t.labels_of_size(size)
        t.expect(size, labels[dim])
    return labels


@rule("permute")
def permute(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x = t.labels(args[0])
    return [x[d] for d in args[1]]


@rule("transpose", "t", "transpose_", "t_")
def transpose(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x = t.labels(args[0])
    if name in ("t", "t_"):
        return x[::-1]
    a, b = args[1:3]
    x[a], x[b] = x[b], x[a]
    return x


@rule("as_strided_")
def restride(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A change of memory layout, as pooling to one position makes; anything else is unknown."""
    if [*args[1]] == [*args[0].shape]:
        return t.labels(args[0])
    return unknown(t, name, args, kwargs, out)  # type: ignore[no-any-return]


@rule("squeeze", "unsqueeze", "squeeze_", "unsqueeze_")
def squeeze(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x = t.labels(args[0])
    if name.startswith("unsqueeze"):
        x.insert(args[1] % out.dim(), None)
        return x
    if name == "squeeze_" and len(x) == out.dim():
        return x
    if name == "squeeze_":  # what had one position has none
        given = args[1] if len(args) > 1 else []
        gone = {d % len(x) for d in (given if isinstance(given, list | tuple) else [given])}
        is_known = len(x) - len(gone) == out.dim()
        kept = [v for d, v in enumerate(x) if d not in gone]
        return kept if is_known else unknown(t, name, args, kwargs, out)
    sizes = args[0].shape
    dims = args[1] if len(args) > 1 else range(len(sizes))
    dims = [d % len(sizes) for d in (dims if isinstance(dims, list | range) else [dims])]
    return [v for d, v in enumerate(x) if not (d in dims and sizes[d] == 1)]


@rule("cat")
def concatenate(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    tensors = [x for x in args[0] if x.dim() == out.dim()]  # torch allows empty vectors
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.dim()
    every = [t.labels(x) for x in tensors]
    labels = list(every[0])
    for other in every[1:]:
        labels = [
            None if d == dim else t.couple(a, b)
            for d, (a, b) in enumerate(zip(labels, other, strict=True))
        ]
    labels[dim] = None
    if any(x[dim] is not None for x in every):
        parts = [
            torch.zeros(tensor.shape[dim], dtype=torch.long) if x[dim] is None else x[dim]
            for x, tensor in zip(every, tensors, strict=True)
        ]
        labels[dim] = torch.cat([p for p in parts if p is not None])
    return labels


@rule("stack")
def stack(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % out.dim()
    labels = broadcast(t, args[0], tuple(args[0][0].shape))
    return [*labels[:dim], None, *labels[dim:]]


@rule("select", "unbind")
def select(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """One position of a dimension, or each; some code takes one for the sake of its shape alone."""
    x = t.labels(args[0])
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % len(x)
    reason = f"its channels are picked one by one in {t.where!r}"
    for one in [out] if isinstance(out, Tensor) else out:
        t.keep_if_used(one, x[dim], reason)
    labels = [v for d, v in enumerate(x) if d != dim]
    return labels if isinstance(out, Tensor) else [labels] * len(out)


@rule("slice")
def slice_(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x = t.labels(args[0])
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, step = (*list(args[1:]), *defaults[len(args) - 1 :])
    own = x[dim]
    if own is None:
        return x
    start, end, _ = slice(start, end, step).indices(len(own))
    x[dim] = own[start:end:step]
    if end - start == 1:  # a broadcast would not show that it is one of them
        t.coupling.pin(x[dim], f"its channels are picked one by one in {t.where!r}")
    given = _given_slice(t, start, end, own)
    for bound, size in zip((start, end), given, strict=True):
        if bound > 0:
            if size is not None and size < 0:  # counted from the end
                size = t.size_of(own, len(own)) + size
            t.expect_part(size, own, own[:bound])
    if step != 1:
        t.coupling.pin(own, f"a slice with steps in {t.where!r} picks its channels")
    return x


def _given_slice(t: Tracer, start: int, end: int, own: Tensor) -> tuple[int | None, int | None]:
    """Return the bounds of a slice as the user's code gave them; None: the end, or adaptive."""
    size = len(own)
    call = t.call
    if call is not None and call.name in ("__getitem__", "__setitem__"):
        items = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        for item in items:
            if isinstance(item, slice) and item.indices(size)[:2] == (start, end):
                return item.start, item.stop
    if call is not None and call.name == "narrow":
        _, length = call.args[-2:]
        return call.args[-2], call.args[-2] + length
    if call is not None and call.name in ("chunk", "glu"):
        return None, None
    if call is not None and call.name == "tensor_split":
        sections = _sections(t)
        if isinstance(sections, int) and size % sections == 0:
            part = t.size_of(own, size) // sections
            return start * sections // size * part, end * sections // size * part
        if isinstance(sections, int):
            _keep_uneven(t, own, own.tensor_split(sections), sections)
            return None, None
    return start, end


@rule("split", "split_with_sizes", "unsafe_split")
def split(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    x = t.labels(args[0])
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % len(x)
    own = x[dim]
    counts = [o.shape[dim] for o in out]
    if own is None:
        return [x] * len(out)
    parts = list(own.split(counts))
    if len(set(counts)) == 1:
        for part in parts[1:]:
            t.couple(parts[0], part)
    elif None in _given_parts(t, counts, len(own)) and not t.trusts:
        _keep_uneven(t, own, parts, _sections(t))
    for part, size in zip(parts, _given_parts(t, counts, len(own)), strict=True):
        t.expect_part(size, own, part)
        if len(part) == 1:
            t.coupling.pin(part, f"its channels are picked one by one in {t.where!r}")
    return [[part if d == dim else v for d, v in enumerate(x)] for part in parts]


def _keep_uneven(t: Tracer, own: Tensor, parts: Sequence[Tensor], sections: Any) -> None:
    """Let uneven parts lose as many positions each: so they go on to differ by as much."""
    reason = f"it is divided into uneven parts in {t.where!r}"
    if sections != len(parts):  # with fewer positions there may be another number of parts
        t.coupling.pin(own, reason)
        return
    least = min(map(len, parts))
    for part in parts:
        t.coupling.pin(part[least:], reason)
        t.couple(parts[0][:least], part[:least])


def _sections(t: Tracer) -> Any:
    """Return in how many parts the user's code asked to divide."""
    call = t.call
    if call is None or call.name not in ("chunk", "tensor_split"):
        return None
    return call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))


def _given_parts(t: Tracer, counts: Sequence[int], total: int) -> list[int | None]:
    """Return the sizes of the parts as the user's code gave them; None where torch divides."""
    call = t.call
    if call is None:
        return list(counts)
    if call.name in ("split", "split_with_sizes", "unsafe_split"):
        given = call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))
        if isinstance(given, list | tuple):
            return list(given)
        return [given] * len(counts)
    return [None] * len(counts)


@rule("flip")
def flip(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """What is left of a dimension is turned as the whole is."""
    x = t.labels(args[0])
    turned = {d % len(x) for d in args[1]}
    return [v.flip(0) if v is not None and d in turned else v for d, v in enumerate(x)]


@rule("index_select", "index_fill", "index_fill_", "roll", "unfold", "constant_pad_nd")
def by_dimension(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Any:
    """Operations that touch some dimensions and leave the others as they are."""
    x = t.labels(args[0])
    rank = len(x)
    if name == "constant_pad_nd":
        pads = args[1]
        for k in range(len(pads) // 2):
            dim, before, after = rank - 1 - k, pads[2 * k], pads[2 * k + 1]
            own = x[dim]
            if own is not None:
                own = own[max(-before, 0) : len(own) - max(-after, 0)]
                if min(before, after) < 0:
                    t.coupling.pin(x[dim], f"a pad in {t.where!r} cuts its channels")
                zeros = [torch.zeros(max(n, 0), dtype=torch.long) for n in (before, after)]
                x[dim] = torch.cat([zeros[0], own, zeros[1]])
        return x
    if name == "roll":
        dims = args[2] if len(args) > 2 else []
        dims = [d % rank for d in dims] or list(range(rank))  # a roll of the flattened tensor
    else:
        dims = [args[1] % rank]
    for dim in dims:
        t.coupling.pin(x[dim], f"its channels meet the operation {name} in {t.where!r}")
        x[dim] = None
    return [*x, None] if name == "unfold" else x


@rule("repeat")
def repeat(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Copies side by side; those of one position get the channels that their number counts."""
    counts = args[1]
    given = list(counts)
    if t.call is not None and t.call.name == "repeat":
        asked = tree_leaves((t.call.args[1:], dict(t.call.kwargs)))
        given = asked if len(asked) == len(counts) else given
    added = len(counts) - args[0].dim()
    x = [*[None] * added, *t.labels(args[0])]
    sizes = [1] * added + list(args[0].shape)
    labels: Axes = []
    for own, size, count in zip(x, sizes, given, strict=True):
        new = t.labels_of_size(count) if size == 1 else None
        t.expect(count, new)
        labels.append(own.repeat(int(count)) if own is not None else new)
    return labels


@rule("glu")
def glu(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x = t.labels(args[0])
    dim = args[1] if len(args) > 1 else -1
    own = x[dim]
    if own is not None:
        first, second = own.chunk(2)
        x[dim] = t.couple(first, second)
    return x


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffle(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    x, factor = t.labels(args[0]), args[1]
    own, channels = x[-3], args[0].shape[-3]
    if name in ("pixel_shuffle", "pixel_unshuffle"):
        _keep_image(t, x)
    reason = f"the operation {name} in {t.where!r} keeps its factor"
    if name == "pixel_unshuffle":
        x[-3] = own.repeat_interleave(factor**2) if own is not None else None
    elif name == "pixel_shuffle":
        x[-3], inner = t.coupling.split(own, channels // factor**2, factor**2, reason)
        t.coupling.pin(inner, reason)
    else:
        outer, inner = t.coupling.split(own, factor, channels // factor, reason)
        t.coupling.pin(outer, reason)
        x[-3] = t.coupling.merge(inner, channels // factor, None, factor)
    return x


def _keep_image(t: Tracer, x: Axes) -> None:
    for labels in x[-2:]:
        t.coupling.pin(labels, f"it is a spatial dimension in {t.where!r}")
    x[-2:] = [None, None]


@rule("_local_scalar_dense", "equal")
def number(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> None:
    t.result.decisions.add(t.where)
    for tensor in args[:2]:
        t.pin(tensor, f"the forward pass reads a value in {t.where!r}")


@rule("_pack_padded_sequence")
def packed(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """The steps of sequences of several lengths one after the other."""
    x = t.labels(args[0])
    for labels in x[:2]:
        t.coupling.pin(labels, f"its steps are packed in {t.where!r}")
    return [[None, *x[2:]], [None]]
