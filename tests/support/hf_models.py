"""Small models of Hugging Face by family, random weights, with inputs and what can be narrowed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        build: Makes a model in eval mode.
        inputs: Makes a batch of two.
        stated: The numbers of the config that a plan for half of the parameters may change.
    """

    build: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    stated: frozenset[str]


def tokens(length: int = 12) -> torch.Tensor:
    """Return token ids, shape (2, length)."""
    return torch.randint(3, 99, (2, length))


def text() -> dict[str, Any]:
    """Return inputs of a language model."""
    return {"input_ids": tokens()}


def pair() -> dict[str, Any]:
    """Return inputs of an encoder with a decoder."""
    return {"input_ids": tokens(), "decoder_input_ids": tokens()}


def image() -> dict[str, Any]:
    """Return images."""
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def sound() -> dict[str, Any]:
    """Return spectra and tokens."""
    return {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens()}


def both() -> dict[str, Any]:
    """Return images and tokens."""
    return {**text(), **image()}


def made(config: str, model: str, **numbers: Any) -> Callable[[], Any]:
    """Return what makes a model from a config, by the names of their classes."""

    def build() -> Any:
        import transformers

        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**numbers)).eval()

    return build


SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
HEADED: dict[str, Any] = {**GROUPED, "head_dim": 16}
IMAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
STREAM, INNER = frozenset(["hidden_size"]), frozenset(["intermediate_size"])
HEADS = frozenset(["num_attention_heads", "num_key_value_heads"])
EVERY = STREAM | INNER | HEADS

FAMILIES: dict[str, Family] = {
    "Llama": Family(made("LlamaConfig", "LlamaForCausalLM", **GROUPED), text, EVERY),
    "Qwen2": Family(made("Qwen2Config", "Qwen2ForCausalLM", **GROUPED), text, EVERY),
    "Qwen3": Family(made("Qwen3Config", "Qwen3ForCausalLM", **HEADED), text, EVERY),
    "Mistral": Family(made("MistralConfig", "MistralForCausalLM", **GROUPED), text, EVERY),
    "Gemma": Family(made("GemmaConfig", "GemmaForCausalLM", **HEADED), text, INNER | HEADS),
    "Gemma2": Family(made("Gemma2Config", "Gemma2ForCausalLM", **HEADED), text, INNER | HEADS),
    "Phi": Family(made("PhiConfig", "PhiForCausalLM", **SIZES), text, EVERY),
    "Phi3": Family(made("Phi3Config", "Phi3ForCausalLM", **GROUPED), text, INNER),
    "GPT-2": Family(
        made(
            *("GPT2Config", "GPT2LMHeadModel"),
            vocab_size=100,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        ),
        text,
        frozenset(["n_embd", "n_head", "n_inner"]),
    ),
    "BERT": Family(made("BertConfig", "BertForSequenceClassification", **SIZES), text, EVERY),
    "DistilBERT": Family(
        made(
            *("DistilBertConfig", "DistilBertForSequenceClassification"),
            vocab_size=100,
            dim=64,
            hidden_dim=128,
            n_layers=2,
            n_heads=4,
        ),
        text,
        frozenset(["dim", "hidden_dim", "n_heads"]),
    ),
    "RoBERTa": Family(
        made("RobertaConfig", "RobertaForSequenceClassification", **SIZES), text, EVERY
    ),
    "ViT": Family(made("ViTConfig", "ViTForImageClassification", **IMAGE), image, EVERY),
    "DeiT": Family(made("DeiTConfig", "DeiTForImageClassification", **IMAGE), image, EVERY),
    "Whisper": Family(
        made(
            *("WhisperConfig", "WhisperForConditionalGeneration"),
            vocab_size=100,
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            num_mel_bins=16,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
            max_source_positions=20,
            max_target_positions=40,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        sound,
        frozenset(
            [
                *("d_model", "encoder_attention_heads", "decoder_attention_heads"),
                *("encoder_ffn_dim", "decoder_ffn_dim"),
            ]
        ),
    ),
    "T5": Family(
        made(
            *("T5Config", "T5ForConditionalGeneration"),
            vocab_size=100,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        ),
        pair,
        frozenset(["num_heads", "d_ff"]),
    ),
    "CLIP": Family(
        made(
            *("CLIPConfig", "CLIPModel"),
            text_config={**SIZES, "max_position_embeddings": 20},
            vision_config=IMAGE,
            projection_dim=32,
        ),
        both,
        frozenset(f"{part}.{n}" for part in ("text_config", "vision_config") for n in EVERY),
    ),
    "Mixtral": Family(
        made("MixtralConfig", "MixtralForCausalLM", **GROUPED, num_local_experts=4), text, EVERY
    ),
    "Qwen2-MoE": Family(
        made(
            *("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
            **{**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
        ),
        text,
        EVERY | {"moe_intermediate_size", "shared_expert_intermediate_size"},
    ),
}
