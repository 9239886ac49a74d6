"""The networks whose speed is measured: nine of convolutions, two with attention, one of text.

Every network has random weights; nothing is built, and no zoo is imported, before it is asked for.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from model_zoo import create_model
from scripts.planner.networks import (
    Entry,
    Inputs,
    image,
    seeded,
    timm_network,
    torchvision_network,
    transformer,
)

__all__ = ["networks"]

SMALL = ("resnet20", "resnet56", "mobilenet_small")  # of model_zoo, for 32 x 32 pixels
TORCHVISION = ("mobilenet_v2", "resnet18", "resnet50", "efficientnet_b0", "regnet_y_400mf")
TIMM = {"convnext_pico": 224, "deit_tiny_patch16_224": 224, "mobilevit_xs": 256}
TOKENS, VOCABULARY = 128, 30_522


def networks() -> dict[str, Entry]:
    """Return all networks by name, the quick ones first."""
    entries = [Entry(name, partial(seeded, _small, name), partial(image, 32)) for name in SMALL]
    entries.append(Entry("bert_mini", partial(seeded, _bert_mini), _tokens))
    entries += [
        Entry(name, partial(seeded, torchvision_network, name), partial(image, 224))
        for name in TORCHVISION
    ]
    entries += [
        Entry(name, partial(seeded, timm_network, name), partial(image, side))
        for name, side in TIMM.items()
    ]
    return {entry.name: entry for entry in entries}


def _small(name: str) -> nn.Module:
    return create_model(name, num_classes=10, in_channels=3)


def _bert_mini() -> nn.Module:
    """Build the BERT of 4 layers of width 256 that Google published, as a classifier."""
    from transformers import BertConfig

    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    return transformer(
        "BertForSequenceClassification",
        BertConfig,
        {**sizes, "intermediate_size": 1024, "vocab_size": VOCABULARY},
    )


def _tokens(batch_size: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCABULARY, (batch_size, TOKENS), generator=generator)
    zeros = torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": zeros}
