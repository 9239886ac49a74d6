"""Parts of a dimension whose bounds the code computes from a size: all parts lose as much."""

import pytest
import torch
from torch import Tensor, nn

import pbcompress as pb
from tests.support.masking import assert_equals_masked

X = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))


def halves_turned(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat((-a[:, a.shape[1] // 2 :], a[:, : a.shape[1] // 2]), 1) + b


def half_of_each(a: Tensor, b: Tensor) -> Tensor:
    c = a.size(1) // 2
    return torch.cat((a.narrow(1, 0, c), b.narrow(1, c, c)), 1)


def from_the_end(a: Tensor, b: Tensor) -> Tensor:
    c = a.size(1) // 2
    return torch.cat((a[:, -c:], b[:, :-c]), 1)


def thirds(a: Tensor, b: Tensor) -> Tensor:
    c = a.shape[1] // 3
    q, k, v = a[:, :c], a[:, c : 2 * c], a[:, 2 * c :]
    return torch.cat((v, q, k), 1) + b


def quarter_by_split(a: Tensor, b: Tensor) -> Tensor:
    c = a.shape[1]
    first, rest = torch.split(a, [c // 4, c - c // 4], 1)
    return torch.cat((rest, first), 1) * b


def shifted_in_time(a: Tensor, b: Tensor) -> Tensor:
    c = a.shape[1] // 4
    out = torch.zeros_like(a)
    out[:, :c] = a[:, :c].roll(1, 0)
    out[:, c:] = a[:, c:]
    return out + b


def put_into_new(a: Tensor, b: Tensor) -> Tensor:
    n, c, h, w = a.shape
    out = a.new_zeros(n, c, h, w)
    out[:, : c // 2], out[:, c // 2 :] = a[:, : c // 2], b[:, c // 2 :]
    return out


class Two(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(6, 24, 1), nn.Conv2d(6, 24, 1), nn.Conv2d(24, 3, 1)
        self.function = function

    def forward(self, x):
        return self.c(self.function(self.a(x), self.b(x)).relu())


FUNCTIONS = (halves_turned, half_of_each, from_the_end, thirds, quarter_by_split, shifted_in_time)
SHARES = {halves_turned: 2, half_of_each: 2, from_the_end: 2, thirds: 3, quarter_by_split: 4}


@pytest.mark.parametrize("function", [*FUNCTIONS, put_into_new])
def test_shares_are_narrowed_alike(function):
    model = Two(function).eval()
    plan = pb.plan_widths(model, X, 0.5)
    assert list(plan.left_alone) == ["c"]
    small = pb.shrink(model, plan)
    width = small.a.out_channels
    assert 4 <= width < 24
    assert width % SHARES.get(function, 1) == 0
    assert_equals_masked(model, plan, X)


def test_a_number_that_is_no_share_stays():
    class Fixed(Two):
        def forward(self, x):
            y = self.a(x) + self.b(x)
            return self.c(torch.cat((y[:, y.shape[1] // 2 + 1 :], y[:, : y.shape[1] // 2 + 1]), 1))

    with pytest.raises(pb.TargetUnreachableError, match="needs a size that does not follow"):
        pb.plan_widths(Fixed(None).eval(), X, 0.5)
