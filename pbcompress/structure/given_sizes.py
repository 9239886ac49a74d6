"""The sizes that the user's code gave to an operation that moves elements around."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pbcompress.structure.tracer import Tracer, UserCall

__all__ = ["given_sizes", "is_product"]


def is_product(t: Tracer) -> bool:
    """Tell whether the code asked for a matrix product, which copies what is to be shared."""
    return t.call is not None and t.call.name in ("matmul", "__matmul__", "__rmatmul__")


def given_sizes(t: Tracer, shape: Sequence[int]) -> list[int | None]:
    """Return the sizes that the user's code asked for: None where torch works it out."""
    call = t.call
    if call is None or call.name == "multi_head_attention_forward":
        return list(shape)  # from code that cannot be followed: constants
    if call.name == "unflatten":
        rest = list(call.args[1:]) + list(call.kwargs.values())
        dim = int(rest[0]) % (len(shape) - len(rest[1]) + 1)
        sizes = [None if s == -1 else s for s in rest[1]]
        return [*[None] * dim, *sizes, *[None] * (len(shape) - dim - len(sizes))]
    if call.name in ("view", "reshape", "expand", "broadcast_to", "_unsafe_view"):
        given = tree_leaves((call.args[1:], dict(call.kwargs)))
        if len(given) == len(shape) and all(isinstance(s, int) for s in given):
            return [None if s == -1 else s for s in given]
        return list(shape)
    if call.name == "repeat_interleave":
        return _given_repeats(call, shape)
    if call.name in ("view_as", "reshape_as", "expand_as", "normalize"):
        tensors = [x for x in tree_leaves((call.args, dict(call.kwargs))) if isinstance(x, Tensor)]
        other = tensors[0 if call.name == "normalize" else 1]
        return [t.size_of(v, n) for v, n in zip(t.labels(other), other.shape, strict=True)]
    if call.name == "take_along_dim":
        sizes = [
            t.size_of(v, n) for v, n in zip(t.labels(call.args[0]), call.args[0].shape, strict=True)
        ]
        return sizes if len(sizes) == len(shape) else [None] * len(shape)
    return [None] * len(shape)


def _given_repeats(call: UserCall, shape: Sequence[int]) -> list[int | None]:
    """Return the sizes of what is repeated by a number, which stands behind its own axis."""
    image, *rest = call.args
    given = {**dict(zip(("repeats", "dim"), rest, strict=False)), **call.kwargs}
    sizes: list[int | None] = [None] * len(shape)
    repeats, dim = given.get("repeats"), given.get("dim")
    if isinstance(repeats, int) and isinstance(dim, int) and len(shape) == image.dim() + 1:
        sizes[dim % image.dim() + 1] = repeats
    return sizes
