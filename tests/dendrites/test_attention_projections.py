"""torch's attention, opened: equal to the original, and dendrites on all that it is made of."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.dendrites.attention_projections import OpenAttention
from pbcompress.dendrites.forms import growable_layers
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.errors import CompressionError, UnsupportedLayerError
from pbcompress.onnx_files.session import Session
from tests.support.pairwise import pairwise, pairwise_by_default

L, S, N, E, HEADS = 5, 4, 3, 8, 2
BOOLS = (False, True)
MASKS = ("none", "bool", "float", "by head")
PADDINGS = ("none", "bool", "float")
CALLS = ("self", "cross", "all different")
CASES = list(itertools.product(CALLS, BOOLS, BOOLS, MASKS, PADDINGS))


def inputs(call: str, batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    tokens = L if call == "self" else S
    q, k, v = (torch.randn(N, n, E).double() for n in (L, tokens, tokens))
    if not batch_first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    return {"self": (q, q, q), "cross": (q, k, k), "all different": (q, k, v)}[call]


def masked(kind: str, shape: tuple[int, ...]) -> Tensor | None:
    if kind == "none":
        return None
    hidden = torch.rand(shape) < 0.3
    hidden[..., 0] = False  # nobody is left without a key
    return torch.randn(shape).double() if kind == "float" else hidden


@pytest.mark.parametrize(
    ("call", "batch_first", "bias", "mask", "padding"), pairwise_by_default(CASES)
)
def test_opened_attention_computes_what_the_original_does(
    call: str, batch_first: bool, bias: bool, mask: str, padding: str
) -> None:
    assert (len(CASES), len(pairwise(CASES))) == (144, 15)
    network = nn.ModuleDict(
        {"attend": nn.MultiheadAttention(E, HEADS, bias=bias, batch_first=batch_first)}
    ).double()
    attention, x = network["attend"], inputs(call, batch_first)
    keys = L if call == "self" else S
    shape = (N * HEADS, L, keys) if mask == "by head" else (L, keys)
    named = {
        "attn_mask": masked(mask, shape),
        "key_padding_mask": masked(padding, (N, keys)),
    }
    if mask == "bool" and padding == "float":
        named["attn_mask"] = masked("float", shape)  # torch wants them of one kind
    if mask in ("float",) and padding == "bool":
        named["attn_mask"] = masked("bool", shape)
    if mask == "by head" and padding == "float":
        named["key_padding_mask"] = masked("bool", (N, keys))
    assert pb.open_attention_(network) == ("attend",)
    for need, average in ((True, True), (True, False), (False, True)):
        expected, seen = attention(*x, need_weights=need, average_attn_weights=average, **named)
        y, weights = network["attend"](*x, need_weights=need, average_attn_weights=average, **named)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights, seen, rtol=1e-12, atol=1e-12)


def test_input_without_a_batch() -> None:
    network = nn.Sequential(nn.MultiheadAttention(E, HEADS))
    attention, x, y = network[0], torch.randn(L, E), torch.randn(S, E)
    pb.open_attention_(network)
    for mine, theirs in zip(network[0](x, y, y), attention(x, y, y), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_is_of_the_weights_and_of_training_alone() -> None:
    network = nn.Sequential(nn.MultiheadAttention(E, HEADS, dropout=0.5))
    x = torch.randn(L, N, E)
    pb.open_attention_(network)
    train, weights = network[0](x, x, x)
    assert (weights == 0).any()
    quiet, _ = network.eval()[0](x, x, x, need_weights=False)
    assert not torch.allclose(train, quiet)
    torch.testing.assert_close(quiet, network[0](x, x, x)[0])


def test_parameters_stay_the_same_objects_and_close_gives_the_original_back() -> None:
    network = nn.TransformerDecoderLayer(E, HEADS, 16).eval()
    network.self_attn.in_proj_weight.requires_grad_(False)
    original, objects = copy.deepcopy(network), {id(p) for p in network.parameters()}
    pb.open_attention_(network)
    assert {id(p) for p in network.parameters()} == objects
    assert pb.close_attention_(network) == ("self_attn", "multihead_attn")
    assert {id(p) for p in network.parameters()} == objects
    assert list(network.state_dict()) == list(original.state_dict())
    assert str(network) == str(original)
    assert not network.training
    assert not network.self_attn.in_proj_weight.requires_grad
    x, y = torch.randn(L, N, E), torch.randn(S, N, E)
    assert torch.equal(network(x, y), original(x, y))


def transformer(batch_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(E, HEADS, 16, dropout=0.0, batch_first=batch_first)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first))


def test_all_that_a_transformer_is_made_of_can_grow() -> None:
    network = transformer()
    assert not growable_layers(network, pb.DendriteConfig())
    pb.open_attention_(network)
    names = list(growable_layers(network, pb.DendriteConfig()))
    ends = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    assert names == [f"0.layers.{i}.{end}" for i in range(2) for end in ends]


@pytest.mark.parametrize("form", ["full", "grouped", "lowrank", "shared", "tied"])
def test_dendrites_on_a_transformer(form: str) -> None:
    network, x = transformer().eval(), torch.randn(N, L, E)
    pb.open_attention_(network)
    before = network(x)
    pb.attach_dendrites_(network, pb.DendriteConfig(form=form))
    assert torch.equal(network(x), before)
    for layer in dendrite_layers(network).values():
        nn.init.normal_(layer.gains[0])
    with torch.no_grad():
        grown = network(x)
        assert not torch.allclose(grown, before)
        torch.testing.assert_close(pb.fuse(network)(x), grown, rtol=1e-4, atol=1e-5)
    pb.detach_dendrites_(network)
    pb.close_attention_(network)
    torch.testing.assert_close(network.train()(x), before)


def test_a_mask_of_padding_in_inference_reaches_the_dendrites() -> None:
    """The encoder would nest its tensors and read the weights past the layers."""
    network, x = transformer().eval(), torch.randn(N, L, E)
    hidden = torch.arange(L).expand(N, L) >= torch.tensor([[3], [5], [4]])
    encoder = network[0]
    assert encoder.use_nested_tensor
    with torch.no_grad():
        before = encoder.train()(x, src_key_padding_mask=hidden)  # without dropout
        encoder.eval()
        pb.open_attention_(network)
        assert not encoder.use_nested_tensor
        opened = encoder(x, src_key_padding_mask=hidden)
        torch.testing.assert_close(opened[~hidden], before[~hidden])
        pb.attach_dendrites_(network, pb.DendriteConfig(layers=("0.layers.1.linear1",)))
        nn.init.ones_(network[0].layers[1].linear1.gains[0])
        assert not torch.allclose(encoder(x, src_key_padding_mask=hidden)[~hidden], before[~hidden])
    pb.detach_dendrites_(network)
    pb.close_attention_(network)
    assert encoder.use_nested_tensor


def test_a_growth_on_a_transformer_runs_and_exports(tmp_path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(transformer(), nn.Flatten(), nn.Linear(L * E, 2))
    x = torch.randn(64, L, E)
    y = (x[:, 0, 0] * x[:, 1, 1] > 0).long()
    pb.open_attention_(network)
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(form=pb.Shared(nodes=2), max_sets=1),
        recovery=pb.RecoveryConfig(
            epochs=2, dendrite_epochs=2, optimizer=pb.OptimizerConfig(lr=1e-3)
        ),
    )
    data = pb.Data(train=[(x, y)], val=[(x, y)])
    history = pb.recover_(network, data, config=config)
    scored = next(r["scores"] for r in history if r["kind"] == "dendrite")
    grown = [n for n in scored if "self_attn" in n]
    assert len(grown) == 4
    assert all(0 < scored[n][-1] <= 1 for n in grown)
    path = tmp_path / "grown.onnx"
    report = pb.export_onnx(network, path, x[:4])
    with torch.no_grad():
        expected = network.eval()(x[:4]).numpy()
    (got,) = Session(path).run({report.input_names[0]: x[:4].numpy()})
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_opened_attention_shrinks_and_its_heads_apart_from_the_stream() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, E), transformer(), nn.Linear(E, 3))
    x = torch.randn(N, L, 6)
    pb.open_attention_(network)
    small = pb.shrink(network, pb.plan_widths(network, x, 0.6))
    assert small(x).shape == (N, L, 3)
    ratio = pb.measure(small, x).params / pb.measure(network, x).params
    assert 0.5 < ratio <= 0.6
    widths = [(a.in_proj.in_features, a.out_proj.in_features) for a in opened(small)]
    assert all(stream < E for stream, _ in widths)
    assert any(heads != stream for stream, heads in widths)
    with pytest.raises(CompressionError, match="MultiheadAttention has one width for both"):
        pb.close_attention_(small)
    assert len(opened(small)) == 2


def opened(network: nn.Module) -> list[OpenAttention]:
    return [m for m in network.modules() if isinstance(m, OpenAttention)]


class Mine(nn.MultiheadAttention):
    """May compute something else."""


REFUSED = {
    "kdim": (lambda: nn.MultiheadAttention(E, HEADS, kdim=4), "weights of their own"),
    "vdim": (lambda: nn.MultiheadAttention(E, HEADS, vdim=4), "weights of their own"),
    "bias_k": (lambda: nn.MultiheadAttention(E, HEADS, add_bias_kv=True), "adds a bias or zeros"),
    "zero": (lambda: nn.MultiheadAttention(E, HEADS, add_zero_attn=True), "adds a bias or zeros"),
    "subclass": (
        lambda: type("Mine", (nn.MultiheadAttention,), {})(E, HEADS),
        "Mine is a subclass",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_opened_is_refused_before_the_first_change(case: str) -> None:
    make, reason = REFUSED[case]
    network = nn.Sequential(nn.MultiheadAttention(E, HEADS), make())
    before = list(network)
    with pytest.raises(UnsupportedLayerError, match=f"cannot open '1': .*{reason}"):
        pb.open_attention_(network)
    assert list(network) == before


def test_hooks_the_model_itself_dendrites_and_a_missing_mask_are_refused() -> None:
    network = nn.Sequential(nn.MultiheadAttention(E, HEADS))
    handle = network[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedLayerError, match="it has hooks"):
        pb.open_attention_(network)
    handle.remove()
    with pytest.raises(UnsupportedLayerError, match="the model itself"):
        pb.open_attention_(network[0])
    pb.open_attention_(network)
    assert isinstance(network[0], OpenAttention)
    x = torch.randn(L, N, E)
    with pytest.raises(CompressionError, match="without attn_mask"):
        network[0](x, x, x, is_causal=True)
    pb.attach_dendrites_(network)
    with pytest.raises(CompressionError, match=r"found a DendriteLayer at 0\.in_proj"):
        pb.close_attention_(network)
