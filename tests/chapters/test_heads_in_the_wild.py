"""Rotary positions and a spectrum: the closed form of a concentrated head, and what no distance can change."""

import numpy as np
import pytest

from qkrepro.chapters.heads_in_the_wild import rotary_spectra, rotary_trace

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
