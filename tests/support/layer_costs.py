"""Layers whose costs were counted by hand."""

from torch import nn

# layer, input shape without batch, parameters, FLOPs; each by hand
LAYERS = {
    "linear": (nn.Linear(7, 5), (7,), 40, 35),
    "linear without bias": (nn.Linear(7, 5, bias=False), (7,), 35, 35),
    "linear on tokens": (nn.Linear(7, 5), (4, 7), 40, 4 * 35),
    "conv1d": (nn.Conv1d(2, 6, 3), (2, 10), 42, 8 * 36),
    "conv2d": (nn.Conv2d(2, 6, 3, stride=2, padding=1), (2, 8, 8), 114, 16 * 108),
    "conv2d without bias": (nn.Conv2d(2, 6, (1, 3), bias=False), (2, 4, 5), 36, 12 * 36),
    "conv2d dilated": (nn.Conv2d(2, 6, 3, dilation=2), (2, 8, 8), 114, 16 * 108),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 3, 3, 3), 68, 8 * 64),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 6 * 2 * 9 + 6, 9 * 108),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5), 40, 9 * 36),
    "depthwise multiplied": (nn.Conv2d(4, 8, 3, groups=4), (4, 5, 5), 80, 9 * 72),
    "transposed": (nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 4, 4), 65, 16 * 60),
    "batchnorm1d": (nn.BatchNorm1d(6), (6,), 12, 12),
    "batchnorm2d": (nn.BatchNorm2d(6), (6, 3, 3), 12, 2 * 54),
    "batchnorm without affine": (nn.BatchNorm2d(6, affine=False), (6, 3, 3), 0, 54),
}
