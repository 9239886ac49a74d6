"""The closed form beside numpy, and the choice of its strength."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress.compensation.ridge import STRENGTHS, Moments, best_fit, ridge


def rows_of(seed, rows, groups, features, targets):
    random = np.random.default_rng(seed)
    x = random.normal(1, 2, (rows, groups, features))
    t = random.normal(-1, 1, (rows, groups, targets)) + x[..., :1]
    return (
        x,
        t,
        random.normal(size=(groups, targets, features)),
        random.normal(size=(groups, targets)),
    )


def moments_of(x, t):
    moments = Moments(x.shape[1], x.shape[2], t.shape[2])
    for part_x, part_t in zip(np.array_split(x, 3), np.array_split(t, 3), strict=True):
        moments.add(torch.from_numpy(part_x), torch.from_numpy(part_t))
    return moments


def reference(x, t, weight, bias, strength, fits_bias):
    """Solve one group by an ordinary least squares problem with further rows for the penalty."""
    if fits_bias:
        x_mean, t_mean = x.mean(0), t.mean(0)
    else:
        x_mean, t_mean = 0.0, bias
    centred, rest = x - x_mean, t - t_mean
    penalty = np.sqrt(strength * np.mean(np.sum(centred**2, 0)))
    size = x.shape[1]
    a = np.concatenate([centred, penalty * np.eye(size)])
    b = np.concatenate([rest, penalty * weight.T])
    found = np.linalg.lstsq(a, b, rcond=None)[0].T
    return found, t_mean - found @ x_mean if fits_bias else bias


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(4, 40),
    groups=st.integers(1, 3),
    features=st.integers(1, 6),
    targets=st.integers(1, 4),
    strength=st.sampled_from([1e-3, 1e-1, 1.0]),
    fits_bias=st.booleans(),
)
def test_it_is_the_least_squares_problem_with_a_penalty(
    seed, rows, groups, features, targets, strength, fits_bias
):
    x, t, weight, bias = rows_of(seed, rows, groups, features, targets)
    found = ridge(
        moments_of(x, t),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        strength,
        fits_bias=fits_bias,
    )
    for group in range(groups):
        expected = reference(
            x[:, group], t[:, group], weight[group], bias[group], strength, fits_bias
        )
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(own[group].numpy(), other, rtol=1e-6, atol=1e-8)


def test_the_error_is_that_of_the_rows():
    x, t, weight, bias = rows_of(3, 20, 2, 4, 3)
    errors = t - np.einsum("rgf,gtf->rgt", x, weight) - bias
    found = moments_of(x, t).error(torch.from_numpy(weight), torch.from_numpy(bias))
    assert found == pytest.approx((errors**2).sum(), rel=1e-10)


def test_the_strength_is_the_one_with_the_least_error_on_other_rows():
    x, t, weight, bias = rows_of(5, 14, 1, 10, 2)
    fit, held = moments_of(x, t), moments_of(*rows_of(6, 400, 1, 10, 2)[:2])
    start = torch.from_numpy(weight), torch.from_numpy(bias)
    chosen = best_fit(fit, held, *start, fits_bias=True)
    errors = {
        strength: held.error(*ridge(fit, *start, strength, fits_bias=True))
        for strength in STRENGTHS
    }
    assert chosen.strength == min(errors, key=errors.get)
    assert len({round(e, 6) for e in errors.values()}) > 4


def test_a_start_that_nothing_beats_stays():
    x, _, weight, bias = rows_of(7, 30, 1, 4, 2)
    t = np.einsum("rgf,gtf->rgt", x, weight) + bias
    start = torch.from_numpy(weight), torch.from_numpy(bias)
    fit, held = moments_of(x[:20], t[:20]), moments_of(x[20:], t[20:])
    chosen = best_fit(fit, held, *start, fits_bias=True)
    assert chosen.strength is None
    assert chosen.weight is start[0]


def test_features_that_are_always_zero_keep_their_weights():
    x, t, weight, bias = rows_of(8, 60, 1, 4, 2)
    x[..., 2] = 0
    start = torch.from_numpy(weight), torch.from_numpy(bias)
    fit, held = moments_of(x[:40], t[:40]), moments_of(x[40:], t[40:])
    chosen = best_fit(fit, held, *start, fits_bias=True)
    assert chosen.strength is not None
    assert torch.equal(chosen.weight[..., 2], start[0][..., 2])


def test_the_stated_size_is_the_size():
    moments = Moments(3, 5, 2)
    held = sum(t.numel() * t.element_size() for t in (moments.xx, moments.tx, moments.tt))
    assert Moments.bytes_of(3, 5, 2) == held


def test_numbers_that_are_not_finite_leave_the_start():
    x, t, weight, bias = rows_of(9, 30, 1, 4, 2)
    x[3] = np.inf
    start = torch.from_numpy(weight), torch.from_numpy(bias)
    moments = moments_of(x, t)
    assert best_fit(moments, moments, *start, fits_bias=True).strength is None
