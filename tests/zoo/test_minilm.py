"""MiniLM of the zoo against the one of transformers, and its weights' way into it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pbcompress as pb
from model_zoo.minilm import load_minilm_, minilm

VOCABULARY = ["[PAD]", *(f"w{place}" for place in range(1, 120))]
WORDS = ["w7", "new", "w3"]


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=120,
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=20,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def folder(bert: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "minilm").mkdir()
    save_file(bert.state_dict(), folder / "minilm" / "model.safetensors")
    (folder / "minilm" / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


@pytest.mark.parametrize("layers", [1, 2])
def test_it_computes_what_transformers_does(bert: nn.Module, folder: Path, layers: int) -> None:
    model = minilm(layers=layers, vocabulary=4, length=6).eval()
    load_minilm_(model, folder / "minilm", folder / "words.txt")
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0], [3, 3, 1, 2, 2, 1]])
    rows = torch.tensor([0, 7, 100, 3])[tokens]  # a new word begins as the unknown one
    with torch.no_grad():
        hidden = bert(rows, output_hidden_states=True).hidden_states[layers]
        torch.testing.assert_close(model(tokens), model[-1](hidden.mean(1)), rtol=1e-4, atol=1e-4)


def test_it_can_be_planned_and_grown(folder: Path) -> None:
    model = minilm(layers=1, vocabulary=4, length=6)
    load_minilm_(model, folder / "minilm", folder / "words.txt")
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    plan = pb.plan_widths(model, tokens, 0.25)
    assert 0.97 * 0.25 * plan.cost_before.params <= plan.cost_after.params
    small = pb.shrink(model, plan)
    before = small(tokens)
    pb.attach_dendrites_(small, pb.DendriteConfig.cheap())
    assert torch.equal(small(tokens), before)


def test_missing_weights_tell_the_command(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"pbcompress zoo fetch minilm --folder .*reuters_r8"
    ):
        load_minilm_(minilm(layers=1), tmp_path / "minilm", tmp_path / "words.txt")
