"""The flexible attention of torch, whose scores the user's code changes."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["plain_flex_attention"]

_MODULE = "torch.nn.attention.flex_attention"
_DIRECT = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"  # call what computes, do not compile it


@contextmanager
def plain_flex_attention() -> Iterator[None]:
    """Run `flex_attention` as the products and the softmax that it consists of.

    It is an operation of torch's compiler otherwise, into which nothing can look. A network whose
    code does not import it costs nothing.
    """
    flexible: Any = sys.modules.get(_MODULE)
    if flexible is None:
        yield
        return
    own = {"flex_attention_hop": _attention, "_create_empty_block_mask": _no_mask, _DIRECT: True}
    before = {name: getattr(flexible, name, None) for name in own}
    vars(flexible).update(own)
    try:
        yield
    finally:
        vars(flexible).update(before)


class _NoMask:
    """Stands for a mask in which every place counts."""

    BLOCK_SIZE = (1 << 30, 1 << 30)  # what torch gives to one without blocks

    def __init__(self, query: Tensor) -> None:
        self.kv_num_blocks = query

    def as_tuple(self) -> tuple[None]:
        """Return what tells which places count: nothing."""
        return (None,)


def _no_mask(query: Tensor, _key: Tensor) -> _NoMask:
    return _NoMask(query)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    change: Callable[..., Tensor],
    mask: tuple[Any, ...],
    scale: float,
    _options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute attention on (batch, heads, tokens, features); sums are in base 2, as torch has them.

    Args:
        query: What asks.
        key: What is asked; a head of it may serve several of the query's.
        value: What is answered.
        change: Gives a score for a score and its place: sample, head, query and key.
        mask: A description of blocks, and last what tells whether a place counts.
        scale: Factor of the scores.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    times = query.size(1) // key.size(1)
    key, value = (x if times == 1 else x.repeat_interleave(times, 1) for x in (key, value))
    scores = query.to(wide) @ key.to(wide).transpose(-2, -1) * scale
    if torch._C._get_tracing_state() is None:  # which counts products, and cannot follow the rest
        counts, scores = mask[-1], _at_places(change, scores, scores)
        if counts is not None:
            scores = torch.where(_at_places(counts, scores), scores, -math.inf)
    sums, most = scores.logsumexp(-1), scores.amax(-1)
    shares = torch._safe_softmax(scores, -1).to(query.dtype)
    return shares @ value, sums / math.log(2), most / math.log(2)


def _at_places(function: Callable[..., Tensor], like: Tensor, *given: Tensor) -> Tensor:
    """Call a function of places at all of them: (batch, heads, queries, keys), one head if alike.

    Args:
        function: Takes scores, if any, and the numbers of sample, head, query and key.
        like: Has the shape.
        given: Scores.
    """
    sample, head, *places = (torch.arange(n, device=like.device) for n in like.shape)
    if torch.compiler.is_exporting():  # which has no names for what vmap does; parity is checked
        axes = torch.meshgrid(sample, head, *places, indexing="ij")
        return function(*given, *axes)
    counts = (0,) * len(given)
    with _read_at_places():
        are_alike = not _asks_for_heads(function, len(given), sample.device)
        inner = function
        for axis in (3, 2, 0):
            own = [0 if axis == place else None for place in range(4)]
            inner = torch.vmap(inner, (*counts, *own))
        if are_alike and not given:
            return inner(sample, head[0], *places)[:, None]
        of_heads = [1] * len(given) + [None, None if are_alike else 0, None, None]
        heads = torch.vmap(inner, tuple(of_heads))
        return heads(*given, sample, head[0] if are_alike else head, *places).movedim(0, 1)


def _asks_for_heads(function: Callable[..., Tensor], scores: int, device: torch.device) -> bool:
    """Tell whether what a function gives depends on the number of the head."""
    zero, found = torch.zeros((), dtype=torch.long, device=device), []

    def once(head: Tensor) -> Tensor:
        result = function(*[zero.float()] * scores, zero, head, zero, zero)
        found.append(torch._C._functorch.is_batchedtensor(result))
        return head

    torch.vmap(once)(zero[None])
    return found[0]


def _read_at_places() -> AbstractContextManager[Any]:
    """Return what lets a tensor of the user's be read at places that are tensors."""
    from torch._dynamo._trace_wrapped_higher_order_op import (
        TransformGetItemToIndex,
    )

    return TransformGetItemToIndex()
