"""Every rule of an operation, held against what the operation does to numbers.

The labels that a rule gives to a result say which of its positions go when some positions of the
operands do. The oracle knows no labels: it runs the operation on operands without these positions,
and on whole operands whose removed positions hold zeros, or other numbers. What is left must be
the same in all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pbcompress.core.modules import plain_kernels
from pbcompress.structure.label_pass import trace
from pbcompress.structure.rules import RULES

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:index_reduce")  # is in beta
ANY_GRU = nn.GRU(1, 1)  # a network for whose sake the kernels are plain


@dataclass(frozen=True)
class Sample:
    """One call of an operation.

    ``free`` names, for each operand, the axes whose positions may go (None: all of them). ``how``
    is what the result is to removed positions: "apart" (none of what is left sees them), "sums"
    (they count as zeros), "counts" (a reduction of what is left), "draws" (values are random).
    Operands are computed from an input, if they are no weights.
    """

    function: Callable
    shapes: tuple
    free: tuple | None = None
    how: str = "apart"
    dtype: torch.dtype = torch.float64
    least: int = 1  # positions that are left of every dimension
    block: int = 1  # positions that go together
    weights: bool = False

    def operands(self):
        generator = torch.Generator().manual_seed(3)
        made = [torch.rand(s, generator=generator, dtype=torch.float64) for s in self.shapes]
        return [(0.1 + 0.8 * t).to(self.dtype) for t in made]

    def expected_free(self):
        if self.free is not None:
            return tuple(self.free)
        return tuple(
            "".join(str(d) for d, size in enumerate(shape) if size > 1) for shape in self.shapes
        )


class Probed(nn.Module):
    """Runs a call; adding a probe to every axis of every result shows the labels of that axis."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample
        self.operands = nn.ParameterList(sample.operands())
        self.probes = nn.ParameterDict()
        for k, result in enumerate(run(sample, sample.operands())):
            for axis, size in enumerate(result.shape):
                if size > 1:
                    self.probes[f"{k}_{axis}"] = nn.Parameter(torch.zeros(size))

    def forward(self, one):
        """``one`` is 1."""
        operands = self.operands
        if not self.sample.weights:
            operands = [t * one if t.is_floating_point() else t for t in operands]
        for k, result in enumerate(tensors(self.sample.function(*operands))):
            for axis, size in enumerate(result.shape):
                if size > 1:
                    shape = [-1 if d == axis else 1 for d in range(result.dim())]
                    torch.add(result, self.probes[f"{k}_{axis}"].view(shape))
        return torch.zeros(())  # an output that no channel reaches


def tensors(result):
    return [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]


def run(sample, operands):
    torch.default_generator.manual_seed(5)
    with torch.no_grad(), plain_kernels(ANY_GRU):
        return tensors(sample.function(*[t.clone() for t in operands]))


class Names(TorchDispatchMode):
    """Collects the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def take(tensor, keep):
    for axis, kept in enumerate(keep):
        tensor = tensor.index_select(axis, kept.nonzero().squeeze(1))
    return tensor


def put(tensor, keep, value):
    tensor = tensor.clone()
    for axis, kept in enumerate(keep):
        tensor.index_fill_(axis, (~kept).nonzero().squeeze(1), value)
    return tensor


class Labels:
    """What the rules say about a sample: which positions of operands and results have which."""

    def __init__(self, sample):
        network = Probed(sample)
        self.trace = trace(network, ((torch.ones((), dtype=torch.float64),), {}))
        self.coupling = self.trace.coupling
        self.operands = [
            [self.parts(f"operands.{i}", axis, size) for axis, size in enumerate(shape)]
            for i, shape in enumerate(sample.shapes)
        ]
        self.results = [
            [self.probe(k, axis, size) for axis, size in enumerate(result.shape)]
            for k, result in enumerate(run(sample, sample.operands()))
        ]

    def parts(self, name, axis, size):
        if name not in self.trace.tensors:
            return [torch.zeros(size, dtype=torch.long)]
        return self.coupling.parts(self.trace.tensors[name][axis])

    def probe(self, k, axis, size):
        return self.parts(f"probes.{k}_{axis}", 0, size)

    def units(self):
        found = torch.cat([part for axes in self.operands for parts in axes for part in parts])
        return sorted(set(found.tolist()) - {0})

    def kept(self, tensors_parts, gone):
        return [
            [~torch.stack([torch.isin(part, gone) for part in parts]).any(0) for parts in axes]
            for axes in tensors_parts
        ]

    def counted(self):
        """Units along which an operation of this sample depends on their number."""
        selected = [v for event in self.trace.events for _, _, v in event.selects]
        parts = [part for labels in selected for part in self.coupling.parts(labels)]
        return set(torch.cat(parts).tolist()) - {0} if parts else set()


def removals(units, block):
    """The first and last blocks of units alone, and a half and the other half of all."""
    blocks = [units[i : i + block] for i in range(0, len(units), block)]
    alone = blocks[:3] + blocks[-2:]
    halves = [[u for own in half for u in own] for half in (blocks[::2], blocks[1::2])]
    return [*alone, *halves] if len(blocks) > 1 else alone


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def check(sample):
    labels = Labels(sample)
    free = tuple(
        "".join(str(d) for d, parts in enumerate(axes) if torch.stack(parts).any())
        for axes in labels.operands
    )
    assert free == sample.expected_free()
    operands, counted = sample.operands(), labels.counted()
    whole = run(sample, operands)
    for gone in removals(labels.units(), sample.block):
        gone_labels = torch.tensor(gone)
        keep = labels.kept(labels.operands, gone_labels)
        left = labels.kept(labels.results, gone_labels)
        if any(kept.sum() < min(len(kept), sample.least) for axes in keep + left for kept in axes):
            continue
        sliced = run(sample, [take(t, k) for t, k in zip(operands, keep, strict=True)])
        assert [t.shape for t in sliced] == [
            take(t, k).shape for t, k in zip(whole, left, strict=True)
        ]
        if sample.how == "counts" and counted & set(gone):
            continue
        values = (0.0,) if sample.how in ("sums", "counts") else (0.0, 0.37, 0.71)
        for value in values:
            changed = run(sample, [put(t, k, value) for t, k in zip(operands, keep, strict=True)])
            for t, w, k, s in zip(changed, whole, left, sliced, strict=True):
                if sample.how == "draws":
                    continue
                assert_same(s, take(t, k))
                if sample.how == "apart":
                    assert_same(take(t, k), take(w, k))
    return labels


def products_of_experts(x, weights):
    """Six rows, two for the first matrix: of float32 that sums exactly, in rows of 16 bytes."""
    rows = torch.arange(1.0, 7).unsqueeze(1) * (10 * x).round().float()
    ends = torch.tensor([2, 6], dtype=torch.int32)
    return torch._grouped_mm(rows, (10 * weights).round().float(), offs=ends)


# --- element by element --------------------------------------------------------------------------

SHAPE = ((2, 3, 4),)
UNARY = (
    *("abs", "acos", "alias", "asin", "atan", "ceil", "celu"),
    *("clone", "cos", "detach", "elu", "erf", "exp", "exp2"),
    *("expm1", "floor", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
    *("isinf", "isnan", "leaky_relu", "log", "log1p", "log2", "log_sigmoid_forward"),
    *("logical_not", "logit", "mish", "nan_to_num", "neg", "reciprocal", "relu"),
    *("round", "rsqrt", "sigmoid", "sign", "silu", "sin", "sinc"),
    *("softplus", "softshrink", "sqrt", "tan", "tanh", "trunc", "ones_like"),
    *("zeros_like", "_to_copy", "lift_fresh"),
)
IN_PLACE = (
    *("elu_", "gelu_", "hardsigmoid_", "hardswish_", "hardtanh_", "leaky_relu_", "mish_"),
    *("relu_", "sigmoid_", "silu_", "tanh_", "zero_"),
)
DRAWS = ("rand_like", "randn_like", "empty_like", "bernoulli", "normal_", "uniform_")
BINARY = (
    *("add", "atan2", "div", "eq", "ge", "gt", "le"),
    *("lt", "maximum", "minimum", "mul", "ne", "pow", "remainder"),
    *("rsub", "sub", "floor_divide", "fmod", "logical_and", "logical_or", "xlogy"),
    *("copy_", "add_", "div_", "mul_", "sub_"),
)
TERNARY = ("addcdiv", "addcmul", "lerp")
WITH_NUMBERS = {
    "clamp": (0.3, 0.6),
    "clamp_": (0.3, 0.6),
    "clamp_max": (0.6,),
    "clamp_min": (0.6,),
    "fill_": (2.0,),
    "full_like": (2.0,),
    "threshold": (0.5, 0.1),
    "threshold_": (0.5, 0.1),
    "native_dropout": (0.0, True),
}
BROADCAST = (
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (3, 1)),
    ((2, 3, 4), (1, 3, 4)),
    ((2, 3, 4), ()),
)


def named(name, *numbers):
    return lambda *operands: getattr(aten, name)(*operands, *numbers)


SAMPLES = {
    **{name: Sample(named(name), SHAPE) for name in UNARY + IN_PLACE},
    **{name: Sample(named(name), SHAPE, how="draws") for name in DRAWS},
    **{
        f"{name} {i}": Sample(named(name), shapes)
        for k, name in enumerate(BINARY)
        for i, shapes in enumerate((BROADCAST[0], BROADCAST[1 + k % 4]))
    },
    **{name: Sample(named(name), SHAPE * 3) for name in TERNARY},
    **{name: Sample(named(name, *more), SHAPE) for name, more in WITH_NUMBERS.items()},
    "add broadcast both": Sample(torch.add, ((3, 1), (1, 4))),
    "add of one axis more": Sample(torch.add, ((4,), (2, 3, 4))),
    "add of an outer product": Sample(lambda a, b: a[:, None] + b, ((3,), (4,))),
    "clamp by tensors": Sample(torch.clamp, ((3, 4), (4,), (3, 1))),
    "where": Sample(lambda a, b, c: torch.where(a > 0.5, b, c), ((3, 4), (4,), (3, 1))),
    "masked fill": Sample(lambda a, b: a.masked_fill(b > 0.5, 2.0), ((3, 4), (4,))),
    "masked fill in place": Sample(lambda a, b: a.masked_fill_(b > 0.5, 2.0), ((3, 4), (4,))),
    "logic": Sample(lambda a, b: ((a > 0.5) & (b > 0.5)) | ~(a > 0.7), ((3, 4), (4,))),
    "exponential": Sample(aten.exponential_, SHAPE, how="draws"),
    "bernoulli in place": Sample(lambda a: a.bernoulli_(0.5), SHAPE, how="draws"),
    "conjugate": Sample(lambda a: torch._conj(a).resolve_conj(), SHAPE, dtype=torch.complex128),
    "view as real": Sample(torch.view_as_real, SHAPE, dtype=torch.complex128),
    "view as complex": Sample(torch.view_as_complex, ((3, 4, 2),), ("01",)),
    "complex from parts": Sample(torch.complex, SHAPE * 2),
    "polar": Sample(torch.polar, ((3, 4), (3, 4))),
    "angle": Sample(lambda a: torch.angle(a - 0.5), SHAPE),
    "real and imaginary": Sample(lambda a: (a.real, a.imag), SHAPE, dtype=torch.complex128),
    "fft": Sample(torch.fft.fft, SHAPE, ("01",), dtype=torch.complex128),
    "fft of two": Sample(lambda x: torch.fft.fft2(x, dim=(0, 2)), SHAPE, ("1",)),
    "rfft2": Sample(torch.fft.rfft2, ((2, 3, 4, 4),), ("01",)),
    "irfft": Sample(lambda x: torch.fft.irfft(x, n=6, dim=1), SHAPE, ("02",), dtype=torch.cdouble),
    "irfft2": Sample(
        lambda x: torch.fft.irfft2(x, s=(4, 4)), ((2, 3, 4, 3),), ("01",), dtype=torch.cdouble
    ),
    "stft": Sample(
        lambda x: torch.stft(x, 4, 2, window=torch.ones(4, dtype=x.dtype), return_complex=True),
        ((3, 12),),
        ("0",),
    ),
    "istft": Sample(
        lambda x: torch.istft(x, 4, 2, window=torch.ones(4, dtype=torch.double)),
        ((3, 3, 5),),
        ("0",),
        dtype=torch.cdouble,
    ),
    "windows across rows": Sample(lambda x: x.as_strided((2, 5), (4, 1)), ((3, 4),), ("",)),
    "a pointwise one without a rule": Sample(lambda a, b: torch.hypot(a, b).erfinv(), SHAPE * 2),
    "one in place without a rule": Sample(lambda a: a.sqrt_().square_(), SHAPE),
    "assertion": Sample(lambda a: (torch._assert_async((a > 0).all()), a)[1], SHAPE, ("",)),
    "prelu": Sample(functional.prelu, ((2, 3, 4), (3,))),
    "rrelu": Sample(functional.rrelu, SHAPE),
    "rrelu in place": Sample(lambda x: functional.rrelu(x, inplace=True), SHAPE),
    "prelu of one weight": Sample(functional.prelu, ((2, 3, 4), (1,))),
}

# --- products ------------------------------------------------------------------------------------


def convolution(shape, weight, bias=True, **options):
    shapes = (shape, weight, (options.pop("width", weight[0]),)) if bias else (shape, weight)

    def call(x, w, b=None):
        groups = options.get("groups", 1)
        if groups > 1 and groups == shape[1]:
            groups = x.shape[1]  # a depthwise one
        kind = "conv_transpose" if options.get("transposed") else "conv"
        more = {k: v for k, v in options.items() if k not in ("groups", "transposed")}
        return getattr(functional, f"{kind}{len(shape) - 2}d")(x, w, b, groups=groups, **more)

    return call, shapes


def conv(shape, weight, free, **options):
    return Sample(*convolution(shape, weight, **options), free, "sums")


SAMPLES |= {
    "mm": Sample(torch.mm, ((3, 4), (4, 5)), how="sums"),
    "mm of a transposed": Sample(lambda a, b: a @ b.t(), ((3, 4), (5, 4)), how="sums"),
    "mm with itself": Sample(lambda a: a.t() @ a, ((3, 4),), how="sums"),
    "addmm": Sample(torch.addmm, ((5,), (3, 4), (4, 5)), how="sums"),
    "addmm of a matrix": Sample(torch.addmm, ((3, 5), (3, 4), (4, 5)), how="sums"),
    "addmm of a column": Sample(torch.addmm, ((3, 1), (3, 4), (4, 5)), how="sums"),
    "linear": Sample(functional.linear, ((2, 3, 4), (5, 4), (5,)), how="sums"),
    "bmm": Sample(torch.bmm, ((2, 3, 4), (2, 4, 5)), how="sums"),
    "grouped mm": Sample(products_of_experts, ((8,), (2, 8, 12)), ("0", "12"), "sums", block=4),
    "baddbmm": Sample(torch.baddbmm, ((3, 5), (2, 3, 4), (2, 4, 5)), how="sums"),
    "matmul of four axes": Sample(torch.matmul, ((2, 3, 4, 5), (3, 5, 2)), how="sums"),
    "einsum": Sample(
        lambda a, b: torch.einsum("bhqd,bhkd->bqhk", a, b), ((2, 3, 4, 5),) * 2, how="sums"
    ),
    "mv": Sample(torch.mv, ((3, 4), (4,)), ("", "")),
    "dot": Sample(torch.dot, ((3,), (3,)), ("", "")),
    "bilinear": Sample(functional.bilinear, ((2, 3), (2, 4), (5, 3, 4)), ("", "", "")),
    "addmv": Sample(torch.addmv, ((3,), (3, 4), (4,)), ("", "", "")),
    "conv1d": conv((2, 4, 5), (3, 4, 2), ("01", "01", "0")),
    "conv2d": conv((2, 4, 5, 5), (3, 4, 2, 3), ("01", "01", "0")),
    "conv2d without bias": conv((2, 4, 5, 5), (3, 4, 1, 1), ("0123", "01"), bias=False),
    "conv3d": conv((2, 4, 3, 3, 3), (3, 4, 2, 2, 2), ("01", "01", "0")),
    "grouped": conv((2, 6, 5, 5), (4, 3, 2, 2), ("01", "01", "0"), groups=2),
    "grouped to one each": conv((2, 6, 5, 5), (2, 3, 2, 2), ("01", "01", "0"), groups=2),
    "depthwise": conv((2, 4, 5, 5), (4, 1, 3, 3), ("01", "0", "0"), groups=4),
    "depthwise with two each": conv((2, 3, 5, 5), (6, 1, 3, 3), ("01", "0", "0"), groups=3),
    "transposed": conv(
        (2, 4, 3, 3), (4, 3, 2, 2), ("01", "01", "0"), width=3, transposed=True, stride=2
    ),
    "transposed 1d": conv((2, 4, 3), (4, 3, 2), ("01", "01", "0"), width=3, transposed=True),
    "transposed grouped": conv(
        (2, 4, 3, 3), (4, 3, 2, 2), ("01", "01", "0"), width=6, transposed=True, groups=2
    ),
    "transposed depthwise": conv(
        (2, 4, 3, 3), (4, 1, 2, 2), ("01", "0", "0"), width=4, transposed=True, groups=4
    ),
    "transposed depthwise with two each": conv(
        (2, 3, 3, 3), (3, 2, 2, 2), ("01", "0", "0"), width=6, transposed=True, groups=3
    ),
    "conv of one channel": conv((2, 1, 5, 5), (3, 1, 2, 2), ("0", "0", "0")),
    "conv to one channel": conv((2, 4, 5, 5), (1, 4, 2, 2), ("01", "1", "")),
    "embedding bag": Sample(
        lambda w: functional.embedding_bag(torch.tensor([[0, 2, 1], [3, 3, 1]]), w, mode="max"),
        ((4, 3),),
        ("1",),
    ),
    "embedding bag of a training": Sample(
        lambda w: aten._embedding_bag(w, torch.tensor([0, 2]), torch.tensor([0]))[0],
        ((4, 3),),
        ("1",),
    ),
    "embedding": Sample(
        lambda w: functional.embedding(torch.tensor([[0, 2, 1]]), w), ((4, 3),), ("1",)
    ),
}


def sdpa(**options):
    return lambda q, k, v, *mask: functional.scaled_dot_product_attention(
        q, k, v, *(m > 0.5 for m in mask), **options
    )


SAMPLES |= {
    "attention": Sample(sdpa(), ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 2)), ("012", "01", "013")),
    "attention scaled by the user": Sample(
        sdpa(scale=0.5), ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 2)), ("0123", "013", "013"), "sums"
    ),
    "attention of fewer key heads": Sample(
        sdpa(enable_gqa=True),
        ((2, 6, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4)),
        ("012", "01", "013"),
    ),
    "attention with a mask": Sample(
        sdpa(), ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4), (3, 5, 6)), ("012", "01", "013", "01")
    ),
}

# --- norms and reductions ------------------------------------------------------------------------

OWN = ((2, 4, 3), (4,), (4,), (4,), (4,))
BY_CHANNEL = ("01", "0", "0", "0", "0")


def reduced(name, *more, how="counts", free=None, shape=(2, 3, 4)):
    return Sample(lambda x: getattr(torch, name)(x, *more), (shape,), free, how)


SAMPLES |= {
    "batch norm": Sample(
        lambda x, m, v, w, b: functional.batch_norm(x, m, v, w, b), OWN, ("012", *BY_CHANNEL[1:])
    ),
    "batch norm without affine": Sample(
        lambda x, m, v: functional.batch_norm(x, m, v), OWN[:3], ("012", "0", "0")
    ),
    "batch norm, legit": Sample(
        lambda x, w, b, m, v: aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[
            0
        ],
        OWN,
        ("012", *BY_CHANNEL[1:]),
    ),
    "batch norm, no update": Sample(
        lambda x, w, b, m, v: aten._batch_norm_no_update(x, w, b, m, v, 0.1, 1e-5)[0],
        OWN,
        ("012", *BY_CHANNEL[1:]),
    ),
    "batch norm of a batch": Sample(
        lambda x, w, b, m, v: aten._native_batch_norm_legit(x, w, b, m, v, True, 0.1, 1e-5)[0],
        ((5, 4, 3), *OWN[1:]),
        ("012", *BY_CHANNEL[1:]),
        "counts",
    ),
    "layer norm": Sample(
        lambda x, w, b: functional.layer_norm(x, (x.shape[-1],), w, b),
        ((2, 3, 4), (4,), (4,)),
        how="counts",
    ),
    "layer norm of all but the first": Sample(
        lambda x, w, b: functional.layer_norm(x, x.shape[1:], w, b),
        ((2, 3, 4), (3, 4), (3, 4)),
        how="counts",
    ),
    "rms norm of two dimensions": Sample(
        lambda x, w: functional.rms_norm(x, x.shape[1:], w), ((2, 3, 4), (3, 4)), how="counts"
    ),
    "rms norm": Sample(
        lambda x, w: functional.rms_norm(x, (x.shape[-1],), w), ((2, 3, 4), (4,)), how="counts"
    ),
    "group norm": Sample(
        lambda x, w, b: functional.group_norm(x, 2, w, b),
        ((2, 8, 3), (8,), (8,)),
        ("01", "0", "0"),
        "counts",
    ),
    "group norm of one group": Sample(
        lambda x, w, b: functional.group_norm(x, 1, w, b),
        ((2, 4, 3), (4,), (4,)),
        ("01", "0", "0"),
        "counts",
    ),
    "group norm of as many groups as channels": Sample(
        lambda x, w, b: functional.group_norm(x, x.shape[1], w, b),
        ((2, 4, 3), (4,), (4,)),
        ("01", "0", "0"),
    ),
    "instance norm": Sample(
        lambda x, w, b: functional.instance_norm(x, None, None, w, b),
        ((2, 4, 3), (4,), (4,)),
        how="counts",
        least=2,
    ),
    "mean": reduced("mean", 1),
    "mean of the last": reduced("mean", -1),
    "mean of two": reduced("mean", (1, 2)),
    "mean of all": reduced("mean"),
    "mean, kept": reduced("mean", 1, True),
    "sum": reduced("sum", (0, -1), how="sums"),
    "nansum": reduced("nansum", 1, free=("02",)),
    "amax": reduced("amax", 1),
    "amin": reduced("amin", (1, 2)),
    "var": Sample(lambda x: torch.var(x, 1, correction=0), SHAPE, how="counts"),
    "std": Sample(lambda x: torch.std(x, 1, correction=0), SHAPE, how="counts"),
    "std and mean": Sample(lambda x: torch.std_mean(x, (1, 2), correction=0), SHAPE, how="counts"),
    "var and mean": Sample(lambda x: torch.var_mean(x, (1, 2), correction=0), SHAPE, how="counts"),
    "vector norm": Sample(lambda x: torch.linalg.vector_norm(x, 2, 1), SHAPE, how="counts"),
    "vector norm of all": Sample(torch.linalg.vector_norm, SHAPE, how="counts"),
    "norm": Sample(lambda x: aten.norm.ScalarOpt_dim(x, 2, [1]), SHAPE, ("02",), "counts"),
    "prod": reduced("prod", 1, free=("02",)),
    "logsumexp": reduced("logsumexp", 1, free=("02",)),
    "argmax": reduced("argmax", 1, free=("02",)),
    "argmin of all": reduced("argmin", free=("",)),
    "max": reduced("max", 1, free=("02",)),
    "min, kept": reduced("min", -1, True, free=("01",)),
    "max of all": reduced("max"),
    "max, its places not used": Sample(lambda x: torch.max(x, 1)[0], SHAPE, how="counts"),
    "max of two": Sample(torch.max, ((3, 4), (4,))),
    "any": Sample(lambda x: (x > 0.5).any(1), SHAPE, ("02",)),
    "all": Sample(lambda x: (x > 0.5).all(), SHAPE, ("",)),
    "weight norm": Sample(
        torch._weight_norm, ((3, 4, 2), (3, 1, 1)), ("0", "0"), "counts", weights=True
    ),
    "sum of weights": Sample(lambda x: x.sum((0, -1)), SHAPE, ("1",), "counts", weights=True),
    "mean of weights": Sample(lambda x: x.mean(1), SHAPE, how="counts", weights=True),
    "length of weights": Sample(
        lambda x: torch.linalg.vector_norm(x, 2, 1), SHAPE, ("02",), "counts", weights=True
    ),
    "length of all weights": Sample(torch.linalg.vector_norm, SHAPE, ("",), "counts", weights=True),
    "softmax": reduced("softmax", 1, free=("02",), how="apart"),
    "log softmax": reduced("log_softmax", -1, free=("01",), how="apart"),
    "safe softmax": Sample(lambda x: aten._safe_softmax(x, 1), SHAPE, ("02",)),
    "cumsum": reduced("cumsum", 1, free=("02",), how="apart"),
    "cumprod": reduced("cumprod", 2, free=("01",), how="apart"),
    "sort": reduced("sort", 1, free=("02",), how="apart"),
    "topk": reduced("topk", 2, 1, free=("02",), how="apart"),
    "topk of the last": reduced("topk", 2, free=("01",), how="apart"),
}

# --- every channel alone -------------------------------------------------------------------------

ROW, IMAGE, VOLUME = (2, 3, 6), (2, 3, 6, 6), (2, 3, 6, 6, 6)
SPATIAL = {
    "avg_pool1d": (ROW, [2]),
    "avg_pool2d": (IMAGE, [2, 2]),
    "avg_pool3d": (VOLUME, [2, 2, 2]),
    "max_pool2d_with_indices": (IMAGE, [2, 2]),
    "max_pool3d_with_indices": (VOLUME, [2, 2, 2]),
    "_adaptive_avg_pool2d": (IMAGE, [2, 3]),
    "_adaptive_avg_pool3d": (VOLUME, [2, 3, 1]),
    "adaptive_avg_pool2d": (IMAGE, [3, 1]),
    "adaptive_avg_pool3d": (VOLUME, [3, 1, 1]),
    "adaptive_max_pool2d": (IMAGE, [2, 3]),
    "adaptive_max_pool3d": (VOLUME, [2, 3, 1]),
    "upsample_nearest1d": (ROW, [9]),
    "upsample_nearest2d": (IMAGE, [9, 7]),
    "upsample_nearest3d": (VOLUME, [7, 7, 7]),
    "_upsample_nearest_exact2d": (IMAGE, [9, 7]),
    "upsample_linear1d": (ROW, [9], False),
    "upsample_bilinear2d": (IMAGE, [9, 7], False),
    "upsample_bicubic2d": (IMAGE, [9, 7], False),
    "_upsample_bilinear2d_aa": (IMAGE, [4, 4], False),
    "_upsample_bicubic2d_aa": (IMAGE, [4, 4], False),
    "upsample_trilinear3d": (VOLUME, [7, 7, 7], False),
    "reflection_pad1d": (ROW, [1, 2]),
    "reflection_pad2d": (IMAGE, [1, 2, 1, 1]),
    "replication_pad1d": (ROW, [1, 2]),
    "replication_pad2d": (IMAGE, [1, 2, 1, 1]),
}
SAMPLES |= {
    name: Sample(named(name, *more), (shape,), ("01",)) for name, (shape, *more) in SPATIAL.items()
}
SAMPLES |= {
    "pool of an unbatched image": Sample(named("avg_pool2d", [2, 2]), ((3, 6, 6),), ("0",)),
    "grid sample": Sample(
        lambda x, grid: functional.grid_sample(x, grid, align_corners=False),
        (IMAGE, (2, 3, 3, 2)),
        ("1", ""),
    ),
    "im2col": Sample(lambda x: functional.unfold(x, (2, 3)), (IMAGE,), ("01",)),
    "col2im": Sample(lambda x: functional.fold(x, (3, 4), (2, 2)), ((2, 12, 6),), ("01",)),
    "col2im without a batch": Sample(
        lambda x: functional.fold(x, (4, 4), 2, stride=2), ((12, 4),), ("0",)
    ),
    "pixel shuffle": Sample(lambda x: functional.pixel_shuffle(x, 2), ((2, 12, 3, 3),), ("01",)),
    "pixel unshuffle": Sample(lambda x: functional.pixel_unshuffle(x, 2), ((2, 3, 4, 4),), ("01",)),
    "channel shuffle": Sample(lambda x: torch.channel_shuffle(x, 2), ((2, 6, 3, 3),)),
}

# --- moving elements -----------------------------------------------------------------------------

SAMPLES |= {
    "flatten": Sample(lambda x: x.flatten(1), SHAPE),
    "flatten all": Sample(lambda x: x.flatten(), SHAPE),
    "flatten from the left": Sample(lambda x: x.flatten(0, 1), SHAPE),
    "view": Sample(lambda x: x.view(x.shape[0], -1, x.shape[3]), ((2, 3, 4, 2),)),
    "view that splits": Sample(
        lambda x, y: x.view(x.shape[0], y.shape[0], -1) * y[:, None], ((2, 12), (3,))
    ),
    "view that splits in three": Sample(
        lambda x, y: x.view(x.shape[0], y.shape[0], y.shape[1], -1) * y[:, :, None],
        ((2, 12), (3, 2)),
    ),
    "view that regroups": Sample(lambda x: x.view(-1, 6), ((6, 4),), ("0",)),
    "distances": Sample(torch.cdist, ((2, 4, 3), (2, 5, 3)), how="sums"),
    "distances by products": Sample(
        lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
        ((2, 4, 3), (2, 5, 3)),
        how="sums",
    ),
    "distances of a list": Sample(
        lambda x, y: torch.cdist(x, y, 1.0), ((4, 3), (5, 3)), how="sums"
    ),
    "squeeze in place": Sample(lambda x: (x * 1).squeeze_(1), ((3, 1, 4),)),
    "squeeze of nothing in place": Sample(lambda x: (x * 1).squeeze_(1), ((3, 4),), least=2),
    "unsqueeze in place": Sample(lambda x: (x * 1).unsqueeze_(1) * 2, ((3, 4),)),
    "packed steps": Sample(
        lambda x: aten._pack_padded_sequence(x, torch.tensor([4, 2]), True)[0], ((2, 4, 3),), ("2",)
    ),
    "view as another type": Sample(lambda x: x.view(torch.int32), ((3, 4),), ("",)),
    "unsafe view": Sample(lambda x: aten._unsafe_view(x, [x.shape[0], -1]), SHAPE),
    "reshape of a transposed": Sample(lambda x: x.transpose(1, 2).reshape(x.shape[0], -1), SHAPE),
    "a merge undone": Sample(
        lambda x: x.flatten(1).view(x.shape[0], x.shape[1], x.shape[2]), SHAPE
    ),
    "reshape alias": Sample(lambda x: aten._reshape_alias(x, [x.numel()], [1]), SHAPE),
    "expand": Sample(lambda x: x.expand(5, *x.shape), ((3, 4),)),
    "expand of one": Sample(lambda x: x.expand(-1, 5), ((3, 1),)),
    "expand as another": Sample(lambda x, y: x.expand_as(y) * y, ((3, 1), (3, 4))),
    "expand to another's size": Sample(lambda x, y: x.expand(-1, y.shape[1]) + y, ((3, 1), (3, 4))),
    "permute": Sample(lambda x: x.permute(2, 0, 1), SHAPE),
    "permute by negative": Sample(lambda x: x.permute(0, -1, 1), SHAPE),
    "transpose": Sample(lambda x: x.transpose(-1, 0), SHAPE),
    "t": Sample(torch.t, ((3, 4),)),
    "t of a vector": Sample(torch.t, ((3,),)),
    "movedim": Sample(lambda x: x.movedim(0, 2), SHAPE),
    "transpose in place": Sample(lambda x: x.transpose_(0, 1), SHAPE),
    "t in place": Sample(lambda x: x.t_(), ((3, 4),)),
    "squeeze": Sample(lambda x: x.squeeze(1), ((3, 1, 4),)),
    "squeeze of all": Sample(torch.squeeze, ((1, 3, 1, 4),), least=2),
    "squeeze of two": Sample(lambda x: x.squeeze((0, -2)), ((1, 3, 1, 4),)),
    "squeeze of more than one": Sample(lambda x: x.squeeze(1), ((3, 4, 4),), least=2),
    "unsqueeze": Sample(lambda x: x.unsqueeze(1), ((3, 4),)),
    "unsqueeze of the last": Sample(lambda x: x.unsqueeze(-1), ((3, 4),)),
    "cat": Sample(lambda a, b: torch.cat([a, b], 1), ((2, 3, 4), (2, 5, 4))),
    "cat of the last": Sample(lambda a, b: torch.cat([a, b], -1), ((2, 3), (2, 5))),
    "cat of the first": Sample(lambda a, b: torch.cat([a, b]), ((2, 3), (4, 3))),
    "cat twice the same": Sample(lambda a: torch.cat([a, a], 1), ((2, 3),)),
    "cat with a constant": Sample(lambda a: torch.cat([a, torch.ones(2, 2)], 1), ((2, 3),), ("1",)),
    "cat of an empty": Sample(lambda a: torch.cat([torch.ones(0), a], 1), ((2, 3),)),
    "stack": Sample(lambda a, b: torch.stack([a, b], 1), ((3, 4), (3, 4))),
    "stack at the end": Sample(lambda a, b: torch.stack([a, b], -1), ((3, 4), (3, 4))),
    "interleave": Sample(lambda a, b: torch.stack([a, b], -1).flatten(1), ((3, 4), (3, 4))),
    "select": Sample(lambda x: x[:, 1], SHAPE, ("02",)),
    "unbind": Sample(lambda x: x.unbind(1), SHAPE, ("02",)),
    "slice": Sample(lambda a, b: torch.cat([a, b], 1)[:, a.shape[1] :], ((2, 3), (2, 4))),
    "slice of the start": Sample(
        lambda a, b: torch.cat([a, b], 1)[:, : a.shape[1]], ((2, 3), (2, 4))
    ),
    "select for the sake of its shape": Sample(
        lambda x: x.new_ones(x[:, :, -1].shape)[..., None] * x, SHAPE
    ),
    "unbind for the sake of its shape": Sample(
        lambda x: x.new_ones(x.unbind(1)[0].size())[:, None] * x, SHAPE
    ),
    "slice of one": Sample(lambda x: x[:, :1], SHAPE, ("012",)),
    "slice with steps": Sample(lambda x: x[:, ::2], SHAPE, ("02",)),
    "narrow": Sample(
        lambda a, b: torch.cat([a, b]).narrow(0, a.shape[0], b.shape[0]), ((3, 2), (4, 2))
    ),
    "split": Sample(lambda x: x.split(x.shape[1] // 2, 1), ((2, 6),)),
    "split of the last": Sample(lambda x: x.split(x.shape[-1] // 2, -1), ((2, 6),)),
    "split into equal sizes": Sample(lambda x: x.split([x.shape[1] // 2] * 2, 1), ((2, 6),)),
    "unsafe split": Sample(lambda x: torch.unsafe_split(x, x.shape[1] // 2, 1), ((2, 6),)),
    "chunk": Sample(lambda x: x.chunk(3, 1), ((2, 6),)),
    "uneven chunks": Sample(lambda x: x.chunk(2, 1), ((2, 5),)),
    "uneven chunks, one of them short": Sample(lambda x: x.chunk(3, 1), ((2, 10),)),
    "fewer chunks than asked for": Sample(lambda x: x.chunk(6, 1), ((2, 9),), ("0",)),
    "uneven parts": Sample(lambda x: x.tensor_split(3, 1), ((2, 11),)),
    "glu": Sample(lambda x: functional.glu(x, 1), ((2, 6, 3),)),
    "glu of the last": Sample(functional.glu, ((2, 6),)),
    "index": Sample(lambda x: x[:, torch.tensor([2, 0])], SHAPE, ("02",)),
    "index add": Sample(
        lambda x, y: x.index_add(0, torch.tensor([2, 0, 2]), y), ((4, 3), (3, 3)), ("1", "1")
    ),
    "index add in place": Sample(
        lambda x, y: x.index_add_(0, torch.tensor([2, 0, 2]), y), ((4, 3), (3, 3)), ("1", "1")
    ),
    "index of two apart": Sample(
        lambda x: x[torch.tensor([0, 1]), :, torch.tensor([1, 0])], SHAPE, ("1",)
    ),
    "index by a matrix": Sample(lambda x: x[:, torch.tensor([[2, 0], [1, 1]])], SHAPE, ("02",)),
    "index by a mask": Sample(lambda x: x[torch.tensor([True, False])], SHAPE, ("12",)),
    "index by a mask of two axes": Sample(
        lambda x: x[torch.tensor([[True, False, True], [False, True, False]])], SHAPE, ("2",)
    ),
    "index by two masks": Sample(
        lambda x: x[torch.tensor([True, False]), torch.tensor([True, False, False])], SHAPE, ("",)
    ),
    "a number where a mask holds": Sample(
        lambda x, y: (x.__setitem__(y > 0.5, 0.25), x)[1], ((2, 3), (2, 3)), ("01", "01")
    ),
    "a number in rows where a mask holds": Sample(
        lambda x, y: (x.__setitem__(y > 0.5, 0.25), x)[1], ((2, 3, 4), (2, 3)), ("012", "01")
    ),
    "values where a mask holds": Sample(
        lambda x, y: (x.__setitem__(torch.tensor([True, False, True]), y), x)[1],
        ((3, 4), (2, 4)),
        ("", ""),
    ),
    "index select": Sample(lambda x: x.index_select(1, torch.tensor([2, 0])), SHAPE, ("02",)),
    "index put": Sample(
        lambda x, y: x.index_put((torch.tensor([2, 0]),), y), ((4, 3), (2, 3)), ("1", "1")
    ),
    "index put in place, of one for all": Sample(
        lambda x, y: x.index_put_((torch.tensor([2, 0, 2]),), y, accumulate=True),
        ((4, 3, 2), (3, 1)),
        ("12", "0"),
    ),
    "writing by index": Sample(
        lambda x, y: (x.__setitem__((slice(None), torch.tensor([2, 0])), y), x)[1],
        ((4, 3), (4, 2)),
        ("0", "0"),
    ),
    "writing a number by index": Sample(
        lambda x: (x.__setitem__(torch.tensor([2, 0]), 0.5), x)[1], ((4, 3),), ("1",)
    ),
    **{
        f"{name}{end}": Sample(
            lambda x, y, n=name, e=end, m=more: getattr(x, n + e)(0, torch.tensor([2, 0]), y, *m),
            ((4, 3), (2, 3)),
            ("1", "1"),
        )
        for name, more in (("index_copy", ()), ("index_reduce", ("mean",)))
        for end in ("", "_")
    },
    **{
        f"index fill{end}": Sample(
            lambda x, e=end: getattr(x, f"index_fill{e}")(0, torch.tensor([1]), 0.5), SHAPE, ("12",)
        )
        for end in ("", "_")
    },
    "gather": Sample(lambda x: x.gather(1, torch.zeros(2, 1, 4, dtype=torch.long)), SHAPE, ("",)),
    "gather of whole rows": Sample(
        lambda x: x.gather(1, torch.tensor([2, 0])[:, None].expand(2, 2, x.shape[2])),
        SHAPE,
        ("2",),
    ),
    "gather along an axis": Sample(
        lambda x: x.take_along_dim(torch.tensor([2, 0])[None, :, None], 1), SHAPE, ("02",)
    ),
    **{
        f"{name}{end}": Sample(
            lambda x, y, n=name, e=end, m=more: getattr(x, n + e)(
                0, torch.tensor([2, 0, 2])[:, None].repeat(1, y.shape[1]), y, *m
            ),
            ((4, 3), (3, 3)),
            ("1", "1"),
        )
        for name, more in (("scatter", ()), ("scatter_add", ()), ("scatter_reduce", ("amax",)))
        for end in ("", "_")
    },
    "scatter of a number": Sample(
        lambda x: x.scatter(0, torch.tensor([[1]]).expand(1, x.shape[1]), 0.5), ((4, 3),), ("1",)
    ),
    "scatter to a part": Sample(
        lambda x: x.scatter(0, torch.zeros(1, 2, dtype=torch.long), 0.5), ((4, 3),), ("",)
    ),
    "flip": Sample(lambda x: x.flip(1), SHAPE),
    "flip of two": Sample(lambda x: x.flip((0, -1)), SHAPE),
    "roll": Sample(lambda x: x.roll(1, 1), SHAPE, ("02",)),
    "roll of two": Sample(lambda x: x.roll((1, 2), (0, -1)), SHAPE, ("1",)),
    "roll of all": Sample(lambda x: x.roll(1), SHAPE, ("",)),
    "repeat": Sample(lambda x: x.repeat(1, 2, 1), SHAPE),
    "repeat with an axis more": Sample(lambda x: x.repeat(2, 1, 3), ((3, 4),)),
    "repeat of one as often as there are channels": Sample(
        lambda x: x.new_ones(1).repeat(x.shape[1], x.shape[2]) * x, SHAPE
    ),
    "repeat interleaved": Sample(lambda x: x.repeat_interleave(2, 1), SHAPE),
    "windows": Sample(lambda x: x.unfold(1, 2, 1), SHAPE, ("02",)),
    "pad": Sample(lambda x: functional.pad(x, (1, 2)), SHAPE),
    "pad of the middle": Sample(lambda x: functional.pad(x, (0, 0, 2, 1)), SHAPE),
    "pad that cuts": Sample(lambda x: functional.pad(x, (-1, 0)), SHAPE, ("01",)),
    "strided": Sample(
        lambda x: aten.as_strided_(x, x.shape, x.stride()), SHAPE
    ),
    "constants of its size": Sample(
        lambda x: (x + x.new_zeros(x.shape), x.new_ones((x.shape[1], 1)) * x), SHAPE
    ),
    "more constants of its size": Sample(
        lambda x: (
            torch.zeros(x.shape) + torch.ones(x.shape[2]) + torch.full((x.shape[1], 1), 2.0),
            x.new_full((x.shape[2],), 3.0) * x,
        ),
        SHAPE,
    ),
    "empty ones": Sample(
        lambda x: (torch.empty(x.shape), x.new_empty(x.shape[1:])), SHAPE, how="draws"
    ),
    "constants": Sample(
        lambda x: (
            x + torch.arange(1) + torch.eye(1) + torch.linspace(0, 1, 1) + torch.scalar_tensor(2)
            + 0 * torch.rand(1) + 0 * torch.randn(1) + 0 * torch.randint(3, (1,))
            + 0 * torch.empty_strided((1,), (1,)).nan_to_num()
        ),
        SHAPE,
    ),
    "equal": Sample(lambda x, y: x * torch.equal(y, y), ((2, 3), (4,)), ("01", "")),
    "nonzero": Sample(lambda x: x.nonzero(), ((2, 3),), ("",)),
    "masked select": Sample(lambda x, y: x.masked_select(y > 0), ((2, 3), (3,)), ("", "")),
    "item": Sample(lambda x: x * x[0, 0, 0].item(), SHAPE, ("",)),
}  # fmt: skip

# Rules for what only runs on a CUDA device; tests marked "gpu" would have to run them.
ON_CUDA = {
    *("cudnn_batch_norm", "_fused_rms_norm", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_labels_say_what_the_operation_does(name):
    check(SAMPLES[name])


def test_every_rule_has_a_sample():
    ran = set()
    for sample in SAMPLES.values():
        with Names() as names:
            run(sample, sample.operands())
        ran |= names.found
    assert set(RULES) - ran == ON_CUDA
    assert len(RULES) > 230
