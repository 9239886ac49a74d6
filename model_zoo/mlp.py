"""Fully connected network."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from model_zoo.registry import register_model

__all__ = ["mlp"]


@register_model
def mlp(
    in_features: int = 784,
    hidden: Sequence[int] = (256, 128),
    num_classes: int = 10,
    *,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Build a multi-layer perceptron with ReLU between its linear layers.

    Args:
        in_features: Elements of one input, e.g. ``C * H * W`` of an image.
        hidden: Width of each hidden layer; empty gives a linear classifier.
        num_classes: Number of outputs.
        batch_norm: Put a BatchNorm between each hidden linear layer and its ReLU.

    Returns:
        Network from ``(N, ...)``, flattened to ``(N, in_features)``, to logits
        ``(N, num_classes)``.

    Example:
        >>> import torch
        >>> mlp(in_features=12, hidden=(8,), num_classes=3)(torch.zeros(5, 3, 2, 2)).shape
        torch.Size([5, 3])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise((in_features, *hidden)):
        layers.append(nn.Linear(width_in, width_out))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(nn.ReLU())
    layers.append(nn.Linear((in_features, *hidden)[-1], num_classes))
    return nn.Sequential(*layers)
