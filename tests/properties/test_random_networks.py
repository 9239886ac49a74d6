"""Random networks of everything that people combine, against the network with dead channels."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pbcompress import CompressConfig, WidthConfig, measure, plan_widths, shrink
from pbcompress.core.modules import copy_model
from pbcompress.errors import TargetUnreachableError
from tests.support.dead_channels import count, double, reference, run


class Attention(nn.Module):
    def __init__(self, width, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * 8),
            nn.Linear(8, width),
        )

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (0.5 * q @ k.mT).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x):
        y = self.up(torch.relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * y[:, :, None, None]


class Glu(nn.Module):
    """Half of what one layer makes gates the other half, along the channels."""

    def __init__(self, layer, axis, way):
        super().__init__()
        self.layer, self.axis, self.way = layer, axis, way

    def forward(self, x):
        y = self.layer(x)
        if self.way == 0:
            return functional.glu(y, self.axis)
        a, b = (
            y.chunk(2, self.axis) if self.way == 1 else y.split(y.shape[self.axis] // 2, self.axis)
        )
        return a * torch.tanh(b)


class Shuffle(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class TokenMix(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.up, self.down = nn.Linear(tokens, 6), nn.Linear(6, tokens)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x.transpose(1, 2)))).transpose(1, 2)


def image_block(kind, width, new):
    """Return a block on images of ``width`` channels, and the width after it."""
    half = new // 2
    plain, corner = nn.Conv2d(width, new, 3, padding=1), nn.Conv2d(4 * width, 4 * new, 1)
    up = nn.ConvTranspose2d(width, new, 2, stride=2)
    blocks = {
        "conv": (plain, new),
        "grouped": (nn.Conv2d(width, new, 3, padding=1, groups=2), new),
        "depthwise": (nn.Conv2d(width, 2 * width, 3, padding=1, groups=width), 2 * width),
        "batch norm": (nn.BatchNorm2d(width), width),
        "group norm": (nn.GroupNorm(2, width), width),
        "instance norm": (nn.InstanceNorm2d(width, affine=bool(half % 4)), width),
        "relu": (nn.ReLU(inplace=True), width),
        "gelu": (nn.GELU(), width),
        "prelu": (nn.PReLU(width), width),
        "gate": (Gate(width), width),
        "glu": (Glu(nn.Conv2d(width, 2 * new, 1), 1, new // 4 % 3), new),
        "shuffle": (Shuffle(), width),
        "pixels": (nn.Sequential(nn.PixelUnshuffle(2), corner, nn.PixelShuffle(2)), new),
        "up and down": (nn.Sequential(up, nn.MaxPool2d(2)), new),
        "weight norm": (nn.utils.parametrizations.weight_norm(plain), new),
    }
    return blocks[kind]


def token_block(kind, width, new):
    """Return a block on 16 tokens of ``width`` channels, and the width after it."""
    blocks = {
        "linear": (nn.Linear(width, new), new),
        "layer norm": (nn.LayerNorm(width), width),
        "rms norm": (nn.RMSNorm(width), width),
        "silu": (nn.SiLU(), width),
        "attention": (Attention(width, 2, new % 8 == 0), width),
        "gated": (Glu(nn.Linear(width, 2 * new), -1, new // 4 % 3), new),
        "mixed": (TokenMix(16), width),
    }
    return blocks[kind]


class Random(nn.Module):
    """Blocks in a row; after each one its result may meet that of an earlier one."""

    def __init__(self, blocks, token_blocks, end):
        super().__init__()
        self.stem, self.blocks, self.joins = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(), []
        width, widths = 8, [8]
        for kind, new, join in blocks:
            block, width = image_block(kind, width, new)
            width = self._join(block, join, width, widths)
        self.first = len(self.blocks)
        widths[:] = [width]
        for kind, new, join in token_blocks:
            block, width = token_block(kind, width, new)
            width = self._join(block, join, width, widths)
        self.end = end
        self.head = nn.Linear(16 * width if end == "flatten" else width, 3)

    def _join(self, block, join, width, widths):
        same = [i for i, w in enumerate(widths) if w == width]
        if join in ("add", "multiply") and not same:
            join = None
        place = same[0] if join in ("add", "multiply") else len(widths) // 2
        width += widths[place] if join == "cat" else 0
        self.blocks.append(block)
        self.joins.append((join, place))
        widths.append(width)
        return width

    def _run(self, x, start, stop, axis):
        seen = [x]
        for block, (join, place) in zip(
            self.blocks[start:stop], self.joins[start:stop], strict=True
        ):
            x = block(x.clone())
            if join == "cat":
                x = torch.cat([x, seen[place]], axis)
            elif join is not None:
                x = x + seen[place] if join == "add" else x * seen[place]
            seen.append(x)
        return x

    def forward(self, x):
        x = self._run(self.stem(x), 0, self.first, 1)
        x = self._run(x.flatten(2).transpose(1, 2), self.first, None, -1)
        return self.head(x.flatten(1) if self.end == "flatten" else x.mean(1))


IMAGE_KINDS = (
    *("conv", "grouped", "depthwise", "batch norm", "group norm", "instance norm", "relu"),
    *("gelu", "prelu", "gate", "glu", "shuffle", "pixels", "up and down", "weight norm"),
)
TOKEN_KINDS = ("linear", "layer norm", "rms norm", "silu", "attention", "gated", "mixed")
WIDTHS, JOINS = st.sampled_from([4, 8, 12]), st.sampled_from([None, None, "add", "cat", "multiply"])
NETWORKS = st.tuples(
    st.lists(st.tuples(st.sampled_from(IMAGE_KINDS), WIDTHS, JOINS), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(TOKEN_KINDS), WIDTHS, JOINS), max_size=4),
    st.sampled_from(["flatten", "mean"]),
)


def images(n):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n))


def planned(model, share, allocation):
    """A plan for the share or the smallest network; None where nothing can go."""
    config = CompressConfig(width=WidthConfig(allocation=allocation))
    try:
        return plan_widths(model, images(1), share, config=config)
    except TargetUnreachableError as error:
        if error.smallest == count(model):
            return None
        return plan_widths(model, images(1), error.smallest, config=config)


def check(network, share, allocation):
    torch.manual_seed(0)
    model = Random(*network)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    plan = planned(model, share, allocation)
    if plan is None:
        return
    small = shrink(model, plan)
    assert count(small) == plan.cost_after.params <= plan.target_params
    assert measure(small, images(1)).flops == plan.cost_after.flops
    exact = copy_model(model).double().eval()  # lengths of weights are computed anew
    with torch.no_grad():
        found = run(shrink(exact, plan), double(images(2)))
        wanted = run(reference(exact, plan.steps), double(images(2)))
    scale = max(1.0, wanted[0].abs().max().item())
    torch.testing.assert_close(found[0] / scale, wanted[0] / scale, rtol=1e-8, atol=1e-8)
    small.train()(images(2)).sum().backward()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.floats(0.3, 0.9), st.sampled_from(["uniform", "balanced", "global"]))
def test_a_random_network_is_narrowed_rightly(network, share, allocation):
    check(network, share, allocation)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, st.floats(0.3, 0.9), st.sampled_from(["uniform", "balanced", "global"]))
def test_many_random_networks_are_narrowed_rightly(network, share, allocation):
    check(network, share, allocation)
