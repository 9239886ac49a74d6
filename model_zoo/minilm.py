"""The first layers of MiniLM, with their pretrained weights, as a classifier of texts."""

from pathlib import Path

import torch
from torch import Tensor, nn

from model_zoo.registry import register_model
from model_zoo.transformer import MeanPool, attend

__all__ = ["load_minilm_", "minilm"]

WIDTH, HEADS, HIDDEN = 384, 12, 1536
PADDING, UNKNOWN = 0, 100  # rows of MiniLM's vocabulary


class MiniLMBlock(nn.Module):
    """A layer of BERT: attention, then a wide GELU layer, each added and then normalised."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.between = nn.LayerNorm(WIDTH, eps=1e-12)
        self.wide, self.act, self.narrow = (
            nn.Linear(WIDTH, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, WIDTH),
        )
        self.after = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, L, 384)`` to the same shape."""
        attended = attend(self.query(x), self.key(x), self.value(x), HEADS)
        x = self.between(x + self.out(attended))
        x = self.after(x + self.narrow(self.act(self.wide(x))))
        return x


class MiniLMEmbedding(nn.Module):
    """A vector for each token and one for each place, added and normalised."""

    def __init__(self, vocabulary: int, length: int) -> None:
        """Build the tables."""
        super().__init__()
        self.length = length
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(length, WIDTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(N, L)``, of which the first ``length`` count, to ``(N, length, 384)``."""
        embedded: Tensor = self.norm(self.token(tokens[:, : self.length]) + self.place)
        return embedded


@register_model
def minilm(
    layers: int = 2, vocabulary: int = 256, length: int = 16, num_classes: int = 8
) -> nn.Sequential:
    """Build the first layers of MiniLM-L6-H384 with a mean over all places and a classifier.

    Weights are random; `load_minilm_` reads the pretrained ones.

    Args:
        layers: Of the six of the original.
        vocabulary: Number of tokens, 0 to ``vocabulary - 1``.
        length: Tokens that are read of every text, up to 512.
        num_classes: Number of outputs.

    Returns:
        Network from int64 tokens ``(N, L)``, at least ``length`` of them, to logits
        ``(N, num_classes)``; 3,657,224 parameters with the defaults.

    Source:
        Wang et al., MiniLM: Deep Self-Attention Distillation, 2020,
        https://arxiv.org/abs/2002.10957.

    Example:
        >>> minilm(layers=1)(torch.zeros(2, 48, dtype=torch.int64)).shape
        torch.Size([2, 8])
    """
    blocks = [MiniLMBlock() for _ in range(layers)]
    return nn.Sequential(
        MiniLMEmbedding(vocabulary, length), *blocks, MeanPool(), nn.Linear(WIDTH, num_classes)
    )


def load_minilm_(model: nn.Sequential, folder: Path, words: Path) -> None:
    """Put the pretrained weights into a `minilm`, in place; the classifier stays as it is.

    Args:
        model: What `minilm` returned.
        folder: ``minilm`` as ``pbcompress zoo fetch`` stored it.
        words: File of the words that are the tokens from 1, one a line; a word that MiniLM does not
            know as a whole begins as its unknown one.

    Raises:
        FileNotFoundError: The files are not there; the message says how to fetch them.
    """
    from safetensors.torch import load_file

    try:
        stored = load_file(folder / "model.safetensors")
        places = {word: i for i, word in enumerate((folder / "vocab.txt").read_text().split("\n"))}
        tokens = words.read_text().splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the weights of MiniLM or the words are not there: {error}. Fetch them with: "
            f"pbcompress zoo fetch minilm --folder {folder.parent}, and the same with reuters_r8"
        ) from error
    rows = [PADDING, *(places.get(word, UNKNOWN) for word in tokens)]
    embedding, *blocks = model[:-2]
    own = {"0.token.weight": stored["embeddings.word_embeddings.weight"][rows]}
    whole = stored["embeddings.position_embeddings.weight"][: embedding.length]
    own["0.place"] = whole + stored["embeddings.token_type_embeddings.weight"][0]
    names = {"0.norm": "embeddings.LayerNorm"}
    for number in range(len(blocks)):
        layer = f"encoder.layer.{number}"
        names |= {
            f"{number + 1}.{name}": f"{layer}.attention.self.{name}"
            for name in ("query", "key", "value")
        }
        names |= {
            f"{number + 1}.out": f"{layer}.attention.output.dense",
            f"{number + 1}.between": f"{layer}.attention.output.LayerNorm",
            f"{number + 1}.wide": f"{layer}.intermediate.dense",
            f"{number + 1}.narrow": f"{layer}.output.dense",
            f"{number + 1}.after": f"{layer}.output.LayerNorm",
        }
    for mine, theirs in names.items():
        own |= {f"{mine}.{part}": stored[f"{theirs}.{part}"] for part in ("weight", "bias")}
    kept = {name: value for name, value in model.state_dict().items() if name not in own}
    model.load_state_dict(own | kept)
