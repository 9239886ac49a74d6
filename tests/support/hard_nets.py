"""Small networks as people write them, each with something that makes narrowing hard.

Every one is written from its published idea. ``narrowed`` names layers of which channels must go
when half of the parameters do; what is not named may stay for a reason that the plan gives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Hard:
    """One network: how to make it, what it takes, and which layers must become narrower.

    Attributes:
        make: Its constructor.
        inputs: A batch of ``n`` samples.
        narrowed: Layers that lose output channels (or, for a layer that is no plain one, others).
        counts: It reduces channels outside a norm module (a mean over channels), so that zeros
            are no reference.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    narrowed: tuple[str, ...]
    counts: bool = False

    def build(self) -> nn.Module:
        """Make the network with fixed weights, and norms off their defaults."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            model = self.make()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                if isinstance(module, NORMS) and module.weight is not None:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    if getattr(module, "bias", None) is not None:
                        nn.init.normal_(module.bias, std=0.2)
        return model


NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n))


def tokens(n: int) -> Tensor:
    return torch.randn(n, 6, 10, generator=torch.Generator().manual_seed(n))


def vectors(n: int) -> Tensor:
    return torch.randn(n, 10, generator=torch.Generator().manual_seed(n))


def words(n: int) -> Tensor:
    return torch.randint(20, (n, 6), generator=torch.Generator().manual_seed(n))


def conv(inputs: int, outputs: int, kernel: int = 3, **others: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **others)


# --- attention -----------------------------------------------------------------------------------


class Block(nn.Module):
    """A transformer block around some attention, with a head; the stem gives 16 channels."""

    def __init__(self, attention: nn.Module, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.stem, self.attention = nn.Linear(10, 16), attention
        self.before, self.between = norm(16), norm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(self.before(x))
        x = x + self.narrow(functional.gelu(self.wide(self.between(x))))
        return self.head(x.mean(1))


class FusedQkv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class ChunkedQkv(nn.Module):
    """Explicit softmax, a causal mask in a buffer, and a scale from the constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4
        self.scale = self.head_dim**-0.5
        self.to_qkv, self.to_out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.register_buffer("mask", torch.ones(12, 12, dtype=torch.bool).triu(1))

    def split(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        return x.view(n, t, self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.to_qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) * self.scale
        t = scores.shape[-1]
        scores = scores.masked_fill(self.mask[:t, :t], float("-inf"))
        return self.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Einsum(nn.Module):
    """Heads as an axis of bare weights, as in code that came from other frameworks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 16, 4) / 4)
        self.out = nn.Parameter(torch.randn(4, 4, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnc,hcd->bhnd", x, w) for w in self.weight)
        weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
        y = torch.einsum("bhqk,bhkd->bqhd", weights, v)
        return torch.einsum("bqhd,hdc->bqc", y, self.out)


class GroupedQuery(nn.Module):
    """Fewer key and value heads than query heads; ``kv_heads`` 1 is multi-query attention."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = 4, kv_heads, 4
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 4 * kv_heads)
        self.v, self.o = nn.Linear(16, 4 * kv_heads), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, -1, self.dim).transpose(1, 2)
        k = self.k(x).view(n, t, -1, self.dim).transpose(1, 2)
        v = self.v(x).view(n, t, -1, self.dim).transpose(1, 2)
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dim = 4
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.o = nn.Linear(16, 16, bias=False)
        angles = torch.arange(12)[:, None] * 100 ** (-torch.arange(2) / 2)
        self.register_buffer("cos", torch.cat([angles, angles], 1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angles, angles], 1).sin(), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        t = x.shape[-2]
        return x * self.cos[:t] + torch.cat([-b, a], -1) * self.sin[:t]

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, -1, self.dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.o(y.transpose(1, 2).contiguous().view(n, t, -1))


class RelativeBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Embedding(23, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        place = torch.arange(t)
        bias = self.table(place[:, None] - place[None, :] + 11).permute(2, 0, 1)
        weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Windows(nn.Module):
    """Attention within 4 x 4 windows of an image, every second time shifted by two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 16), nn.LayerNorm(16)
        self.heads, self.window = 2, 4
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def attend(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        s = self.window
        x = x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = self.out(y).view(n, h // s, w // s, s, s, -1)
        return y.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        for shift in (0, 2):
            y = torch.roll(self.norm(x), (-shift, -shift), (1, 2))
            x = x + torch.roll(self.attend(y), (shift, shift), (1, 2))
        return self.head(x.mean((1, 2)))


class Translator(nn.Module):
    """Encoder and decoder with cross attention, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(10, 16), nn.Embedding(20, 12)
        self.q, self.kv, self.o = nn.Linear(12, 16), nn.Linear(16, 32), nn.Linear(16, 12)
        self.heads, self.norm, self.head = 4, nn.LayerNorm(12), nn.Linear(12, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, x = torch.relu(self.source(source)), self.target(target)
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.o(y))


class TorchTransformer(nn.Module):
    """The layers of torch, norms after and before."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 64, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 64, batch_first=True, norm_first=True)
        self.stem, self.mid, self.head = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.decoder(x, self.mid(self.encoder(x))).mean(1))


class OtherKeys(nn.Module):
    """Attention of torch on keys and values of other widths than its queries, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(10, 16), nn.Linear(10, 12), nn.Linear(10, 20)
        self.attention = nn.MultiheadAttention(
            16, 4, kdim=12, vdim=20, add_bias_kv=True, batch_first=True
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)
        y, weights = self.attention(query, self.key(x), self.value(x))
        return self.head(query + y).mean(1) + weights.mean()


class WholeTransformer(nn.Module):
    """`nn.Transformer`, which holds the width of its inputs against an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.transformer = nn.Transformer(16, 4, 1, 1, 40, batch_first=True)
        self.head = nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.transformer(y, y.flip(1), tgt_mask=mask.to(y.dtype)))


class CausalBlock(nn.Module):
    """Attention that flattens its heads to the width of the stream that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.heads, self.width = nn.LayerNorm(24), 4, 24
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.wide, self.narrow = nn.Linear(24, 50), nn.Linear(50, 24)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.size()
        parts = self.qkv(self.norm(x)).split(self.width, dim=2)
        q, k, v = (p.view(n, t, self.heads, c // self.heads).transpose(1, 2) for p in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(n, t, c))
        return x + self.narrow(functional.gelu(self.wide(x)))


class SmallGpt(nn.Module):
    """A decoder as textbooks write it, with a tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 24), nn.Embedding(6, 24)
        self.blocks = nn.ModuleList([CausalBlock(), CausalBlock()])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y))


class Pooling(nn.Module):
    """A learnt query reads an image's tokens; a class token and positions go before."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.query = nn.Parameter(torch.randn(1, 1, 12))
        self.key, self.value, self.head = nn.Linear(16, 12), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        scores = self.query @ self.key(x).transpose(1, 2)
        return self.head((scores.softmax(-1) @ self.value(x)).squeeze(1))


# --- gates ---------------------------------------------------------------------------------------


class Glu(nn.Module):
    """SwiGLU of two layers, GEGLU of one chunked layer, and torch's GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.up = nn.Linear(10, 12), nn.Linear(12, 24), nn.Linear(12, 24)
        self.down, self.norm = nn.Linear(24, 12), nn.RMSNorm(12)
        self.both, self.back = nn.Linear(12, 40), nn.Linear(20, 12)
        self.last, self.glu, self.head = nn.Linear(12, 32), nn.GLU(-1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        value, gate = self.both(self.norm(x)).chunk(2, -1)
        x = x + self.back(value * functional.gelu(gate))
        return self.head(self.glu(self.last(x)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 16), nn.BatchNorm2d(16)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(16, 6, 1), nn.ReLU(), conv(6, 16, 1), nn.Hardsigmoid()
        )
        self.last, self.head = conv(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm(self.stem(x)))
        return self.head(functional.silu(self.last(x * self.gate(x))).mean((2, 3)))


class SpatialAttention(nn.Module):
    """CBAM: a gate over channels, then one over places from the channels' mean and maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp = (
            conv(3, 16),
            nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)),
        )
        self.place, self.last, self.head = conv(2, 1, 7), conv(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        x = x * gate.sigmoid()[:, :, None, None]
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head(self.last(x * self.place(both).sigmoid()).mean((2, 3)))


class Highway(nn.Module):
    """Highway layers, a layer scale, and a feature-wise modulation (FiLM) by a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.ways = nn.Linear(10, 16), nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.scale = nn.Parameter(torch.full((16,), 0.3))
        self.film, self.head = nn.Linear(4, 32), nn.Linear(16, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.stem(x)
        for way, gate in zip(self.ways, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = t * torch.relu(way(x)) * self.scale + (1 - t) * x
        scale, shift = torch.tensor_split(self.film(condition), 2, dim=-1)
        return self.head(x * (1 + scale) + shift)


class Experts(nn.Module):
    """Every expert runs; a softmax weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(12, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 12)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        every = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head((every * self.gate(x).softmax(-1)[:, :, None]).sum(1))


class DynamicConvolution(nn.Module):
    """The kernels of one convolution are mixed for every sample from four."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = conv(3, 12), nn.Linear(12, 4)
        self.kernels = nn.Parameter(torch.randn(4, 16, 12, 3, 3) / 10)
        self.last, self.head = conv(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        weights = self.route(x.mean((2, 3))).softmax(-1)
        every = torch.stack([functional.conv2d(x, k, padding=1) for k in self.kernels], 1)
        x = (every * weights[:, :, None, None, None]).sum(1)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


# --- convolutions --------------------------------------------------------------------------------


class Shuffled(nn.Module):
    """ShuffleNet units: half of the channels pass, then all are shuffled in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.head = conv(3, 16), conv(16, 24, 1), nn.Linear(24, 3)
        self.units = nn.ModuleList(
            nn.Sequential(
                conv(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=8), conv(8, 8, 1)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, unit(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.tail(x)).mean((2, 3)))


class SuperResolution(nn.Module):
    """Down by pixel unshuffle, up by pixel shuffle, a nearest skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.body, self.norm = nn.PixelUnshuffle(2), conv(12, 20), nn.GroupNorm(2, 20)
        self.mid, self.up, self.last = conv(20, 24), nn.PixelShuffle(2), conv(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.body(self.down(x))))
        return x + self.last(self.up(self.mid(y)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 10), conv(10, 16, stride=2)
        self.norm = nn.InstanceNorm2d(16)
        self.up, self.c = nn.ConvTranspose2d(16, 8, 2, stride=2), conv(18, 12)
        self.head = conv(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        b = functional.leaky_relu(self.norm(self.b(a)), 0.1)
        return self.head(torch.relu(self.c(torch.cat((self.up(b), a), dim=1))))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 6 * i), nn.ReLU(), conv(8 + 6 * i, 6))
            for i in range(3)
        )
        self.cut, self.head = conv(26, 12, 1), nn.Linear(12 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = functional.avg_pool2d(self.cut(torch.cat(features, 1)), 2)
        return self.head(torch.flatten(x, 1))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three, self.five = conv(3, 6, 1), conv(3, 8), conv(3, 4, 5)
        self.pool, self.norm = conv(3, 6, 1), nn.BatchNorm2d(24)
        self.mix, self.head = conv(24, 16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(functional.max_pool2d(x, 3, 1, 1))
        x = self.norm(torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1))
        return self.head(self.mix(torch.relu(x)).amax((2, 3)))


class NeXt(nn.Module):
    """A grouped bottleneck with a projected skip, then a depthwise separable block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce = conv(3, 12), conv(12, 16, 1)
        self.grouped, self.expand = conv(16, 16, groups=4), conv(16, 20, 1)
        self.skip, self.norm = conv(12, 20, 1), nn.BatchNorm2d(20)
        self.depth, self.point = conv(20, 40, groups=20), conv(40, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.expand(torch.relu(self.grouped(torch.relu(self.reduce(x)))))
        x = torch.relu(self.norm(y + self.skip(x)))
        return self.head(self.point(functional.relu6(self.depth(x))).mean((2, 3)))


class LocalNorm(nn.Module):
    """Local response norms stay; a hard-coded view after them, sizes by hand before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 12), conv(12, 16)
        self.c, self.head = nn.Linear(16 * 16, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.local_response_norm(torch.relu(self.a(x)), 3)
        x = functional.max_pool2d(torch.relu(self.b(x)), 2)
        size = 1
        for s in x.size()[1:]:
            size *= s
        return self.head(torch.relu(self.c(x.view(-1, size))))


class HardCoded(nn.Module):
    """A view with numbers: what it names stays, everything else goes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 8), nn.Linear(8 * 64, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x)))).view(-1, 8 * 64)
        return self.head(torch.relu(self.c(x)))


class Pyramid(nn.Module):
    """A detector: three scales, a top-down path, shared heads, a dict of lists as output."""

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([conv(3, 8), conv(8, 12, stride=2), conv(12, 16, stride=2)])
        self.sides = nn.ModuleList([conv(8, 12, 1), conv(12, 12, 1), conv(16, 12, 1)])
        self.tower, self.boxes, self.scores = conv(12, 14), conv(14, 4), conv(14, 2)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        features = []
        for down in self.downs:
            x = torch.relu(down(x))
            features.append(x)
        top = self.sides[2](features[2])
        levels = [top]
        for i in (1, 0):
            top = functional.interpolate(top, size=features[i].shape[-2:]) + self.sides[i](
                features[i]
            )
            levels.insert(0, top)
        towers = [torch.relu(self.tower(level)) for level in levels]
        return {
            "boxes": [self.boxes(t).flatten(2).transpose(1, 2) for t in towers],
            "scores": [self.scores(t).permute(0, 2, 3, 1).reshape(len(t), -1, 2) for t in towers],
        }


class Spatial(nn.Module):
    """Python values decide: a list of layers by index, a flag, a depth, sizes from ``x.shape``."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.residual, self.patch = 3, True, 2
        self.layers = nn.ModuleList(conv(3 if i == 0 else 12, 12) for i in range(self.depth))
        self.head = nn.Linear(12 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.depth):
            y = torch.relu(self.layers[i](x))
            x = x + y if self.residual and i > 0 else y
        n, c, h, w = x.shape
        p = h // self.patch
        x = x.reshape(n, c, h // p, p, w // p, p).mean((3, 5))
        return self.head(x.permute(0, 2, 3, 1).reshape(n, -1))


# --- sequences -----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent layer with an attention over its steps."""

    def __init__(
        self, kind: type[nn.RNNBase], bidirectional: bool = False, layers: int = 1
    ) -> None:
        super().__init__()
        width = 24 if bidirectional else 12
        self.stem = nn.Linear(10, 14)
        self.core = kind(14, 12, layers, batch_first=True, bidirectional=bidirectional)
        self.score, self.mix, self.head = (
            nn.Linear(width, 1),
            nn.Linear(width, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.core(torch.relu(self.stem(x)))
        weights = self.score(torch.tanh(y)).softmax(1)
        return self.head(torch.relu(self.mix((weights * y).sum(1))))


class Cells(nn.Module):
    """Recurrent cells in a Python loop, the first state zeros of a size read from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(10, 12), nn.GRUCell(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, hidden = None, None
        for step in x.unbind(1):
            state = self.lstm(step, state)
            hidden = self.gru(state[0], hidden)
        return self.head(hidden)


class Temporal(nn.Module):
    """A temporal convolutional network with weight norm and cut-off padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(10, 16, 1)
        self.layers = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(16, 16, 2, padding=2**i, dilation=2**i))
            for i in range(2)
        )
        self.mid, self.head = nn.Conv1d(16, 24, 1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(1, 2))
        for i, layer in enumerate(self.layers):
            x = x + torch.relu(layer(x))[:, :, : -(2**i)]
        return self.head(torch.relu(self.mid(x)).mean(2))


class Mixer(nn.Module):
    """A token-mixing and a channel-mixing layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(10, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(6, 14), nn.GELU(), nn.Linear(14, 6))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.tokens(self.one(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.two(x))
        return self.head(x.mean(dim=1))


class TiedLanguage(nn.Module):
    """Output weights are the embedding's; an adapter that starts at zero between."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide, self.narrow = (
            nn.Embedding(20, 12),
            nn.Linear(12, 32),
            nn.Linear(32, 12),
        )
        self.down, self.up = nn.Linear(12, 4, bias=False), nn.Linear(4, 12, bias=False)
        self.out = nn.Linear(12, 20)
        self.out.weight = self.table.weight
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        x = x + self.narrow(torch.tanh(self.wide(x))) + self.up(self.down(x))
        return self.out(x)


# --- others --------------------------------------------------------------------------------------


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.code = nn.Linear(10, 24), nn.Linear(24, 8)
        self.bias, self.last = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(torch.relu(self.first(x)))
        x = torch.relu(functional.linear(code, self.code.weight.t(), self.bias))
        return functional.linear(x, self.first.weight.t(), self.last)


class Siamese(nn.Module):
    """One encoder for both inputs, their difference and product, and a cosine beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16))
        self.head = nn.Linear(32, 3)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.encoder(a), self.encoder(b)
        near = functional.cosine_similarity(a, b, dim=-1)
        return self.head(torch.cat([(a - b).abs(), a * b], -1)), near


class Capsules(nn.Module):
    """Features seen as vectors of eight, squashed by their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 8
        self.stem, self.primary = conv(3, 12), conv(12, 16, stride=2)
        self.head = nn.Linear(16 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(torch.relu(self.stem(x)))
        x = x.view(len(x), -1, self.size)
        squared = x.square().sum(-1, keepdim=True)
        x = x * squared / (1 + squared) / (squared + 1e-8).sqrt()
        return self.head(x.flatten(1))


class Heads(nn.Module):
    """Several named outputs of several depths, one of them normalised features of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.deep = nn.Linear(10, 24), nn.Linear(24, 20)
        self.heads = nn.ModuleDict(
            {"a": nn.Linear(24, 3), "b": nn.Linear(20, 2), "z": nn.Linear(20, 6)}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = torch.relu(self.body(x))
        late = torch.relu(self.deep(early))
        outputs = {name: head(early if name == "a" else late) for name, head in self.heads.items()}
        outputs["z"] = functional.normalize(outputs["z"], dim=-1)
        return outputs


class NormalizedFeatures(nn.Module):
    """Inner features of length one, and class weights of length one, which keep them all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.features = nn.Linear(10, 24), nn.Linear(24, 16)
        self.classes = nn.Parameter(torch.randn(5, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.normalize(self.features(torch.relu(self.stem(x))), dim=-1)
        return 8 * x @ functional.normalize(self.classes, dim=-1).t()


def pair(first: Callable[[int], Tensor], second: Callable[[int], Tensor]) -> Callable[[int], Any]:
    return lambda n: (first(n), second(n + 100)[:n])


NETS = {
    "fused qkv": Hard(lambda: Block(FusedQkv()), tokens, ("attention.qkv", "stem", "wide")),
    "chunked qkv, explicit softmax": Hard(
        lambda: Block(ChunkedQkv()), tokens, ("attention.to_qkv", "stem", "wide")
    ),
    "einsum attention": Hard(lambda: Block(Einsum()), tokens, ("stem", "wide", "attention")),
    "grouped-query attention": Hard(lambda: Block(GroupedQuery(2)), tokens, ("stem", "wide")),
    "multi-query attention": Hard(lambda: Block(GroupedQuery(1)), tokens, ("stem", "wide")),
    "rotary embedding, rms norm": Hard(
        lambda: Block(Rotary(), nn.RMSNorm), tokens, ("attention.q", "attention.v", "stem")
    ),
    "relative position bias": Hard(
        lambda: Block(RelativeBias()), tokens, ("attention.qkv", "attention.table", "stem")
    ),
    "window attention": Hard(Windows, images, ("stem", "qkv")),
    "cross attention": Hard(Translator, pair(tokens, words), ("source", "q", "kv", "target")),
    "torch's transformer layers": Hard(
        TorchTransformer, tokens, ("encoder.linear1", "decoder.linear1")
    ),
    "keys of other widths": Hard(OtherKeys, tokens, ("query", "key", "value")),
    "nn.Transformer": Hard(WholeTransformer, words, ("table", "transformer.encoder.norm")),
    "a small gpt": Hard(SmallGpt, words, ("words", "blocks.0.qkv", "blocks.1.out")),
    "attention pooling": Hard(Pooling, images, ("patch", "key", "value")),
    "glu, swiglu, geglu": Hard(Glu, vectors, ("stem", "gate", "up", "both", "last")),
    "squeeze-excite": Hard(SqueezeExcite, images, ("stem", "gate.1", "last")),
    "spatial attention": Hard(SpatialAttention, images, ("stem", "mlp.0", "last"), counts=True),
    "highway, layer scale, film": Hard(
        Highway, lambda n: (vectors(n), vectors(n)[:, :4]), ("stem", "film")
    ),
    "mixture of experts": Hard(Experts, vectors, ("stem", "experts.0.0", "experts.2.2")),
    "dynamic convolution": Hard(DynamicConvolution, images, ("stem", "last")),
    "shufflenet": Hard(Shuffled, images, ("units.0.0", "tail")),
    "pixel shuffle": Hard(SuperResolution, images, ("body", "mid")),
    "u-net, instance norm": Hard(UNet, images, ("a", "b", "up", "c")),
    "dense block": Hard(DenseBlock, images, ("stem", "layers.0.2", "cut")),
    "inception": Hard(Inception, images, ("one", "three", "five", "pool", "mix")),
    "grouped and depthwise": Hard(NeXt, images, ("stem", "reduce", "expand", "depth", "point")),
    "local response norm, sizes by hand": Hard(LocalNorm, images, ("b", "c")),
    "hard-coded view": Hard(HardCoded, images, ("a", "c")),
    "feature pyramid": Hard(Pyramid, images, ("downs.0", "sides.0", "tower")),
    "values of Python": Hard(Spatial, images, ("layers.0",)),
    "lstm and attention": Hard(lambda: Recurrent(nn.LSTM), tokens, ("stem", "mix")),
    "two gru layers": Hard(lambda: Recurrent(nn.GRU, layers=2), tokens, ("stem", "mix")),
    "bidirectional lstm": Hard(lambda: Recurrent(nn.LSTM, True), tokens, ("stem", "mix")),
    "recurrent cells": Hard(Cells, tokens, ("lstm", "gru")),
    "temporal convolution, weight norm": Hard(Temporal, tokens, ("mid",)),
    "mixer": Hard(Mixer, tokens, ("stem", "tokens.0", "channels.0")),
    "tied embedding": Hard(TiedLanguage, words, ("table", "wide")),
    "tied autoencoder": Hard(TiedAutoencoder, vectors, ("first", "code")),
    "siamese": Hard(Siamese, pair(vectors, vectors), ("encoder.0", "encoder.2")),
    "capsules": Hard(Capsules, images, ("stem", "primary")),
    "named heads": Hard(Heads, vectors, ("body", "deep")),
    "normalised features": Hard(NormalizedFeatures, vectors, ("stem",)),
}
