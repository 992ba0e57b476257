"""The cases, tables and verdicts of the chapter on signal propagation."""

import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.signal_propagation import (
    CLAIMS,
    error_table,
    localization_table,
    profile_table,
)
from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.theory.propagation import localization, signal_propagation
from qkrepro.theory.propagation_cases import antisymmetric_walks, regime_cases, stress_cases
from qkrepro.theory.spectrum import matrix_moments

CASES = ("late", "middle", "mirror", "mirror of middle", "broad", "all pass")


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
    expected = {"late": 1, "middle": 4, "mirror": -1, "mirror of middle": -4, "broad": 0, "one eigenvalue": 1,
                "near-nilpotent": 1, "rank two": 1, "antisymmetric": 0}  # fmt: skip
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
    result = localization(alone["theta"].to_numpy(), alone["exact"].to_numpy())
    table = localization_table(profiles).set_index("case")
    assert table.loc["middle", "centre"] == pytest.approx(float(result.centre))


def test_walks_pass_what_the_exact_law_says_and_their_parts_average_to_the_level():
    table = antisymmetric_walks([1.0], dim=16, length=32, draws=1500, parts=4, generator=generator(1))
    for _, rows in table.groupby("case"):
        assert rows["estimate"].sum() == pytest.approx(0, abs=1e-12)
    control = table[table["control"] == 1]
    theta = (torch.arange(32) + 1.0) / 32
    exact = signal_propagation(theta, torch.eye(16) / 16, length=32, method="exact").view(4, 8).mean(-1)
    result = (control["estimate"] + control["level"]).to_numpy()
    np.testing.assert_allclose(result, exact.numpy(), atol=0.03)  # four standard errors of shares over 1,500 walks


def test_parts_that_do_not_divide_the_walk_are_refused():
    with pytest.raises(ArgumentError, match="parts must be a divisor of the length 32, got 3"):
        antisymmetric_walks([1.0], dim=4, length=32, draws=10, parts=3, generator=generator())


def law(exact, *, width=0.05, broken=0):
    """Two cases of twenty locations whose drawn interval is 0.5 ± width/2; of the first, `broken` are far off."""
    values = [0.9] * broken + [exact] * (40 - broken)
    columns = {"case": ["a"] * 20 + ["b"] * 20, "low": 0.5 - width / 2, "high": 0.5 + width / 2}
    return {"profiles": pd.DataFrame({"exact": values, **columns})}


def limit(*errors, dominated=0.3):
    n = len(errors)
    columns = {"case": [*map(str, range(n)), "peak"], "singular_share": [0.05] * n + [0.9], "exact": 0.5}
    return {"profiles": pd.DataFrame({**columns, "finite": [0.5 + error for error in (*errors, dominated)]})}


def regimes(**changed):
    rows = pd.DataFrame(
        {
            "case": CASES,
            "index": [0.5, 0.7, 0.5, 0.7, 0.03, 0.0],
            "centre": [0.75, 0.62, 0.25, 0.38, 0.5, 0.5],
            "level": [0.5, 0.25, 0.5, 0.25, 0.2, 1.0],
        }
    ).set_index("case")
    for name, centre in changed.items():
        rows.loc[name.replace("_", " "), "centre"] = centre
    return {"regimes": rows.reset_index()}


def walks(centre, half, *, control=0.4):
    """Two antisymmetric matrices of two parts around `centre`, and the control; level one half."""
    rows = [
        ("one", 0, 0.0),
        ("one", 0, centre),
        ("two", 0, 0.0),
        ("two", 0, 0.0),
        ("c", 1, control),
        ("c", 1, -control),
    ]
    table = pd.DataFrame(rows, columns=["case", "control", "estimate"]).assign(level=0.5)
    return {"walks": table.assign(low=table["estimate"] - half, high=table["estimate"] + half)}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("exact-law", law(0.5), "reproduced"),
        ("exact-law", law(0.7), "not reproduced"),
        ("exact-law", law(0.5, broken=5), "not reproduced"),
        ("exact-law", law(0.5, width=0.3), "inconclusive"),
        ("exact-law", {"profiles": law(0.5)["profiles"].iloc[:0]}, "not run"),
        ("gaussian-limit", limit(0.0, 0.01, 0.01), "reproduced"),
        ("gaussian-limit", limit(0.0, 0.01, 0.31), "not reproduced"),
        ("gaussian-limit", limit(0.0, 0.01), "inconclusive"),
        ("gaussian-limit", limit(), "not run"),
        ("regimes", regimes(), "reproduced"),
        ("regimes", regimes(late=0.5), "not reproduced"),
        ("regimes", regimes(mirror_of_middle=0.62), "not reproduced"),
        ("regimes", {"regimes": regimes()["regimes"].iloc[:4]}, "inconclusive"),
        ("regimes", {"regimes": regimes()["regimes"].iloc[:0]}, "not run"),
        ("antisymmetric-head", walks(0.01, 0.02), "reproduced"),
        ("antisymmetric-head", walks(0.2, 0.02), "not reproduced"),
        ("antisymmetric-head", walks(0.01, 0.2), "inconclusive"),
        ("antisymmetric-head", walks(0.01, 0.02, control=0.0), "inconclusive"),
        ("antisymmetric-head", {"walks": walks(0.0, 0.1)["walks"].iloc[:0]}, "not run"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_a_verdict_counts_its_cases():
    verdict = judge(claim_named(CLAIMS, "regimes"), regimes(late=0.5))
    assert (verdict.holds, verdict.of) == (5, 6)
    assert "elsewhere: late" in verdict.because
