"""Networks of other people to plan widths for: torchvision, timm and Hugging Face.

Lists only. Every network has random weights, so nothing is downloaded; nothing is built, and no
zoo is imported, before it is asked for.

    from scripts.planner.networks import torchvision_classifiers

    entry = torchvision_classifiers()["resnet18"]
    outputs = entry.make()(*entry.inputs(2))
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...] | dict[str, torch.Tensor]
Variant = tuple[str, str, dict[str, Any]]  # class, suffix of the name, changed options

# The CNNs of torchvision pool to a fixed grid, so they take small images; those built for one
# number of patches do not.
SMALL_IMAGE, FULL_IMAGE, INCEPTION_IMAGE = 96, 224, 299
FULL_IMAGE_PREFIXES = ("maxvit", "swin", "vit")

# The classifier with the fewest parameters of each module of timm 1.0.31, in the order of
# timm.list_modules(). Left out: the toys called test_*, and deepseek_vit, gemma4_vit and
# qwen3_vit, which have encoders only. tiny_vit carries a tag because its default head has 21841
# classes.
# fmt: off
TIMM_MEMBERS = (
    "beit_base_patch16_224", "halonet_h1", "mobileone_s1", "cait_xxs24_224", "coat_tiny",
    "convit_tiny", "convmixer_768_32", "convnext_zepto_rms", "cpubone_nano", "crossvit_tiny_240",
    "csatv2", "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224",
    "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0", "mobilenetv2_035", "efficientvim_m1", "efficientvit_b0",
    "efficientvit_m0", "eva02_tiny_patch14_336", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0",
    "hiera_tiny_224", "hieradet_small", "hrnet_w18_small", "iformer_t", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s",
    "lowformer_b0", "mambaout_femto", "maxvit_pico_rw_256", "poolformerv2_s12", "gmlp_ti16_224",
    "mobilenetv3_small_050", "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "nest_tiny", "nextvit_small",
    "nf_regnet_b0", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "rdnet_tiny", "regnetx_002",
    "repghostnet_050", "repvit_m1", "res2next50", "resnest14d", "resnet10t", "resnetv2_18",
    "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18",
    "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window16_256",
    "swinv2_cr_tiny_224", "tiny_vit_5m_224.in1k", "tnt_s_legacy_patch16_224", "tresnet_m",
    "twins_svt_small", "vgg11", "visformer_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224",
    "vit_srelpos_small_patch16_224", "samvit_base_patch16_224", "vitamin_small_224",
    "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p",
    "xcit_nano_12_p8_224",
)
# fmt: on

# Unlike the widths below, so that an axis is known by its size.
VOCABULARY, TOKENS, LABELS = 200, 12, 10
WAVE_SAMPLES, MEL_BINS, MEL_FRAMES, PATCHED_IMAGE = 4000, 40, 48, 40


@dataclass(frozen=True)
class Entry:
    """One network and what it takes.

    Attributes:
        name: The key in its list.
        make: Returns the network in eval mode: the same weights at each call, and the random
            state of the caller left alone.
        inputs: Takes a batch size; returns positional (tuple) or named (dict) inputs, the first
            axis the batch.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]


def torchvision_classifiers() -> dict[str, Entry]:
    """Return all classifiers of torchvision: 80 in version 0.28."""
    _prepare_torchvision()
    from torchvision import models

    names = models.list_models(module=models)
    return _by_name(
        Entry(
            name,
            partial(seeded, torchvision_network, name),
            partial(image, _torchvision_size(name)),
        )
        for name in names
    )


def timm_families() -> dict[str, Entry]:
    """Return one small classifier of each module of timm: 95 in version 1.0.31."""
    _prepare_torchvision()
    from timm.models import get_pretrained_cfg

    return _by_name(
        Entry(
            name,
            partial(seeded, timm_network, name),
            partial(image, get_pretrained_cfg(name).input_size[-1]),
        )
        for name in TIMM_MEMBERS
    )


def hugging_face() -> dict[str, Entry]:
    """Return transformers of Hugging Face from small configurations.

    A name is a class and, after a dash, what differs from the plain entry of that class.
    """
    _prepare_torchvision()
    return _by_name([*_bert(), *_gpt2(), *_llama(), *_vit(), *_whisper(), *_wav2vec2()])


def _by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    found = list(entries)
    listed = {entry.name: entry for entry in found}
    if len(listed) != len(found):
        raise ValueError("two entries share a name")
    return listed


def seeded(build: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """Build in eval mode with the same weights at each call, the random state left alone."""
    _prepare_torchvision()  # again: an entry may have been sent to a new process
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(*args).eval()


@cache
def _prepare_torchvision() -> torch.library.Library | None:
    """Make torchvision importable beside a torch that its compiled operators do not fit.

    Its classifiers use none of the operators; only two schemas are missed. The cache keeps the
    library, and with it the schemas, alive.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:  # transformers works without
        return None
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_module("torchvision")
        return library
    return None


def torchvision_network(name: str) -> nn.Module:
    """Build without the auxiliary heads, which do not run in eval mode."""
    from torchvision import models

    has_heads = name in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": False} if has_heads else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _torchvision_size(name: str) -> int:
    if name == "inception_v3":
        return INCEPTION_IMAGE
    return FULL_IMAGE if name.startswith(FULL_IMAGE_PREFIXES) else SMALL_IMAGE


def timm_network(name: str) -> nn.Module:
    """Build a network of timm."""
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def transformer(class_name: str, config: Callable[..., Any], changes: dict[str, Any]) -> nn.Module:
    """Build a class of Hugging Face from a configuration."""
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    kind = WhisperEncoder if class_name == "WhisperEncoder" else getattr(transformers, class_name)
    model: nn.Module = kind(config(**changes))
    return model


def _entries(
    config: Callable[..., Any],
    inputs: Callable[[int], Inputs],
    classes: Iterable[str],
    variants: Iterable[Variant] = (),
) -> list[Entry]:
    """Return an entry for each class and each variant."""
    plain: list[Variant] = [(name, "", {}) for name in classes]
    return [
        Entry(
            f"{name}-{suffix}" if suffix else name,
            partial(seeded, transformer, name, config, changes),
            inputs,
        )
        for name, suffix, changes in [*plain, *variants]
    ]


def _bert() -> list[Entry]:
    from transformers import BertConfig

    config = partial(
        BertConfig,
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=LABELS,
    )
    classes = (
        "BertModel",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForMaskedLM",
    )
    variants: list[Variant] = [
        ("BertForQuestionAnswering", "", {"num_labels": 2}),
        ("BertForMaskedLM", "untied", {"tie_word_embeddings": False}),
        ("BertLMHeadModel", "decoder", {"is_decoder": True}),
    ]
    return _entries(config, partial(_tokens, ("token_type_ids",)), classes, variants)


def _gpt2() -> list[Entry]:
    from transformers import GPT2Config

    config = partial(
        GPT2Config,
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        num_labels=LABELS,
    )
    classes = ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification")
    variants: list[Variant] = [
        ("GPT2Model", "no-cache", {"use_cache": False}),
        ("GPT2LMHeadModel", "no-cache", {"use_cache": False}),
        ("GPT2LMHeadModel", "untied", {"tie_word_embeddings": False}),
        ("GPT2LMHeadModel", "eager", {"attn_implementation": "eager"}),
    ]
    return _entries(config, partial(_tokens, ()), classes, variants)


def _llama() -> list[Entry]:
    """Return decoders in which two query heads share each key and value head."""
    from transformers import LlamaConfig

    config = partial(
        LlamaConfig,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        num_labels=LABELS,
    )
    classes = ("LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification")
    variants: list[Variant] = [
        ("LlamaModel", "no-cache", {"use_cache": False}),
        ("LlamaForCausalLM", "no-cache", {"use_cache": False}),
        ("LlamaForCausalLM", "tied", {"tie_word_embeddings": True}),
        ("LlamaForCausalLM", "ungrouped", {"num_key_value_heads": 4}),
        ("LlamaForCausalLM", "eager", {"attn_implementation": "eager"}),
    ]
    return _entries(config, partial(_tokens, ()), classes, variants)


def _vit() -> list[Entry]:
    from transformers import ViTConfig

    config = partial(
        ViTConfig,
        image_size=PATCHED_IMAGE,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=LABELS,
    )
    return _entries(config, _pixels, ("ViTModel", "ViTForImageClassification"))


def _whisper() -> list[Entry]:
    from transformers import WhisperConfig

    config = partial(
        WhisperConfig,
        vocab_size=VOCABULARY,
        num_mel_bins=MEL_BINS,
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        max_source_positions=MEL_FRAMES // 2,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        num_labels=LABELS,
    )
    encoders = _entries(config, _mel, ("WhisperEncoder", "WhisperForAudioClassification"))
    both = _entries(config, _mel_and_tokens, ("WhisperModel", "WhisperForConditionalGeneration"))
    return [*encoders, *both]


def _wav2vec2() -> list[Entry]:
    from transformers import Wav2Vec2Config

    config = partial(
        Wav2Vec2Config,
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32, 32, 64),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=32,
        num_labels=LABELS,
    )
    classes = ("Wav2Vec2Model", "Wav2Vec2ForCTC", "Wav2Vec2ForSequenceClassification")
    stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    variants: list[Variant] = [("Wav2Vec2ForCTC", "layer-norm", stable)]
    return _entries(config, _wave, classes, variants)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _ids(batch_size: int, length: int = TOKENS) -> torch.Tensor:
    """Return token numbers without the special ones, 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, VOCABULARY, (batch_size, length), generator=generator)


def image(side: int, batch_size: int) -> Inputs:
    """Return square images of three channels."""
    return (_normal(batch_size, 3, side, side),)


def _tokens(zeros: tuple[str, ...], batch_size: int) -> Inputs:
    ids = _ids(batch_size)
    named = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return named | {name: torch.zeros_like(ids) for name in zeros}


def _pixels(batch_size: int) -> Inputs:
    return {"pixel_values": _normal(batch_size, 3, PATCHED_IMAGE, PATCHED_IMAGE)}


def _mel(batch_size: int) -> Inputs:
    return {"input_features": _normal(batch_size, MEL_BINS, MEL_FRAMES)}


def _mel_and_tokens(batch_size: int) -> Inputs:
    features = _normal(batch_size, MEL_BINS, MEL_FRAMES)
    return {"input_features": features, "decoder_input_ids": _ids(batch_size)}


def _wave(batch_size: int) -> Inputs:
    waves = _normal(batch_size, WAVE_SAMPLES)
    return {"input_values": waves, "attention_mask": torch.ones_like(waves, dtype=torch.long)}
