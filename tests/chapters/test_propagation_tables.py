"""The tables of chapters 3 to 5 against the definitions behind them."""

import math

import pandas as pd
import pytest
import torch

from qkrepro.chapters import true_softmax
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
from qkrepro.chapters.true_softmax import (
    agreement_table,
    cumulative_profiles,
    deficit_comparison,
    draw_tokens,
    geometric_comparison,
    late_mass,
    normalised_comparison,
    trusted_from,
)
from qkrepro.errors import ArgumentError
from qkrepro.theory.attention import saturation, softmax_attention, softmax_gradient_mass
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


def location_profiles(**changes):
    arguments = {"length": 12, "draws": 30, "coefficient": 0.9, "seeds": [1, 2], **changes}
    return true_softmax.location_profiles({"one": torch.eye(5) / 2}, [0.5, 8.0], **arguments)


def test_location_profiles_are_shares_and_means_over_the_same_draws():
    table = location_profiles(seeds=[7])
    g = generator(7)
    tokens = draw_tokens("raw walk", 12, 5, coefficient=0.9, batch=30, generator=g)
    logits = torch.stack([x @ x[-1] / 2 for x in tokens])
    rows = table[(table["tokens"] == "raw walk") & (table["temperature"] == 8.0)]
    free = (saturation(logits, 8.0) == 0).double().mean(0)
    mass = softmax_gradient_mass(softmax_attention(logits, 8.0)).site.mean(0)
    assert rows["linear"].tolist() == pytest.approx(free.tolist())
    assert rows["mass"].tolist() == pytest.approx(mass.tolist())


def test_agreement_is_the_distance_of_the_normalised_profiles():
    table = location_profiles()
    table.loc[:, "linear"], table.loc[:, "mass"] = 1.0, 2.0
    assert agreement_table(table)["total_variation"].abs().max() < 1e-12
    first = table["theta"] == table["theta"].min()
    table["linear"], table["mass"] = first.astype(float), (~first).astype(float)
    assert agreement_table(table)["total_variation"].tolist() == pytest.approx([1.0] * 8)


def test_cumulative_profiles_end_at_one():
    table = cumulative_profiles(location_profiles())
    last = table[table["theta"] == 1.0]
    assert last["linear"].tolist() == pytest.approx([1.0] * len(last))
    assert last["mass"].tolist() == pytest.approx([1.0] * len(last))


def test_trusted_from_is_the_end_of_the_unbroken_run_from_the_hot_side():
    high = {1.0: 0.1, 4.0: 0.3, 16.0: 0.15, 64.0: 0.01}
    rows = [{"tokens": "a", "spectrum": "s", "temperature": t, "spread": 10 / t, "high": h} for t, h in high.items()]
    never = [{"tokens": "b", "spectrum": "s", "temperature": 1.0, "spread": 1.0, "high": 0.9}]
    table = trusted_from(pd.DataFrame(rows + never), 0.2).set_index("tokens")
    assert table.loc["a", "temperature"] == 16.0
    assert table.loc["a", "spread"] == 10 / 16
    assert math.isnan(table.loc["b", "temperature"])


def test_gradient_of_the_true_softmax_sits_in_the_last_sites_of_raw_walks():
    late = late_mass([1.0, 4.0, 8.0], dim=64, length=128, share=0.05, draws=200, generator=generator())
    assert (late["softmax"] > 0.9).all()
    assert (late["linear"] < 0.2).all()


def test_comparisons_with_closed_forms_lie_within_four_standard_errors_or_two_percent():
    g = generator(5)
    noise = torch.randn(24, 24, generator=g, dtype=torch.float64) / 24
    tables = [
        deficit_comparison(
            {"general": noise, "equal": torch.eye(24) / 24}, length=20, temperature=500.0, draws=3000, generator=g
        ),
        geometric_comparison([0.3, 1.0], dim=3000, length=16, draws=40, generator=g),
        normalised_comparison([-2.0, 2.0], dim=600, length=200, draws=40, generator=g),
    ]
    table = pd.concat(tables)
    allowed = (4 * table["standard_error"]).clip(lower=0.02 * table["simulated"].abs())
    assert ((table["predicted"] - table["simulated"]).abs() <= allowed).all()


def test_unknown_token_law_is_named():
    with pytest.raises(ArgumentError, match="law must be one of raw walk"):
        draw_tokens("walk", 4, 3, coefficient=0.5, batch=1, generator=generator())
