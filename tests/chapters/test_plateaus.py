"""Starts and plateaus: learning curves made by hand, whose plateaus are known."""

import math
from dataclasses import asdict
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.chapters.plateaus import (
    CLAIMS,
    complete_seeds,
    gaps_to_reference,
    named_starts,
    plateau_table,
    start_name,
    start_table,
)
from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.evidence.learning_curves import longest_plateau, updates_to
from qkrepro.evidence.matched_starts import (
    APART,
    ARMS,
    LEVELS,
    MARGIN,
    NORM_TOLERANCE,
    PLATEAU,
    TOLERANCE,
    arm_name,
    arm_table,
    named_arms,
)
from qkrepro.evidence.numbers import book_root
from qkrepro.training.sweep import read_sweep

TIME = np.arange(0, 401, 20)


def resting() -> np.ndarray:
    """Falls 2 nats in 100 updates, rests for 100, falls 2 more in 100, then ends flat."""
    return np.interp(TIME, [0, 100, 200, 300, 400], [9, 7, 7, 5, 5])


@pytest.mark.parametrize(
    ("gain", "mean", "deviation", "name"),
    [
        (1.0, None, None, "xavier"),
        (6.0, None, None, "collapsed"),
        (0.1, float("nan"), None, "uniform"),
        (1.0, 1.0, 0.0, "concentrated"),
    ],
)
def test_starts_are_named_by_what_they_do_to_the_spectrum(gain, mean, deviation, name):
    assert start_name(gain, mean, deviation) == name


def test_a_dispersed_start_of_chosen_mean_has_no_name():
    with pytest.raises(ArgumentError, match=r"got 1\.0 and 2\.0"):
        start_name(1.0, 1.0, 2.0)


def test_the_rest_of_a_curve_that_falls_again_is_its_plateau():
    found = longest_plateau(TIME, resting(), window=40)
    assert (found.length, found.begin, found.loss) == (100, 100, 7)
    assert found.slowest == pytest.approx(0)


def test_a_flat_end_is_no_plateau():
    found = longest_plateau(TIME, np.interp(TIME, [0, 200, 400], [9, 5, 5]), window=40)
    assert (found.length, found.slowest) == (0, pytest.approx(1))


@given(rate=st.floats(0.002, 0.1), size=st.floats(0.5, 10), share=st.floats(0.1, 0.99))
def test_a_curve_that_only_slows_down_has_no_plateau(rate, size, share):
    found = longest_plateau(TIME, size * np.exp(-rate * TIME), window=40, share=share)
    assert found.length == 0
    assert math.isnan(found.slowest) or found.slowest >= 1


def test_a_later_fall_too_small_to_count_makes_no_plateau():
    loss = np.interp(TIME, [0, 100, 300, 320, 400], [9, 5, 5, 4.99, 4.99])
    assert longest_plateau(TIME, loss, window=40, least_fall=0.02).length == 0
    assert longest_plateau(TIME, loss, window=40, least_fall=0.001).length > 0


def test_curves_out_of_order_and_arguments_that_are_not_positive_are_refused():
    with pytest.raises(ArgumentError, match="must rise"):
        longest_plateau([0, 20, 20], [3, 2, 1], window=20)
    with pytest.raises(ArgumentError, match="window"):
        longest_plateau([0, 20], [3, 2], window=0)
    with pytest.raises(ShapeError):
        longest_plateau([0, 20], [3], window=20)


def curves(**losses: np.ndarray) -> pd.DataFrame:
    """Two seeds of each start; the second lies one nat higher throughout."""
    tables = [
        pd.DataFrame(
            {"start": start, "seed": seed, "update": TIME, "train_loss": loss + seed, "valid_loss": loss + seed}
        )
        for start, loss in losses.items()
        for seed in (0, 1)
    ]
    return pd.concat(tables, ignore_index=True).assign(valid_entropy=lambda table: table["valid_loss"] / 2, warmup=200)


def test_early_loss_is_the_mean_over_the_updates_of_the_first_half():
    table = curves(xavier=resting())
    uneven = table[~table["update"].isin([40, 60])]  # a longer stretch between two evaluations weighs more
    row = start_table(uneven).iloc[0]
    weighted = (20 * 8.6 + 60 * 7.4 + 20 * 7.0 + 100 * 7.0) / 200
    assert row["early_loss"] == pytest.approx(weighted)
    assert (row["first_entropy"], row["last_entropy"], row["last_loss"]) == (4.5, 2.5, 5)
    assert row["late_loss"] == pytest.approx((20 * (6.6 + 6.2 + 5.8 + 5.4) + 120 * 5) / 200)


def test_a_run_without_an_evaluation_in_its_first_half_is_refused():
    few = curves(xavier=resting())
    few = few[few["update"].isin([0, TIME[-1]])]
    with pytest.raises(ArgumentError, match="first half"):
        start_table(few)


def test_gaps_are_paired_by_seed_and_update():
    gaps = gaps_to_reference(curves(xavier=resting(), collapsed=resting() + 0.25), "valid_loss")
    assert set(gaps["start"]) == {"collapsed"}
    assert gaps["difference"].tolist() == pytest.approx([0.25] * 2 * len(TIME))


def test_only_seeds_with_all_judged_starts_are_compared():
    table = pd.DataFrame(
        {"start": ["xavier", "collapsed", "concentrated", "xavier", "uniform"], "seed": [0, 0, 0, 1, 1]}
    )
    assert complete_seeds(table)["seed"].tolist() == [0, 0, 0]


def test_plateaus_of_runs_are_one_row_each():
    table = plateau_table(curves(xavier=resting(), collapsed=9 - TIME / 100), window=40)
    assert table.set_index(["start", "seed"])["length"].to_dict() == {
        ("xavier", 0): 100,
        ("xavier", 1): 100,
        ("collapsed", 0): 0,
        ("collapsed", 1): 0,
    }


def test_no_runs_give_empty_tables_with_their_columns():
    empty = pd.DataFrame(
        columns=[
            "start_gain",
            "start_mean",
            "start_deviation",
            "seed",
            "update",
            "train_loss",
            "valid_loss",
            "valid_entropy",
            "warmup",
        ]
    )
    named = named_starts(empty)
    assert complete_seeds(start_table(named)).empty
    assert {"start", "seed", "early_loss"} <= set(start_table(named))
    assert gaps_to_reference(named, "valid_loss").empty
    assert plateau_table(named, window=40).empty


def slowest(**ratios: float | list[float]) -> dict[str, pd.DataFrame]:
    """Three runs of each start with these least ratios of a rate to a later one."""
    rows = [
        {"start": start, "seed": seed, "slowest": value}
        for start, values in ({"xavier": 0.9} | ratios).items()
        for seed, value in enumerate(values if isinstance(values, list) else [values] * 3)
    ]
    return {"plateaus": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("ratios", "outcome", "holds"),
    [
        ({"collapsed": 0.1, "concentrated": 0.2}, "reproduced", 6),
        ({"collapsed": 0.1, "concentrated": 0.8}, "partly", 3),
        ({"collapsed": 0.9, "concentrated": 0.8}, "not reproduced", 0),
        ({"collapsed": [0.1, 0.9, 0.9], "concentrated": 0.8}, "inconclusive", 1),
        ({"collapsed": 0.1, "concentrated": 0.1, "xavier": 0.1}, "inconclusive", 6),
        ({"collapsed": 0.1}, "not run", None),
    ],
)
def test_traps_are_counted_against_xavier(ratios, outcome, holds):
    verdict = judge(claim_named(CLAIMS, "low-entropy-trapped-first-runs"), slowest(**ratios))
    assert (verdict.outcome, verdict.holds) == (outcome, holds)


def test_the_verdict_on_traps_is_shown_over_its_threshold():
    found = sensitivity(
        claim_named(CLAIMS, "low-entropy-trapped-first-runs"), slowest(collapsed=0.55, concentrated=0.55)
    )
    assert found.set_index("threshold")["outcome"][[0.5, 0.6]].tolist() == ["not reproduced", "reproduced"]


def late(collapsed: list[float], concentrated: list[float]) -> dict[str, pd.DataFrame]:
    gains = {"xavier": [0.0, 0.0, 0.0], "collapsed": collapsed, "concentrated": concentrated}
    rows = [
        {"start": name, "seed": seed, "late_loss": 6 + gain}
        for name, each in gains.items()
        for seed, gain in enumerate(each)
    ]
    return {"starts": pd.DataFrame(rows)}


SLOW, FAST, SILENT = [0.5, 0.55, 0.6], [-0.5, -0.55, -0.6], [-0.5, 0.0, 0.6]


@pytest.mark.parametrize(
    ("collapsed", "concentrated", "outcome"),
    [
        (SLOW, SLOW, "reproduced"),
        (SLOW, SILENT, "partly"),
        (FAST, SILENT, "not reproduced"),
        (SILENT, SILENT, "inconclusive"),
        (SLOW[:2], SLOW[:2], "not run"),
    ],
)
def test_slow_learning_is_judged_by_the_loss_after_the_warm_up(collapsed, concentrated, outcome):
    assert judge(claim_named(CLAIMS, "low-entropy-slows"), late(collapsed, concentrated)).outcome == outcome


PLAN = (book_root() / "results" / "PLAN-plateaus.md").read_text(encoding="utf-8")
STARTS = {"start_gain", "start_mean", "start_deviation", "temperature"}


def test_the_sweep_has_the_arms_of_the_plan_seed_by_seed_and_nothing_else_differs():
    runs = [asdict(run) for run in read_sweep(book_root() / "results" / "plateaus-anew.yaml")]
    assert f"{len(runs)} runs" in PLAN
    for _, group in groupby(runs, key=lambda run: run["seed"]):
        of_seed = list(group)
        assert tuple(arm_name(run) for run in of_seed) == ARMS
        assert len({str({k: v for k, v in run.items() if k not in STARTS}) for run in of_seed}) == 1
        cold, scaled = of_seed[1], of_seed[4]
        assert scaled["start_gain"] == pytest.approx(cold["temperature"] ** -0.5, rel=1e-3)
        assert {run["start_mean"] for run in of_seed if run["start_mean"] is not None} == {0.5}
    assert {run["kappa"] for run in runs} == {0.0}


def test_the_rules_have_the_numbers_of_the_plan():
    assert f"at most {TOLERANCE} nats" in PLAN
    assert f"at least {APART:g} nats" in PLAN
    assert NORM_TOLERANCE == 0.05
    assert "within five per cent" in PLAN
    assert f"after {LEVELS[0]} and after {LEVELS[1]} updates" in PLAN
    assert f"equivalence: {MARGIN}" in PLAN
    assert f"over {PLATEAU['window']} updates, and a later fall of less than {PLATEAU['least_fall']} nats" in PLAN


def arm_curves(**losses: np.ndarray) -> pd.DataFrame:
    """One seed of each arm, evaluated every 20 updates up to 500."""
    tables = [
        pd.DataFrame({"arm": arm, "seed": 0, "update": np.arange(0, 501, 20), "valid_loss": loss})
        for arm, loss in losses.items()
    ]
    return pd.concat(tables, ignore_index=True).assign(warmup=100, valid_entropy=2.0, frobenius=5.0)


def test_a_run_that_takes_twice_the_updates_has_the_log_of_two_until_a_loss_is_out_of_reach():
    at = np.arange(0, 501, 20)
    table = arm_table(arm_curves(xavier=9 - at / 100, cold=9 - at / 200)).set_index("arm")
    assert table.loc["xavier", ["log updates", "missed", "plateau"]].tolist() == pytest.approx([0, 0, 0])
    assert table.loc["cold", "log updates"] == pytest.approx((math.log(2) + math.log(520 / 300)) / 2)
    assert table.loc["cold", "missed"] == 1


def test_only_a_rest_after_the_warm_up_counts_as_a_plateau():
    at = np.arange(0, 501, 20)
    early = np.interp(at, [0, 100, 500], [8, 8, 4])
    late = np.interp(at, [0, 200, 300, 500], [9, 6, 6, 4])
    table = arm_table(arm_curves(xavier=early, cold=late)).set_index("arm")
    assert table.loc["xavier", "plateau"] == 0
    assert 0.2 <= table.loc["cold", "plateau"] <= 0.4


def test_a_seed_without_the_run_of_xavier_has_no_ratio():
    row = arm_table(arm_curves(cold=np.linspace(9, 4, 26))).iloc[0]
    assert math.isnan(row["log updates"])
    assert row["missed"] == 0


def test_updates_to_a_loss_are_the_first_that_have_it():
    falling = pd.DataFrame({"update": [0, 100, 200], "valid_loss": [8.0, 6.0, 7.0]})
    assert (updates_to(falling, 8.0), updates_to(falling, 6.5), updates_to(falling, 5.0)) == (0, 75, 300)


def test_no_runs_give_an_empty_table_of_arms():
    columns = ["seed", "update", "warmup", "valid_loss", "valid_entropy", "frobenius"]
    empty = pd.DataFrame(columns=[*columns, *STARTS])
    assert judge(claim_named(CLAIMS, "small-steps-slow"), {"anew": arm_table(named_arms(empty))}).outcome == "not run"


def anew(outcome: str = "log updates", seeds: int = 3, entropy: float = 0.5, **shifts: float | list[float]) -> dict:
    """Make runs whose arms have these outcomes; the seeds of an arm that is one number differ by hundredths."""
    low = ("cold", "concentrated", "scaled")
    rows = []
    for place, arm in enumerate(ARMS):
        given = shifts.get(arm, 0.0)
        values = given if isinstance(given, list) else [given + 0.01 * ((place + seed) % 3) for seed in range(3)]
        for seed, value in enumerate(values[:seeds]):
            row = {"log updates": 0.0, "plateau": 0.0, "missed": 0} | {outcome: value}
            start = {"entropy": entropy if arm in low else 3.7, "frobenius": 23.0 if arm == "scaled" else 5.6}
            rows.append({"arm": arm, "seed": seed} | start | row)
    return {"anew": pd.DataFrame(rows)}


FAIR = {
    "low-entropy-slows-equal-weights": ("cold", "xavier"),
    "low-entropy-slows-concentrated": ("concentrated", "even"),
    "dispersion-slows-equal-entropy": ("cold", "concentrated"),
    "small-steps-slow": ("scaled", "cold"),
}
EVEN = [-0.5, 0.1, 0.5]


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize(
    ("shift", "outcome", "holds"),
    [
        (0.8, "reproduced", 3),
        (-0.8, "not reproduced", 0),
        ([0.0, 0.011, 0.019], "not reproduced", None),
        (EVEN, "inconclusive", 2),
    ],
)
def test_a_fair_comparison_is_judged_by_sign_margin_and_holm(name, shift, outcome, holds):
    arm, against = FAIR[name]
    verdict = judge(claim_named(CLAIMS, name), anew(**{arm: shift}))
    assert verdict.outcome == outcome
    assert holds is None or (verdict.holds, verdict.of) == (holds, 3)
    assert f"{arm} against {against}" in verdict.because


@pytest.mark.parametrize("name", FAIR)
def test_a_difference_that_is_there_and_inside_the_margin_holds_in_part(name):
    steady = [0.05, 0.0601, 0.0699]  # the arm it is compared with: 0, 0.01 and 0.02, in some order
    arm, against = FAIR[name]
    base = [0.0, 0.01, 0.02]
    assert judge(claim_named(CLAIMS, name), anew(**{arm: steady, against: base})).outcome == "partly"
    assert judge(claim_named(CLAIMS, name), anew(seeds=2, **{arm: 0.8})).outcome == "not run"


def test_holm_runs_over_the_four_comparisons():
    alone = anew(cold=[0.2, 0.27, 0.35], xavier=[0.0] * 3)
    verdict = judge(claim_named(CLAIMS, "low-entropy-slows-equal-weights"), alone)
    assert verdict.outcome == "inconclusive"  # p = 0.024 without correction
    assert sensitivity(claim_named(CLAIMS, "low-entropy-slows-equal-weights"), alone)["outcome"].nunique() == 1


@pytest.mark.parametrize(
    "spoiled",
    [
        {"arm": "scaled", "entropy": 0.6},
        {"arm": "cold", "frobenius": 6.0},
        {"arm": "even", "entropy": 2.0},
        {"arm": "cold", "entropy": float("nan")},
        {"arm": "even", "frobenius": float("nan")},
    ],
)
@pytest.mark.parametrize("name", [*FAIR, "low-entropy-traps"])
def test_a_failed_manipulation_is_no_test_whatever_the_losses_say(name, spoiled):
    tables = anew(cold=0.8, scaled=0.8)
    runs = tables["anew"]
    column = next(key for key in spoiled if key != "arm")
    runs.loc[(runs["arm"] == spoiled["arm"]) & (runs["seed"] == 1), column] = spoiled[column]
    assert judge(claim_named(CLAIMS, name), tables).outcome == "not a test"


@pytest.mark.parametrize(
    ("cold", "concentrated", "outcome", "holds"),
    [
        (0.5, 0.5, "reproduced", 6),
        (0.5, [0.0] * 3, "partly", 3),
        ([0.0] * 3, [0.0] * 3, "not reproduced", 0),
        ([0.0, 0.0, 0.4], [0.0] * 3, "inconclusive", 1),
    ],
)
def test_plateaus_of_both_low_entropies_are_judged_together(cold, concentrated, outcome, holds):
    tables = anew("plateau", xavier=[0.0] * 3, even=[0.0] * 3, cold=cold, concentrated=concentrated, scaled=[0.0] * 3)
    verdict = judge(claim_named(CLAIMS, "low-entropy-traps"), tables)
    assert (verdict.outcome, verdict.holds, verdict.of) == (outcome, holds, 6)
    two = anew("plateau", seeds=2, cold=cold)
    assert judge(claim_named(CLAIMS, "low-entropy-traps"), two).outcome == "not run"
