"""Networks of torch's transformer layers are planned, and reasons for what is not are true."""

import random

import pytest
import torch
from torch import nn

from pbcompress import TargetUnreachableError, plan_widths, shrink
from pbcompress.core.modules import plain_attention
from pbcompress.planning.planner import UNPROVEN
from tests.support.nets import Net

X = torch.randn(2, 5, 6)
MASK = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
MEMORY = torch.randn(2, 3, 6)


def encoder(forward, **options):
    layer = nn.TransformerEncoderLayer(16, 4, 32, **{"batch_first": True, **options})
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(forward, stem=nn.Linear(6, 16), stack=stack, head=nn.Linear(16, 3))


def decoder(forward, **options):
    layer = nn.TransformerDecoderLayer(16, 4, 32, **{"batch_first": True, **options})
    layers = {"stem": nn.Linear(6, 16), "memory": nn.Linear(6, 16), "head": nn.Linear(16, 3)}
    return Net(forward, stack=nn.TransformerDecoder(layer, 2), **layers)


def attention(forward, **options):
    layer = nn.MultiheadAttention(16, 4, batch_first=True, **options)
    return Net(forward, stem=nn.Linear(6, 16), layer=layer, head=nn.Linear(16, 3))


def encoded(s, x, **masks):
    return s.head(s.stack(s.stem(x), **masks))


def decoded(s, x, m, **masks):
    return s.head(s.stack(s.stem(x), s.memory(m), **masks))


def padded(s, x, mask):
    return encoded(s, x, src_key_padding_mask=mask)


def causal(s, x, mask):
    own = nn.Transformer.generate_square_subsequent_mask(x.shape[-2])
    numbers = torch.zeros(mask.shape).masked_fill(mask, float("-inf"))
    return encoded(s, x, mask=own, src_key_padding_mask=numbers)


def attended(s, x, mask=None):
    return s.head(s.layer(*[s.stem(x)] * 3, key_padding_mask=mask)[0])


NETS = {
    "two layers": (lambda: encoder(encoded), (X,)),
    "norm first": (lambda: encoder(encoded, norm_first=True), (X,)),
    "padded": (lambda: encoder(padded), (X, MASK)),
    "causal and padded": (lambda: encoder(causal), (X, MASK)),
    "time first and padded": (
        lambda: encoder(padded, batch_first=False),
        (X.transpose(0, 1).contiguous(), MASK),
    ),
    "decoder": (lambda: decoder(decoded), (X, MEMORY)),
    "decoder, padded memory": (
        lambda: decoder(lambda s, x, m, k: decoded(s, x, m, memory_key_padding_mask=k)),
        (X, MEMORY, MASK[:, 2:]),
    ),
    "attention, padded": (lambda: attention(attended), (X, MASK)),
    "attention, further keys": (
        lambda: attention(attended, add_bias_kv=True, add_zero_attn=True),
        (X,),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_of_torchs_attention_is_planned_to_its_target(name):
    make, inputs = NETS[name]
    torch.manual_seed(0)
    model = make().eval()

    plan = plan_widths(model, inputs, 0.7)

    assert plan.cost_after.params <= 0.7 * plan.cost_before.params
    assert not any("fixed size" in why for why in plan.solution.left_alone.values())
    small = shrink(model, plan).eval()
    with torch.no_grad():
        assert small(*inputs).shape == model(*inputs).shape


def test_where_nothing_can_be_proven_the_reason_is_true_and_comes_at_once():
    def drawn(s, x):  # from a generator that no seed of torch reaches
        return s.b(s.a(x) * DRAWS.random())

    model = Net(drawn, a=nn.Linear(6, 32), b=nn.Linear(32, 2))
    with pytest.raises(TargetUnreachableError, match=UNPROVEN):
        plan_widths(model, torch.randn(2, 6), 0.5)


DRAWS = random.Random(0)


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_an_odd_number_of_heads_left_takes_no_nested_tensors(heads):
    """Torch decides so where it makes one; its layers fail on them otherwise."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8 * heads, heads, 64, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2)
    model = Net(padded, stem=nn.Linear(6, 8 * heads), stack=stack, head=nn.Linear(8 * heads, 3))
    assert model.stack.use_nested_tensor
    plan = plan_widths(model.eval(), (X, MASK), 0.5)
    small = shrink(model, plan)
    left = small.stack.layers[0].self_attn.num_heads
    assert small.stack.use_nested_tensor == (left % 2 == 0)
    with torch.no_grad():
        fast = small(X, MASK)
        with plain_attention():
            torch.testing.assert_close(fast[0], small(X, MASK)[0], rtol=1e-4, atol=1e-5)


def test_plain_attention_uses_a_causal_mask_as_it_is_and_gives_torch_its_function_back():
    detect = nn.modules.transformer._detect_is_causal_mask
    model = encoder(causal).eval()
    with torch.no_grad():
        wanted = model(X, MASK)
        with plain_attention():
            assert nn.modules.transformer._detect_is_causal_mask is not detect
            torch.testing.assert_close(model(X, MASK), wanted)
    assert nn.modules.transformer._detect_is_causal_mask is detect
