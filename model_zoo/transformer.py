"""A small transformer encoder for classifying short texts."""

import torch
from torch import Tensor, nn

from model_zoo.registry import register_model

__all__ = ["EncoderBlock", "MeanPool", "attend", "text_transformer"]


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return the attention of ``heads`` heads over ``(N, L, width)``, in the same shape."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class EncoderBlock(nn.Module):
    """Self-attention and a wide ReLU layer, each behind a LayerNorm and added to the stream.

    Args:
        width: Channels of the stream.
        heads: Attention heads, a divisor of ``width``.
        hidden: Channels of the wide layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Build the layers; the class says what the arguments mean."""
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.wide, self.act, self.narrow = (
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, L, width)`` to the same shape."""
        y = self.before(x)
        x = x + self.out(attend(self.query(y), self.key(y), self.value(y), self.heads))
        narrowed: Tensor = self.narrow(self.act(self.wide(self.between(x))))
        return x + narrowed


class _Embedding(nn.Module):
    """A vector for each token and one for each place, added."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.token(tokens)
        return embedded + self.place


class MeanPool(nn.Module):
    """The mean over all places."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, L, width)`` to ``(N, width)``."""
        return x.mean(1)


@register_model
def text_transformer(
    vocabulary: int = 256,
    length: int = 48,
    width: int = 32,
    heads: int = 4,
    blocks: int = 2,
    num_classes: int = 8,
) -> nn.Sequential:
    """Build a transformer encoder with a mean over all places before its classifier.

    Args:
        vocabulary: Number of tokens, 0 to ``vocabulary - 1``.
        length: Tokens of every text; shorter ones are padded, and the padding is a token too.
        width: Channels of the stream, a multiple of ``heads``; the wide layers have twice as many.
        heads: Attention heads.
        blocks: Number of blocks, at least one.
        num_classes: Number of outputs.

    Returns:
        Network from int64 tokens ``(N, length)`` to logits ``(N, num_classes)``; 27,144 parameters
        with the defaults.

    Raises:
        ValueError: ``blocks`` is below 1, or ``width`` is not a multiple of ``heads``.

    Source:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, with the
        norms in front as in Xiong et al., 2020, https://arxiv.org/abs/2002.04745.

    Example:
        >>> text_transformer()(torch.zeros(2, 48, dtype=torch.int64)).shape
        torch.Size([2, 8])
    """
    if blocks < 1 or width % heads:
        raise ValueError(
            f"blocks must be at least 1 and width a multiple of heads, got {blocks} blocks, "
            f"width {width} and {heads} heads"
        )
    return nn.Sequential(
        _Embedding(vocabulary, length, width),
        *(EncoderBlock(width, heads, 2 * width) for _ in range(blocks)),
        nn.LayerNorm(width),
        MeanPool(),
        nn.Linear(width, num_classes),
    )
