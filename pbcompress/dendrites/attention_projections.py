"""torch's attention with its projections as layers, so that dendrites can grow on them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.core.modules import replace_module
from pbcompress.errors import CompressionError, UnsupportedLayerError

__all__ = ["OpenAttention", "close_attention_", "open_attention_"]


class OpenAttention(nn.Module):
    """What `torch.nn.MultiheadAttention` computes, with a Linear for each of its two weights.

    Called like the original, whose parameters it shares. Where query, key and value are different
    tensors, ``in_proj`` maps each of them and a third of every result is used.

    Args:
        attention: With one packed input weight; see `open_attention_`.

    Attributes:
        in_proj: Linear(embed_dim, 3 * embed_dim): queries, keys and values.
        out_proj: Linear(embed_dim, embed_dim).
        encoder_nests: What ``use_nested_tensor`` of an encoder was that has this attention first.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.randn(3, 5, 8)
        >>> torch.allclose(OpenAttention(attention)(x, x, x)[0], attention(x, x, x)[0], atol=1e-6)
        True
    """

    # torch's encoder layers read these three, and leave what they find here to forward
    in_proj_bias: None = None
    in_proj_weight: None = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.encoder_nests = False
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values, and the weights where they are needed.

        Args:
            query: Shape (N, L, E); (L, N, E) unless ``batch_first``; or (L, E).
            key: Shape (N, S, E), as ``query``.
            value: As ``key``.
            key_padding_mask: Shape (N, S): True is hidden, or floats to add.
            need_weights: Whether to return the weights.
            attn_mask: Shape (L, S) or (N * heads, L, S): True is hidden, or floats to add.
            average_attn_weights: Whether the weights are the mean over the heads.
            is_causal: A hint that ``attn_mask`` is causal; it is not needed here.

        Raises:
            CompressionError: ``is_causal`` without a mask.
        """
        if is_causal and attn_mask is None:
            raise CompressionError(
                "is_causal=True came without attn_mask. Give the mask, as to MultiheadAttention."
            )
        is_batched = query.dim() == 3
        q, k, v = self._heads(query, key, value)
        mask = self._mask(key_padding_mask, attn_mask, q)
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, p) if p else weights
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, p)
        y: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not is_batched:
            return y[0], None if weights is None else weights[0]
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return q, k and v of shape (N, heads, tokens, features)."""
        inputs = [query, key, value]
        parts: dict[int, tuple[Tensor, ...]] = {}
        for x in inputs:
            if id(x) not in parts:
                by_sample = x.unsqueeze(0) if x.dim() == 2 else x
                if x.dim() == 3 and not self.batch_first:
                    by_sample = x.transpose(0, 1)
                parts[id(x)] = self.in_proj(by_sample).chunk(3, -1)
        own = [parts[id(x)][place] for place, x in enumerate(inputs)]
        return [t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in own]

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Return what to add to the scores of shape (N, heads, L, S)."""
        added = []
        if padding is not None:
            added.append(_additive(padding, q.dtype).reshape(len(q), 1, 1, -1))
        if mask is not None:
            own = _additive(mask, q.dtype)
            added.append(own.unflatten(0, (len(q), -1)) if own.dim() == 3 else own)
        return sum(added[1:], added[0]) if added else None

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of this layer."""
        return f"num_heads={self.num_heads}"


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """Return a Linear of these very parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


def open_attention_(model: nn.Module) -> tuple[str, ...]:
    """Replace every `torch.nn.MultiheadAttention` by one whose projections are layers, in place.

    Dendrites then grow on ``in_proj`` and ``out_proj``, and on the Linears of torch's transformer
    layers. The parameters stay the same objects; outputs are equal up to the order of sums. torch's
    fused inference path, which reads the weights past the layers, is not taken any more.

    Args:
        model: Network; other attention modules, whose projections are layers already, stay.

    Returns:
        The names of what was replaced.

    Raises:
        UnsupportedLayerError: One has separate input weights (``kdim``, ``vdim``), biases or zeros
            added to keys and values, or hooks; or is of a subclass. Nothing was changed.

    Example:
        >>> net = nn.TransformerEncoderLayer(8, 2, 16)
        >>> open_attention_(net)
        ('self_attn',)
        >>> net.self_attn.in_proj
        Linear(in_features=8, out_features=24, bias=True)
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    for name, attention in found.items():
        reason = _closed_for(name, attention)
        if reason:
            raise UnsupportedLayerError(
                f"open_attention_ cannot open {name!r}: {reason}. Open the modules below it that "
                "can be, one by one.",
                name,
                reason,
            )
    for name, attention in found.items():
        replace_module(model, name, OpenAttention(attention))
    for encoder, first in _opened_encoders(model):
        if encoder.use_nested_tensor:
            first.encoder_nests, encoder.use_nested_tensor = True, False
    return tuple(found)


def _closed_for(name: str, attention: Any) -> str | None:
    """Return why an attention cannot be opened."""
    kind: type = type(attention)
    if kind is not nn.MultiheadAttention:
        return f"{kind.__name__} is a subclass that may compute something else"
    if not name:
        return "it is the model itself; put it into a module"
    if attention.in_proj_weight is None:
        return "its queries, keys and values have weights of their own (kdim, vdim)"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds a bias or zeros to its keys and values"
    if attention._forward_hooks or attention._forward_pre_hooks or attention._backward_hooks:
        return "it has hooks, which would be lost"
    return None


def _opened_encoders(model: nn.Module) -> list[tuple[nn.TransformerEncoder, OpenAttention]]:
    """Return the encoders whose first layer's attention is open, with that attention."""
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
    firsts = [(m, getattr(m.layers[0], "self_attn", None)) for m in encoders if len(m.layers)]
    return [(m, first) for m, first in firsts if isinstance(first, OpenAttention)]


def close_attention_(model: nn.Module) -> tuple[str, ...]:
    """Undo `open_attention_` in place: `torch.nn.MultiheadAttention` of the same parameters.

    Args:
        model: Network without dendrites on these projections.

    Returns:
        The names of what was replaced.

    Raises:
        CompressionError: A projection has dendrites, or the heads were narrowed to another width
            than the stream's. Nothing was changed.

    Example:
        >>> net = nn.TransformerEncoderLayer(8, 2, 16)
        >>> _ = open_attention_(net)
        >>> close_attention_(net)
        ('self_attn',)
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, OpenAttention)}
    for name, opened in found.items():
        _check_closable(name, opened)
    for encoder, first in _opened_encoders(model):
        encoder.use_nested_tensor = encoder.use_nested_tensor or first.encoder_nests
    for name, opened in found.items():
        replace_module(model, name, _closed(opened))
    return tuple(found)


def _check_closable(name: str, opened: OpenAttention) -> None:
    for place in ("in_proj", "out_proj"):
        kind = type(getattr(opened, place))
        if kind is not nn.Linear:
            raise CompressionError(
                f"close_attention_ found a {kind.__name__} at {name}.{place}, which "
                "MultiheadAttention cannot hold. Remove it with detach_dendrites_ first."
            )
    width, stream = opened.out_proj.in_features, opened.in_proj.in_features
    if width != stream or width != opened.out_proj.out_features:
        raise CompressionError(
            f"close_attention_ found {name!r} with {width} channels in its heads and {stream} in "
            "its stream; MultiheadAttention has one width for both. Leave it open."
        )


def _closed(opened: OpenAttention) -> nn.MultiheadAttention:
    inner, outer = opened.in_proj, opened.out_proj
    attention: Any = nn.MultiheadAttention(
        inner.in_features,
        opened.num_heads,
        opened.dropout,
        bias=inner.bias is not None,
        batch_first=opened.batch_first,
        device="meta",
    )
    attention.in_proj_weight, attention.in_proj_bias = inner.weight, inner.bias
    attention.out_proj.weight, attention.out_proj.bias = outer.weight, outer.bias
    return attention.train(opened.training)  # type: ignore[no-any-return]
