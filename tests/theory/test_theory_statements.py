"""Every numbered proposition of the theory pages, simulated: setting, linearised softmax, signal propagation.

One test per proposition, named after its label. Oracles are simulations and sums written out here, not the package.
The propositions on entropy, rank and LocAteR are in test_theory_collapse_and_locater.py and in the modules beside it.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import det, eigvals, norm
from row_oracles import close, entropy, softmax, walks
from scipy import integrate, stats

from qkrepro.theory.attention import piecewise_linear_attention, softmax_attention
from qkrepro.theory.propagation import localization, signal_propagation, signal_propagation_limit
from qkrepro.theory.spectrum import random_spectrum_matrix

PAGES = Path(__file__).parents[2] / "book"
PHI = stats.norm.cdf


def walk_logits(x, m):
    return np.einsum("nti,ji,nj->nt", x, m, x[:, -1])  # (samples, T)


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


def position(i, length):
    """γ, D and αβ of token i."""
    gamma, d = i - (length + 1) / 2, (length**2 - 1) / 12
    return gamma, d, gamma**2 + d


def test_every_proposition_has_a_test_of_its_name():
    labels = {
        label.replace("-", "_")
        for page in PAGES.glob("*.md")
        for label in re.findall(r"^:label: ((?:prop|lem|conj)-\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    missing = sorted(label for label in labels if not re.search(rf"def test_{label}(_|\()", tests))
    assert len(labels) > 30
    assert not missing


def test_prop_small_product_has_the_eigenvalues_and_moments_of_the_large_one():
    rng = np.random.default_rng(0)
    w_q, w_k = rng.standard_normal((2, 3, 8))
    large, small = w_q.T @ w_k, w_k @ w_q.T
    of_large = sorted(eigvals(large), key=abs)[-3:]
    np.testing.assert_allclose(np.sort_complex(of_large), np.sort_complex(eigvals(small)), atol=1e-10)
    assert np.trace(large) == pytest.approx((w_q * w_k).sum())
    assert np.trace(large @ large) == pytest.approx(np.trace(small @ small))
    assert norm(large) ** 2 == pytest.approx(np.trace(w_q @ w_q.T @ w_k @ w_k.T))


def test_prop_biases_of_the_key_drop_out_and_of_the_query_are_one_more_coordinate():
    rng = np.random.default_rng(1)
    w_q, w_k, (b_q, b_k), x = *rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3)), rng.standard_normal((6, 5))
    logits = (x @ w_k.T + b_k) @ (w_q @ x[-1] + b_q)
    without_key_bias = (x @ w_k.T) @ (w_q @ x[-1] + b_q)
    np.testing.assert_allclose(softmax(logits), softmax(without_key_bias), rtol=1e-10)
    np.testing.assert_allclose(without_key_bias - (x @ w_k.T) @ (w_q @ x[-1]), x @ w_k.T @ b_q)
    augmented, tokens = np.c_[w_q, b_q].T @ np.c_[w_k, b_k], np.c_[x, np.ones(6)]
    np.testing.assert_allclose(tokens[-1] @ augmented @ tokens.T, logits)


def test_prop_initial_spectrum_has_these_mean_moments():
    rng = np.random.default_rng(2)
    d, h, variance = 12, 4, 0.3
    w_q, w_k = rng.uniform(-1, 1, (2, 20_000, h, d)) * np.sqrt(3 * variance)
    small = w_k @ w_q.swapaxes(1, 2)
    trace = np.trace(small, axis1=1, axis2=2)
    trace_sq = (small * small.swapaxes(1, 2)).sum((1, 2))
    frobenius_sq = (w_q @ w_q.swapaxes(1, 2) * (w_k @ w_k.swapaxes(1, 2))).sum((1, 2))
    assert close(trace, 0)
    assert close(trace**2, d * h * variance**2)
    assert close(trace_sq, d * h * variance**2)
    assert close(frobenius_sq, d**2 * h * variance**2)


@given(length=st.integers(2, 40), scale=st.floats(1e-3, 4), seed=st.integers(0, 10**6))
def test_prop_linearisation_errs_by_less_than_its_bound(length, scale, seed):
    logits = scale * torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spread = float(logits.max() - logits.min())
    error = (softmax_attention(logits) - piecewise_linear_attention(logits)).abs().max()
    assert float(error) <= spread**2 * np.exp(spread) / (2 * length)


def test_prop_gradient_reaches_w_only_through_unsaturated_weights_and_the_common_mean():
    generator = torch.Generator().manual_seed(3)
    x, w, g = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 4), (4, 4), (9,)))
    w.requires_grad_()
    logits = x @ w.mT @ x[-1]
    (piecewise_linear_attention(logits) * g).sum().backward()
    offset = (logits - logits.mean()).detach()
    free = (offset > -1) & (offset < 8)
    assert 0 < int(free.sum()) < 9
    coefficient = (g * free - (g * free).sum() / 9) / 9
    torch.testing.assert_close(w.grad, torch.einsum("t,ti,j->ji", coefficient, x, x[-1]))


@pytest.mark.parametrize("length", [2, 3, 7, 30])
def test_prop_moments_hold_in_exact_sums_and_in_simulated_walks(length):
    steps = np.arange(1, length + 1)
    for i in steps:
        u = (steps <= i) - (length - steps + 1) / length
        gamma, d, ab = position(i, length)
        assert u.sum() == pytest.approx(gamma)
        assert (u**2).sum() * length == pytest.approx(ab)
        assert (u**2).sum() * length - u.sum() ** 2 == pytest.approx(d)
    rng = np.random.default_rng(4)
    m = rng.standard_normal((3, 3))
    logits = centred(walk_logits(walks(rng, 60_000, length, 3), m))
    for i in {1, length // 2 + 1, length}:
        gamma, _, ab = position(i, length)
        assert close(logits[:, i - 1], gamma * np.trace(m))
        variance = ab * (m**2).sum() + gamma**2 * np.trace(m @ m)
        assert close((logits[:, i - 1] - gamma * np.trace(m)) ** 2, variance)


def test_prop_transposition_and_mirror_leave_the_law_of_the_logits():
    rng = np.random.default_rng(5)
    m = np.triu(rng.standard_normal((4, 4)), 0)  # far from normal
    theta = torch.arange(1, 10) / 9
    rho = signal_propagation(theta, torch.tensor(m), length=9, method="exact")
    transposed = signal_propagation(theta, torch.tensor(m.T), length=9, method="exact")
    mirrored = signal_propagation(theta, -torch.tensor(m), length=9, method="exact").flip(0)
    torch.testing.assert_close(rho, transposed, atol=1e-10, rtol=0)
    torch.testing.assert_close(rho, mirrored, atol=1e-10, rtol=0)
    y, other = rng.standard_normal((2, 200_000, 4))
    q, v = np.einsum("ni,ij,nj->n", y, m, y), ((y @ m) ** 2).sum(1)
    q_t, v_t = np.einsum("ni,ij,nj->n", other, m.T, other), ((other @ m.T) ** 2).sum(1)
    for statistic in (lambda q, v: np.exp(-v) * np.cos(q), lambda q, v: np.exp(-0.2 * v) * np.sin(q)):
        first, second = statistic(q, v), statistic(q_t, v_t)
        assert abs(first.mean() - second.mean()) < 4.5 * np.hypot(first.std(), second.std()) / np.sqrt(200_000)


@given(dim=st.integers(1, 6), length=st.integers(2, 50), share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_prop_gaussian_ratio_of_the_largest_weight_is_bounded_by_the_singular_values(dim, length, share, seed):
    m = np.random.default_rng(seed).standard_normal((dim, dim))
    i = 1 + round(share * (length - 1))
    gamma, _, ab = position(i, length)
    c = gamma / np.sqrt(ab)
    root = np.linalg.cholesky(np.kron([[1, c], [c, 1]], np.eye(dim)))
    zero = np.zeros_like(m)
    weights = np.linalg.eigvalsh(root.T @ np.block([[zero, m], [m.T, zero]]) @ root) * np.sqrt(ab) / 2
    variance = ab * norm(m) ** 2 + gamma**2 * np.trace(m @ m)
    assert 2 * (weights**2).sum() == pytest.approx(variance)
    assert abs(weights).max() / np.sqrt(variance) <= (2 + np.sqrt(3)) / 2 * norm(m, 2) / norm(m) * (1 + 1e-12)


def test_prop_gaussian_distance_stays_below_its_bound_and_rank_one_is_not_gaussian():
    rng = np.random.default_rng(6)
    c_3 = 2 * integrate.quad(lambda x: abs(x * x - 1) ** 3 * stats.norm.pdf(x), 0, 40, points=[1])[0]
    assert 8.6 < c_3 < 8.7
    for mu in (np.full(256, 1 / 256), np.array([1.0, 0.0, 0.0])):  # eigenvalues of a diagonal M
        gamma, d, ab = position(17, 20)
        y, z = rng.standard_normal((2, 10_000, len(mu)))
        logits = (gamma * y**2 + np.sqrt(d) * z * y) @ mu
        deviation = np.sqrt((ab + gamma**2) * (mu**2).sum())
        distance = stats.kstest((logits - gamma * mu.sum()) / deviation, "norm").statistic
        bound = (2 + np.sqrt(3)) * c_3 * 0.5606 / 4 * mu.max() / norm(mu)
        assert distance <= bound + 0.02
        assert (distance > 0.1) == (len(mu) == 3)


def test_prop_limit_is_approached_by_the_finite_form():
    for theta in (0.2, 0.5, 0.9):
        errors = []
        for length in (10**3, 10**5, 10**7):
            i = round(theta * length)
            gamma, _, ab = position(i, length)
            deviation = np.sqrt(ab * 2.0 + gamma**2 * 0.5)
            finite = PHI((length - 1 - gamma) / deviation) - PHI((-1 - gamma) / deviation)
            errors.append(abs(finite - float(signal_propagation_limit(torch.tensor(i / length), 1.0, 0.5, 2.0))))
        assert errors[0] < 0.01
        assert errors[2] < errors[1] / 50 < errors[0] / 2500


def _characteristic(t, m, i, length):
    gamma, d, _ = position(i, length)
    q = np.eye(len(m)) - 1j * t * gamma * (m + m.T) + t**2 * d * m @ m.T
    return np.prod(eigvals(q) ** -0.5)


def test_prop_exact_characteristic_function_is_that_of_simulated_walks():
    rng = np.random.default_rng(7)
    m = rng.standard_normal((3, 3))
    logits = centred(walk_logits(walks(rng, 100_000, 6, 3), m))
    for i, t in itertools.product((1, 4, 6), (0.02, 0.1, 0.4)):
        value = _characteristic(t, m, i, 6)
        assert close(np.cos(t * logits[:, i - 1]), value.real)
        assert close(np.sin(t * logits[:, i - 1]), value.imag)


def test_prop_exact_law_of_a_symmetric_matrix_is_a_weighted_sum_of_chi_squares():
    rng = np.random.default_rng(8)
    mu = rng.standard_normal(4)
    gamma, d, ab = position(5, 12)
    weights = np.r_[mu * (gamma + np.sqrt(ab)), mu * (gamma - np.sqrt(ab))] / 2
    for t in (0.01, 0.3, 3.0):
        product = np.prod((1 - 2j * t * weights) ** -0.5)
        assert _characteristic(t, np.diag(mu), 5, 12) == pytest.approx(product)
        root_of_product = np.prod(1 - 2j * t * mu * gamma + t**2 * mu**2 * d) ** -0.5
        assert abs(root_of_product) == pytest.approx(abs(product))  # its sign may be wrong, its size is not


def test_prop_inversion_gives_the_share_of_simulated_walks_and_its_tail_is_bounded():
    rng = np.random.default_rng(9)
    m, length, i = rng.standard_normal((3, 3)) / 3, 6, 5
    t = np.linspace(1e-9, 150, 150_001)
    gamma, d, _ = position(i, length)
    q = np.eye(3) - t[:, None, None] * 1j * gamma * (m + m.T) + t[:, None, None] ** 2 * d * (m @ m.T)
    phi = np.exp(-0.5 * np.log(eigvals(q)).sum(-1))
    integrand = ((np.exp(1j * t) - np.exp(-1j * t * (length - 1))) * phi).imag / t
    assert integrand[0] == pytest.approx(length, rel=1e-6)  # b − a
    assert (abs(phi) <= det(np.eye(3) + t[:, None, None] ** 2 * d * (m @ m.T)) ** -0.5 * (1 + 1e-9)).all()
    tail = 2 / (3 * np.pi) / (20 * np.sqrt(d)) ** 3 / abs(det(m))
    late = t > 20
    assert abs(np.trapezoid(integrand[late], t[late])) / np.pi <= tail
    logits = centred(walk_logits(walks(rng, 100_000, length, 3), m))[:, i - 1]
    assert close((logits > -1) & (logits < length - 1), np.trapezoid(integrand, t) / np.pi)


def test_prop_conditional_law_given_the_last_token_is_a_bridge_with_drift():
    rng = np.random.default_rng(10)
    length, m, last = 8, rng.standard_normal((3, 3)), np.array([1.0, -2.0, 0.5])
    steps = rng.standard_normal((60_000, length, 3))
    steps += (last - steps.sum(1))[:, None] / length  # increments given that they sum to the last token
    logits = walk_logits(steps.cumsum(1), m)
    q, v = last @ m @ last, ((m.T @ last) ** 2).sum()
    for i in (1, 3, 7):
        gamma, d, _ = position(i, length)
        deviation = centred(logits)[:, i - 1] - gamma * q / length
        assert close(deviation, 0)
        assert close(deviation**2, v * d / length)
    bridge = logits - np.arange(1, length + 1) / length * q
    assert close(bridge[:, 1] * bridge[:, 4], v * (2 - 10 / 8))


def test_prop_conditional_form_of_a_multiple_of_the_identity_is_one_chi_square_integral():
    dim, length, i, mu = 5, 12, 9, 0.2
    gamma, d, _ = position(i, length)

    def share(chi):
        deviation = mu * np.sqrt(chi * d)
        return PHI((length - 1 - gamma * mu * chi) / deviation) - PHI((-1 - gamma * mu * chi) / deviation)

    value = integrate.quad(lambda chi: share(chi) * stats.chi2.pdf(chi, dim), 0, np.inf)[0]
    logits = centred(walk_logits(walks(np.random.default_rng(11), 60_000, length, dim), mu * np.eye(dim)))[:, i - 1]
    assert close((logits > -1) & (logits < length - 1), value)


def test_prop_antisymmetric_head_is_stationary_on_the_cycle():
    rng = np.random.default_rng(12)
    m = rng.standard_normal((4, 4))
    weights = softmax(3 * walk_logits(walks(rng, 60_000, 6, 4), m - m.T))
    assert entropy(weights).mean() < 0.2 * np.log(6)  # low entropy, and yet
    for i in range(6):
        assert close(weights[:, i], 1 / 6)
        assert close(weights[:, i] * weights[:, (i + 1) % 6] - weights[:, 0] * weights[:, 1], 0)
    rho = signal_propagation(torch.arange(1, 7) / 6, torch.tensor(m - m.T), length=6, method="exact")
    assert float(rho.max() - rho.min()) < 1e-10


@given(dim=st.integers(2, 40), mean=st.floats(0.1, 3), variance=st.floats(0, 9), seed=st.integers(0, 10**6))
def test_prop_effective_number_of_eigenvalues_is_at_most_the_rank(dim, mean, variance, seed):
    w = random_spectrum_matrix(dim, mean, variance, generator=torch.Generator().manual_seed(seed)).numpy()
    number = np.trace(w) ** 2 / np.trace(w @ w)
    assert number == pytest.approx(dim / (1 + variance / mean**2))
    assert number <= np.linalg.matrix_rank(w) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("xi", "passes"),
    [(1.0, (0.5, 1.0)), (2.0, (0.5, 1.0)), (8.0, (0.5, 0.625)), (-1.0, (0.0, 0.5)), (-8.0, (0.375, 0.5))],
)
def test_prop_regimes_of_a_concentrated_spectrum(xi, passes):
    length, dim = 20_001, 10**7
    chi = stats.chi2.ppf((np.arange(200) + 0.5) / 200, dim)  # M = (ξ/d) I through its chi-square integral
    for theta in np.linspace(0.03, 0.99, 33):
        gamma, d, _ = position(round(theta * length), length)
        mean, deviation = gamma * xi / dim * chi, abs(xi) / dim * np.sqrt(chi * d)
        rho = (PHI((length - 1 - mean) / deviation) - PHI((-1 - mean) / deviation)).mean()
        if min(abs(theta - edge) for edge in passes) > 0.005:
            assert rho == pytest.approx(float(passes[0] < theta < passes[1]), abs=1e-3)


def test_prop_regimes_at_fixed_length_every_token_passes_while_the_drift_stays_within_the_temperature():
    rng = np.random.default_rng(13)
    x = walks(rng, 100, 20, 4000)
    logits = centred(np.einsum("nti,ni->nt", x, x[:, -1]) * 0.08 / 4000)  # M = (ξ/d) I with ξ · 19/2 = 0.76 < λ = 1
    assert ((logits > -1) & (logits < 19)).all()


def test_prop_broad_profiles_vary_by_at_most_root_seven():
    theta = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    for scale, antisymmetry in itertools.product((0.3, 1.0, 30.0, 1e4), (-1.0, 0.0, 1.0)):
        rho = signal_propagation_limit(theta, 0.0, antisymmetry * scale**2, scale**2)
        assert 1 - 1e-12 <= float(rho.max() / rho.min()) <= np.sqrt(7) + 1e-9
    far = signal_propagation_limit(torch.tensor([0.5, 1.0], dtype=torch.float64), 1.0, 1e12)
    assert float(far[0] / far[1]) == pytest.approx(np.sqrt(7), rel=1e-4)
    assert float(far[0]) == pytest.approx(np.sqrt(12 / (2 * np.pi)) * 1e-6, rel=1e-4)
    near = signal_propagation_limit(theta, 0.0, 1e-8)
    torch.testing.assert_close(near, torch.full_like(near, 0.5))


@given(width=st.floats(0.05, 0.95), height=st.floats(1e-6, 1), start=st.floats(0, 1))
def test_prop_localization_index_is_one_minus_the_width_of_an_indicator(width, height, start):
    theta = (torch.arange(20_000, dtype=torch.float64) + 1) / 20_000
    left = start * (1 - width)
    rho = height * ((theta > left) & (theta < left + width)).double()
    shape = localization(theta, rho)
    assert float(shape.index) == pytest.approx(1 - width, abs=1e-3)
    assert float(shape.centre) == pytest.approx(left + width / 2, abs=1e-3)
    assert float(shape.level) == pytest.approx(height * width, abs=1e-3)
    bumpy = 1 + 0.5 * torch.sin(20 * theta)
    assert 0 < float(localization(theta, bumpy).index) < 1
