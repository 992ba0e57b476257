"""The law of the spectrum under Xavier initialisation against draws, and the draws against PyTorch's."""

import math

import pytest
import torch
from scipy import integrate, stats

from qkrepro.errors import ArgumentError
from qkrepro.theory.spectrum import qk_eigenvalues, qk_matrix, qk_moments
from qkrepro.theory.xavier import xavier_law, xavier_qk

SIZES = [(24, 24), (24, 6), (9, 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("d_model", "d_head"), SIZES)
@pytest.mark.parametrize("fan_out", [None, 72])
def test_moments_of_draws_match_the_closed_form_within_four_standard_errors(d_model, d_head, fan_out):
    law = xavier_law(d_model, d_head, fan_out=fan_out)
    moments = qk_moments(*xavier_qk(d_model, d_head, fan_out=fan_out, batch=(4000,), generator=seeded(11)))
    for drawn, expected in [
        (moments.trace, 0.0),
        (moments.trace.square(), law.trace_std**2),
        (moments.trace_sq, law.trace_sq),
        (moments.frobenius_sq, law.frobenius_sq),
        (moments.eigen_variance, law.eigen_variance),
    ]:
        error = float(drawn.std()) / math.sqrt(4000)
        assert abs(float(drawn.mean()) - expected) < 4 * error


def test_draws_have_the_variance_and_bound_of_pytorchs_xavier_uniform():
    w_q, w_k = xavier_qk(300, 200, generator=seeded(1))
    theirs = torch.nn.init.xavier_uniform_(torch.empty(200, 300), generator=seeded(1))
    for ours in (w_q, w_k):
        assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=1e-3)
        assert float(ours.var()) == pytest.approx(float(theirs.var()), rel=0.02)


@pytest.mark.parametrize(("d_model", "d_head"), [(512, 512), (512, 128), (2048, 128)])
def test_radius_of_the_eigenvalues_follows_the_limit_law(d_model, d_head):
    law = xavier_law(d_model, d_head)
    draws = 1024 // d_head
    radii = qk_eigenvalues(*xavier_qk(d_model, d_head, batch=(draws,), generator=seeded(5))).abs().flatten()
    distance = stats.kstest(radii.numpy(), lambda r: law.radius_cdf(torch.as_tensor(r)).numpy()).statistic
    assert distance < 0.05  # eigenvalues repel, so the sample is closer than independent draws would be


@pytest.mark.parametrize(("d_model", "d_head"), [(512, 512), (512, 128), (512, 16)])
def test_spectral_norm_is_near_its_limit(d_model, d_head):
    w_q, w_k = xavier_qk(d_model, d_head, batch=(2,), generator=seeded(6))
    norms = torch.linalg.matrix_norm(qk_matrix(w_q, w_k), 2)
    assert float((norms / xavier_law(d_model, d_head).spectral_norm - 1).abs().max()) < 0.05


def test_radius_law_is_the_circular_law_for_thin_heads_and_linear_for_square_ones():
    thin, square = xavier_law(10**6, 1), xavier_law(64, 64)
    ratio = torch.linspace(0, 1.2, 13, dtype=torch.float64)
    torch.testing.assert_close(
        thin.radius_cdf(ratio * thin.eigen_radius), ratio.clamp(max=1).square(), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(square.radius_cdf(ratio * square.eigen_radius), ratio.clamp(max=1))


def test_radius_density_integrates_to_the_share_within():
    law = xavier_law(40, 30)
    for share in (0.3, 1.0, 1.5):
        density, _ = integrate.quad(lambda r: float(law.radius_density(torch.tensor(r))), 0, share * law.eigen_radius)
        within = float(law.radius_cdf(torch.tensor(share * law.eigen_radius)))
        assert density == pytest.approx(within, rel=1e-4)


def test_second_moment_of_the_radius_law_is_its_closed_form():
    law = xavier_law(40, 30)  # E r² = ∫ (1 − F) d(r²); from r² = R² F (1 − c + cF) it is R² (1/2 − c/6)
    r_sq = torch.linspace(0, law.eigen_radius**2, 200_001, dtype=torch.float64)
    mean = torch.trapezoid(1 - law.radius_cdf(r_sq.sqrt()), r_sq)
    assert float(mean) == pytest.approx(law.eigen_radius**2 * (1 / 2 - 0.75 / 6), rel=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_model": 0}, "d_model must .*, got 0"),
        ({"d_head": 0}, "d_head must .*, got 0"),
        ({"d_head": 9}, "d_head must be at most d_model = 8"),
        ({"fan_out": 3}, "fan_out must be an integer >= 4"),
    ],
)
def test_bad_sizes_are_refused_by_name(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        xavier_qk(**({"d_model": 8, "d_head": 4, "generator": seeded()} | arguments))
