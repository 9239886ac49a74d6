"""Tiny networks, one per structural case, that know their own cost.

``params`` and ``flops`` are counted by hand from the layers' definitions: k*k*in*out/groups (+ out
for a bias) per convolution, times the output positions for FLOPs; 2 per channel of BatchNorm and
2 FLOPs per element; 1 FLOP per input element of a 2-D adaptive average pool and per output
element of a nearest upsampling; additions, activations, means and other pools are not counted
(fvcore's convention). Images are 6 x 6, sequences have 12 steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Net(nn.Module):
    """A network from its forward function and its layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """One network: how to make it, what it takes, what it costs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    params: int
    flops: int

    def build(self) -> nn.Module:
        """Make the network with fixed weights and BatchNorm statistics off their defaults."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = self.make()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                    if module.affine:
                        nn.init.normal_(module.weight)
                        nn.init.normal_(module.bias)
        return model


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n))


def vectors(n: int) -> Tensor:
    return torch.randn(n, 10, generator=torch.Generator().manual_seed(n))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def chain() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16), conv_bn(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.first, self.second = conv_bn(16, 24), nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.down, self.skip = nn.Conv2d(16, 20, 3, stride=2, padding=1), nn.Conv2d(16, 20, 1, 2)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.second(self.first(x))) + x)
        x = torch.relu(self.down(x) + self.skip(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet-like: every layer reads all earlier ones; norms lie after the concatenation."""

    def __init__(self, flatten: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 8, 3, padding=1)
        self.norm_two = nn.BatchNorm2d(20)
        self.c = nn.Conv2d(20, 8, 3, padding=1)
        self.flatten = flatten
        self.head = nn.Linear(28 * (4 if flatten else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(torch.relu(self.norm(a)))
        ab = torch.cat([a, b], 1)
        c = self.c(torch.relu(self.norm_two(ab)))
        x = torch.relu(torch.cat([ab, c], 1))
        x = functional.max_pool2d(x, 3) if self.flatten else functional.adaptive_avg_pool2d(x, 1)
        return self.head(x.flatten(1))


class ThreeWay(nn.Module):
    """Inception-like: three branches, concatenated and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, w, k, padding=k // 2) for w, k in WAYS)
        self.head = nn.Linear(30 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.relu(b(x)) for b in self.branches], 1).flatten(1))


WAYS = ((8, 1), (12, 3), (10, 5))


def separable() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16),
        conv_bn(16, 16, groups=16),
        conv_bn(16, 32, kernel=1),
        conv_bn(32, 32, groups=32),
        conv_bn(32, 24, kernel=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 32),
        conv_bn(32, 48, groups=4),
        conv_bn(48, 24, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 24)
        self.reduce, self.expand = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.last, self.head = nn.Conv2d(24, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = functional.adaptive_avg_pool2d(x, 1)
        x = x * torch.sigmoid(self.expand(torch.relu(self.reduce(gate))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class SqueezeExciteLinear(nn.Module):
    """Squeeze and excite with Linear layers and a view, as torchvision's ancestors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.reduce, self.expand = nn.Linear(24, 8), nn.Linear(8, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.shape
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3)).view(n, c)))))
        return self.head((x * gate.view(n, c, 1, 1)).mean((2, 3)))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 20, 3, padding=1, bias=False),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Conv1d(20, 24, 3, stride=2, padding=1),
        nn.GELU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 12, 3, padding=1, bias=False),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.Conv3d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(32, 24, bias=False),
        nn.Tanh(),
        nn.Linear(24, 5),
    )


class Tokens(nn.Module):
    """A transformer's feed-forward part on (N, T, F), normed, residual, averaged over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(10), nn.Linear(10, 40), nn.Linear(40, 10)
        self.mix, self.head = nn.Linear(10, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.narrow(functional.gelu(self.wide(self.norm(x))))
        return self.head(torch.relu(self.mix(x)).mean(1))


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )


def prelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.PReLU(16),
        nn.Conv2d(16, 20, 3),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(80, 5),
    )


class SharedTwice(nn.Module):
    """One convolution called twice in a row, and one norm after both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(24, 5)
        self.shared, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.shared(x)))
        x = torch.relu(self.norm(self.shared(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class ReusedNorm(nn.Module):
    """One BatchNorm behind two different convolutions: their channels go together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.norm(self.a(x)), self.norm(self.b(x))], 1)
        return self.head(torch.relu(both).mean((2, 3)))


class TwoOutputs(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.body, self.a = conv_bn(3, 24), nn.Linear(24, 5)
        self.mid, self.b = nn.Conv2d(24, 16, 3, padding=1), nn.Linear(16, 2)
        self.named = named

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        a, b = self.a(x.mean((2, 3))), self.b(torch.relu(self.mid(x)).mean((2, 3)))
        return {"a": a, "nested": [b, {"none": None}]} if self.named else (a, b)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = conv_bn(3, 16), nn.Linear(10, 20)
        self.joint, self.head = nn.Linear(36, 24), nn.Linear(24, 5)

    def forward(self, image: Tensor, *, vector: Tensor) -> Tensor:
        a, b = self.image(image).mean((2, 3)), torch.relu(self.vector(vector))
        return self.head(torch.relu(self.joint(torch.cat([a, b], dim=-1))))


class UNet(nn.Module):
    """Two levels: one goes up by interpolation, one by a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down_one, self.down_two, self.low = conv_bn(3, 12), conv_bn(12, 16), conv_bn(16, 20)
        self.mid, self.up = conv_bn(36, 16), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last, self.head = conv_bn(20, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down_one(x)
        two = self.down_two(functional.avg_pool2d(one, 2, ceil_mode=True))
        low = self.low(functional.max_pool2d(two, 3))
        low = functional.interpolate(low, scale_factor=3, mode="nearest")
        mid = self.mid(torch.cat([low, two], 1))
        return self.head(self.last(torch.cat([self.up(mid), one], 1)))


CASES = {
    "chain": Case(
        chain,
        images,
        27 * 16 + 32 + 16 * 9 * 24 + 48 + 24 * 5 + 5,
        36 * (27 * 16 + 2 * 16 + 16 * 9 * 24 + 2 * 24 + 24) + 24 * 5,
    ),
    "residual": Case(
        Residual,
        images,
        432 + 32 + 3456 + 48 + 3456 + 32 + (2880 + 20) + (320 + 20) + 105,
        36 * (432 + 32 + 3456 + 48 + 3456 + 32) + 9 * (2880 + 320) + 100,
    ),
    "dense": Case(
        lambda: Dense(flatten=False),
        images,
        (324 + 12) + 24 + (864 + 8) + 40 + (1440 + 8) + (140 + 5),
        36 * (324 + 24 + 864 + 40 + 1440 + 28) + 140,
    ),
    "dense flattened": Case(
        lambda: Dense(flatten=True),
        images,
        (324 + 12) + 24 + (864 + 8) + 40 + (1440 + 8) + (560 + 5),
        36 * (324 + 24 + 864 + 40 + 1440) + 560,
    ),
    "concat of three": Case(
        ThreeWay,
        images,
        (24 + 8) + (27 * 12 + 12) + (75 * 10 + 10) + (1080 * 5 + 5),
        36 * (24 + 27 * 12 + 75 * 10) + 1080 * 5,
    ),
    "depthwise separable": Case(
        separable,
        images,
        (432 + 32) + (144 + 32) + (512 + 64) + (288 + 64) + (768 + 48) + 125,
        36 * (432 + 32 + 144 + 32 + 512 + 64 + 288 + 64 + 768 + 48 + 24) + 120,
    ),
    "grouped": Case(
        grouped,
        images,
        (864 + 64) + (8 * 9 * 48 + 96) + (24 * 9 * 24 + 48) + 125,
        36 * (864 + 64 + 8 * 9 * 48 + 96 + 24 * 9 * 24 + 48 + 24) + 120,
    ),
    "squeeze-excite": Case(
        SqueezeExcite,
        images,
        (648 + 48) + (192 + 8) + (192 + 24) + (24 * 9 * 16 + 16) + 85,
        36 * (648 + 48 + 24 + 24 * 9 * 16) + 192 + 192 + 80,
    ),
    "squeeze-excite by linear": Case(
        SqueezeExciteLinear,
        images,
        (648 + 24) + (192 + 8) + (192 + 24) + 125,
        36 * 648 + 192 + 192 + 120,
    ),
    "conv1d": Case(
        conv1d,
        lambda n: torch.randn(n, 4, 12, generator=torch.Generator().manual_seed(n)),
        (240 + 40) + (1440 + 24) + 365,
        12 * (240 + 40) + 6 * 1440 + 360,
    ),
    "conv3d": Case(
        conv3d,
        lambda n: torch.randn(n, 2, 4, 4, 4, generator=torch.Generator().manual_seed(n)),
        (54 * 12 + 24) + (324 * 16 + 16) + 645,
        64 * (54 * 12 + 24 + 324 * 16) + 640,
    ),
    "mlp": Case(mlp, vectors, (320 + 32) + 64 + 768 + 125, 320 + 64 + 768 + 120),
    "mlp on tokens": Case(
        Tokens,
        lambda n: torch.randn(n, 7, 10, generator=torch.Generator().manual_seed(n)),
        20 + (400 + 40) + (400 + 10) + (160 + 16) + 85,
        7 * (50 + 400 + 400 + 160) + 80,  # fvcore: an affine LayerNorm is 5 per element
    ),
    "flatten after conv": Case(
        flattened, images, (432 + 16) + (1280 + 20) + 105, 16 * 432 + 1280 + 100
    ),
    "prelu": Case(
        prelu,
        images,
        (432 + 16) + 16 + (2880 + 20) + 1 + 405,
        16 * 432 + 4 * 2880 + 400,
    ),
    "shared twice": Case(
        SharedTwice,
        images,
        (432 + 16) + (2304 + 16) + 32 + (3456 + 24) + 125,
        36 * (432 + 2 * (2304 + 32) + 3456) + 120,
    ),
    "reused norm": Case(
        ReusedNorm,
        images,
        (432 + 16) + (48 + 16) + 32 + 165,
        36 * (432 + 48 + 2 * 32) + 160,
    ),
    "two outputs": Case(
        lambda: TwoOutputs(named=False),
        images,
        (648 + 48) + 125 + (3456 + 16) + 34,
        36 * (648 + 48 + 3456) + 120 + 32,
    ),
    "dict output": Case(
        lambda: TwoOutputs(named=True),
        images,
        (648 + 48) + 125 + (3456 + 16) + 34,
        36 * (648 + 48 + 3456) + 120 + 32,
    ),
    "two inputs": Case(
        TwoInputs,
        lambda n: {"image": images(n), "vector": vectors(n)},
        (432 + 32) + 220 + (36 * 24 + 24) + 125,
        36 * (432 + 32) + 200 + 36 * 24 + 120,
    ),
    "u-net": Case(
        UNet,
        images,
        # down_one, down_two, low, mid, up, last, head
        (324 + 24)
        + (1728 + 32)
        + (2880 + 40)
        + (36 * 9 * 16 + 32)
        + (16 * 8 * 4 + 8)
        + (20 * 9 * 12 + 24)
        + (24 + 2),
        36 * (324 + 24)
        + 9 * (1728 + 32)
        + (2880 + 40)
        + 20 * 9  # interpolation
        + 9 * (36 * 9 * 16 + 32)
        + 9 * 16 * 8 * 4  # every input position of a transposed convolution makes 2 x 2 outputs
        + 36 * (20 * 9 * 12 + 24 + 24),
    ),
}
