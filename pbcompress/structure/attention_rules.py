"""Attention: its products, and the layer of torch that splits a stream into heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pbcompress.structure.labels import Labels
from pbcompress.structure.rule_table import Axes, RuleTable, broadcast
from pbcompress.structure.sizes import Attribute
from pbcompress.structure.tracer import Tracer

__all__ = ["RULES", "attention_layer"]

RULES = RuleTable()
rule = RULES.entry


@rule(
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
)
def attention(t: Tracer, name: str, args: Any, kwargs: Any, out: Any) -> Any:
    """Attention on (batch, heads, tokens, features); key heads may serve several query heads."""
    query, key, value = args[:3]
    q, k, v = t.labels(query), t.labels(key), t.labels(value)
    heads, groups = query.shape[1], key.shape[1]
    q[0] = t.couple(t.couple(q[0], k[0]), v[0])
    k[1] = t.couple(k[1], v[1])
    spread = k[1]
    if heads != groups:
        spread = k[1].repeat_interleave(heads // groups) if k[1] is not None else None
    q[1] = t.couple(q[1], spread)
    q[3] = t.couple(q[3], k[3])
    t.couple(k[2], v[2])
    t.coupling.pin(k[2], "it is a softmax's dimension")
    masks = [a for a in (*args[3:], kwargs.get("attn_mask")) if isinstance(a, Tensor)]
    for mask in masks:
        scores = torch.empty((query.shape[0], heads, query.shape[2], key.shape[2]), device="meta")
        t.set_labels(scores, [q[0], q[1], q[2], k[2]])
        broadcast(t, [scores, mask], tuple(scores.shape))
    t.event(name, [(0, 3, q[3]), (1, 3, k[3])])
    rows = [(query.shape[0], q[0]), (heads, q[1]), (query.shape[2], q[2]), (key.shape[2], k[2])]
    t.work(1, *rows, (query.shape[3], q[3]))
    t.work(1, *rows, (value.shape[3], v[3]))
    result: Axes = [q[0], q[1], q[2], v[3]]
    others = [[None] * o.dim() if isinstance(o, Tensor) else [] for o in out[1:]]
    return [result, *others]


def attention_layer(
    t: Tracer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    _zero: bool,
    _dropout: float,
    out_weight: Tensor,
    *_: Any,
    **others: Any,
) -> None:
    """`torch.nn.MultiheadAttention`, of which a head goes with as many channels of its query.

    It splits the width of its query evenly into heads, so both stay in proportion.
    """
    width, heads = int(width), int(heads)
    labels = t.coupling.fresh(heads)
    rows: Labels = labels.repeat_interleave(width // heads)
    keys, values = t.labels(key)[-1], t.labels(value)[-1]
    if heads == 1:
        t.coupling.pin(rows, f"the attention {t.where!r} has one head, and scales by its size")
    t.couple(t.labels(query)[-1], rows)
    if in_weight is not None:
        keys, values = t.couple(keys, rows), t.couple(values, rows)
    tripled = labels.repeat_interleave(width // heads).repeat(3)
    known: Sequence[tuple[Tensor | None, Mapping[int, Labels]]] = [
        (in_weight, {0: tripled, 1: rows}),
        (others.get("q_proj_weight"), {0: rows, 1: rows}),
        (others.get("k_proj_weight"), {0: rows, 1: keys}),
        (others.get("v_proj_weight"), {0: rows, 1: values}),
        (in_bias, {0: tripled}),
        (out_weight, {1: rows}),
        (bias_k, {2: rows}),
        (bias_v, {2: rows}),
    ]
    for own, axes in known:
        if own is not None:
            found = t.labels(own, axes)
            for axis, wanted in axes.items():
                t.couple(found[axis], wanted)
    for name, own in (("embed_dim", rows), ("kdim", keys), ("vdim", values), ("num_heads", labels)):
        if own is not None:
            bound = t.result.bindings.setdefault(Attribute(t.where, name), own)
            t.couple(bound, own)
