"""Signal propagation against simulated walks, the exact law against its Gaussian form, the localization index."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.attention import piecewise_linear_attention
from qkrepro.theory.propagation import (
    finite_length_law,
    localization,
    signal_propagation,
    signal_propagation_limit,
    simulate_signal_propagation,
    whiten,
)
from qkrepro.theory.spectrum import qk_matrix, random_spectrum_matrix
from qkrepro.theory.tokens import random_walk

GRID = (torch.arange(1001, dtype=torch.float64) + 0.5) / 1001


def generator(seed):
    return torch.Generator().manual_seed(seed)


def locations(length):
    return torch.arange(1, length + 1, dtype=torch.float64) / length


def covariance(dim, seed):
    root = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64)
    return root @ root.mT / dim


def walk_logits(w, length, walks, seed, cov=None):
    """Logits x_Tᵀ W x_i of the last token of simulated walks, (walks, length)."""
    x = random_walk(length, len(w), cov=cov, batch=walks, generator=generator(seed))
    return (x @ w.mT * x[:, -1:]).sum(-1)


@pytest.mark.parametrize("length", [2, 5, 40])
def test_finite_length_moments_match_simulated_walks(length):
    w, cov, walks = torch.randn(6, 6, generator=generator(1), dtype=torch.float64), covariance(6, 2), 40_000
    logits = walk_logits(w, length, walks, 3, cov)
    centred = logits - logits.mean(-1, keepdim=True)
    m, (gamma, det, _, _) = whiten(w, cov), finite_length_law(locations(length), length, 1.0)
    mean = gamma * m.trace()
    variance = (gamma**2 + det) * m.square().sum() + gamma**2 * (m * m.mT).sum()
    squares = (centred - mean).square()
    assert float(((centred.mean(0) - mean) / (variance / walks).sqrt()).abs().max()) < 4
    assert float(((squares.mean(0) - variance) / (squares.std(0) / walks**0.5)).abs().max()) < 4


def matrices(name):
    dim, g = 8, generator(5)
    noise = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    cases = {
        "concentrated": torch.eye(dim, dtype=torch.float64) / dim,
        "dispersed": random_spectrum_matrix(dim, 0.1, 0.5, generator=g),
        "not symmetric": noise / dim + 0.2 * torch.eye(dim),
        "near-nilpotent": torch.diag(torch.full((1,), 1.0, dtype=torch.float64), dim - 1) + 1e-3 * noise,
        "antisymmetric": (noise - noise.mT) / dim,
        "one eigenvalue dominates": torch.diag(torch.tensor([2.0, *[0.01] * (dim - 1)], dtype=torch.float64)),
        "rank two": noise[:, :2] @ noise[:2] / dim,
        "traceless": noise / dim - noise.trace() / dim**2 * torch.eye(dim),
    }
    return cases[name]


CASES = (
    "concentrated", "dispersed", "not symmetric", "near-nilpotent", "antisymmetric", "one eigenvalue dominates",
    "rank two", "traceless",
)  # fmt: skip


@pytest.mark.parametrize("length", [2, 3, 24])
@pytest.mark.parametrize("case", CASES)
def test_exact_law_matches_walks_through_the_clipped_function(case, length):
    w, walks, temperature = matrices(case), 20_000, 0.7
    attention = piecewise_linear_attention(walk_logits(w, length, walks, 11), temperature)  # (walks, length)
    share = ((attention > 0) & (attention < 1)).double().mean(0)
    rho = signal_propagation(locations(length), w, temperature=temperature, length=length, method="exact")
    error = (rho * (1 - rho) / walks).sqrt().clamp(min=1 / walks)
    assert float(((share - rho) / error).abs().max()) < 4.5


def test_exact_law_of_the_qk_matrix_matches_attention_computed_from_queries_and_keys():
    length, walks, cov = 12, 30_000, covariance(5, 6)
    w_q, w_k = torch.randn(2, 3, 5, generator=generator(7), dtype=torch.float64)
    x = random_walk(length, 5, cov=cov, batch=walks, generator=generator(8))
    query, keys = x[:, -1] @ w_q.mT, x @ w_k.mT  # (walks, d_head), (walks, length, d_head)
    weights = piecewise_linear_attention((keys @ query[:, :, None])[..., 0], 2.0)
    share = ((weights > 0) & (weights < 1)).double().mean(0)
    arguments = {"temperature": 2.0, "length": length, "cov": cov}
    rho = signal_propagation(locations(length), qk_matrix(w_q, w_k), **arguments, method="exact")
    drawn = simulate_signal_propagation(
        locations(length), qk_matrix(w_q, w_k), **arguments, samples=walks, generator=generator(9)
    )
    error = (rho * (1 - rho) / walks).sqrt()
    assert float(((share - rho) / error).abs().max()) < 4
    assert float(((drawn.rho - rho) / error).abs().max()) < 4


@pytest.mark.parametrize("case", CASES)
def test_exact_law_matches_monte_carlo(case):
    samples, theta, cov = 40_000, locations(20), covariance(8, 4)
    rho = signal_propagation(theta, matrices(case), length=20, cov=cov, method="exact")
    drawn = simulate_signal_propagation(
        theta, matrices(case), length=20, cov=cov, samples=samples, generator=generator(2)
    )
    error = (rho * (1 - rho) / samples).sqrt().clamp(min=1 / samples)
    assert float(((drawn.rho - rho) / error).abs().max()) < 4.5
    assert bool(((drawn.low <= drawn.rho) & (drawn.rho <= drawn.high)).all())


def test_monte_carlo_matches_walks_with_a_covariance():
    w, cov, count, length = matrices("not symmetric"), covariance(8, 9), 30_000, 16
    drawn = simulate_signal_propagation(
        locations(length), w, length=length, cov=cov, samples=count, generator=generator(1)
    )
    attention = piecewise_linear_attention(walk_logits(w, length, count, 2, cov))
    share = ((attention > 0) & (attention < 1)).double().mean(0)
    error = (2 * drawn.rho * (1 - drawn.rho) / count).sqrt()
    assert float(((drawn.rho - share) / error).abs().max()) < 4


def test_monte_carlo_is_determined_by_its_seed():
    def draw(seed):
        arguments = {"length": 9, "samples": 500, "generator": generator(seed)}
        return simulate_signal_propagation(locations(9), matrices("dispersed"), **arguments).rho

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_simulated_intervals_cover_the_exact_law_at_about_their_level():
    w, theta = matrices("dispersed"), locations(9)
    rho = signal_propagation(theta, w, length=9, method="exact")
    drawn = [simulate_signal_propagation(theta, w, length=9, samples=400, generator=generator(s)) for s in range(200)]
    covered = torch.stack([(each.low <= rho) & (rho <= each.high) for each in drawn]).double().mean()
    assert abs(float(covered) - 0.95) < 0.03


# The numbers that the theory page states


def test_limit_errs_by_nine_hundredths_and_the_finite_form_by_less_than_four_thousandths():
    w, theta = torch.eye(256) / 256, locations(128)
    exact = signal_propagation(theta, w, length=128, method="exact")
    assert float((signal_propagation(theta, w) - exact).abs().max()) == pytest.approx(0.09, abs=0.005)
    for ratio in (0.0, 1.0, 2.0, 5.0):  # standard deviation of the eigenvalues over their mean
        w = random_spectrum_matrix(256, 1 / 256, (ratio / 256) ** 2, generator=generator(1))
        exact = signal_propagation(theta, w, length=128, method="exact")
        assert float((signal_propagation(theta, w, length=128) - exact).abs().max()) < 0.004


def test_gaussian_form_errs_by_a_third_where_one_eigenvalue_dominates():
    w = torch.zeros(64, 64)
    w[0, 0] = 1.0
    exact = signal_propagation(locations(16), w, temperature=0.3, length=16, method="exact")
    finite = signal_propagation(locations(16), w, temperature=0.3, length=16)
    assert float((finite - exact).abs().max()) == pytest.approx(0.31, abs=0.005)


@pytest.mark.parametrize(
    ("moments", "index"),
    [
        ((1.0, 4 / 4096), 0.49),  # variance of three squared means, d = 4096: localizes
        ((1.0, 1 / 8), 0.32),  # no variance at all, d = 8: localizes less
        ((1.0, 1 / 64, 1 / 64 + 16), 0.02),  # equal eigenvalues and a strictly triangular part of norm 4: broad
    ],
)
def test_eigenvalue_variance_does_not_decide(moments, index):
    assert float(localization(GRID, signal_propagation_limit(GRID, *moments)).index) == pytest.approx(index, abs=0.005)


# The regimes, over random spectra


def profile(dim, mean, ratio, temperature, seed, length=None):
    """Finite or limiting profile of a symmetric matrix of trace `mean` and eigenvalue std `ratio` times its mean."""
    w = random_spectrum_matrix(dim, mean / dim, (ratio * mean / dim) ** 2, generator=generator(seed))
    theta = GRID if length is None else locations(length)
    rho = signal_propagation(theta, w, temperature=temperature, length=length, method="exact" if length else "limit")
    return theta, rho


SPECTRA = {
    "dim": st.integers(256, 400),
    "ratio": st.floats(0, 0.5),
    "temperature": st.floats(0.01, 100),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=15, deadline=None)
@given(**SPECTRA, strength=st.floats(0.3, 1.6))
def test_late_sites_pass_for_a_positive_trace_up_to_twice_the_temperature(dim, ratio, temperature, seed, strength):
    theta, rho = profile(dim, strength * temperature, ratio, temperature, seed)
    assert float(rho[theta > 0.7].min()) > 0.75
    assert float(rho[theta < 0.3].max()) < 0.05
    assert float(localization(theta, rho).centre) > 0.6


@settings(max_examples=15, deadline=None)
@given(**SPECTRA, strength=st.floats(3, 8))
def test_middle_sites_pass_for_a_large_positive_trace(dim, ratio, temperature, seed, strength):
    theta, rho = profile(dim, strength * temperature, ratio, temperature, seed)
    passing = (theta > 0.5) & (theta < 0.5 + 1 / strength)
    assert float(rho[passing].mean()) > 0.5
    assert float(rho[(theta < 0.35) | (theta > 0.65 + 1 / strength)].max()) < 0.06
    assert float(localization(theta, rho).index) > 0.5


@settings(max_examples=15, deadline=None)
@given(**SPECTRA, strength=st.floats(0.3, 8))
def test_a_negative_trace_gives_the_mirror_image(dim, ratio, temperature, seed, strength):
    _, positive = profile(dim, strength * temperature, ratio, temperature, seed)
    _, negative = profile(dim, -strength * temperature, ratio, temperature, seed)
    assert float((positive.flip(0) - negative).abs().max()) < 1e-9


@settings(max_examples=10, deadline=None)
@given(dim=st.integers(64, 200), size=st.floats(0.5, 20), seed=st.integers(0, 10**6))
def test_no_site_is_shut_out_without_a_trace(dim, size, seed):
    w = size * random_spectrum_matrix(dim, 0.0, 1 / dim, generator=generator(seed))  # ‖W‖_F = size
    rho = signal_propagation(locations(200), w, length=200, method="exact")
    assert float(rho.max() / rho.min()) < math.sqrt(7) + 0.05
    assert float(localization(locations(200), rho).index) < 0.1


@settings(max_examples=10, deadline=None)
@given(dim=st.integers(64, 200), seed=st.integers(0, 10**6))
def test_half_of_everything_passes_at_a_high_temperature_of_a_long_sequence(dim, seed):
    w = random_spectrum_matrix(dim, 0.0, 1 / dim, generator=generator(seed))
    rho = signal_propagation(locations(500), w, length=500_000, temperature=30.0, method="exact")
    assert float((rho - 0.5).abs().max()) < 0.03  # λ/T ≪ ‖W‖_F ≪ λ; what is left is skewness


@settings(max_examples=10, deadline=None)
@given(dim=st.integers(64, 200), share=st.floats(-0.5, 0.5), seed=st.integers(0, 10**6), length=st.integers(4, 60))
def test_every_token_passes_while_the_logits_stay_within_the_temperature(dim, share, seed, length):
    mean = 2 * share / (length - 1)
    _, rho = profile(dim, mean, 0.1, 1.0, seed, length=length)
    assert float(rho.min()) > 0.85
    assert float(localization(locations(length), rho).index) < 0.01


@settings(max_examples=15, deadline=None)
@given(
    dim=st.integers(2, 12),
    length=st.integers(2, 200),
    temperature=st.sampled_from([1e-6, 0.1, 1.0, 50.0, 1e6]),
    seed=st.integers(0, 10**6),
)
def test_antisymmetric_head_has_one_probability_for_all_sites(dim, length, temperature, seed):
    noise = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64)
    rho = signal_propagation(
        locations(length), noise - noise.mT, temperature=temperature, length=length, method="exact"
    )
    assert float(rho.max() - rho.min()) < 1e-12


@settings(max_examples=20, deadline=None)
@given(
    dim=st.integers(2, 10),
    length=st.integers(2, 50),
    temperature=st.floats(1e-3, 1e3),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 10**6),
)
def test_only_the_ratio_of_matrix_and_temperature_matters(dim, length, temperature, scale, seed):
    w, theta = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64), locations(length)
    rho = signal_propagation(theta, w, temperature=temperature, length=length, method="exact")
    scaled = signal_propagation(theta, w * scale, temperature=temperature * scale, length=length, method="exact")
    assert float((rho - scaled).abs().max()) < 1e-11


def test_covariance_enters_as_its_root_on_both_sides():
    w, cov = matrices("not symmetric"), covariance(8, 1)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.sqrt()  # another root than the symmetric one: LLᵀ = cov
    arguments = {"length": 12, "method": "exact"}
    expected = signal_propagation(locations(12), root.mT @ w @ root, **arguments)
    assert torch.allclose(signal_propagation(locations(12), w, cov=cov, **arguments), expected, atol=1e-12)


def test_finite_form_tends_to_the_limit():
    w = torch.eye(32) / 16
    errors = [
        float((signal_propagation(GRID, w, length=t) - signal_propagation(GRID, w)).abs().max())
        for t in (100, 10_000, 1_000_000)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_a_location_is_the_nearest_token():
    theta = torch.tensor([1e-9, 0.1, 0.149, 0.15, 0.96, 1.0], dtype=torch.float64)
    gamma, _, lower, upper = finite_length_law(theta, 10, 2.0)
    assert (gamma + 5.5).tolist() == [1, 1, 1, 2, 10, 10]
    assert (lower, upper) == (-2.0, 18.0)


def test_result_is_shaped_like_theta_and_moments_add_leading_dimensions():
    theta = torch.tensor([[0.2, 0.5, 1.0]])
    assert signal_propagation(theta, torch.eye(3), length=7, method="exact").shape == (1, 3)
    assert simulate_signal_propagation(theta, torch.eye(3), length=7, samples=9, generator=generator(0)).low.shape == (
        1,
        3,
    )
    assert signal_propagation(0.5, torch.eye(3)).shape == ()
    traces = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    batch = signal_propagation_limit(theta[0], traces, traces, 2 * traces, 1.0, 20)
    assert batch.shape == (2, 2, 3)
    assert batch[1, 0].tolist() == signal_propagation_limit(theta[0], 3.0, 3.0, 6.0, 1.0, 20).tolist()
    assert batch.dtype == torch.float64


@pytest.mark.parametrize("length", [None, 5])
def test_zero_matrix_saturates_nothing(length):
    rho = signal_propagation(GRID, torch.zeros(4, 4), length=length)
    assert rho.tolist() == [1.0] * len(GRID)
    assert signal_propagation(GRID[:3], torch.zeros(4, 4), length=5, method="exact").tolist() == [1.0] * 3


# The localization index


@settings(max_examples=30, deadline=None)
@given(
    theta=st.lists(st.floats(1e-3, 1), min_size=2, max_size=30, unique=True).map(sorted),
    height=st.floats(1e-9, 1e3),
)
def test_flat_profile_has_index_zero_on_any_grid(theta, height):
    found = localization(theta, torch.full((len(theta),), height))
    assert float(found.index) == pytest.approx(0, abs=1e-9)
    assert float(found.level) == pytest.approx(height)


@pytest.mark.parametrize("width", [0.1, 0.25, 0.8])
def test_indicator_has_one_minus_its_width(width):
    theta = torch.linspace(1e-4, 1, 20_001, dtype=torch.float64)
    found = localization(theta, (theta < width).double())
    assert float(found.index) == pytest.approx(1 - width, abs=2e-3)
    assert float(found.centre) == pytest.approx(width / 2, abs=2e-3)
    assert float(found.level) == pytest.approx(width, abs=2e-3)


def test_index_ignores_the_level_and_is_undefined_below_1e_12():
    rho = signal_propagation(GRID, torch.eye(64) / 64)
    small = localization(GRID, torch.stack([rho, 1e-6 * rho, 1e-13 * rho]))
    assert float(small.index[1]) == pytest.approx(float(small.index[0]))
    assert small.index.isnan().tolist() == small.centre.isnan().tolist() == [False, False, True]
    assert float(small.level[2]) == pytest.approx(1e-13 * float(small.level[0]))


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"theta": [0.0]}, ArgumentError, "theta must .*, got 0"),
        ({"theta": [0.5, 1.01]}, ArgumentError, "theta must .*, got 1.01"),
        ({"theta": [math.nan]}, ArgumentError, "theta must .*, got nan"),
        ({"theta": []}, ArgumentError, "theta must .*, got nothing"),
        ({"w": torch.zeros(2, 3)}, ShapeError, "w must have shape"),
        ({"w": torch.zeros(4, 2, 2)}, ShapeError, "w must have shape"),
        ({"w": torch.full((2, 2), torch.inf)}, ArgumentError, "w must be finite, got 4 non-finite"),
        ({"temperature": 0.0}, ArgumentError, "temperature must .*, got 0.0"),
        ({"temperature": -1.0}, ArgumentError, "temperature must .*, got -1.0"),
        ({"length": 1}, ArgumentError, "length must .*, got 1"),
        ({"length": None}, ArgumentError, "length must be an integer >= 2 with method .exact., got None"),
        ({"length": 2.5}, ArgumentError, "length must .*, got 2.5"),
        ({"cov": torch.eye(3)}, ShapeError, "cov must have shape"),
        (
            {"cov": torch.tensor([[1.0, 2.0], [2.0, 1.0]])},
            ArgumentError,
            "cov must be positive semi-definite, got the eigenvalue -1",
        ),
        ({"method": "exactly"}, ArgumentError, "method must be one of limit, exact"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {"theta": [0.5], "w": torch.eye(2), "length": 4, "method": "exact", **change}
    with pytest.raises(error, match=words):
        signal_propagation(arguments.pop("theta"), arguments.pop("w"), **arguments)


@pytest.mark.parametrize("moments", [(1.0, 2.0, 1.0), (0.0, -1.0), (math.nan, 1.0), (0.0, 1.0, math.inf)])
def test_impossible_moments_are_refused(moments):
    with pytest.raises(ArgumentError, match=r"trace|frobenius_sq"):
        signal_propagation_limit([0.5], *moments)


@pytest.mark.parametrize(
    ("theta", "rho", "error"),
    [
        ([0.5], [1.0], ShapeError),
        ([0.5, 0.4], [1.0, 1.0], ShapeError),
        ([0.2, 0.4], [1.0, 1.0, 1.0], ShapeError),
        ([0.2, 0.4], [1.0, -1.0], ArgumentError),
        ([0.2, 0.4], [1.0, math.nan], ArgumentError),
    ],
)
def test_localization_refuses_what_is_no_profile(theta, rho, error):
    with pytest.raises(error):
        localization(theta, rho)
