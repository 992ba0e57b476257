"""Runs against runs: means over seeds, paired differences, and how numbers read."""

import math

import numpy as np
import pandas as pd
import pytest

from qkrepro.evidence.outcomes import paired_values
from qkrepro.evidence.paired_runs import (
    chosen_kappa,
    nearest_epochs,
    paired_curves,
    seed_means,
    with_arms,
)
from qkrepro.evidence.wording import passes, signed

T2 = 4.302652730  # 97.5% point of Student's t with two degrees of freedom


def curves(values: dict[tuple[float, int], list[float]]) -> pd.DataFrame:
    rows = [
        {"kappa": kappa, "seed": seed, "update": 10 * i, "epoch": 0.5 * i, "value": value}
        for (kappa, seed), line in values.items()
        for i, value in enumerate(line)
    ]
    return pd.DataFrame(rows)


def summary(pairs: dict[int, tuple[float, ...]], kappas=(0.0, 0.1)) -> pd.DataFrame:
    rows = [
        {"seed": seed, "kappa": kappa, "test_perplexity": value, "valid_perplexity": value + 1}
        | {"valid_entropy": 2 * value, "eigen_variance": 1 / value, "layers": 1, "heads": 1}
        | {"best_epoch": 5.0, "last_epoch": 5.0, "corpus_words": 8192}
        for seed, values in pairs.items()
        for kappa, value in zip(kappas, values, strict=False)
    ]
    columns = ["seed", "kappa", "test_perplexity", "valid_perplexity", "valid_entropy", "eigen_variance"]
    return pd.DataFrame(rows, columns=[*columns, "layers", "heads", "best_epoch", "last_epoch", "corpus_words"])


def test_mean_over_three_seeds_has_its_t_interval():
    found = seed_means(curves({(0.0, seed): [value] for seed, value in enumerate([1.0, 2.0, 6.0])}), "value")
    half = T2 * np.std([1, 2, 6], ddof=1) / 3**0.5
    assert found[["estimate", "low", "high"]].to_numpy()[0] == pytest.approx([3, 3 - half, 3 + half])
    assert found["seeds"].tolist() == [3]


def test_logarithmic_mean_is_the_geometric_one():
    found = seed_means(curves({(0.0, 0): [2.0], (0.0, 1): [8.0]}), "value", log=True).iloc[0]
    assert found["estimate"] == pytest.approx(4)
    assert found["low"] * found["high"] == pytest.approx(16)


def test_means_stop_where_the_first_seed_stops_and_one_seed_has_no_interval():
    found = seed_means(curves({(0.0, 0): [1.0, 2.0], (0.0, 1): [3.0], (0.5, 0): [1.0, 4.0]}), "value")
    assert found[["kappa", "epoch", "estimate"]].to_numpy().tolist() == [[0, 0, 2], [0.5, 0, 1], [0.5, 0.5, 4]]
    assert found["low"].isna().tolist() == [False, True, True]


def test_paired_curves_subtract_the_baseline_of_the_same_seed_and_update():
    table = curves({(0.0, 0): [10.0, 20.0], (0.1, 0): [11.0, 18.0, 1.0], (0.1, 7): [5.0]})
    assert paired_curves(table, "value")["difference"].tolist() == [1, -2]
    assert paired_curves(table, "value", percent=True)["difference"].tolist() == pytest.approx([10, -10])


def test_nearest_evaluations_are_taken_and_an_epoch_that_was_not_reached_is_left_out():
    table = curves({(0.0, 0): [1.0, 2.0, 3.0]})  # epochs 0, 0.5, 1
    assert nearest_epochs(table, [0, 0.6, 1.1])["value"].tolist() == [1, 2, 3]
    assert nearest_epochs(table, [4])["value"].tolist() == []
    assert nearest_epochs(table.iloc[:0], [1]).empty


def test_a_run_without_its_partner_is_in_no_pair():
    content = summary({0: (10.0, 9.0), 1: (10.0,), 2: (8.0, 9.5)})
    pairs = with_arms(content, 0.1)
    assert pairs[["arm", "seed"]].to_numpy().tolist() == [
        ["baseline", 0],
        ["baseline", 2],
        ["locater", 0],
        ["locater", 2],
    ]
    assert paired_values(pairs, "test_perplexity").to_dict() == {0: -1, 2: 1.5}


def test_kappa_is_chosen_by_validation_perplexity_among_regularised_runs():
    content = summary({100: (1.0, 9.0, 8.0)}, (0.0, 0.1, 0.2))
    assert chosen_kappa(content) == 0.2
    assert math.isnan(chosen_kappa(content.iloc[:1]))


def test_numbers_have_a_true_minus_and_zero_has_no_sign():
    assert (signed(-0.531), signed(1.3, 1), signed(-0.001), signed(0.0)) == ("−0.53", "+1.3", "0.00", "0.00")
    assert (passes(1.0), passes(0.25), passes(3.9999)) == ("1 pass", "0.25 passes", "4 passes")
    assert (passes(3.75, 4.0), passes(1.0, 1.0)) == ("3.75 to 4 passes", "1 pass")


def test_without_a_run_there_is_no_pair():
    assert with_arms(summary({}), 0.1).empty
