"""Starts and plateaus: learning curves made by hand, whose plateaus are known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.chapters.plateaus import (
    CLAIMS,
    complete_seeds,
    gaps_to_reference,
    longest_plateau,
    named_starts,
    plateau_table,
    start_name,
    start_table,
)
from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.evidence.claims import claim_named, judge, sensitivity

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
    verdict = judge(claim_named(CLAIMS, "low-entropy-traps"), slowest(**ratios))
    assert (verdict.outcome, verdict.holds) == (outcome, holds)


def test_the_verdict_on_traps_is_shown_over_its_threshold():
    found = sensitivity(claim_named(CLAIMS, "low-entropy-traps"), slowest(collapsed=0.55, concentrated=0.55))
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
