"""Functions that remember results by sizes do not tie one layer's sizes to another's."""

import functools

import pytest
import torch
from torch import Tensor, nn

from pbcompress.core.inputs import as_call
from pbcompress.core.modules import copy_model
from pbcompress.structure.cached_functions import sizes_uncached
from pbcompress.structure.channel_groups import find_groups
from pbcompress.structure.sizes import Size

X = torch.randn(1, 5, 6)


@functools.lru_cache
def by_heads(shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    return (*shape[:-1], heads, shape[-1] // heads)


class InClass:
    @functools.cache  # noqa: B019
    def by_heads(self, shape, heads):
        return by_heads.__wrapped__(shape, heads)


class Static:
    @staticmethod
    @functools.cache
    def by_heads(shape, heads):
        return by_heads.__wrapped__(shape, heads)


def closed_over():
    cached = functools.lru_cache(by_heads.__wrapped__)
    return lambda shape, heads: cached(shape, heads)


HOLDERS = {
    "a module": lambda *sizes: by_heads(*sizes),
    "a method": lambda *sizes: InClass().by_heads(*sizes),
    "a static method": lambda *sizes: Static.by_heads(*sizes),
    "a closure": closed_over(),
    "an attribute": functools.lru_cache(by_heads.__wrapped__),
}


class Attention(nn.Module):
    def __init__(self, reshape) -> None:
        super().__init__()
        self.heads, self.reshape = 4, reshape
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.view(self.reshape(tuple(t.shape), self.heads)).transpose(1, 2)
            for t in (self.q(x), self.k(x), self.v(x))
        )
        x = ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)
        return self.out(x.reshape(*x.shape[:2], -1))


def two_layers(reshape) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), Attention(reshape), Attention(reshape), nn.Linear(8, 2)
    ).eval()


def members(model: nn.Module) -> list[list[tuple[str, str, list[list[int]]]]]:
    grouping = find_groups(copy_model(model), as_call(X))
    return [[(m.layer, m.dim, m.positions.tolist()) for m in g.members] for g in grouping.groups]


@pytest.mark.parametrize("holder", HOLDERS)
def test_heads_of_each_layer_are_a_group_of_their_own_whatever_ran_before(holder):
    model = two_layers(HOLDERS[holder])
    with torch.no_grad():
        model(X)  # the caches hold plain numbers

    groups = members(model)

    assert groups == members(two_layers(by_heads.__wrapped__))
    heads = [[m[:2] for m in group] for group in groups]
    assert [sum(("@heads" in m) for m in group) for group in heads].count(1) == 2


def test_caches_are_back_and_answer_what_has_no_size():
    before, calls = by_heads, by_heads.cache_info()
    with sizes_uncached(two_layers(HOLDERS["a module"])):
        assert by_heads is not before
        plain = by_heads((1, 5, 8), 4)
        assert by_heads((1, 5, 8), 4) is plain
        sized = by_heads((1, 5, Size(8, torch.arange(8))), 4)
        assert sized == plain
        assert isinstance(sized[-1], Size)
    assert by_heads is before
    after = by_heads.cache_info()
    assert after.hits + after.misses == calls.hits + calls.misses + 2
