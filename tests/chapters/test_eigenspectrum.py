"""Tables of spectra: what they say is what the matrices have."""

import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.eigenspectrum import (
    CLAIMS,
    LIMIT,
    against_law,
    chosen_spectra,
    compare,
    equal_eigenvalues,
    radius_histogram,
    singular_values,
    xavier_moments,
)
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.spectrum import qk_eigenvalues
from qkrepro.theory.xavier import xavier_law, xavier_qk


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
    exact = checks.drop(index=LIMIT)
    half = (exact["high"] - exact["low"]) / 2
    assert bool(((exact["estimate"] - exact["law"]).abs() <= 2 * half).all())  # four standard errors


def test_histogram_of_radii_integrates_to_one_when_all_bins_are_counted():
    table = radius_histogram([xavier_law(64, 32)], bins=12, count=320, generator=seeded(4))
    assert table["estimate"].sum() * 0.1 == pytest.approx(1.0, abs=0.02)  # a rare eigenvalue lies beyond 1.2


def test_number_of_equal_eigenvalues_is_that_of_the_drawn_heads():
    table = xavier_moments(16, 4, draws=3, generator=seeded(5))
    values = qk_eigenvalues(*xavier_qk(16, 4, batch=(3,), generator=seeded(5)))  # (3, 4)
    expected = values.sum(-1).real ** 2 / values.abs().square().sum(-1)
    np.testing.assert_allclose(table["equal_number"], expected.numpy())
    assert (table["equal_number"] <= 4).all()


def checks(*ends):
    """Moments whose law is 1, with these ends of their intervals; the last is the trace, of law 0 and scale 2."""
    low, high = zip(*ends, strict=True)
    n = len(ends)
    columns = {"law": [1.0] * (n - 1) + [0.0], "scale": [1.0] * (n - 1) + [2.0], "low": low, "high": high}
    table = pd.DataFrame({"quantity": [*map(str, range(n - 1)), "trace"], **columns})
    limit = pd.DataFrame({"quantity": [LIMIT], "law": 1.0, "scale": 1.0, "low": 0.5, "high": 0.6})
    return {"checks": pd.concat([table, limit], ignore_index=True)}


def numbers(*drawn):
    return {"xavier": pd.DataFrame({"equal_number": drawn}, dtype=float)}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("xavier-spectrum", checks((0.9, 1.1), (0.95, 1.15), (-0.2, 0.3)), "reproduced"),
        ("xavier-spectrum", checks((0.9, 1.1), (1.95, 2.15), (-0.2, 0.3)), "not reproduced"),
        ("xavier-spectrum", checks((0.9, 1.1), (0.95, 1.15), (0.9, 1.1)), "not reproduced"),
        ("xavier-spectrum", checks((0.1, 1.9), (0.95, 1.15), (-0.2, 0.3)), "inconclusive"),
        ("xavier-spectrum", {"checks": checks((0.9, 1.1))["checks"].iloc[:0]}, "not run"),
        ("xavier-starts-dispersed", numbers(0.0, 0.1, 0.2), "reproduced"),
        ("xavier-starts-dispersed", numbers(4.0, 4.1, 3.9), "not reproduced"),
        ("xavier-starts-dispersed", numbers(0.0, 0.2, 3.0), "inconclusive"),
        ("xavier-starts-dispersed", numbers(0.0), "not run"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because
