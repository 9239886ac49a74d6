"""Products in every layer of torch.nn: counted as by hand, or there are none, or they are named."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from pbcompress import measure, plan_widths
from pbcompress.core.inputs import as_call
from pbcompress.core.time_first import one_sample

STEPS, F, H = 9, 8, 16  # steps of a sequence, its features, hidden features
SEQUENCE = (STEPS, 3, F)  # time first
MEMORY = (5, 3, F)


def recurrent(gates, sides=1, layers=1, proj=0):
    """By hand: every weight of every direction and layer, once for each step."""
    out = proj or H
    weights, inputs = 0, F
    for _ in range(layers):
        weights += sides * (gates * H * (inputs + out) + proj * H)
        inputs = sides * out
    return STEPS * weights


def attention(queries, keys):
    """By hand: in and out projections, scores, and sums."""
    return F * F * (2 * queries + 2 * keys) + 2 * queries * keys * F


def feed_forward(steps):
    return 2 * steps * F * H


ENCODER = attention(STEPS, STEPS) + feed_forward(STEPS)


def decoder(queries, keys):
    return attention(queries, queries) + attention(queries, keys) + feed_forward(queries)


COUNTED = {
    "Linear": (lambda: nn.Linear(8, 5), [(2, 7, 8)], 7 * 8 * 5),
    "NonDynamicallyQuantizableLinear": (
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(8, 5),
        [(2, 8)],
        8 * 5,
    ),
    "Bilinear": (lambda: nn.Bilinear(5, 6, 7), [(2, 3, 5), (2, 3, 6)], 3 * 5 * 6 * 7),
    "Conv1d": (lambda: nn.Conv1d(8, 12, 3), [(2, 8, 10)], 8 * (12 * 8 * 3)),
    "Conv2d": (lambda: nn.Conv2d(8, 12, 3, groups=4), [(2, 8, 6, 6)], 16 * (12 * 2 * 9)),
    "Conv1d, same": (lambda: nn.Conv1d(8, 12, 4, padding="same"), [(2, 8, 10)], 10 * (12 * 8 * 4)),
    "Conv2d, same": (
        lambda: nn.Conv2d(8, 12, 3, padding="same", dilation=2, groups=4),
        [(2, 8, 6, 6)],
        36 * (12 * 2 * 9),
    ),
    "Conv2d, valid": (
        lambda: nn.Conv2d(8, 12, 3, padding="valid"),
        [(2, 8, 6, 6)],
        16 * (12 * 8 * 9),
    ),
    "Conv3d": (lambda: nn.Conv3d(8, 12, 2), [(2, 8, 4, 4, 4)], 27 * (12 * 8 * 8)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 12, 3, 2), [(2, 8, 10)], 10 * 288),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 12, 3, 2), [(2, 8, 6, 6)], 36 * 864),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(8, 12, 2), [(2, 8, 4, 4, 4)], 64 * 768),
    "LSTM": (lambda: nn.LSTM(F, H, 2, bidirectional=True), [SEQUENCE], recurrent(4, 2, 2)),
    "GRU": (lambda: nn.GRU(F, H, 2), [SEQUENCE], recurrent(3, 1, 2)),
    "RNN": (lambda: nn.RNN(F, H), [SEQUENCE], recurrent(1)),
    "LSTM, batch first": (lambda: nn.LSTM(F, H, batch_first=True), [(3, STEPS, F)], recurrent(4)),
    "LSTM, projected": (lambda: nn.LSTM(F, H, proj_size=4), [SEQUENCE], recurrent(4, proj=4)),
    "LSTM, no batch": (lambda: nn.LSTM(F, H), [(STEPS, F)], recurrent(4)),
    "LSTM, one step": (lambda: nn.LSTM(F, H), [(1, 3, F)], recurrent(4) // STEPS),
    "LSTMCell": (lambda: nn.LSTMCell(F, H), [(3, F)], 4 * H * (F + H)),
    "GRUCell": (lambda: nn.GRUCell(F, H), [(3, F)], 3 * H * (F + H)),
    "RNNCell": (lambda: nn.RNNCell(F, H), [(3, F)], H * (F + H)),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(F, 2),
        [SEQUENCE, MEMORY, MEMORY],
        attention(STEPS, 5),
    ),
    "MultiheadAttention, batch first": (
        lambda: nn.MultiheadAttention(F, 2, batch_first=True),
        [(3, STEPS, F), (3, 5, F), (3, 5, F)],
        attention(STEPS, 5),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(F, 2, H),
        [SEQUENCE],
        ENCODER,
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(F, 2, H, batch_first=True), 2),
        [(3, STEPS, F)],
        2 * ENCODER,
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(F, 2, H),
        [SEQUENCE, MEMORY],
        decoder(STEPS, 5),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(F, 2, H), 2),
        [SEQUENCE, MEMORY],
        2 * decoder(STEPS, 5),
    ),
    "Transformer": (
        lambda: nn.Transformer(F, 2, 1, 1, H),
        [MEMORY, SEQUENCE],
        attention(5, 5) + feed_forward(5) + decoder(STEPS, 5),
    ),
}
SUFFIXES = ("Loss", "Loss2d", "1d", "2d", "3d", "Dropout", "Norm")
NO_PRODUCTS = {
    *("Identity", "Embedding", "EmbeddingBag", "Fold", "Unfold", "PixelShuffle", "PixelUnshuffle"),
    *("ChannelShuffle", "Flatten", "Unflatten", "Upsample", "CosineSimilarity", "PairwiseDistance"),
    *("Softmax", "Softmax2d", "Softmin", "LogSoftmax", "Softplus", "Softshrink", "Softsign"),
    *("ReLU", "ReLU6", "RReLU", "PReLU", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU"),
    *("Mish", "GLU", "Sigmoid", "LogSigmoid", "Tanh", "Tanhshrink", "Threshold", "Hardtanh"),
    *("Hardsigmoid", "Hardswish", "Hardshrink", "SyncBatchNorm", "CrossMapLRN2d"),
}
CONTAINERS = {"Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList"}
CONTAINERS |= {
    "ParameterDict",
    "RNNBase",
    "RNNCellBase",
    "DataParallel",
    "AdaptiveLogSoftmaxWithLoss",
}


def test_every_layer_of_torch_is_here():
    """What shrinks a loss or a pool to a name is by its suffix; a new kind of layer fails here."""
    kinds = {n for n, k in vars(nn).items() if inspect.isclass(k) and issubclass(k, nn.Module)}
    known = {name.partition(",")[0] for name in COUNTED} | NO_PRODUCTS | CONTAINERS
    left = {n for n in kinds - known if not n.endswith(SUFFIXES) and not n.startswith("Lazy")}
    assert left == set()
    products = ("Conv", "Linear")
    named = {n for n in kinds if n.startswith(products) and not n.endswith("Loss")}
    assert named - set(COUNTED) == set()
    assert len(COUNTED) == 29


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@pytest.mark.parametrize("name", COUNTED)
def test_products_are_counted_as_by_hand(name):
    make, shapes, expected = COUNTED[name]
    cost = measure(make(), tuple(map(torch.randn, shapes)))
    kinds = ("convolution", "matrix product")
    assert sum(cost.by_operation.get(kind, 0) for kind in kinds) == expected
    if name != "Bilinear":  # whose product is no matrix product for torch's counter
        assert sum(cost.dispatched.get(kind, 0) for kind in kinds) == expected


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(8, 8))

    def forward(self, x):
        return self.function(x, self.weight)


FUNCTIONS = {
    "matmul": (lambda x, w: x @ w, 4 * 64),
    "matmul, stretched": (lambda x, w: w @ torch.ones(3, 1, 8, 2), 3 * 8 * 8 * 2),
    "matrix by vector": (lambda x, w: x @ w[0], 4 * 8),
    "mv": (lambda x, w: torch.mv(x[0], w[0]), 4 * 8),
    "dot": (lambda x, w: torch.dot(x[0, 0], w[0]), 8),
    "inner": (lambda x, w: torch.inner(x, w), 4 * 64),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 1), 4 * 64),
    "bmm": (lambda x, w: torch.bmm(x, w[None]), 4 * 64),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x, w[None]), 4 * 64),
    "addbmm": (lambda x, w: torch.addbmm(x[0], x, w[None]), 4 * 64),
    "addmv": (lambda x, w: torch.addmv(w[0, :4], x[0], w[0]), 4 * 8),
    "einsum": (lambda x, w: torch.einsum("bij,jk->bik", x, w), 4 * 64),
    "einsum, batches": (lambda x, w: torch.einsum("...j,jk", x, w), 4 * 64),
    "einsum, no sum": (lambda x, w: torch.einsum("bij,j->bij", x, w[0]), 0),
    "einsum, a sum of one": (lambda x, w: torch.einsum("bij,jk->bi", x, w), 4 * 8),
    "einsum, from left to right": (
        lambda x, w: torch.einsum("bij,jk,kl,lm->bim", x, w[:, :2], w[:2, :3], w[:3]),
        4 * (8 * 2 + 2 * 3 + 3 * 8),
    ),
    "einsum, by numbers": (lambda x, w: torch.einsum(x, [0, 1, 2], w, [2, 3], [0, 1, 3]), 4 * 64),
    "chain": (lambda x, w: torch.linalg.multi_dot([x[0], w, w[:, :2]]), 8 * 8 * 2 + 4 * 8 * 2),
    "chain that starts with a vector": (
        lambda x, w: torch.linalg.multi_dot([x[0, 0], w, w]),
        2 * 64,
    ),
    "power": (lambda x, w: torch.linalg.matrix_power(w, 3), 2 * 512),
    "power of two bits": (lambda x, w: torch.linalg.matrix_power(w, 5), 3 * 512),
    "attention": (
        lambda x, w: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True),
        2 * 4 * 4 * 8,
    ),
    "attention, heads": (
        lambda x, w: nn.functional.scaled_dot_product_attention(
            x.view(1, 4, 2, 4).transpose(1, 2), torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 3)
        ),
        2 * 4 * 5 * (4 + 3),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_counted_as_by_hand(name):
    function, expected = FUNCTIONS[name]
    cost = measure(Function(function), torch.ones(1, 4, 8))
    assert cost.flops == expected
    if "vector" not in name and name not in ("mv", "dot", "addmv", "addbmm"):  # no matrix products
        assert sum(cost.dispatched.values()) == expected


class Stream(nn.Module):
    """A layer within a network whose input has time first, or the batch."""

    def __init__(self, layer, transposed):
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, F), layer, nn.Linear(H, 3)
        self.transposed = transposed

    def forward(self, x):
        x = self.stem(x)
        y, _ = self.layer(x.transpose(0, 1) if self.transposed else x)
        return self.head(y)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_batch_is_the_axis_that_the_layer_takes_for_it(batch_first, transposed):
    model = Stream(nn.LSTM(F, H, batch_first=batch_first), transposed)
    shape = (STEPS, 3, 4) if batch_first == transposed else (3, STEPS, 4)
    expected = STEPS * (4 * F + H * 3) + recurrent(4)
    assert measure(model, torch.randn(shape)).flops == expected


def test_other_inputs_lose_the_same_samples():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(F, H)

        def forward(self, x, state, lengths):
            return self.rnn(x, state)[0] * lengths[None, :, None]

    given = torch.randn(SEQUENCE), torch.randn(1, 3, H), torch.ones(3)
    args, _ = one_sample(Net(), as_call(given))
    assert [tuple(t.shape) for t in args] == [(STEPS, 1, F), (1, 1, H), (1,)]


PLANNED = {
    "encoder": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(F, 2, H, batch_first=True)),
        (3, STEPS, F),
    ),
    "time first": (partial(Stream, nn.LSTM(F, H), False), (STEPS, 3, 4)),
}


@pytest.mark.parametrize("name", PLANNED)
def test_the_closed_form_of_a_plan_counts_the_same(name):
    make, shape = PLANNED[name]
    model, x = make().eval(), torch.randn(shape)
    assert plan_widths(model, x, 0.9).cost_before.flops == measure(model, x).flops
