"""How long a plan takes as a network gets deeper, by stage: transformers of equal layers.

    python -m scripts.planner.run depth lines.jsonl

Seconds are of the processor, which other work on the machine disturbs less than a clock's.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.planning import planner
from pbcompress.planning.width_search import WidthSearch
from pbcompress.structure import channel_groups

DEPTHS = (16, 32, 64, 128)
WIDTH, HEADS, TOKENS, FEATURES, CLASSES = 32, 4, 8, 16, 10
REPEATS = 5
STAGES = {  # the functions whose time it is; tracing is a part of what find_groups does
    "trace": (channel_groups, "trace"),
    "grouping": (planner, "find_groups"),
    "search": (WidthSearch, "solve"),
    "proof": (planner, "proof_failure"),
}


class Block(nn.Module):
    """A layer as in ViT and GPT: norms first, one projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, shape (batch, tokens, width)."""
        batch, count, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, count, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*qkv.unbind())
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def blocks(depth: int) -> nn.Module:
    """Return a stack of `Block`."""
    return nn.Sequential(*(Block() for _ in range(depth)))


def encoder(depth: int) -> nn.Module:
    """Return torch's own encoder, whose heads reach through all layers."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


STACKS: dict[str, Callable[[int], nn.Module]] = {"blocks": blocks, "encoder": encoder}


def measured(share: float) -> Iterator[dict[str, Any]]:
    """Yield a line for each stack and depth: medians, the depths in turn."""
    for name, make in STACKS.items():
        runs: dict[int, list[dict[str, float]]] = {depth: [] for depth in DEPTHS}
        for _ in range(REPEATS):
            for depth, own in runs.items():
                own.append(_planned(make(depth), share))
        for depth, own in runs.items():
            medians = {key: statistics.median(run[key] for run in own) for key in own[0]}
            yield {"list": "depth", "name": name, "layers": depth, "repeats": REPEATS, **medians}


def _planned(stack: nn.Module, share: float) -> dict[str, float]:
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), stack, nn.Linear(WIDTH, CLASSES)).eval()
    spent: Counter[str] = Counter()
    with _timed(spent):
        start = time.process_time()
        plan = pb.plan_widths(model, torch.zeros(1, TOKENS, FEATURES), share)
        seconds = time.process_time() - start
    spent["grouping"] -= spent["trace"]
    start = time.process_time()
    pb.shrink(model, plan)
    shrink = time.process_time() - start
    landed = plan.cost_after.params / plan.target_params
    return {"seconds": seconds, "share_of_target": landed, "shrink": shrink, **spent}


@contextmanager
def _timed(spent: Counter[str]) -> Iterator[None]:
    """Add up the seconds of the processor that the stages take."""

    def timing(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent[stage] += time.process_time() - start  # type: ignore[assignment]

        return timed

    with ExitStack() as stack:
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(patch.object(owner, name, timing(stage, getattr(owner, name))))
        yield
