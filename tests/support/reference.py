"""Layers of every kind, and their dendrites by the formula: numpy in float64."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pbcompress import DendriteConfig
from pbcompress.dendrites.forms import ChannelAffine, GroupedLinear, UncentredNorm
from pbcompress.dendrites.growth import attach_dendrites_
from pbcompress.dendrites.layer import DendriteLayer
from pbcompress.structure.layer_geometry import LayerGeometry
from tests.support.configs import FORMS, dendrites_of

Array = np.ndarray


@dataclass(frozen=True)
class Kind:
    """A layer and the shape of an input of it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batched: bool = True

    @property
    def axis(self) -> int:
        return -1 - len(getattr(self.make(), "kernel_size", ()))


KINDS = {
    "linear": Kind(lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": Kind(lambda: nn.Linear(6, 4, bias=False), (5, 6)),
    "linear of rank 3": Kind(lambda: nn.Linear(6, 4), (5, 3, 6)),
    "linear of rank 4": Kind(lambda: nn.Linear(6, 4), (2, 3, 2, 6)),
    "linear unbatched": Kind(lambda: nn.Linear(6, 4), (6,), batched=False),
    "conv1d": Kind(lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 7)),
    "conv1d unbatched": Kind(lambda: nn.Conv1d(4, 6, 3), (4, 7), batched=False),
    "conv2d": Kind(lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 3, 5, 4)),
    "conv2d without bias": Kind(lambda: nn.Conv2d(3, 4, 3, bias=False), (3, 3, 5, 4)),
    "conv2d pointwise": Kind(lambda: nn.Conv2d(4, 6, 1), (3, 4, 3, 2)),
    "conv2d oblong": Kind(lambda: nn.Conv2d(3, 4, (1, 3), padding=(0, 2)), (3, 3, 3, 4)),
    "conv2d strided": Kind(lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1), (3, 4, 5, 4)),
    "conv2d dilated": Kind(lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=1), (3, 3, 6, 5)),
    "conv2d grouped": Kind(lambda: nn.Conv2d(6, 4, 3, groups=2), (3, 6, 5, 4)),
    "conv2d depthwise": Kind(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 5, 4)),
    "conv2d multiplied": Kind(lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 4, 5, 4)),
    "conv2d same": Kind(lambda: nn.Conv2d(3, 4, (5, 3), padding="same"), (3, 3, 5, 4)),
    "conv2d reflect": Kind(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 3, 5, 4)
    ),
    "conv2d circular": Kind(
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 3, 5, 4)
    ),
    "conv2d replicate": Kind(
        lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="replicate"), (3, 3, 5, 4)
    ),
    "conv2d unbatched": Kind(lambda: nn.Conv2d(3, 4, 3), (3, 5, 4), batched=False),
    "transposed 1d": Kind(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 5)),
    "transposed 2d": Kind(
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 3, 4, 3)
    ),
    "transposed grouped": Kind(
        lambda: nn.ConvTranspose2d(6, 4, (2, 3), dilation=(2, 1), groups=2, bias=False),
        (3, 6, 4, 3),
    ),
    "transposed depthwise": Kind(
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=(1, 2), groups=4), (3, 4, 3, 4)
    ),
    "transposed 3d": Kind(lambda: nn.ConvTranspose3d(2, 4, 2, stride=2), (3, 2, 2, 3, 2)),
    "conv3d": Kind(lambda: nn.Conv3d(2, 4, 2, stride=2, padding=1), (3, 2, 3, 4, 2)),
}
RULES = ("correlation", "gradient", "hybrid")
CASES = [
    (kind, form, normed)
    for kind, form, normed in itertools.product(KINDS, FORMS, (False, True))
    if KINDS[kind].batched or not normed
]
ALL = [(*case, rule) for case in CASES for rule in RULES]


def config_of(form: str, rule: str = "correlation", **choices: object) -> DendriteConfig:
    chosen = {"activation": "tanh", "groups": 2, "rank": 2, "nodes": 3} | choices
    return dendrites_of(form=form, rule=rule, **chosen)


def network_of(kind: str, normed: bool) -> nn.Sequential:
    layer = KINDS[kind].make()
    if not normed:
        return nn.Sequential(layer)
    norm = {-1: nn.BatchNorm1d, -2: nn.BatchNorm1d, -3: nn.BatchNorm2d, -4: nn.BatchNorm3d}
    width = LayerGeometry.of(layer).out_width
    return nn.Sequential(layer, norm[KINDS[kind].axis](width))


def inputs_of(kind: str) -> Tensor:
    return torch.randn(KINDS[kind].shape).double()


def shake(module: nn.Module) -> None:
    """Give every parameter and statistic a random value."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)


def grown(kind: str, form: str, normed: bool, rule: str, sets: int, **choices: object):
    """One wrapped layer in float64 with random weights, U and V."""
    network = network_of(kind, normed).double()
    for _ in range(sets):
        attach_dendrites_(network, config_of(form, rule, **choices), seed=3)
    layer = network[0]
    shake(layer)
    return layer


# --- the reference --------------------------------------------------------------------------------


def numbers(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().copy()


def spread(layer: nn.Module, x: Array) -> Array:
    """Convolve transposed by its definition: each input adds a kernel to the output."""
    weight, dims = numbers(layer.weight), len(layer.kernel_size)
    sizes = [
        (length - 1) * step + gap * (size - 1) + 1 + more
        for length, step, gap, size, more in zip(
            x.shape[2:], layer.stride, layer.dilation, layer.kernel_size, layer.output_padding,
            strict=True,
        )
    ]  # fmt: skip
    groups, width = layer.groups, layer.out_channels
    split = weight.reshape(groups, -1, *weight.shape[1:])
    total = np.zeros((len(x), groups, width // groups, *sizes))
    read = x.reshape(len(x), groups, -1, *x.shape[2:])
    for tap in np.ndindex(*layer.kernel_size):
        window = tuple(
            slice(t * gap, t * gap + (length - 1) * step + 1, step)
            for t, gap, length, step in zip(
                tap, layer.dilation, x.shape[2:], layer.stride, strict=True
            )
        )
        total[(..., *window)] += np.einsum("ngi...,gio->ngo...", read, split[(..., *tap)])
    y = total.reshape(len(x), width, *sizes)
    cut = tuple(slice(p, n - p) for p, n in zip(layer.padding, sizes, strict=True))
    y = y[(..., *cut)]
    return y if layer.bias is None else y + numbers(layer.bias).reshape(-1, *[1] * dims)


def convolve(layer: nn.Module, x: Array) -> Array:
    """Convolve by its definition: a sum over the elements of the kernel."""
    if layer.transposed:
        return spread(layer, x)
    weight, dims = numbers(layer.weight), len(layer.kernel_size)
    sizes, steps, gaps = layer.kernel_size, layer.stride, layer.dilation
    if layer.padding == "same":
        whole = [gap * (size - 1) for gap, size in zip(gaps, sizes, strict=True)]
        padding = [(w // 2, w - w // 2) for w in whole]
    else:
        padding = [(p, p) for p in layer.padding]
    batch = x if x.ndim == dims + 2 else x[None]
    mode = {"zeros": "constant", "circular": "wrap", "replicate": "edge"}
    padded = np.pad(
        batch, [(0, 0), (0, 0), *padding], mode=mode.get(layer.padding_mode, layer.padding_mode)
    )
    out = [
        (length - gap * (size - 1) - 1) // step + 1
        for length, gap, size, step in zip(padded.shape[2:], gaps, sizes, steps, strict=True)
    ]
    groups, per_in = layer.groups, weight.shape[1]
    total = np.zeros((len(batch), groups, weight.shape[0] // groups, *out))
    split = weight.reshape(groups, -1, *weight.shape[1:])
    for tap in np.ndindex(*sizes):
        window = tuple(
            slice(t * gap, t * gap + step * (o - 1) + 1, step)
            for t, gap, step, o in zip(tap, gaps, steps, out, strict=True)
        )
        seen = padded[(..., *window)].reshape(len(batch), groups, per_in, *out)
        total += np.einsum("ngi...,goi->ngo...", seen, split[(..., *tap)])
    y = total.reshape(len(batch), -1, *out)
    if layer.bias is not None:
        y = y + numbers(layer.bias).reshape(-1, *[1] * dims)
    return y if x.ndim == dims + 2 else y[0]


def apply(module: nn.Module, x: Array, axis: int) -> Array:
    """Evaluate a map with the weights of ``module`` and nothing else of it."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = apply(part, x, axis)
        return x
    if isinstance(module, UncentredNorm):
        moved = np.moveaxis(x, axis, -1)
        others = tuple(range(moved.ndim - 1))
        square = np.square(moved).mean(others) if module.training else numbers(module.running_var)
        unit = moved / np.sqrt(square + module.eps)
        return np.moveaxis(unit * numbers(module.weight), -1, axis)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        moved = np.moveaxis(x, axis, -1)
        others = tuple(range(moved.ndim - 1))
        mean, var = numbers(module.running_mean), numbers(module.running_var)
        if module.training:
            mean, var = moved.mean(others), moved.var(others)
        unit = (moved - mean) / np.sqrt(var + module.eps)
        return np.moveaxis(unit * numbers(module.weight) + numbers(module.bias), -1, axis)
    if isinstance(module, ChannelAffine):
        moved = np.moveaxis(x, axis, -1) * numbers(module.weight) + numbers(module.bias)
        return np.moveaxis(moved, -1, axis)
    if isinstance(module, GroupedLinear):
        parts = np.split(x, module.groups, axis=-1)
        weights = numbers(module.weight)
        y = np.concatenate([p @ w for p, w in zip(parts, weights, strict=True)], -1)
        return y if module.bias is None else y + numbers(module.bias)
    if isinstance(module, nn.Linear):
        y = x @ numbers(module.weight).T
        return y if module.bias is None else y + numbers(module.bias)
    return convolve(module, x)


def activations(layer: DendriteLayer, x: Array, axis: int, sets: int | None = None) -> list[Array]:
    """Evaluate a_1 .. a_D of the formula, with tanh."""
    heard: list[Array] = []
    for d in range(layer.num_sets if sets is None else sets):
        read = apply(layer.base_layer, x, axis) if layer.config.form.kind == "tied" else x
        z = np.moveaxis(apply(layer.dendrites[d], read, axis), axis, -1)
        for e, v in enumerate(numbers(layer.links[d])):
            z = z + v * heard[e]
        heard.append(np.tanh(z))
    return heard


def output(layer: DendriteLayer, x: Array, axis: int) -> Array:
    y = np.moveaxis(apply(layer.base_layer, x, axis), axis, -1)
    for u, a in zip(map(numbers, layer.gains), activations(layer, x, axis), strict=True):
        y = y + (a * u if u.ndim == 1 else a @ u)
    return np.moveaxis(y, -1, axis)


def loss_of(y: Tensor) -> Tensor:
    """Some smooth loss whose error differs at every position."""
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return (y * weight).sin().sum() + 0.1 * (y**3).mean()
