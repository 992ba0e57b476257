"""What a concentrated spectrum costs in entropy: at one trace the least, at one size the most; entropy along rays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_oracles import entropy, softmax, walks


def cost(m):
    """The bracket of the high-temperature expansion, ξ² + 2‖M‖_F² + tr M²."""
    return np.trace(m) ** 2 + 2 * np.square(m).sum() + np.trace(m @ m)


def deficit(logits):
    """log T minus the entropy of each row."""
    return np.log(logits.shape[-1]) - entropy(softmax(logits))


@given(dim=st.integers(2, 8), rank=st.integers(2, 8), seed=st.integers(0, 10**6))
@settings(max_examples=60)
def test_prop_fixed_norm_concentration_costs_the_most_and_rotation_the_least(dim, rank, seed):
    rng = np.random.default_rng(seed)
    rank = min(rank, dim)
    m = rng.standard_normal((dim, rank)) @ rng.standard_normal((rank, dim))
    m /= np.linalg.norm(m)
    assert 1 - 1e-9 <= cost(m) <= rank + 3 + 1e-9
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    projection = basis[:, :rank] @ basis[:, :rank].T / np.sqrt(rank)
    assert cost(projection) == pytest.approx(rank + 3)
    assert cost(-projection) == pytest.approx(rank + 3)
    turned = np.outer(basis[:, 0], basis[:, 1])
    assert cost((turned - turned.T) / np.sqrt(2)) == pytest.approx(1)
    traceless = np.outer(basis[:, 0], basis[:, 0]) - np.outer(basis[:, 1], basis[:, 1])
    assert cost(traceless / np.sqrt(2)) == pytest.approx(3)


def test_prop_fixed_norm_order_is_that_of_simulated_walks():
    rng = np.random.default_rng(0)
    dim, length, temperature = 16, 24, 200.0
    x = walks(rng, 4000, length, dim)
    sign = np.diag(np.repeat([1.0, -1.0], dim // 2))
    turned = np.kron(np.eye(dim // 2), np.array([[0.0, -1.0], [1.0, 0.0]]))
    for m, factor in ((np.eye(dim), dim + 3), (sign, 3), (turned, 1)):
        m = m / np.linalg.norm(m)
        sample = deficit(np.einsum("nti,ij,nj->nt", x, m, x[:, -1]) / temperature)
        expected = (length**2 - 1) / (24 * temperature**2) * factor
        assert abs(sample.mean() - expected) < 4.5 * sample.std() / np.sqrt(len(sample)) + 0.02 * expected


@given(dim=st.integers(2, 6), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_prop_concentration_tokens_has_its_optimum_at_the_inverse_covariance(dim, seed):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, dim)) + 2 * np.eye(dim)
    cov = root @ root.T + 0.05 * np.eye(dim)
    values, vectors = np.linalg.eigh(cov)
    half = vectors * np.sqrt(values) @ vectors.T
    best = 2.0 / dim * np.linalg.inv(cov)
    assert np.trace(best @ cov) == pytest.approx(2.0)
    least = cost(half @ best @ half)
    change = rng.standard_normal((dim, dim))
    change -= np.trace(change @ cov) / np.trace(cov) * np.eye(dim)  # tr(WΣ) stays
    assert cost(half @ (best + 0.1 * change) @ half) > least
    identity = half @ half  # M of W = I
    number = np.trace(identity) ** 2 / np.square(identity).sum()
    assert number == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert number <= dim + 1e-9


def test_prop_concentration_tokens_the_trace_in_their_coordinates_can_have_the_other_sign():
    w = np.diag([10.0, 10.0, -0.1])
    assert np.trace(w) > 0 > np.trace(w @ np.diag([1e-3, 1e-3, 1.0]))


@given(length=st.integers(2, 20), seed=st.integers(0, 10**6), low=st.floats(0, 3), step=st.floats(0.01, 3))
@settings(max_examples=60)
def test_prop_entropy_ray_falls_for_every_row_and_in_the_mean(length, seed, low, step):
    rng = np.random.default_rng(seed)
    x = walks(rng, 30, length, 4)
    m = rng.standard_normal((4, 4))
    logits = np.einsum("nti,ij,nj->nt", x, m, x[:, -1])
    near, far = deficit(low * logits), deficit((low + step) * logits)
    assert np.all(far >= near - 1e-9)
    assert far.mean() >= near.mean()


def test_prop_entropy_ray_ends_at_the_number_of_largest_logits():
    logits = np.array([[1.0, 1.0, 0.5, -2.0], [3.0, 1.0, 1.0, 1.0]])
    assert np.log(4) - deficit(1e3 * logits) == pytest.approx([np.log(2), 0], abs=1e-9)


def test_prop_uniform_collapse_is_not_the_fastest():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 5))
    first = np.zeros((12, 12))
    first[:, 0] = 1
    uniform = np.tril(np.ones((12, 12))) / np.arange(1, 13)[:, None]
    residuals = [np.linalg.norm(a @ x - (a @ x).mean(0)) / np.linalg.norm(a @ x) for a in (first, uniform)]
    assert residuals[0] < 1e-12 < residuals[1]
