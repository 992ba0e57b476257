"""The plane of mean and dispersion, the matrices that it cannot place, and the verdicts on both."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.localization_plane import (
    CLAIMS,
    counterexample_profiles,
    counterexample_table,
    counterexamples,
    falling_columns,
    localization_plane,
    plane_check,
    token_grid,
)
from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.propagation import localization, signal_propagation
from qkrepro.theory.spectrum import random_spectrum_matrix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_plane_cell_is_the_localization_of_a_matrix_with_these_moments():
    plane = localization_plane([-2.0, 3.0], [0.5, 2.0], dim=16, length=64, locations=33)
    theta = token_grid(64, 33)
    for _, row in plane.iterrows():
        variance = row["dispersion"] ** 2 / 16
        w = random_spectrum_matrix(16, row["mean_scaled"] / 16, variance, generator=generator())
        result = localization(theta, signal_propagation(theta, w, length=64))
        assert row["index"] == pytest.approx(float(result.index), abs=1e-9)
        assert row["relative_spread"] == pytest.approx(math.sqrt(variance) / abs(row["mean_scaled"] / 16))
        assert row["effective_number"] == pytest.approx(16 / (1 + row["relative_spread"] ** 2))


def test_columns_of_the_plane_start_concentrated_whatever_the_mean_and_mirror_each_other():
    table = falling_columns([0.001, 2.0], least_relative=0.01, most=8.0, steps=5, dim=256, length=1024, locations=129)
    first = table.groupby("mean_scaled").first()
    np.testing.assert_allclose(first["dispersion"], 0.01 * np.abs(first.index))
    assert first["reach"].tolist() == pytest.approx([2046, 1.023, 1.023, 2046])
    assert first.loc[0.001, "index"] < 0.01  # |tr M|(T − 1)/2 < λ: every token passes
    assert first.loc[2.0, "index"] > 0.45
    assert first.loc[-2.0, "index"] == pytest.approx(first.loc[2.0, "index"], abs=0.02)


def test_a_mean_of_zero_has_no_column():
    with pytest.raises(ArgumentError, match=r"sizes must be finite and > 0, got 0"):
        falling_columns([0.0], least_relative=0.01, most=8.0, steps=5, dim=8, length=16, locations=5)


def test_counterexamples_have_the_relative_variance_that_they_name():
    examples = counterexamples(
        wide_dim=1024, wide_ratio=3.0, narrow_dim=8, dim=16, non_normality=4.0, generator=generator()
    )
    profiles = counterexample_profiles(examples, length=512, locations=65)
    table = counterexample_table(examples, profiles)
    assert table["relative_variance"].tolist() == pytest.approx([3, 0, 0, 3, 0], abs=1e-9)
    assert table["dim"].tolist() == [1024, 8, 16, 16, 16]
    assert table["symmetric"].tolist() == [True, True, True, True, False]
    assert table["index"][0] > table["index"][1] + 0.05  # dispersed, yet more localized: across dimensions
    assert table["index"][4] < 0.05  # equal eigenvalues, yet broad: at one dimension


def test_plane_check_compares_with_the_exact_law():
    check = plane_check([(1.0, 0.1), (4.0, 1.0)], dim=200, length=128, locations=33, generator=generator())
    assert (check["largest_error"] < 0.03).all()
    assert (check["index"] - check["exact_index"]).abs().max() < 0.02


def columns(positive, negative=None, *, reach=100.0):
    """A column at mean 4 and, unless None, one at −4, each with indices at three dispersions."""
    parts = {4.0: positive} | ({} if negative is None else {-4.0: negative})
    rows = [(m, s, reach, i) for m, part in parts.items() for s, i in zip((0.04, 1.0, 16.0), part, strict=True)]
    return {"columns": pd.DataFrame(rows, columns=["mean_scaled", "dispersion", "reach", "index"])}


def matrices(equal, dispersed, slanted=None, *, dims=(8, 8, 8)):
    """Indices of a symmetric matrix with equal eigenvalues, one with dispersed ones, and one that is not symmetric."""
    rows = [("equal", dims[0], True, 0.0, equal), ("dispersed", dims[1], True, 3.0, dispersed)]
    rows += [] if slanted is None else [("slanted", dims[2], False, 0.0, slanted)]
    names = ["name", "dim", "symmetric", "relative_variance", "index"]
    return {"counterexamples": pd.DataFrame(rows, columns=names)}


FALLS, RIPPLES, STAYS, WEAK, RISES = (
    (0.5, 0.2, 0.05),
    (0.5, 0.01, 0.05),
    (0.5, 0.5, 0.4),
    (0.2, 0.1, 0.0),
    (0.5, 0, 0.2),
)


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("variance-localizes", columns(FALLS, RIPPLES), "reproduced"),
        ("variance-localizes", columns(FALLS, RISES), "partly"),
        ("variance-localizes", columns(FALLS, STAYS), "partly"),
        ("variance-localizes", columns(STAYS, WEAK), "not reproduced"),
        ("variance-localizes", columns(FALLS, FALLS, reach=1.0), "not run"),
        ("variance-localizes", columns(FALLS), "not run"),
        ("eigenvalue-variance-decides", matrices(0.5, 0.4, 0.5), "reproduced"),
        ("eigenvalue-variance-decides", matrices(0.5, 0.4, 0.1), "not reproduced"),
        ("eigenvalue-variance-decides", matrices(0.2, 0.5), "not reproduced"),
        ("eigenvalue-variance-decides", matrices(0.5, 0.4), "inconclusive"),
        ("eigenvalue-variance-decides", matrices(0.2, 0.5, 0.1, dims=(8, 64, 512)), "not run"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_means_of_one_sign_alone_leave_the_claim_open():
    table = pd.concat([columns(FALLS)["columns"], columns(FALLS)["columns"].assign(mean_scaled=2.0)])
    assert judge(claim_named(CLAIMS, "variance-localizes"), {"columns": table}).outcome == "inconclusive"
