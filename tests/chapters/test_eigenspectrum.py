"""Tables of spectra: what they say is what the matrices have."""

import numpy as np
import pytest
import torch

from qkrepro.chapters.eigenspectrum import (
    against_law,
    chosen_spectra,
    compare,
    equal_eigenvalues,
    radius_histogram,
    singular_values,
    xavier_moments,
)
from qkrepro.theory.xavier import xavier_law


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_chosen_spectra_have_the_mean_and_variance_of_their_row():
    table = chosen_spectra(20, [[0.0, 1.0], [2.0, 0.5]], generator=seeded(1))
    for (mean, variance), group in table.groupby(["mean", "variance"]):
        assert group["eigenvalue"].mean() == pytest.approx(mean, abs=1e-12)
        assert group["eigenvalue"].var(ddof=0) == pytest.approx(variance, abs=1e-12)


def test_pairs_share_eigenvalues_and_not_norms():
    matrices = equal_eigenvalues(8, 2.0, generator=seeded(2))
    pair = [np.sort(np.linalg.eigvals(matrices[name].numpy()).real) for name in ("symmetric", "not symmetric")]
    np.testing.assert_allclose(pair[1], pair[0], atol=1e-9)
    for power in range(1, 9):  # all eigenvalues 1/8: traces of powers are exact where a solver is not
        trace = np.trace(np.linalg.matrix_power(matrices["I/d + triangular"].numpy(), power))
        assert trace == pytest.approx(8 * 8.0**-power, abs=1e-12)
    table = compare(matrices).set_index("matrix")
    assert table.loc["I/d + triangular", "Frobenius norm"] == pytest.approx(np.sqrt(1 / 8 + 4.0))
    assert table.loc["not symmetric", "spectral norm"] > table.loc["symmetric", "spectral norm"]


def test_singular_values_are_sorted_and_square_to_the_frobenius_norm():
    matrices = equal_eigenvalues(8, 2.0, generator=seeded(2))
    for name, group in singular_values(matrices).groupby("matrix"):
        assert group["singular_value"].is_monotonic_decreasing
        assert (group["singular_value"] ** 2).sum() == pytest.approx(float(matrices[name].square().sum()))


def test_intervals_over_draws_cover_the_law():
    law = xavier_law(32, 8)
    checks = against_law(xavier_moments(32, 8, draws=500, generator=seeded(3)), law).set_index("quantity")
    exact = checks.drop(index="spectral norm (limit)")
    half = (exact["high"] - exact["low"]) / 2
    assert bool(((exact["estimate"] - exact["law"]).abs() <= 2 * half).all())  # four standard errors


def test_histogram_of_radii_integrates_to_one_when_all_bins_are_counted():
    table = radius_histogram([xavier_law(64, 32)], bins=12, count=320, generator=seeded(4))
    assert table["estimate"].sum() * 0.1 == pytest.approx(1.0, abs=0.02)  # a rare eigenvalue lies beyond 1.2
