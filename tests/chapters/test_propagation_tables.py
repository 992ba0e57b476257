"""The tables of the chapters on propagation and on the plane against the definitions behind them."""

import math

import pytest
import torch

from qkrepro.chapters.localization_plane import (
    counterexample_profiles,
    counterexample_table,
    counterexamples,
    localization_plane,
    plane_check,
    token_grid,
)
from qkrepro.chapters.signal_propagation import (
    error_table,
    localization_table,
    profile_table,
    regime_cases,
    stress_cases,
)
from qkrepro.theory.propagation import localization, signal_propagation
from qkrepro.theory.spectrum import matrix_moments, random_spectrum_matrix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def profiles():
    g = generator()
    cases = regime_cases(64, 48, middle_mean=4.0, broad_norm=4.0, generator=g)
    cases += stress_cases(64, 48, short_length=6, top_share=0.75, generator=g)
    return profile_table(cases, locations=9, samples=200, generator=g)


def test_every_case_has_the_trace_that_its_name_promises():
    g = generator()
    cases = regime_cases(32, 40, middle_mean=4.0, broad_norm=4.0, generator=g)
    cases += stress_cases(32, 40, short_length=6, top_share=0.75, generator=g)
    moments = {case.name: matrix_moments(case.m) for case in cases}
    expected = {"late": 1, "middle": 4, "mirror": -1, "broad": 0, "one eigenvalue": 1, "near-nilpotent": 1,
                "rank two": 1, "antisymmetric": 0}  # fmt: skip
    assert {name: float(moments[name].trace) for name in expected} == pytest.approx(expected, abs=1e-9)
    assert float(moments["broad"].frobenius_sq) == pytest.approx(16)
    assert float(moments["near-nilpotent"].eigen_variance) == pytest.approx(0, abs=1e-12)
    all_pass = moments["all pass"].trace * (40 - 1) / 2
    assert float(all_pass) == pytest.approx(0.6)


def test_profiles_have_intervals_around_what_was_drawn_and_short_sequences_fewer_rows(profiles):
    assert ((profiles["low"] <= profiles["drawn"]) & (profiles["drawn"] <= profiles["high"])).all()
    assert profiles.groupby("case").size()["short sequence"] == 6
    assert profiles.groupby("case").size().drop("short sequence").unique().tolist() == [9]


def test_error_and_localization_tables_are_those_of_each_case_alone(profiles):
    alone = profiles[profiles["case"] == "middle"]
    row = error_table(profiles).set_index("case").loc["middle"]
    assert row["limit_error"] == (alone["limit"] - alone["exact"]).abs().max()
    found = localization(alone["theta"].to_numpy(), alone["exact"].to_numpy())
    table = localization_table(profiles).set_index("case")
    assert table.loc["middle", "centre"] == pytest.approx(float(found.centre))


def test_plane_cell_is_the_localization_of_a_matrix_with_these_moments():
    plane = localization_plane([-2.0, 3.0], [0.5, 2.0], dim=16, length=64, locations=33)
    theta = token_grid(64, 33)
    for _, row in plane.iterrows():
        variance = row["spread_scaled"] ** 2 / 16
        w = random_spectrum_matrix(16, row["mean_scaled"] / 16, variance, generator=generator())
        found = localization(theta, signal_propagation(theta, w, length=64))
        assert row["index"] == pytest.approx(float(found.index), abs=1e-9)
        assert row["dispersion"] == pytest.approx(math.sqrt(variance) / abs(row["mean_scaled"] / 16))
        assert row["effective_number"] == pytest.approx(16 / (1 + row["dispersion"] ** 2))


def test_counterexamples_have_the_relative_variance_that_they_name():
    examples = counterexamples(
        wide_dim=1024, wide_ratio=3.0, narrow_dim=8, dim=16, non_normality=4.0, generator=generator()
    )
    profiles = counterexample_profiles(examples, length=512, locations=65)
    table = counterexample_table(examples, profiles)
    assert table["relative_variance"].tolist() == pytest.approx([3, 0, 0, 0], abs=1e-9)
    assert table["index"].iloc[0] > table["index"].iloc[1] + 0.05  # dispersed, yet more localized
    assert table["index"].iloc[3] < 0.05  # equal eigenvalues, yet broad


def test_plane_check_compares_with_the_exact_law():
    check = plane_check([(1.0, 0.1), (4.0, 1.0)], dim=200, length=128, locations=33, generator=generator())
    assert (check["largest_error"] < 0.03).all()
    assert (check["index"] - check["exact_index"]).abs().max() < 0.02
