"""Every numbered proposition on entropy, rank and LocAteR, simulated; one test per proposition, named after its label.

Oracles are simulations, quadrature and searches written out here. The other propositions, and the test that none is
without a test, are in test_theory_statements.py.
"""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import eigvals, norm, qr
from row_oracles import entropy, softmax, walks
from scipy import integrate, optimize

from qkrepro.theory.entropy import entropy_lower_bound
from qkrepro.theory.rank import mean_cosine_similarity, rank_residual, stable_rank
from qkrepro.training.locater import project_gradients, recentre_trace

seeds = st.integers(0, 10**6)


def projection(rng, dim, rank):
    frame = qr(rng.standard_normal((dim, rank)))[0]
    return frame @ frame.T


def least_entropy(norm_of_logits, length):
    return float(entropy_lower_bound(norm_of_logits, length))


@given(length=st.integers(2, 30), scale=st.floats(1e-2, 6), seed=seeds)
def test_prop_deficit_is_an_integral_of_variances_and_lies_between_its_bounds(length, scale, seed):
    u = scale * np.random.default_rng(seed).standard_normal(length)
    u -= u.mean()

    def variance(s):
        weights = softmax(s * u)
        return weights @ (u - weights @ u) ** 2

    deficit = math.log(length) - entropy(softmax(u))
    assert deficit == pytest.approx(integrate.quad(lambda s: s * variance(s), 0, 1, epsabs=1e-12)[0], abs=1e-9)
    spread, v = u.max() - u.min(), (u**2).mean()
    low = (1 - (1 + spread) * math.exp(-spread)) / spread**2 * v
    high = ((spread - 1) * math.exp(spread) + 1) / spread**2 * v
    assert low - 1e-10 <= deficit <= high + 1e-10
    assert entropy(softmax(1.1 * u)) <= entropy(softmax(u)) + 1e-12


@pytest.mark.parametrize("kind", ["symmetric", "antisymmetric", "general"])
def test_prop_high_temperature_expansion_matches_simulated_walks(kind):
    rng = np.random.default_rng(0)
    m = rng.standard_normal((3, 3))
    m = {"symmetric": m + m.T, "antisymmetric": m - m.T, "general": m}[kind]
    length, temperature = 9, 2000.0
    x = walks(rng, 60_000, length, 3)
    u = np.einsum("nti,ij,nj->nt", x, m, x[:, -1]) / temperature
    deficit = math.log(length) - entropy(softmax(u))
    value = (length**2 - 1) / (24 * temperature**2) * (np.trace(m) ** 2 + 2 * norm(m) ** 2 + np.trace(m @ m))
    assert abs(deficit.mean() - value) < 4.5 * deficit.std() / math.sqrt(60_000) + 0.01 * value


@given(dim=st.integers(1, 6), rank=st.integers(1, 6), xi=st.floats(0.1, 5), seed=seeds)
def test_prop_concentration_entropy_has_its_least_cost_at_a_multiple_of_a_projection(dim, rank, xi, seed):
    rng, rank = np.random.default_rng(seed), min(rank, dim)
    m = rng.standard_normal((dim, rank)) @ rng.standard_normal((rank, dim))
    m *= xi / np.trace(m)

    def cost(m):
        return 2 * norm(m) ** 2 + np.trace(m @ m)

    assert cost(m) >= 3 * xi**2 / rank * (1 - 1e-9)
    assert cost(xi / rank * projection(rng, dim, rank)) == pytest.approx(3 * xi**2 / rank)


@pytest.mark.parametrize("xi", [0.3, 1.0, 4.0])
def test_prop_geometric_attention_of_a_concentrated_spectrum_on_a_raw_walk(xi):
    length, dim = 8, 400_000
    x = walks(np.random.default_rng(1), 1, length, dim)[0]
    weights = softmax(xi / dim * x @ x[-1])
    j = np.arange(length)[::-1]
    np.testing.assert_allclose(
        weights,
        (1 - math.exp(-xi)) * np.exp(-xi * j) / (1 - math.exp(-xi * length)),
        atol=0.01,
    )
    q, q_t = math.exp(-xi), math.exp(-xi * length)
    value = math.log((1 - q_t) / (1 - q)) + xi * (q / (1 - q) - length * q_t / (1 - q_t))
    assert entropy(weights) == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize("xi", [-6.0, -1.0, 0.5, 4.0])
def test_prop_layernorm_keeps_the_entropy_within_a_constant_of_uniform(xi):
    length, dim = 64, 100_000
    x = walks(np.random.default_rng(2), 1, length, dim)[0]
    x -= x.mean(1, keepdims=True)
    x *= math.sqrt(dim) / norm(x, axis=1, keepdims=True)
    theta = np.arange(1, length + 1) / length
    np.testing.assert_allclose(softmax(xi / dim * x @ x[-1]), softmax(xi * np.sqrt(theta)), rtol=0.03)
    z = 2 * ((xi - 1) * math.exp(xi) + 1) / xi**2
    assert z == pytest.approx(integrate.quad(lambda t: math.exp(xi * math.sqrt(t)), 0, 1)[0])
    slope = integrate.quad(lambda t: math.sqrt(t) * math.exp(xi * math.sqrt(t)), 0, 1)[0] / z
    long = entropy(softmax(xi * np.sqrt(np.arange(1, 10**6 + 1) / 10**6))) - math.log(10**6)
    assert long == pytest.approx(math.log(z) - xi * slope, abs=1e-4)


@pytest.mark.parametrize(("length", "size"), [(2, 1.0), (3, 0.5), (5, 3.0), (6, 9.0)])
def test_lem_worst_logits_are_found_by_a_search_over_the_sphere(length, size):
    rng = np.random.default_rng(3)

    def on_sphere(free):
        u = free - free.mean()
        return size * u / norm(u)

    reached = min(
        optimize.minimize(lambda free: entropy(softmax(on_sphere(free))), rng.standard_normal(length)).fun
        for _ in range(12)
    )
    assert reached == pytest.approx(least_entropy(size, length), abs=1e-7)
    for up in range(1, length):  # k logits up, T − k down: one is worst
        u = on_sphere(np.r_[np.ones(up), np.zeros(length - up)])
        excess = entropy(softmax(u)) - least_entropy(size, length)
        assert excess == pytest.approx(0, abs=1e-12) if up == 1 else excess > 1e-6


@given(length=st.integers(2, 8), dim=st.integers(1, 6), scale=st.floats(0.01, 2), seed=seeds)
def test_prop_entropy_bound_is_never_violated_and_the_centred_one_is_sharper(length, dim, scale, seed):
    rng = np.random.default_rng(seed)
    x, w = scale * rng.standard_normal((length, dim)), rng.standard_normal((dim, dim))
    reached = entropy(softmax(x @ w.T @ x[-1]))
    published = norm(w, 2) * norm(x @ x.T, 2)
    centred = norm(w, 2) * norm(x - x.mean(0), 2) * norm(x[-1])
    assert centred <= published * (1 + 1e-12)
    assert reached >= least_entropy(centred, length) - 1e-10 >= least_entropy(published, length) - 2e-10


def test_prop_entropy_bound_is_attained_with_orthogonal_tokens_and_without():
    rng = np.random.default_rng(4)
    orthogonal = 1.3 * qr(rng.standard_normal((6, 4)))[0].T  # 4 tokens in 6 dimensions
    up = np.r_[1.0, np.zeros(3)] - 1 / 4
    in_a_plane = np.array([[0.5**0.5, 0], [0.5**0.5, 0], [0, 1]])  # 3 tokens in 2 dimensions, two of them equal
    cases = [
        (orthogonal, 0.4 * np.outer(orthogonal[2], orthogonal.T @ up), orthogonal[2]),
        (in_a_plane, np.outer([0, 1], [-(2**0.5), 2]), in_a_plane[2]),
    ]
    for x, w, query in cases:
        size = norm(w, 2) * norm(x @ x.T, 2)
        assert entropy(softmax(x @ w.T @ query)) == pytest.approx(least_entropy(size, len(x)), rel=1e-9)


@given(dim=st.integers(1, 7), rank=st.integers(1, 7), seed=seeds)
def test_prop_concentration_bound_spectral_norm_is_at_least_the_trace_over_the_rank(dim, rank, seed):
    rng, rank = np.random.default_rng(seed), min(rank, dim)
    w = rng.standard_normal((dim, rank)) @ rng.standard_normal((rank, dim))
    assert norm(w, 2) >= abs(np.trace(w)) / rank * (1 - 1e-9)
    flat = -0.7 * projection(rng, dim, rank)
    assert norm(flat, 2) == pytest.approx(abs(np.trace(flat)) / rank)


@given(length=st.integers(2, 9), dim=st.integers(1, 6), seed=seeds)
def test_prop_rank_measures_are_related(length, dim, seed):
    x = np.random.default_rng(seed).standard_normal((length, dim)) + 0.5
    r = float(rank_residual(torch.tensor(x)))
    assert r**2 == pytest.approx(1 - length * norm(x.mean(0)) ** 2 / norm(x) ** 2, abs=1e-12)
    assert float(stable_rank(torch.tensor(x))) <= 1 / (1 - r**2) * (1 + 1e-9)
    search = optimize.minimize(lambda y: norm(x - y), np.zeros(dim)).fun / norm(x)
    assert search == pytest.approx(r, abs=1e-6)
    x /= norm(x, axis=1, keepdims=True)
    r = float(rank_residual(torch.tensor(x)))
    similarity = float(mean_cosine_similarity(torch.tensor(x)))
    assert similarity == pytest.approx((length * (1 - r**2) - 1) / (length - 1), abs=1e-10)

    def composite(y):
        return math.sqrt(norm(x - y, 1) * norm(x - y, np.inf))

    least = min(composite(np.median(x, 0)), composite(x[0]), composite(np.zeros(dim)))
    assert composite(x.mean(0)) <= 2 * least + 1e-12


def test_prop_rank_measures_the_mean_does_not_minimise_the_composite():
    x = np.array([[0.0], [0.0], [1.0]])

    def squared(y):
        return norm(x - y, 1) * norm(x - y, np.inf)

    assert squared(1 / 2) == pytest.approx(3 / 4)
    assert squared(1 / 3) == pytest.approx(8 / 9)
    assert min(squared(y) for y in np.linspace(-1, 2, 301)) == pytest.approx(3 / 4)


def test_prop_input_residual_of_a_walk_is_a_third_and_of_independent_tokens_nearly_one():
    rng, length = np.random.default_rng(5), 12
    steps = rng.standard_normal((20_000, length, 3))
    for x, value in ((steps.cumsum(1), (length - 1) / (3 * length)), (steps, 1 - 1 / length)):
        excess = ((x - x.mean(1, keepdims=True)) ** 2).sum((1, 2)) - value * (x**2).sum((1, 2))  # mean zero
        assert abs(excess.mean()) < 4.5 * excess.std() / math.sqrt(len(x))


def test_prop_uniform_collapse_halves_the_residual_with_every_causal_layer():
    rng, length = np.random.default_rng(6), 10
    x = rng.standard_normal((length, 5))
    assert float(rank_residual(torch.tensor(np.ones((length, length)) / length @ x))) < 1e-12
    average = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    y, residuals = x, []
    for _ in range(30):
        y = average @ y @ qr(rng.standard_normal((5, 5)))[0]
        residuals.append(float(rank_residual(torch.tensor(y))))
    assert residuals[-1] / residuals[-2] == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_allclose(np.linalg.matrix_power(average, 80) @ x, np.tile(x[0], (length, 1)), atol=1e-12)


def test_prop_causal_collapse_comes_in_the_end_even_for_a_concentrated_spectrum():
    rng, length, dim = np.random.default_rng(11), 5, 3
    x = rng.standard_normal((length, dim))
    x /= norm(x, axis=1, keepdims=True)  # B = 1
    first, far = norm(x[0]), norm(x - x[0], axis=1).max()
    w, delta = 1.5 * np.eye(dim), math.exp(-2 * 1.5) / length  # ω* = 1.5
    hidden = np.triu(np.full((length, length), -np.inf), 1)
    for layer in range(1, 1501):
        x = softmax(x @ w @ x.T + hidden) @ x @ qr(rng.standard_normal((dim, dim)))[0]
        distance = norm(x - x[0], axis=1).max()
        assert distance <= (1 - delta) ** layer * far * (1 + 1e-9) + 1e-12
    assert norm(x[0]) == pytest.approx(first)
    assert float(rank_residual(torch.tensor(x))) < 1e-6


@given(length=st.integers(2, 20), scale=st.floats(0.1, 30), seed=seeds)
def test_prop_entropy_gradient_is_at_most_the_entropy(length, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, g = torch.randn(2, length, generator=generator, dtype=torch.float64)
    logits = (scale * logits).requires_grad_()
    weights = torch.softmax(logits, 0)
    (weights * g).sum().backward()
    weights = weights.detach()
    mass = float((weights * (1 - weights)).sum())
    spread = float(g.max() - g.min())
    assert mass <= float(torch.special.entr(weights).sum()) + 1e-12
    assert float(logits.grad.abs().sum()) <= spread * mass + 1e-12


def omega(w_q, w_k, tau=1.0):
    """The regulariser as the page defines it, on the full matrix."""
    w = w_q.mT @ w_k
    return w.square().sum() + (w.diagonal().sum() - tau) ** 2


def _omega_of_pair(pair, tau):
    return omega(pair[0], pair[1], tau)


def test_prop_locater_gradient_equals_autograd_of_the_full_matrix():
    generator = torch.Generator().manual_seed(7)
    w_q, w_k = (torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    value = omega(w_q, w_k, 0.7)
    of_q, of_k = torch.autograd.grad(value, (w_q, w_k))
    trace = (w_q * w_k).sum()
    small = ((w_q @ w_q.mT) * (w_k @ w_k.mT)).sum() + (trace - 0.7) ** 2
    torch.testing.assert_close(small, value)
    torch.testing.assert_close(of_q, 2 * w_k @ w_k.mT @ w_q + 2 * (trace - 0.7) * w_k)
    torch.testing.assert_close(of_k, 2 * w_q @ w_q.mT @ w_k + 2 * (trace - 0.7) * w_q)


@pytest.mark.parametrize(("rank", "dim", "tau"), [(1, 3, 1.0), (2, 5, 1.0), (3, 3, 2.0)])
def test_prop_locater_minimiser_is_found_from_every_start(rank, dim, tau):
    generator = torch.Generator().manual_seed(8)
    for _ in range(6):
        parts = torch.randn(2, rank, dim, generator=generator, dtype=torch.float64) * 0.5

        def value(flat, parts=parts):
            w_q, w_k = torch.tensor(flat, dtype=torch.float64).view_as(parts).requires_grad_()
            result = omega(w_q, w_k, tau)
            return result.item(), torch.cat([g.flatten() for g in torch.autograd.grad(result, (w_q, w_k))]).numpy()

        reached = optimize.minimize(value, parts.flatten().numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
        w_q, w_k = torch.tensor(reached.x).view_as(parts)
        w = (w_q.mT @ w_k).numpy()
        assert reached.fun == pytest.approx(tau**2 / (rank + 1), abs=1e-9)
        assert np.trace(w) == pytest.approx(tau * rank / (rank + 1), abs=1e-5)
        np.testing.assert_allclose(w @ w * (rank + 1) / tau, w, atol=1e-4)  # a multiple of a projection
        np.testing.assert_allclose(w, w.T, atol=1e-4)


def test_prop_locater_minimiser_has_saddles_below_full_rank():
    rank, dim, tau = 3, 4, 1.0
    for j in range(rank):
        frame = torch.eye(rank, dim, dtype=torch.float64) * (torch.arange(rank) < j)[:, None]
        point = torch.stack([frame, frame]) * math.sqrt(tau / (j + 1))
        value = functools.partial(_omega_of_pair, tau=tau)
        gradient = torch.autograd.functional.jacobian(value, point)
        hessian = torch.autograd.functional.hessian(value, point).reshape(2 * rank * dim, -1)
        assert float(value(point)) == pytest.approx(tau**2 / (j + 1))
        assert float(gradient.abs().max()) < 1e-12
        assert float(torch.linalg.eigvalsh(hessian)[0]) < -0.1


def test_prop_trace_square_falls_without_bound_where_the_frobenius_norm_does_not():
    for c in (1.0, 10.0, 100.0):
        w = np.array([[0.5, -c], [c, 0.5]])
        assert np.trace(w) == 1
        assert np.trace(w @ w) == pytest.approx(0.5 - 2 * c**2)
    rng = np.random.default_rng(9)
    u, v = rng.standard_normal((2, 5))
    assert np.trace(np.outer(u, v) @ np.outer(u, v)) == pytest.approx((u @ v) ** 2)
    for _ in range(50):
        w = rng.standard_normal((5, 5))
        size, mean = (abs(eigvals(w)) ** 2).sum(), np.trace(w) / 5
        assert norm(w) ** 2 >= size >= abs(np.trace(w @ w)) - 1e-9
        assert norm(w) ** 2 - 5 * mean**2 >= (abs(eigvals(w) - mean) ** 2).sum() - 1e-9


def test_prop_locater_variants_minimise_what_they_say():
    rng, rank, dim = np.random.default_rng(10), 3, 7

    def variance_form(w, divisor):
        return norm(w) ** 2 - np.trace(w) ** 2 / divisor

    for _ in range(50):
        w = rng.standard_normal((dim, rank)) @ rng.standard_normal((rank, dim))
        symmetric = norm((w + w.T) / 2) ** 2
        assert symmetric == pytest.approx((norm(w) ** 2 + np.trace(w @ w)) / 2)
        assert symmetric <= norm(w) ** 2
        assert norm(w - w.T + (w - w.T).T) == 0
        assert variance_form(w, rank) > 0
        assert variance_form(w, dim) >= np.trace(w) ** 2 * (1 / rank - 1 / dim) - 1e-9
    assert variance_form(-2 * projection(rng, dim, rank), rank) == pytest.approx(0, abs=1e-9)


def test_prop_projection_keeps_the_trace_to_first_order():
    generator = torch.Generator().manual_seed(12)
    w_q, w_k, g_q, g_k = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)
    along = ((g_q * w_k).sum() + (g_k * w_q).sum()) / (w_q.square().sum() + w_k.square().sum())
    by_hand = g_q - along * w_k, g_k - along * w_q
    project_gradients(w_q, w_k, g_q, g_k)  # in place
    torch.testing.assert_close((g_q, g_k), by_hand)
    for step in (1e-1, 1e-3):
        moved = ((w_q - step * g_q) * (w_k - step * g_k)).sum() - (w_q * w_k).sum()
        assert float(moved) == pytest.approx(step**2 * float((g_q * g_k).sum()), rel=1e-6)
    before = w_k.clone()
    recentre_trace(w_q, w_k, 1.7)
    assert float((w_q * w_k).sum()) == pytest.approx(1.7)
    for _ in range(20):  # any other change of w_k that gives this trace is larger
        other = torch.randn(3, 6, generator=generator, dtype=torch.float64)
        other += (1.7 - (w_q * (before + other)).sum()) / w_q.square().sum() * w_q
        assert float(other.norm()) >= float((w_k - before).norm())
    frame = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64))[0].mT  # (3, 6)
    best = math.sqrt(1.7 / 3) * frame
    assert float((best.mT @ best).square().sum()) == pytest.approx(1.7**2 / 3)
    for _ in range(50):
        w = (
            torch.randn(3, 6, generator=generator, dtype=torch.float64).mT
            @ torch.randn(3, 6, generator=generator).double()
        )
        assert float((w * 1.7 / w.trace()).square().sum()) >= 1.7**2 / 3 - 1e-12
