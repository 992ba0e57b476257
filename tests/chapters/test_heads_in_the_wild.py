"""Rotary positions and a spectrum, and the rule on the two concentrations."""

import numpy as np
import pandas as pd
import pytest

from qkrepro.chapters.heads_in_the_wild import CLAIMS, random_concentrations, rotary_spectra, rotary_trace
from qkrepro.evidence.claims import judge

DISTANCES = [0, 1, 8, 64, 1000]


def test_the_trace_of_a_concentrated_head_follows_its_closed_form() -> None:
    table = rotary_trace(DISTANCES).pivot(index="distance", columns="kind", values="share").dropna()
    assert list(table.index) == DISTANCES
    np.testing.assert_allclose(table["concentrated"], table["closed form"], atol=1e-12)
    assert table.loc[0, "concentrated"] == pytest.approx(1)


def test_the_eigenvalues_of_a_concentrated_head_stay_on_their_circle() -> None:
    spectra = rotary_spectra(DISTANCES, d_head=16).query("kind == 'concentrated'")
    np.testing.assert_allclose(np.hypot(spectra["real"], spectra["imag"]), 1 / 4, rtol=1e-9)


def test_the_product_of_the_eigenvalues_does_not_depend_on_the_distance() -> None:
    spectra = rotary_spectra([0, 3, 50], d_head=8).query("kind == 'random'")
    products = [np.prod(group["real"] + 1j * group["imag"]) for _, group in spectra.groupby("distance")]
    np.testing.assert_allclose(products, products[0], rtol=1e-9)  # a rotation has determinant 1


@pytest.mark.parametrize(
    ("correlation", "outcome"),
    [
        ([(0.0, -0.2, 0.3)], "reproduced"),
        ([(0.8, 0.6, 0.9)], "not reproduced"),
        ([(-0.8, -0.9, -0.6)], "not reproduced"),
        ([(0.4, 0.1, 0.7)], "inconclusive"),
        ([], "not run"),
    ],
)
def test_two_concentrations_are_two_unless_one_tells_the_other(
    correlation: list[tuple[float, float, float]], outcome: str
) -> None:
    table = pd.DataFrame(correlation, columns=["correlation", "low", "high"])
    assert judge(CLAIMS[0], {"concentrations": table}).outcome == outcome


def test_random_heads_have_little_energy_in_one_singular_value() -> None:
    drawn = random_concentrations(32, 384, 50, 0)
    assert drawn["spectral_energy_share"].between(1 / 32, 4 / 32).all()
    assert (drawn["relative_variance"] > 1).all()
