"""Where removed channels are linear in the others, a compensated network is the original."""

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.compensation import views
from tests.support.nets import Net

WIDTH, LEFT = 12, 6


def readers_of(**layers):
    """Make a network of a Linear per token, or per vector, and what reads it."""
    return Net(lambda net, x: net.reader(net.producer(x)), **layers)


def first(net, x):
    return net.reader(net.producer(x))[0]


def cell(net, x):
    state = None
    for step in net.producer(x).unbind(1):
        state = net.reader(step, state)
    return state


def mixed(net, x):
    """Two readers of a stream, one of them behind a sum with a further writer."""
    z = net.producer(x)
    z = z + net.second(torch.tanh(net.reader(z)))
    return net.head(z)


def separable(net, x):
    return net.reader(net.depthwise(net.producer(x)))


def same_filters(net):
    net.depthwise.weight.copy_(net.depthwise.weight[:1].expand_as(net.depthwise.weight))
    net.depthwise.bias.zero_()


def linear(bias=True):
    return nn.Linear(7, WIDTH, bias)


def vectors(n):
    return torch.randn(n, 7)


def tokens(n):
    return torch.randn(n, 5, 7)


def spatial(dims, size=6):
    return lambda n: torch.randn(n, 3, *[size] * dims)


def conv2d(*args, **others):
    return lambda: readers_of(
        producer=nn.Conv2d(3, WIDTH, 1, bias=False), reader=nn.Conv2d(WIDTH, *args, **others)
    )


KINDS = {
    "linear": (lambda: readers_of(producer=linear(), reader=nn.Linear(WIDTH, 4)), vectors),
    "linear without bias": (
        lambda: readers_of(producer=linear(False), reader=nn.Linear(WIDTH, 4, bias=False)),
        vectors,
    ),
    "linear on tokens": (lambda: readers_of(producer=linear(), reader=nn.Linear(WIDTH, 4)), tokens),
    "conv1d": (
        lambda: readers_of(
            producer=nn.Conv1d(3, WIDTH, 1), reader=nn.Conv1d(WIDTH, 4, 3, dilation=2)
        ),
        spatial(1),
    ),
    "conv2d": (conv2d(4, 3, padding=1, stride=2), spatial(2)),
    "conv2d, same": (conv2d(4, 4, padding="same"), spatial(2)),
    "conv2d, dilated": (
        conv2d(4, 3, padding=2, dilation=(1, 2)),
        spatial(2),
    ),
    "conv3d": (
        lambda: readers_of(
            producer=nn.Conv3d(3, WIDTH, 1), reader=nn.Conv3d(WIDTH, 4, (2, 3, 1), stride=(1, 2, 1))
        ),
        spatial(3, 4),
    ),
    "grouped": (conv2d(8, 3, groups=2, padding=1), spatial(2)),
    "depthwise": (
        lambda: Net(
            separable,
            producer=nn.Conv2d(3, WIDTH, 1, bias=False),
            depthwise=nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH),
            reader=nn.Conv2d(WIDTH, 4, 1),
        ),
        spatial(2),
    ),
    "transposed": (
        lambda: readers_of(
            producer=nn.Conv2d(3, WIDTH, 1, bias=False),
            reader=nn.ConvTranspose2d(WIDTH, 4, 3, stride=2, padding=1),
        ),
        spatial(2),
    ),
    "lstm": (
        lambda: Net(first, producer=linear(), reader=nn.LSTM(WIDTH, 4, batch_first=True)),
        tokens,
    ),
    "bidirectional gru": (
        lambda: Net(
            first, producer=linear(), reader=nn.GRU(WIDTH, 4, batch_first=True, bidirectional=True)
        ),
        tokens,
    ),
    "gru cell": (lambda: Net(cell, producer=linear(), reader=nn.GRUCell(WIDTH, 4)), tokens),
    "embedding": (
        lambda: readers_of(producer=nn.Embedding(40, WIDTH), reader=nn.Linear(WIDTH, 4)),
        lambda n: torch.randint(0, 40, (n, 5)),
    ),
    "stream": (
        lambda: Net(
            mixed,
            producer=linear(False),
            reader=nn.Linear(WIDTH, 9),
            second=nn.Linear(9, WIDTH, bias=False),
            head=nn.Linear(WIDTH, 4),
        ),
        tokens,
    ),
}
BY_CHANNEL = ["conv2d, same", "conv3d", "grouped", "depthwise"]


def cut_where_it_is_linear(kind, dtype):
    """Return a network, its cut, the plan and batches; what goes is linear in what stays."""
    make, inputs = KINDS[kind]
    model = make().to(dtype).eval()
    pin = (("producer", LEFT),)
    if kind == "stream":
        pin += (("reader", 9),)
    batches = [inputs(16) for _ in range(6)]
    batches = [b.to(dtype) if b.is_floating_point() else b for b in batches]
    plan = pb.plan_widths(model, batches[0][:1], 0.97, config=pb.WidthConfig(pin=pin))
    cut = next(s for s in plan.steps if s.layer == "producer")
    gone = list(cut.removed)
    stay = [i for i in range(WIDTH) if i not in gone]
    assert len(stay) == LEFT
    mix = torch.randn(len(gone), LEFT, dtype=dtype) / LEFT**0.5
    with torch.no_grad():
        if kind == "depthwise":
            same_filters(model)
        for layer in ("producer", "second"):
            for tensor in getattr(model, layer, nn.Identity()).parameters():
                rows = tensor.T if kind == "embedding" else tensor
                if rows.dim() > 1:  # what goes may have a mean of its own, which a bias takes
                    rows[gone] = (mix @ rows[stay].flatten(1)).reshape(rows[gone].shape)
    return model, pb.shrink(model, plan), plan, batches


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    ("kind", "features"), [*((k, 1152) for k in KINDS), *((k, 0) for k in BY_CHANNEL)]
)
@torch.no_grad()
def test_it_is_the_original_where_what_went_is_linear_in_what_stayed(
    kind, features, dtype, bound, monkeypatch
):
    monkeypatch.setattr(views, "FEATURES", features)
    model, small, plan, batches = cut_where_it_is_linear(kind, dtype)
    new = KINDS[kind][1](16)
    new = new.to(dtype) if new.is_floating_point() else new
    assert relative_error(model(new), small(new)) > 1e-2
    report = pb.compensate_(small, model, plan, batches)
    assert relative_error(model(new), small(new)) < bound
    assert report.left == {}
    assert all(e.after < 1e-9 < e.before for e in report.layers.values())
    assert all(e.strength is not None for e in report.layers.values())
