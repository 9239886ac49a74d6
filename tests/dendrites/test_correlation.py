"""Pearson's r and its gradient, against numpy and finite differences."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pbcompress.dendrites.correlation import (
    COUNT,
    GAIN,
    SLOPE,
    CorrelationProbe,
    R,
    centred,
    correlate,
    listen,
    score_leaf,
)
from pbcompress.dendrites.positions import Window

SHAPES = [(2, 1), (3, 2), (7, 3), (50, 4)]
EXTREMES = [1e-30, 1e-12, 1e-6, 1.0, 1e6, 1e30]


def corrcoef(activation: Tensor, error: Tensor) -> np.ndarray:
    """All pairs, (nodes, channels), in float64."""
    a, e = activation.double().numpy(), error.double().numpy()
    return np.corrcoef(a, e, rowvar=False)[: a.shape[1], a.shape[1] :]


def reference(activation: Tensor, error: Tensor, pairwise: bool) -> np.ndarray:
    table = corrcoef(activation, error)
    return np.diag(table) if pairwise else table


def numeric_gradient(activation: Tensor, error: Tensor, weight: np.ndarray) -> np.ndarray:
    """Central differences of -sum(weight * r) over all pairs."""
    gradient, h = np.zeros(activation.shape), 1e-6
    for index in np.ndindex(*activation.shape):
        sides = []
        for step in (h, -h):
            moved = activation.clone()
            moved[index] += step
            sides.append(-(weight * corrcoef(moved, error)).sum())
        gradient[index] = (sides[0] - sides[1]) / (2 * h)
    return gradient


def signs(activation: Tensor, error: Tensor, pairwise: bool) -> np.ndarray:
    table = np.sign(corrcoef(activation, error))
    return table * np.eye(len(table)) if pairwise else table


def pair(n: int, nodes: int, channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, nodes).double(), torch.randn(n, channels).double()


def test_the_lists_of_cases_are_whole() -> None:
    assert len(SHAPES) == 4
    assert len(EXTREMES) == 6


@pytest.mark.parametrize(("n", "nodes"), SHAPES)
def test_r_of_pairs_equals_numpy_corrcoef(n: int, nodes: int) -> None:
    a, e = pair(n, nodes, nodes)
    np.testing.assert_allclose(correlate(a, e)[0], reference(a, e, True), atol=1e-12)


@pytest.mark.parametrize(("n", "nodes"), SHAPES)
def test_r_of_shared_nodes_equals_numpy_corrcoef_of_every_pair(n: int, nodes: int) -> None:
    a, e = pair(n, nodes, nodes + 2)
    r, _ = correlate(a, e, pairwise=False)
    np.testing.assert_allclose(r, reference(a, e, False), atol=1e-12)


@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize(("n", "nodes"), SHAPES[1:])  # with two samples |r| is 1 everywhere
def test_gradient_equals_finite_differences(n: int, nodes: int, pairwise: bool) -> None:
    a, e = pair(n, nodes, nodes if pairwise else nodes + 2)
    _, gradient = correlate(a, e, pairwise=pairwise)
    expected = numeric_gradient(a, e, signs(a, e, pairwise))
    np.testing.assert_allclose(gradient, expected, atol=1e-8)  # h^2 and rounding over h


@pytest.mark.parametrize("pairwise", [True, False])
def test_gradient_pushes_towards_the_given_direction(pairwise: bool) -> None:
    a, e = pair(9, 3, 3)
    weight = np.array([[1.0, -1, 1], [-1, -1, 1], [1, 1, -1]])
    direction = torch.tensor(5 * weight) if not pairwise else torch.tensor(5 * np.diag(weight))
    _, gradient = correlate(a, e, pairwise=pairwise, direction=direction)
    weight = weight * np.eye(3) if pairwise else weight
    np.testing.assert_allclose(gradient, numeric_gradient(a, e, weight), atol=1e-8)


def test_a_weak_direction_yields_to_the_batch() -> None:
    a, e = pair(9, 3, 3)
    r, gradient = correlate(a, e)
    _, same = correlate(a, e, direction=-0.5 * r)
    assert torch.equal(same, gradient)


def test_no_direction_is_a_direction_of_zero() -> None:
    a, e = pair(9, 3, 3)
    assert torch.equal(correlate(a, e)[1], correlate(a, e, direction=torch.zeros(3))[1])


@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 7e-3, 1e4 / 3, 1e-20, 1e20])
@pytest.mark.parametrize("constant", ["activation", "error"])
def test_a_constant_has_neither_correlation_nor_gradient(
    constant: str, value: float, pairwise: bool
) -> None:
    flat, other = torch.full((1003, 2), value), torch.randn(1003, 2)
    a, e = (flat, other) if constant == "activation" else (other, flat)
    r, gradient = correlate(a, e, pairwise=pairwise, direction=torch.ones(2))
    assert not r.any()
    assert not gradient.any()


def test_a_constant_over_a_million_samples_is_still_constant() -> None:
    r, gradient = correlate(torch.full((10**6, 1), 0.1), torch.randn(10**6, 1))
    assert not r.any()
    assert not gradient.any()


def test_one_dead_node_leaves_the_others_alone() -> None:
    a, e = pair(20, 3, 3)
    a[:, 1] = 0.1
    r, gradient = correlate(a, e)
    alone = correlate(a[:, [0, 2]], e[:, [0, 2]])
    assert torch.equal(r[[0, 2]], alone[0])
    assert torch.equal(gradient[:, [0, 2]], alone[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("of_error", [False, True])
def test_what_is_not_finite_spoils_its_own_channel_alone(value: float, of_error: bool) -> None:
    a, e = torch.randn(20, 3), torch.randn(20, 3)
    (e if of_error else a)[3, 1] = value
    r, gradient = correlate(a, e)
    alone = correlate(a[:, [0, 2]], e[:, [0, 2]])
    torch.testing.assert_close((r[[0, 2]], gradient[:, [0, 2]]), alone)


@pytest.mark.parametrize("ratio", [1e-10, 1e-19, 1e-30])
def test_a_channel_may_be_far_smaller_than_another(ratio: float) -> None:
    a, e = torch.randn(40, 2), torch.randn(40, 2)
    expected = reference(a, e, True)
    a[:, 1] *= ratio
    e[:, 1] *= ratio
    r, gradient = correlate(a, e)
    np.testing.assert_allclose(r, expected, atol=1e-5)
    assert gradient.isfinite().all()


def test_subnormal_activations_have_no_gradient_that_overflows() -> None:
    r, gradient = correlate(torch.randn(40, 3) * 1e-40, torch.randn(40, 3))
    assert r.abs().max() <= 1
    assert gradient.isfinite().all()


@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_have_no_correlation(n: int, pairwise: bool) -> None:
    r, gradient = correlate(torch.randn(n, 2), torch.randn(n, 2), pairwise=pairwise)
    assert not r.any()
    assert gradient.shape == (n, 2)
    assert not gradient.any()


@pytest.mark.parametrize("of_error", EXTREMES)
@pytest.mark.parametrize("of_activation", EXTREMES)
def test_r_does_not_depend_on_scale(of_activation: float, of_error: float) -> None:
    a, e = torch.randn(40, 3), torch.randn(40, 3)
    r, gradient = correlate(a * of_activation, e * of_error)
    np.testing.assert_allclose(r, reference(a, e, True), atol=1e-5)  # float32 sums of 40
    assert gradient.isfinite().all()


def test_a_sum_of_many_large_values_does_not_overflow() -> None:
    a, e = torch.randn(4096, 3), torch.randn(4096, 3)
    r, gradient = correlate(a, e * 1e35)
    np.testing.assert_allclose(r, reference(a, e, True), atol=1e-5)
    assert gradient.isfinite().all()


def test_a_rare_deviation_from_a_constant_counts() -> None:
    a, e = torch.ones(10**6, 1), torch.randn(10**6, 1)
    a[7], e[7] = 1.1, 100.0
    np.testing.assert_allclose(correlate(a, e)[0], reference(a, e, True), atol=1e-4)


def test_a_large_offset_costs_no_precision() -> None:
    a, e = torch.randn(200, 3) + 1000, torch.randn(200, 3) - 1000
    np.testing.assert_allclose(correlate(a, e)[0], reference(a, e, True), atol=1e-5)


class Together:
    """Two threads that stand for processes: what they share is summed over both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._barrier, self._parts = Barrier(2), list[Tensor]()
        monkeypatch.setattr("pbcompress.dendrites.correlation.process_count", lambda: 2)
        monkeypatch.setattr("pbcompress.dendrites.correlation._total", self._total)

    def _total(self, values: Tensor) -> Tensor:
        self._parts.append(values)
        self._barrier.wait(30)
        total = self._parts[0] + self._parts[1]
        if self._barrier.wait(30) == 0:
            self._parts.clear()
        self._barrier.wait(30)
        return total

    def run(self, calls: list[Callable[[], tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(2) as pool:
            return [one.result() for one in [pool.submit(call) for call in calls]]


@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("sizes", [(32, 32), (63, 64), (100, 8), (1, 40), (0, 5)])
def test_processes_with_batches_of_any_size_have_the_r_of_one_with_all(
    sizes: tuple[int, int], pairwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, e = pair(sum(sizes), 3, 3 if pairwise else 5)
    a, e = (3 + a) * torch.tensor([1.0, 1e-9, 1e9]), e - 2
    r, gradient = correlate(a, e, pairwise=pairwise)
    parts = list(zip(a.split(list(sizes)), e.split(list(sizes)), strict=True))
    found = Together(monkeypatch).run(
        [partial(correlate, *part, pairwise=pairwise) for part in parts]
    )
    for own, _ in found:
        torch.testing.assert_close(own, r, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.cat([g for _, g in found]), gradient, rtol=1e-6, atol=0)


scale = st.floats(-6, 6).map(lambda power: 10.0**power)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 40),
    nodes=st.integers(1, 5),
    extra=st.integers(0, 3),
    scales=st.tuples(scale, scale),
    seed=st.integers(0, 2**31),
    alike=st.booleans(),
)
def test_any_shape_and_scale_agrees_with_numpy(
    n: int, nodes: int, extra: int, scales: tuple[float, float], seed: int, alike: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, nodes, generator=generator) * scales[0]
    e = torch.randn(n, nodes + extra, generator=generator) * scales[1]
    if alike:
        e[:, :nodes] = -a
    r, gradient = correlate(a, e, pairwise=False)
    assert r.abs().max() <= 1
    np.testing.assert_allclose(r, corrcoef(a, e).reshape(r.shape), atol=2e-4)  # n = 2: cancels
    assert gradient.isfinite().all()
    # r is blind to an offset of the activation, so the gradient has none; with n = 2 its two terms,
    # which go by one over the deviation, cancel; 1e-4: float32 sums
    deviation = a.double().std(0, correction=0)
    assert (gradient.sum(0).abs() <= 1e-4 * (gradient.abs().sum(0) + 1 / deviation)).all()


@pytest.mark.parametrize("pairwise", [True, False])
def test_a_step_against_the_gradient_raises_the_correlation(pairwise: bool) -> None:
    a, e = pair(30, 4, 4)
    r, gradient = correlate(a, e, pairwise=pairwise)
    further, _ = correlate(a - 0.1 * gradient, e, pairwise=pairwise)
    assert further.abs().sum() > r.abs().sum()


# --- the probe ------------------------------------------------------------------------------------

PROBED = [((6,), -1), ((5, 6), -1), ((5, 3, 6), -1), ((6, 7), -2), ((5, 6, 7), -2)]
PROBED += [((6, 4, 3), -3), ((5, 6, 4, 3), -3), ((5, 6, 2, 3, 2), -4)]


ALL = Window.drawn((5,), (), least=0)


def as_samples(values: Tensor, axis: int) -> Tensor:
    return values.detach().movedim(axis, -1).reshape(-1, values.shape[axis])


def probe(
    y: Tensor, a: Tensor, score: Tensor, delta: Tensor, axis: int = -1, pairwise: bool = True
) -> None:
    CorrelationProbe.apply(y, score, axis, pairwise, 1.0, ALL, a).backward(delta)


def test_the_probe_is_tried_on_every_layout() -> None:
    assert len(PROBED) == 8


@pytest.mark.parametrize(("shape", "axis"), PROBED)
def test_probe_gives_the_activation_the_gradient_of_its_channel(
    shape: tuple[int, ...], axis: int
) -> None:
    y, a, delta = (torch.randn(shape).double().requires_grad_() for _ in range(3))
    score = score_leaf(y, 1, 6)
    probe(y, a, score, delta.detach(), axis)
    expected = correlate(as_samples(a, axis), as_samples(delta, axis))[1]
    torch.testing.assert_close(as_samples(a.grad, axis), expected)


def test_probe_serves_nodes_that_are_fewer_than_the_channels() -> None:
    y, delta = torch.randn(5, 6, 4, 3).double().requires_grad_(), torch.randn(5, 6, 4, 3).double()
    a = torch.randn(5, 2, 4, 3).double().requires_grad_()
    score = score_leaf(y, 1, 2, 6)
    probe(y, a, score, delta, -3, pairwise=False)
    samples, errors = as_samples(a, -3), as_samples(delta, -3)
    np.testing.assert_allclose(score.grad[R, 0], corrcoef(samples, errors), atol=1e-12)
    expected = numeric_gradient(samples, errors, np.sign(corrcoef(samples, errors)))
    np.testing.assert_allclose(as_samples(a.grad, -3), expected, atol=1e-8)


def test_probe_returns_output_and_error_bit_equal() -> None:
    y, a = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    delta, score = torch.randn(5, 3), score_leaf(y, 1, 3)
    out = CorrelationProbe.apply(y, score, -1, True, 1.0, ALL, a)
    out.backward(delta)
    assert torch.equal(out, y)
    assert torch.equal(y.grad, delta)


def test_probed_output_may_be_changed_in_place() -> None:
    y, a = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    before = y.detach().clone()
    out = CorrelationProbe.apply(y, score_leaf(y, 1, 3), -1, True, 1.0, ALL, a)
    out.relu_().sum().backward()
    assert torch.equal(out, before.relu())
    assert torch.equal(y.grad, (before > 0).float())


def test_who_needs_an_output_that_was_changed_behind_a_probe_is_told() -> None:
    """As without a probe: it shares memory and version with what it was given."""
    w = torch.randn(3, 3, requires_grad=True)
    y = torch.randn(5, 3) @ w
    squared = y.square().sum()
    out = CorrelationProbe.apply(y, score_leaf(y, 1, 3), -1, True, 1.0, ALL, torch.randn(5, 3))
    out.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


def test_score_sums_r_and_counts_batches() -> None:
    score, total = score_leaf(torch.zeros(1).double(), 1, 3), np.zeros(3)
    for _ in range(3):
        a, delta = torch.randn(9, 3).double(), torch.randn(9, 3).double()
        probe(torch.zeros(9, 3), a.requires_grad_(), score, delta)
        total += reference(a.detach(), delta, True)
    np.testing.assert_allclose(score.grad[R, 0], total, atol=1e-12)
    assert (score.grad[COUNT] == 3).all()


@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_scores_of_some_rows_are_those_that_numpy_finds_for_them(
    pairwise: bool, loss_scale: float
) -> None:
    """The scale of the errors is that of all rows, as in a phase from memory."""
    rows, channels = 40, 3 if pairwise else 5
    errors, a = torch.randn(1000, channels).double(), torch.randn(rows, 3).double()
    error = centred(errors * loss_scale, -1)
    some = error.values[:rows]
    so_far = score_leaf(a, 1, 3, *([] if pairwise else [channels])).detach()
    scores, _ = listen(
        [a], error._replace(values=some - some.mean(0)), so_far,
        axis=-1, pairwise=pairwise, samples=7, loss_scale=loss_scale,
    )  # fmt: skip
    x, y = (t - t.mean(0) for t in (a.numpy(), errors[:rows].numpy()))
    covariance = x.T @ y / rows
    x_std, y_std = a.numpy().std(0)[:, None], errors.numpy().std(0)
    wanted = [covariance / x_std / y_std, covariance / x_std, -7 * covariance / x_std**2]
    for row, table in zip((R, GAIN, SLOPE), wanted, strict=True):
        np.testing.assert_allclose(scores[row, 0], np.diag(table) if pairwise else table)


def test_a_batch_of_one_counts_and_scores_nothing() -> None:
    a, score = torch.randn(1, 3, requires_grad=True), score_leaf(torch.zeros(1), 1, 3)
    probe(torch.zeros(1, 3), a, score, torch.randn(1, 3))
    assert not score.grad[:COUNT].any()
    assert (score.grad[COUNT] == 1).all()
    assert not a.grad.any()


def test_probe_pushes_along_the_sum_of_all_batches_so_far() -> None:
    score = score_leaf(torch.zeros(1).double(), 1, 3)
    delta = torch.randn(9, 3).double()
    probe(torch.zeros(9, 3), delta.clone().requires_grad_(), score, delta)  # r is one
    a = (0.3 * torch.randn(9, 3).double() - delta).requires_grad_()  # r is almost minus one
    probe(torch.zeros(9, 3), a, score, delta)
    expected = numeric_gradient(a.detach(), delta, np.eye(3))
    np.testing.assert_allclose(a.grad, expected, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probe_works_in_float32_on_low_precision(dtype: torch.dtype) -> None:
    a, delta = torch.randn(64, 3).to(dtype).requires_grad_(), torch.randn(64, 3).to(dtype)
    score = score_leaf(a, 1, 3)
    probe(torch.zeros(64, 3, dtype=dtype), a, score, delta)
    np.testing.assert_allclose(score.grad[R, 0], reference(a.detach(), delta, True), atol=1e-5)
    assert a.grad.dtype == dtype
