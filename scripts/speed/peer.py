"""torch-pruning in multiples of 8, as near to a number of parameters as its steps allow.

Its magnitude pruner with the same share in every layer; the head is left alone. With rounding the
number of parameters is a staircase over the share, and not always a falling one (a layer of which
nothing would be left stays whole), so a grid of shares is tried before a bisection.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch_pruning as tp
from torch import nn

from pbcompress.core.inputs import as_call, tensors_of

__all__ = ["NothingPrunedError", "Peer", "nearest"]

ROUND_TO = 8
GRID = [step / 16 for step in range(1, 16)]
HALVINGS = 7
NEAR = 0.002  # of the wanted number; nearer is not looked for


class NothingPrunedError(Exception):
    """The pruner left every layer as it was, and did not say so."""


class Peer:
    """Prunes copies of one network, and remembers how many parameters each share left."""

    def __init__(self, model: nn.Module, inputs: Any, round_to: int = ROUND_TO) -> None:
        self.model, self.inputs, self.round_to = model, inputs, round_to
        self._counts: dict[float, int] = {}

    def network(self, params: int) -> nn.Module:
        """Return the network whose number of parameters is nearest to a wanted one.

        Raises:
            NothingPrunedError: No share changes anything.
            Exception: Whatever the pruner or its network raises.
        """
        ratio = nearest(self._count, params)
        if set(self._counts.values()) == {size(self.model)}:
            raise NothingPrunedError("no layer became narrower")
        network = self._pruned(ratio)
        _run(network, self.inputs)
        return network

    def _count(self, ratio: float) -> int:
        if ratio not in self._counts:
            self._counts[ratio] = size(self._pruned(ratio))
        return self._counts[ratio]

    def _pruned(self, ratio: float) -> nn.Module:
        network = deepcopy(self.model).eval()  # a trace in training would move statistics
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        attentions = list(_attentions(network))
        pruner = tp.pruner.BasePruner(
            network,
            self.inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=False,
            pruning_ratio=ratio,
            round_to=self.round_to,
            ignored_layers=[head],
            num_heads={layer: heads for _, layers, heads in attentions for layer in layers},
            in_channel_groups={},  # its defaults are shared by all pruners
            out_channel_groups={},
            forward_fn=_run,
            output_transform=tensors_of,
        )
        pruner.step()
        for module, layers, _ in attentions:
            _state_sizes_(module, layers[0].out_features, pruner.num_heads[layers[0]])
        return network


def nearest(count: Callable[[float], int], wanted: int) -> float:
    """Return the share, of those on a grid and of bisections in it, that comes nearest."""
    found = {ratio: count(ratio) for ratio in GRID}

    def miss(ratio: float) -> int:
        return abs(found[ratio] - wanted)

    for low, high in pairwise(GRID):
        for _ in range(HALVINGS):
            near = min(miss(ratio) for ratio in found) <= NEAR * wanted
            if near or (found[low] > wanted) == (found[high] > wanted):
                break
            middle = (low + high) / 2
            found[middle] = count(middle)
            same = (found[middle] > wanted) == (found[low] > wanted)
            low, high = (middle, high) if same else (low, middle)
    return min(found, key=miss)


def size(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _run(network: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_call(inputs)
    return network(*args, **kwargs)


def _attentions(network: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear], int]]:
    """Yield every attention of timm, Hugging Face and the zoo: its projections and heads."""
    for module in network.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            yield module, [module.qkv], module.num_heads
        elif isinstance(getattr(module, "query", None), nn.Linear):
            heads = getattr(module, "num_attention_heads", None) or module.heads
            yield module, [module.query, module.key, module.value], heads


def _state_sizes_(module: nn.Module, width: int, heads: int) -> None:
    """Write new sizes where an attention keeps them, as the package's examples do."""
    width = width // 3 if hasattr(module, "qkv") else width
    for name, value in {
        "heads": heads,
        "num_heads": heads,
        "num_attention_heads": heads,
        "head_dim": width // heads,
        "attention_head_size": width // heads,
        "attn_dim": width,
        "all_head_size": width,
    }.items():
        if hasattr(module, name):
            setattr(module, name, value)
    if hasattr(module, "scale"):
        module.scale = (width // heads) ** -0.5
