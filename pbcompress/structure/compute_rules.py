"""What an operation that computes does to the labels of its operands: one rule for each kind."""

import math
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pbcompress.structure.labels import Labels
from pbcompress.structure.rule_table import Axes, RuleTable, broadcast, unknown
from pbcompress.structure.tracer import Tracer
from pbcompress.structure.weight_rules import keeps_lengths, length_of_weights

__all__ = ["RULES", "elementwise"]

RULES = RuleTable()
rule = RULES.entry


# ---------------------------------------------------------------- element by element


@rule(
    *("abs", "acos", "add", "add_", "addcdiv", "addcmul", "alias", "asin", "atan", "atan2"),
    *("bernoulli_", "bitwise_and", "bitwise_not", "bitwise_or", "ceil", "celu", "clamp"),
    *("clamp_", "clamp_max", "clamp_min", "clone", "copy_", "cos", "detach", "div", "div_"),
    *("elu", "elu_", "eq", "erf", "exp", "exp2", "expm1", "fill_", "floor"),
    *("floor_divide", "fmod", "ge", "gelu", "gelu_", "gt", "hardshrink", "hardsigmoid"),
    *("hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "isinf"),
    *("isnan", "le", "leaky_relu", "leaky_relu_", "lerp", "lift_fresh", "log", "log1p", "log2"),
    *("log_sigmoid_forward", "logical_and", "logical_not", "logical_or", "logit", "lt"),
    *("masked_fill", "masked_fill_", "maximum", "minimum", "mish", "mish_", "mul", "mul_"),
    *("nan_to_num", "ne", "neg", "native_dropout", "normal_", "pow", "reciprocal", "relu"),
    *("relu_", "remainder", "round", "rsqrt", "rsub", "sigmoid", "sigmoid_", "sign"),
    *("silu", "silu_", "sin", "softplus", "softshrink", "sqrt", "sub", "sub_"),
    *("tan", "tanh", "tanh_", "threshold", "threshold_", "trunc", "uniform_", "where", "zero_"),
    *("_to_copy", "empty_like", "full_like", "ones_like", "rand_like"),
    *("randn_like", "zeros_like", "exponential_", "_conj"),
    *("sinc", "xlogy", "bernoulli", "_assert_async", "hardswish"),
    *("complex", "polar", "angle"),
)
def elementwise(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """Couple dimensions that are broadcast against each other."""
    result = out if isinstance(out, Tensor) else (out[0] if out else None)
    if result is None:
        return None
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    labels = broadcast(t, operands, tuple(result.shape))
    return labels if isinstance(out, Tensor) else [labels] * len(out)


@rule("rrelu_with_noise", "rrelu_with_noise_")
def random_relu(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """In eval mode the noise has no elements."""
    return t.labels(args[0])


@rule("_prelu_kernel")
def prelu(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    return broadcast(t, [args[0], args[1]], tuple(out.shape))


# ---------------------------------------------------------------- products


@rule("mm", "addmm")
def product(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Axes:
    """A matrix product; the contracted dimensions go together."""
    left, right = args[-2:]
    a, b = t.labels(left), t.labels(right)
    inner = t.couple(a[1], b[0])
    t.weights.product((left, right), (a, b), inner, t.where)
    t.work(1, (left.shape[0], a[0]), (left.shape[1], inner), (right.shape[1], b[1]))
    labels = [a[0], b[1]]
    if name == "addmm":
        t.labels(args[0], {0: b[1]})
        t.set_labels(out, labels)
        return broadcast(t, [out, args[0]], tuple(out.shape))
    return labels


@rule("bmm", "baddbmm")
def batched_product(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Axes:
    left, right = args[-2:]
    a, b = t.labels(left), t.labels(right)
    batch, inner = t.couple(a[0], b[0]), t.couple(a[2], b[1])
    t.weights.product((left, right), (a, b), inner, t.where)
    sizes = (left.shape[0], batch), (left.shape[1], a[1]), (left.shape[2], inner)
    t.work(1, *sizes, (right.shape[2], b[2]))
    place = len(args) - 2
    t.event(name, [(place, 2, inner), (place + 1, 1, inner)])
    labels = [batch, a[1], b[2]]
    if name == "baddbmm":
        t.set_labels(out, labels)
        return broadcast(t, [out, args[0]], tuple(out.shape))
    return labels


@rule("_cdist_forward", "_euclidean_dist")
def distances(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """Distances of rows: sums over their features, of which those that go are 0 in both."""
    left, right = args[:2]
    a, b = t.labels(left), t.labels(right)
    inner = t.couple(a[-1], b[-1])
    t.weights.product((left, right), (a, b), inner, t.where)
    rows = [x[..., :1, 0] for x in (left, right)]
    for one, own in zip(rows, (a, b), strict=True):
        t.set_labels(one, [*own[:-2], None])
    return [*broadcast(t, rows, (*out.shape[:-2], 1))[:-1], a[-2], b[-2]]


@rule("_grouped_mm")
def products_of_groups(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A product with one of several matrices for each block of rows: experts, which all stay."""
    left, right = args[:2]
    if left.dim() != 2 or right.dim() != 3:
        return unknown(t, name, args, kwargs, out)  # type: ignore[no-any-return]
    a, b = t.labels(left), t.labels(right)
    t.coupling.pin(b[0], f"its experts stay in {t.where!r}")
    inner = t.couple(a[1], b[1])
    t.work(1, (left.shape[0], a[0]), (left.shape[1], inner), (right.shape[2], b[2]))
    return [a[0], b[2]]


@rule("mv", "dot", "addmv", "_trilinear")
def vector_product(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Axes:
    """A product whose channels stay."""
    if name == "_trilinear":  # of a Bilinear: every weight once for every row
        t.work(args[0].shape[0] * math.prod(args[1].shape))
    else:
        t.work(math.prod(args[-2].shape))
    return unknown(t, name, args, kwargs, out)  # type: ignore[no-any-return]


@rule("convolution")
def convolution(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    """A convolution, plain, grouped, depthwise or transposed; one by one, positions stay apart."""
    image, weight, bias, stride, padding, _, transposed, _, groups = args[:9]
    x, size = t.labels(image), out.shape[1]
    if transposed:
        w, result = _transposed(t, x[1], weight, groups)
    else:
        w, result = _straight(t, x[1], weight, groups)
    t.weights.product((image, weight), (x, w), x[1], t.where)
    apart = not transposed and {*weight.shape[2:], *stride} == {1} and not any(padding)
    for labels in (*(() if apart else x[2:]), *w[2:]):
        t.coupling.pin(labels, f"it is a spatial dimension in {t.where!r}")
    places = x[2:] if apart else [None] * (out.dim() - 2)
    positions = zip((image if transposed else out).shape[2:], places, strict=True)
    taps = math.prod(weight.shape[2:]) * image.shape[0]
    t.work(taps, *positions, *zip(weight.shape[:2], w[:2], strict=True))
    if bias is not None:
        result = t.couple(result, t.labels(bias, {0: result})[0])
    return [x[0], result if size > 1 else None, *places]


def _straight(t: Tracer, x: Labels, weight: Tensor, groups: int) -> tuple[Axes, Labels]:
    """Return the labels of a convolution's weight and of its output channels."""
    if groups == 1:
        w = t.labels(weight, {1: x})
        t.couple(x, w[1])
        return w, w[0]
    if weight.shape[1] == 1:
        spread = _spread(x, weight.shape[0] // groups)
        w = t.labels(weight, {0: spread})
        _own_groups(t, groups, x)
        return w, t.couple(spread, w[0])
    first = x[: weight.shape[1]] if x is not None else None
    w = t.labels(weight, {1: first})
    if x is None:
        t.coupling.pin(w[1], "it reads an input of fixed width")
    else:
        t.couple(first, w[1])
        _alike(t, x, groups)
    return w, _alike(t, w[0], groups)


def _transposed(t: Tracer, x: Labels, weight: Tensor, groups: int) -> tuple[Axes, Labels]:
    """Return the same of a transposed one, whose weight has the inputs first."""
    w = t.labels(weight, {0: x})
    entry = t.couple(x, w[0])
    if groups == 1:
        return w, w[1]
    if weight.shape[0] == groups:
        _own_groups(t, groups, x)
        t.coupling.pin(w[1], f"each channel of {t.where!r} has the same number of outputs")
        return w, _spread(entry, weight.shape[1])
    _alike(t, entry, groups)
    return w, w[1].repeat(groups) if w[1] is not None else None


def _own_groups(t: Tracer, groups: int, channels: Labels) -> None:
    """Note that every channel has its own group; the cut of a layer of torch sets their number."""
    if not isinstance(t.module, nn.modules.conv._ConvNd):
        t.expect(_given(t, 6, "groups", groups), channels)


def _spread(labels: Labels, times: int) -> Labels:
    """Return the labels of a dimension with so many positions for each of another's."""
    return labels.repeat_interleave(times) if labels is not None else None


def _given(t: Tracer, place: int, name: str, default: Any) -> Any:
    """Return an argument of the call in the user's code."""
    if t.call is None:
        return default
    return t.call.args[place] if len(t.call.args) > place else t.call.kwargs.get(name, default)


def _alike(t: Tracer, labels: Labels, groups: int) -> Labels:
    """Let all groups of channels lose channels at the same places."""
    if labels is not None:
        grid = labels.view(groups, -1)
        t.coupling.couple(grid[:1].expand_as(grid).reshape(-1), labels, "")
    return labels


@rule("embedding")
def embedding(t: Tracer, name: str, args: Any, kwargs: Any, out: Tensor) -> Axes:
    table = t.labels(args[0])
    t.coupling.pin(table[0], f"{t.where!r} looks its rows up")
    return [None] * (out.dim() - 1) + [table[1]]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """Sums, means or maxima of rows; what else it returns is for a backward pass."""
    table = t.labels(args[0])
    t.coupling.pin(table[0], f"{t.where!r} looks its rows up")
    return [[None, table[1]], *([None] * o.dim() for o in out[1:])]


# ---------------------------------------------------------------- norms and reductions


@rule(
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("_native_batch_norm_legit", "_batch_norm_no_update"),
)
def batch_norm(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """A norm of every channel alone, over all other dimensions."""
    image = args[0]
    x = t.labels(image)
    own = [a for a in args[1:5] if isinstance(a, Tensor)]
    for tensor in own:
        x[1] = t.couple(x[1], t.labels(tensor, {0: x[1]})[0])
    axes = [(0, dim, v) for dim, v in enumerate(x) if dim != 1]  # of weights: standardised ones
    t.event(name, axes, axes)
    takes_statistics = any(a is True for a in args[1:6])
    takes_statistics |= t.call is not None and t.call.name == "instance_norm"
    t.work(
        int(isinstance(args[1], Tensor)) + (4 if takes_statistics else 1),
        *zip(image.shape, x, strict=True),
    )
    rest = [[None] * o.dim() for o in out[1:]]
    return [x, *rest]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """A norm over the last dimensions; any may lose positions, which then do not count."""
    image, shape = args[:2]
    x, first = t.labels(image), image.dim() - len(shape)
    own = [(i, a) for i, a in enumerate(args[2:4], 2) if isinstance(a, Tensor)]
    for _, tensor in own:
        labels = t.labels(tensor, dict(enumerate(x[first:])))
        x[first:] = [t.couple(a, b) for a, b in zip(x[first:], labels, strict=True)]
    is_named = t.call is not None and t.call.name in ("layer_norm", "rms_norm")
    given = _given(t, 1, "normalized_shape", shape) if is_named else shape
    for size, axis in zip(given, x[first:], strict=True):
        t.expect(size, axis)
    every = [(0, dim, v) for dim, v in enumerate(x[first:], first)]
    t.event(name, [*every, *((i, dim - first, v) for i, _ in own for _, dim, v in every)], every)
    if name == "native_layer_norm":
        t.work(5 if own else 4, *zip(image.shape, x, strict=True))
    return [x, *[[*x[:first], *[None] * len(shape)] for _ in out[1:]]]


@rule("native_group_norm")
def group_norm(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """A norm of groups of channels: every group loses the same number of them."""
    image, weight, bias, *_, groups, _ = args
    x = t.labels(image)
    for labels in x[2:]:
        t.coupling.pin(labels, f"it is a spatial dimension in {t.where!r}")
    own = [(i, a) for i, a in enumerate((weight, bias), 1) if a is not None]
    for _, tensor in own:
        x[1] = t.couple(x[1], t.labels(tensor, {0: x[1]})[0])
    if groups == image.shape[1]:  # every channel alone
        t.expect(_given(t, 1, "num_groups", groups), x[1])
        t.event(name, [])
    else:
        _alike(t, x[1], groups)
        t.event(name, [(0, 1, x[1]), *((i, 0, x[1]) for i, _ in own)], [(0, 1, x[1])])
    t.work(5 if own else 4, *zip(image.shape, x, strict=True))
    return [x, *[[None] * o.dim() for o in out[1:]]]


_SUMS = ("sum", "nansum", "prod", "logsumexp", "linalg_vector_norm", "norm")
_OF_WHAT_IS_LEFT = (
    *("mean", "sum", "amax", "amin", "linalg_vector_norm"),
    *("var", "var_mean", "std", "std_mean"),
)


@rule(
    *("mean", "sum", "amax", "amin", "var", "var_mean", "std", "std_mean"),
    *(
        "linalg_vector_norm",
        "norm",
        "prod",
        "any",
        "all",
        "logsumexp",
        "argmax",
        "argmin",
        "nansum",
        "max",
        "min",
    ),
)
def reduction(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """Reduce axes; if a channel axis is reduced, the proof reduces the surviving channels only."""
    if len([a for a in args if isinstance(a, Tensor)]) > 1:
        return elementwise(t, name, args, kwargs, out)  # torch.max(a, b)
    image: Tensor = args[0]
    x = t.labels(image)
    dims = _reduced(name, args, kwargs, image.dim())
    gone = [d for d in dims if x[d] is not None]
    if t.call is not None and t.call.name == "adaptive_avg_pool2d":  # to one position
        t.work(1, *zip(image.shape, x, strict=True))
    is_length = name == "norm" and t.call is not None and t.call.name == "_weight_norm"
    if name in _SUMS and image in t.weights and not keeps_lengths(t.module):
        return length_of_weights(t, name, image, out, dims)
    if name in _OF_WHAT_IS_LEFT or name in ("max", "min") or is_length:
        t.event(name, [(0, d, x[d]) for d in gone])
        for dim in gone if name in ("max", "min") and not isinstance(out, Tensor) else ():
            found = f"its channels are found by their number in {t.where!r}"
            t.keep_if_used(out[1], x[dim], found)
    else:
        for dim in gone:
            t.coupling.pin(x[dim], f"its channels meet the operation {name} in {t.where!r}")
    first = out if isinstance(out, Tensor) else out[0]
    keeps = first.dim() == image.dim()
    labels = [None if d in dims else v for d, v in enumerate(x) if keeps or d not in dims]
    return labels if isinstance(out, Tensor) else [labels] * len(out)


def _reduced(name: str, args: Any, kwargs: Any, rank: int) -> list[int]:
    place = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = kwargs.get("dim", args[place] if len(args) > place else None)
    if dims is None or (isinstance(dims, list | tuple) and not dims) or isinstance(dims, bool):
        return list(range(rank))
    return [d % rank if rank else 0 for d in (dims if isinstance(dims, list | tuple) else [dims])]


@rule("_softmax", "_log_softmax", "cumsum", "_safe_softmax", "sort", "topk", "cumprod")
def along_one(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """An operation that mixes the positions of one dimension."""
    x = t.labels(args[0])
    place = 2 if name == "topk" else 1
    dim = kwargs.get("dim", args[place] if len(args) > place else -1)
    if x:
        t.coupling.pin(x[dim], f"its channels meet the operation {name} in {t.where!r}")
        x[dim] = None
    return x if isinstance(out, Tensor) else [x] * len(out)


@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"),
    "adaptive_max_pool2d",
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    "grid_sampler_2d",
)
def spatial(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """An operation on every channel alone: its dimensions after the channels have no labels."""
    image: Tensor = args[0]
    x = t.labels(image)
    last = {"1": 1, "2": 2, "3": 3}[next(c for c in name if c in "123")]
    grids = [t.labels(a) for a in args[1:] if isinstance(a, Tensor)]
    reason = f"it is a spatial dimension in {t.where!r}"
    if t.call is not None and t.call.name == "local_response_norm":
        reason = f"a local response norm in {t.where!r} takes neighbouring channels together"
    for labels in (*x[-last:], *(v for grid in grids for v in (*grid, x[0]))):
        t.coupling.pin(labels, reason)
    result = out if isinstance(out, Tensor) else out[0]
    kept: Axes = [*x[:-last], *[None] * last]
    if name == "_adaptive_avg_pool2d":
        t.work(1, *zip(image.shape, kept, strict=True))
    elif name == "upsample_nearest2d":
        t.work(1, *zip(result.shape, kept, strict=True))
    elif name == "upsample_bilinear2d":
        t.work(4, *zip(result.shape, kept, strict=True))
    return kept if isinstance(out, Tensor) else [kept] * len(out)
