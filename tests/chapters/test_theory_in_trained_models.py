"""Profiles of trained models against the prediction: distances against simulation and hand-made profiles."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.chapters.theory_in_trained_models import (
    CLAIMS,
    at_best_checkpoint,
    by_seed,
    profile_agreement,
    profile_bins,
    sampling_noise,
    trained_table,
)
from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.theory.statistics import bin_middles, over_seeds, t_interval, total_variation
from qkrepro.training.tables import RunTables

LENGTH, SEQUENCES = 64, 16
PROFILE = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


def made(profiles: dict[str, np.ndarray], best: int = 20) -> RunTables:
    """Two evaluations of one run, both with these profiles; the second is at the best checkpoint."""
    arrays = {f"{name}_profile": np.stack([profile] * 2)[:, None, None] for name, profile in profiles.items()}
    arrays |= {"attention_profile": arrays["gradient_profile"], "update": np.array([0, 20])}
    summary = pd.DataFrame(
        [{"run": "a", "seed": 3, "kappa": 0.5, "measured_sequences": SEQUENCES, "best_update": best}]
    )
    curves = pd.DataFrame({"run": ["a", "a"], "update": [0, 20], "epoch": [0.0, 0.5]})
    return RunTables(summary, curves, {"a": arrays})


def steps(early: float, late: float) -> np.ndarray:
    return np.repeat([early, late], LENGTH // 2)


@given(first=PROFILE, second=PROFILE, factor=st.floats(0.1, 10))
def test_total_variation_is_the_largest_difference_of_the_probability_of_a_set(first, second, factor):
    p, q = np.array(first) / sum(first), np.array(second) / sum(second)
    sets = [[bit >> place & 1 for place in range(3)] for bit in range(8)]
    largest = max(abs(float(np.dot(chosen, p - q))) for chosen in sets)
    assert total_variation(first, np.array(second) * factor) == pytest.approx(largest, abs=1e-12)


def test_total_variation_refuses_what_is_no_profile():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        total_variation([1, 1], [1, 1, 1])
    with pytest.raises(ArgumentError, match="not all of them 0"):
        total_variation([0, 0], [1, 1])


def test_sampling_noise_is_the_mean_distance_of_counted_profiles():
    share = np.linspace(0.2, 0.9, 200)
    counts = np.random.default_rng(0).binomial(SEQUENCES, share, size=(400, 200))
    result = t_interval([total_variation(row, share) for row in counts])
    assert sampling_noise(share, SEQUENCES) == pytest.approx(result.estimate, abs=0.001)


def test_agreement_of_a_mirrored_prediction_is_in_the_mirrored_distance_and_the_centres():
    tables = made({"nonsaturated": steps(0.25, 0.75), "predicted": steps(0.3, 0.1), "gradient": steps(0.0, 0.02)})
    row = profile_agreement(tables).iloc[0]
    assert row["total_variation"] == pytest.approx(0.5)
    assert row["mirrored_variation"] == pytest.approx(0, abs=1e-6)
    assert row["gradient_variation"] == pytest.approx(0.75)
    centres = [row[f"centre_{name}"] for name in ("nonsaturated", "predicted", "gradient")]
    assert centres == pytest.approx([0.625 + 0.5 / LENGTH, 0.375 + 0.5 / LENGTH, 0.75 + 0.5 / LENGTH], abs=1e-6)
    assert row["level_predicted"] == pytest.approx(0.2)


def test_verdict_reads_one_row_a_run_at_its_best_checkpoint():
    tables = made({"nonsaturated": steps(0.5, 0.5), "predicted": steps(0.5, 0.5), "gradient": steps(0.1, 0.1)})
    result = at_best_checkpoint(profile_agreement(tables), tables)
    assert result["update"].tolist() == [20]
    assert trained_table(result)[["kappa", "seed", "total_variation"]].to_numpy().tolist() == [[0.5, 3, 0]]


def test_binned_profiles_are_densities_in_the_middles_of_their_bins():
    tables = made({"nonsaturated": steps(0.25, 0.75), "predicted": steps(0.3, 0.1), "gradient": steps(0.0, 0.02)})
    bins = profile_bins(at_best_checkpoint(tables.profiles(), tables), 4)
    shown = bins.pivot(index="profile", columns="location", values="density")
    assert shown.columns.tolist() == [0.125, 0.375, 0.625, 0.875]
    assert shown.loc["nonsaturated"].tolist() == pytest.approx([0.5, 0.5, 1.5, 1.5])
    assert bin_middles(pd.Series([0.25, 0.2501, 1.0]), 4).tolist() == [0.125, 0.375, 0.875]


def test_no_records_give_empty_tables_with_their_columns():
    empty = RunTables(
        pd.DataFrame(columns=["run", "best_update", "measured_sequences"]),
        pd.DataFrame(columns=["run", "update", "epoch"]),
        {},
    )
    agreement = at_best_checkpoint(profile_agreement(empty), empty)
    assert trained_table(agreement).empty
    assert {"kappa", "seed", "total_variation"} <= set(trained_table(agreement))
    assert profile_bins(empty.profiles(), 8).columns.tolist() == ["seed", "kappa", "profile", "location", "density"]


def test_means_over_seeds_have_t_intervals_and_none_for_a_single_seed():
    table = pd.DataFrame({"law": ["a", "a", "a", "b"], "value": [1.0, 2.0, 4.0, 5.0]})
    rows = over_seeds(table, ["law"], "value").set_index("law")
    assert rows.loc["a"].tolist() == list(t_interval([1.0, 2.0, 4.0]))
    assert rows.loc["b", "estimate"] == 5
    assert np.isnan(rows.loc["b", "low"])


def models(*distances: float) -> dict[str, pd.DataFrame]:
    """Two models a seed, with and without regulariser, at these distances on the average of the two."""
    rows = [
        {"kappa": kappa, "seed": seed, "total_variation": distance + (kappa - 0.5) / 100}
        for seed, distance in enumerate(distances)
        for kappa in (0.0, 1.0)
    ]
    return {"trained": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("distances", "outcome", "holds"),
    [
        ((0.1, 0.11, 0.09), "reproduced", 6),
        ((0.3, 0.31, 0.29), "not reproduced", 0),
        ((0.1, 0.3, 0.2), "inconclusive", 3),
        ((0.1, 0.1), "not run", None),
    ],
)
def test_the_rule_answers_support_refutation_and_silence(distances, outcome, holds):
    verdict = judge(claim_named(CLAIMS, "theory-sees-trained-models"), models(*distances))
    assert (verdict.outcome, verdict.holds) == (outcome, holds)


def test_the_verdict_is_shown_over_its_threshold():
    result = sensitivity(claim_named(CLAIMS, "theory-sees-trained-models"), models(0.24, 0.25, 0.26))
    assert result.set_index("threshold")["outcome"][[0.2, 0.25, 0.3]].tolist() == [
        "not reproduced",
        "inconclusive",
        "reproduced",
    ]


def test_runs_of_one_seed_count_once():
    table = pd.DataFrame({"seed": [0, 0, 1], "kappa": [0, 1, 0], "value": [1.0, 3.0, 5.0]})
    assert by_seed(table, "value") == [2, 5]
