"""Starts and plateaus: learning curves made by hand, whose plateaus are known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.chapters.plateaus import (
    complete_seeds,
    gaps_to_reference,
    longest_plateau,
    named_starts,
    plateau_table,
    start_name,
    start_table,
)
from qkrepro.errors import ArgumentError, ShapeError

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
    with pytest.raises(ArgumentError, match="deviation 2"):
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
    with pytest.raises(ArgumentError, match="does not rise"):
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
    return pd.concat(tables, ignore_index=True).assign(valid_entropy=lambda table: table["valid_loss"] / 2)


def test_early_loss_is_the_mean_over_the_updates_of_the_first_half():
    table = curves(xavier=resting())
    uneven = table[~table["update"].isin([40, 60])]  # a longer stretch between two evaluations weighs more
    row = start_table(uneven).iloc[0]
    weighted = (20 * 8.6 + 60 * 7.4 + 20 * 7.0 + 100 * 7.0) / 200
    assert row["early_loss"] == pytest.approx(weighted)
    assert (row["first_entropy"], row["last_entropy"], row["last_loss"]) == (4.5, 2.5, 5)


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
        ]
    )
    named = named_starts(empty)
    assert complete_seeds(start_table(named)).empty
    assert {"start", "seed", "early_loss"} <= set(start_table(named))
    assert gaps_to_reference(named, "valid_loss").empty
    assert plateau_table(named, window=40).empty
