"""LocAteR's chapter: every rule answers data that support it, refute it, and say nothing; its tables by hand."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qkrepro.chapters.locater import (
    CLAIMS,
    arms_table,
    dose_response,
    equal_norm,
    form_ends,
    run_ends,
)
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.evidence.paired_runs import FRACTIONS, pace, updates_to, with_arms
from qkrepro.theory.evasion import hidden_head
from qkrepro.theory.training_dynamics import balance_over_steps, eigenvalue_flow, saddle_paths
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.tables import RunTables

NOISE = np.array([-0.1, 0.0, 0.1])
NOTHING = np.array([-1.0, 0.1, 1.2])
COLUMNS = ("test_loss", "valid_loss", "valid_entropy", "residual", "concentration", "walk_concentration")


def arms(concentrated: float = 1.0, other: str = "locater", **changes: np.ndarray) -> pd.DataFrame:
    """Three seeds of a baseline whose numbers are all 1, and an arm that differs from it by `changes`."""
    base = pd.DataFrame(1.0, index=range(3), columns=list(COLUMNS)).assign(seed=range(3), d_model=128)
    arm = base.assign(concentration=concentrated)
    for name, change in changes.items():
        arm[name] += change
    return pd.concat([base.assign(arm="baseline"), arm.assign(arm=other)], ignore_index=True)


def paces(logs: np.ndarray) -> dict[str, pd.DataFrame]:
    rows = [
        {"seed": seed, "fraction": fraction, "baseline": 100.0, "locater": 100 * np.exp(log), "reached": 1}
        for seed, log in enumerate(logs)
        for fraction in FRACTIONS
    ]
    return {"pace": pd.DataFrame(rows)}


def doses(orders: list[list[float]]) -> dict[str, pd.DataFrame]:
    rows = [
        {"seed": seed, "kappa": kappa, "eigen_variance": 5.0 - kappa, "valid_perplexity": value}
        for seed, order in enumerate(orders)
        for kappa, value in enumerate(order)
    ]
    return {"kappas": pd.DataFrame(rows)}


FALLING, MIXED = [[5.0, 4.0, 3.0, 2.0, 1.0]] * 3, [[1.0, 3.0, 5.0, 2.0, 4.0]] * 3
RISING = [order[::-1] for order in FALLING]
CASES = [
    *(
        (name, table, {column: sign * size * (1 + NOISE)}, {column: -sign * size * (1 + NOISE)}, {column: NOTHING})
        for name, table, column, sign, size in (
            ("locater-improves-perplexity", "paired", "test_loss", -1, 0.1),
            ("locater-raises-entropy", "paired", "valid_entropy", +1, 0.3),
            ("concentration-improves-perplexity", "paired", "test_loss", -1, 0.1),
            ("concentration-raises-entropy-in-training", "paired", "valid_entropy", +1, 0.3),
            ("equal-norm-perplexity", "equal_norm", "valid_loss", -1, 0.1),
            ("equal-norm-entropy", "equal_norm", "valid_entropy", +1, 0.3),
        )
    ),
    (
        "small-variance-eases-both-collapses",
        "paired",
        {"valid_entropy": 0.3 * (1 + NOISE), "residual": 0.05 * (1 + NOISE)},
        {"valid_entropy": 0.3 * (1 + NOISE), "residual": -0.05 * (1 + NOISE)},  # a trade-off
        {"valid_entropy": 0.3 * (1 + NOISE), "residual": NOTHING},
    ),
]


@pytest.mark.parametrize(("name", "table", "supports", "refutes", "silent"), CASES, ids=[case[0] for case in CASES])
def test_paired_rules_answer_support_refutation_and_silence(name, table, supports, refutes, silent):
    claim = claim_named(CLAIMS, name)
    for changes, outcome in ((supports, "reproduced"), (refutes, "not reproduced"), (silent, "inconclusive")):
        verdict = judge(claim, {table: arms(3.0, **changes)})
        assert verdict.outcome == outcome, verdict.because
        assert verdict.of == 3
    assert judge(claim, {table: arms(3.0, **supports).query("seed < 2")}).outcome == "not run"


@pytest.mark.parametrize("name", ["concentration-improves-perplexity", "concentration-raises-entropy-in-training"])
def test_a_spectrum_that_did_not_concentrate_is_no_test_of_concentration(name):
    better = {"test_loss": -0.1 * (1 + NOISE), "valid_entropy": 0.3 * (1 + NOISE)}
    claim = claim_named(CLAIMS, name)
    assert judge(claim, {"paired": arms(1.9, **better)}).outcome == "not a test"
    assert judge(claim, {"paired": arms(2.1, **better)}).outcome == "reproduced"
    at = sensitivity(claim, {"paired": arms(1.9, **better)}).set_index("threshold")["outcome"]
    assert (at[1.5], at[2.0]) == ("reproduced", "not a test")


@pytest.mark.parametrize("name", ["equal-norm-perplexity", "equal-norm-entropy"])
def test_forms_of_equal_concentration_are_no_test_either(name):
    assert judge(claim_named(CLAIMS, name), {"equal_norm": arms(1.0)}).outcome == "not a test"


def test_a_difference_inside_the_margin_is_too_small_to_matter():
    claim = claim_named(CLAIMS, "locater-improves-perplexity")
    small = {"paired": arms(test_loss=-0.004 * (1 + NOISE))}
    assert judge(claim, small).outcome == "partly"
    assert sensitivity(claim, small)["outcome"].tolist() == ["partly", "partly", "partly"]
    assert judge(claim, {"paired": arms(test_loss=0.001 * NOISE)}).outcome == "not reproduced"


def test_the_pace_is_judged_by_the_ratio_of_updates():
    claim = claim_named(CLAIMS, "small-variance-trains-faster")
    for logs, outcome in (
        (-0.3 * (1 + NOISE), "reproduced"),
        (0.3 * (1 + NOISE), "not reproduced"),
        (NOTHING, "inconclusive"),
        (NOISE[:2], "not run"),
    ):
        assert judge(claim, paces(logs)).outcome == outcome


def test_a_dose_response_needs_an_order_that_permutations_seldom_give():
    claim = claim_named(CLAIMS, "perplexity-follows-variance")
    for orders, outcome in (
        (FALLING, "reproduced"),
        (RISING, "not reproduced"),
        (MIXED, "inconclusive"),
        (FALLING[:2], "not run"),
    ):
        assert judge(claim, doses(orders)).outcome == outcome


def test_the_permutation_test_of_one_order_is_that_of_scipy():
    table = doses([[2.0, 1.0, 4.0, 3.0, 5.0]] * 3)["kappas"]
    mean, p, of_seeds = dose_response(table, "eigen_variance", "valid_perplexity")
    x, y = table.query("seed == 0")["eigen_variance"], table.query("seed == 0")["valid_perplexity"]
    result = stats.permutation_test((x,), lambda x: stats.spearmanr(x, y).statistic, permutation_type="pairings")
    assert mean == pytest.approx(stats.spearmanr(x, y).statistic)
    assert p == pytest.approx(result.pvalue)
    assert len(of_seeds) == 3


def test_updates_to_a_loss_are_interpolated_and_a_loss_out_of_reach_has_none():
    assert updates_to([0, 10, 20], [9, 5, 3], 4) == 15
    assert updates_to([0, 10, 20], [9, 5, 3], 9) == 0
    assert np.isnan(updates_to([0, 10, 20], [9, 5, 3], 2))


def test_pace_enters_an_arm_that_falls_short_with_one_interval_beyond_its_budget():
    time, runs = [0, 10, 20, 30, 40], {0.0: [9.0, 7.0, 5.0, 4.0, 3.0], 0.1: [9.0, 5.0, 4.5, 4.0, 3.5]}
    table = pd.concat(
        pd.DataFrame({"seed": 0, "kappa": kappa, "update": time, "valid_loss": loss}) for kappa, loss in runs.items()
    )
    result = pace(table, 0.1)
    assert result["baseline"].tolist() == [10, 20, 40]
    assert result["locater"].tolist() == [5, 10, 50]
    assert result["reached"].tolist() == [1, 1, 0]
    assert pace(table[table["kappa"] == 0], 0.1).empty


def runs(*configurations: dict[str, object]) -> RunTables:
    """One evaluation of each configuration; its validation loss is its seed."""
    rows = [
        asdict(RunConfiguration()) | {"run": str(number), "update": 1, "test_loss": 0.0} | entry
        for number, entry in enumerate(configurations)
    ]
    measured = dict.fromkeys(["valid_entropy", "cosine", "trace", "frobenius", "walk_trace", "walk_frobenius"], 1.0)
    table = pd.DataFrame(rows).assign(**measured, residual=1.0, concentration=1.0, walk_concentration=1.0)
    table["valid_loss"] = table["seed"].astype(float)
    return RunTables(table, table.drop(columns="test_loss"), {})


def test_a_form_is_compared_with_the_baseline_that_differs_in_the_regulariser_alone():
    variance = {"kappa": 0.1, "mean": "projection", "scale": "variance"}
    forms = runs(variance | {"seed": 0}, variance | {"seed": 1}, variance | {"seed": 1, "epochs": 2.0})
    result = form_ends(forms, runs({"kappa": 0.0, "seed": 0}, {"kappa": 0.0, "seed": 1}))
    assert set(result["form"]) == {"variance, projection"}
    assert sorted(zip(result["arm"], result["seed"], strict=True)) == [
        ("baseline", 0),
        ("baseline", 1),
        ("form", 0),
        ("form", 1),
    ]


def test_the_two_forms_of_equal_norm_are_the_arms_of_one_comparison():
    two = [{"kappa": 0.1, "scale": scale, "seed": s} for scale in ("frobenius", "variance") for s in range(3)]
    result = equal_norm(form_ends(runs(*two), runs(*({"kappa": 0.0, "seed": s} for s in range(3)))))
    assert result.groupby("arm")["seed"].apply(list).to_dict() == {"baseline": [0, 1, 2], "spread": [0, 1, 2]}


def test_ends_are_the_last_evaluations_and_pairs_need_both_runs():
    table = runs({"kappa": 0.0, "seed": 0}, {"kappa": 0.1, "seed": 0}, {"kappa": 0.1, "seed": 1})
    early = table.curves.assign(update=0, valid_loss=9.0)
    ends = run_ends(pd.concat([early, table.curves]), table.summary)
    assert ends["valid_loss"].tolist() == [0, 0, 1]
    assert with_arms(ends, 0.1)["arm"].tolist() == ["baseline", "locater"]


def test_arms_are_told_by_which_number_they_concentrate():
    table = arms_table({"strong": arms(4.0, valid_entropy=0.3 * (1 + NOISE)), "weak": arms(1.0)}).set_index("arm")
    assert table["concentrates by"].to_dict() == {"strong": "N_W", "weak": "neither"}
    assert table.loc["strong", "N_W, times"] == pytest.approx(4)
    assert table.loc["strong", "entropy rises"] == "reproduced"


@pytest.mark.parametrize("tau", [1.0, None])
def test_eigenvalues_under_the_penalty_follow_its_gradient(tau):
    start, step = np.array([-0.7, 0.1, 0.9]), 1e-4
    values = start.copy()
    for _ in range(10_000):  # Euler's method on the eigenvalues
        pull = 0.0 if tau is None else values.sum() - tau
        values = values - step * 2 * (values + pull)
    assert eigenvalue_flow(start, [0.0, 1.0], tau=tau)[0] == pytest.approx(start)
    assert eigenvalue_flow(start, [0.0, 1.0], tau=tau)[1] == pytest.approx(values, abs=1e-3)


def test_flow_starts_beside_its_saddle_and_ends_with_equal_eigenvalues():
    paths = saddle_paths(d_head=3, d_model=5, nudges={0: 0.01, 2: 0.01}, time=30, seed=0).set_index("rank")["N_W"]
    assert paths[2].iloc[0] == pytest.approx(2, abs=0.1)
    assert [paths[rank].iloc[-1] for rank in (0, 2)] == pytest.approx([3, 3], abs=1e-3)


def test_descent_moves_the_conserved_matrix_in_proportion_to_the_step():
    last = balance_over_steps([0.001, 0.002], d_head=3, d_model=5, time=1, seed=0).groupby("size")["change"].last()
    assert last[0.002] / last[0.001] == pytest.approx(2, rel=0.05)


def test_a_hidden_head_has_equal_eigenvalues_and_the_same_logits():
    head = hidden_head(3, dim=5, tokens=4, seed=0)
    assert head["hidden_eigenvalues"] == pytest.approx([0.25] * 3, abs=1e-6)
    assert np.ptp(np.log10(head["eigenvalues"])) == pytest.approx(2)
    assert head["logits"] == pytest.approx(head["hidden_logits"], abs=1e-6)
