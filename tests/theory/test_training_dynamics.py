"""Gradient flow of LocAteR's penalty: what it conserves, that its saddles are strict, and where it ends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.training_dynamics import (
    critical_point,
    imbalance,
    penalty,
    penalty_flow,
    penalty_gradient,
)


def draw(seed, d_head, d_model, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, d_head, d_model, generator=generator, dtype=torch.float64)


def smallest_curvature(w_q, w_k, tau):
    """Smallest eigenvalue of the Hessian of Ω at one head: negative at every saddle."""
    hessian = torch.autograd.functional.hessian(
        lambda weights: penalty(*weights.reshape(2, *w_q.shape), tau), torch.stack([w_q, w_k]).reshape(-1)
    )
    return float(torch.linalg.eigvalsh(hessian)[0])


@given(seed=st.integers(0, 10**6), decay=st.sampled_from([0.0, 0.3]))
@settings(max_examples=10)
def test_prop_conserved_imbalance_under_flow_of_any_loss_in_w(seed, decay):
    w_q, w_k = draw(seed, 3, 5)
    target = draw(seed + 1, 5, 5)[0]
    start = imbalance(w_q, w_k)

    def velocity(q, k):
        q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
        loss = torch.sin(q.mT @ k - target).square().sum() + decay / 2 * (q.square().sum() + k.square().sum())
        return [-gradient for gradient in torch.autograd.grad(loss, (q, k))]

    step, steps = 2e-3, 100
    for _ in range(steps):  # Runge–Kutta of order four, written out
        a = velocity(w_q, w_k)
        b = velocity(w_q + step / 2 * a[0], w_k + step / 2 * a[1])
        c = velocity(w_q + step / 2 * b[0], w_k + step / 2 * b[1])
        d = velocity(w_q + step * c[0], w_k + step * c[1])
        w_q, w_k = (w + step / 6 * (a[i] + 2 * b[i] + 2 * c[i] + d[i]) for i, w in enumerate((w_q, w_k)))
    torch.testing.assert_close(imbalance(w_q, w_k), np.exp(-2 * decay * step * steps) * start, atol=1e-5, rtol=1e-5)


def test_prop_conserved_a_step_of_gradient_descent_changes_it_in_second_order_exactly():
    w_q, w_k = draw(0, 3, 6)
    g_q, g_k = penalty_gradient(w_q, w_k, 0.7)
    step = 0.013
    change = imbalance(w_q - step * g_q, w_k - step * g_k) - imbalance(w_q, w_k)
    torch.testing.assert_close(change, step**2 * (g_q @ g_q.T - g_k @ g_k.T), atol=1e-12, rtol=1e-9)


@given(seed=st.integers(0, 10**6), d_head=st.integers(1, 4))
@settings(max_examples=25)
def test_prop_conserved_sizes_are_at_least_the_nuclear_norm(seed, d_head):
    w_q, w_k = draw(seed, d_head, 6)
    nuclear = float(torch.linalg.matrix_norm(w_q.T @ w_k, "nuc"))
    assert float(w_q.square().sum() + w_k.square().sum()) >= 2 * nuclear - 1e-9
    rotation = torch.linalg.qr(draw(seed + 1, 6, 6)[0]).Q
    balanced = w_q @ rotation
    assert float(torch.linalg.matrix_norm(imbalance(w_q, balanced))) < 1e-9
    nuclear = float(torch.linalg.matrix_norm(w_q.T @ balanced, "nuc"))
    assert 2 * float(w_q.square().sum()) == pytest.approx(2 * nuclear)


@pytest.mark.parametrize(("d_head", "d_model"), [(1, 2), (2, 3), (3, 5)])
@pytest.mark.parametrize("skew", [0.0, 1.5])
def test_prop_strict_saddles_have_negative_curvature(d_head, d_model, skew):
    tau = 1.3
    for rank in range(d_head + 1):
        w_q, w_k = critical_point(
            d_head, d_model, rank, tau=tau, skew=skew, generator=torch.Generator().manual_seed(rank)
        )
        assert max(float(gradient.abs().max()) for gradient in penalty_gradient(w_q, w_k, tau)) < 1e-12
        assert float(penalty(w_q, w_k, tau)) == pytest.approx(tau**2 / (rank + 1))
        curvature = smallest_curvature(w_q, w_k, tau)
        if rank == d_head:
            assert curvature > -1e-9
            continue
        # the bound of the proof: unit a ⊥ columns of w_k, b ⊥ columns of w_q with the largest aᵀb
        outside_k, outside_q = (np.linalg.svd(w.numpy())[0][:, rank:] if rank else np.eye(d_head) for w in (w_k, w_q))
        alignment = np.linalg.svd(outside_k.T @ outside_q)[1][0]
        assert curvature <= -2 * tau * alignment / (rank + 1) + 1e-9
        if rank == 0:
            assert curvature == pytest.approx(-2 * tau)


@pytest.mark.parametrize("seed", range(4))
def test_prop_locater_flow_ends_at_equal_eigenvalues_from_drawn_starts(seed):
    d_head, d_model, tau = 3, 6, 1.0
    w_q, w_k = draw(seed, d_head, d_model, scale=0.3)
    path = penalty_flow(w_q, w_k, tau=tau, time=60.0)
    assert bool((path.penalty.diff() <= 1e-9).all())
    assert float(path.penalty[-1]) == pytest.approx(tau**2 / (d_head + 1), abs=1e-6)
    assert float(path.effective_number[-1]) == pytest.approx(d_head, abs=1e-3)
    assert float(path.trace[-1]) == pytest.approx(tau * d_head / (d_head + 1), abs=1e-4)
    assert float(path.imbalance_change.max()) < 1e-6


def test_prop_locater_flow_holds_for_gradient_descent_and_stays_bounded():
    w_q, w_k = draw(7, 3, 6)
    w_k = -w_q  # the worst sign: the trace starts far below zero
    w_k = w_k + 0.05 * draw(8, 3, 6)[0]
    largest = 0.0
    for _ in range(6000):
        g_q, g_k = penalty_gradient(w_q, w_k)
        w_q, w_k = w_q - 0.02 * g_q, w_k - 0.02 * g_k
        largest = max(largest, float(w_q.norm()), float(w_k.norm()))
    assert float(penalty(w_q, w_k)) == pytest.approx(0.25, abs=1e-6)
    assert largest < 10


def test_prop_locater_flow_stays_at_a_saddle_when_started_on_it():
    w_q, w_k = critical_point(2, 4, 1, generator=torch.Generator().manual_seed(0))
    path = penalty_flow(w_q, w_k, time=2.0)
    assert float(path.effective_number[-1]) == pytest.approx(1, abs=1e-6)
    nudge = 1e-4 * draw(3, 2, 4)
    path = penalty_flow(w_q + nudge[0], w_k + nudge[1], time=60.0)
    assert float(path.effective_number[-1]) == pytest.approx(2, abs=1e-3)


def test_bad_input_is_refused_by_name():
    w_q, w_k = draw(0, 2, 3)
    with pytest.raises(ShapeError, match="w_q"):
        imbalance(w_q, w_k[:1])
    with pytest.raises(ArgumentError, match="rank"):
        critical_point(2, 3, 3, generator=torch.Generator())
    with pytest.raises(ArgumentError, match="time"):
        penalty_flow(w_q, w_k, time=0.0)
