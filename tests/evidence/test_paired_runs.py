"""Runs against runs: means, paired differences, the records that are judged, and sentences that follow from them."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.evidence.paired_runs import (
    chosen_kappa,
    judged_pairs,
    nearest_epochs,
    paired_curves,
    paired_differences,
    paired_runs,
    seed_means,
)
from qkrepro.evidence.wording import change, passes, signed
from qkrepro.training.tables import RunTables

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


def tables(content: pd.DataFrame) -> RunTables:
    return RunTables(content, pd.DataFrame(), {})


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
    pairs = paired_differences(paired_runs(content, 0.1), "test_perplexity")
    assert pairs.to_numpy().tolist() == [[0, 10, 9, -1], [2, 8, 9.5, 1.5]]


def test_kappa_is_chosen_by_validation_perplexity_among_regularised_runs():
    content = summary({100: (1.0, 9.0, 8.0)}, (0.0, 0.1, 0.2))
    assert chosen_kappa(content) == 0.2
    assert math.isnan(chosen_kappa(content.iloc[:1]))


def test_judged_is_the_first_sweep_with_three_pairs():
    two, three = (tables(summary(dict.fromkeys(range(n), (2.0, 1.0)))) for n in (2, 3))
    assert judged_pairs([two, three], 0.1) is three
    assert judged_pairs([three, two], 0.1) is three
    assert judged_pairs([tables(summary({})), two], 0.1) is two


@pytest.mark.parametrize(
    ("differences", "told"),
    [
        ([], "not run"),
        ([1.0], "+1.00% (one seed): nothing can be told"),
        ([-1.0, -1.1, -0.9], "−1.00% (−1.25 to −0.75, 3 seeds): lower"),
        ([1.0, 1.1, 0.9], "+1.00% (+0.75 to +1.25, 3 seeds): higher"),
        ([-1.0, 1.0], "0.00% (−12.71 to +12.71, 2 seeds): no difference can be told"),
    ],
)
def test_a_change_is_told_with_its_interval_and_no_more_than_it_allows(differences, told):
    assert change(differences, "%") == told


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_a_change_is_told_as_certain_only_when_its_interval_leaves_out_zero(differences):
    from scipy import stats

    told = change(differences).rsplit(": ", 1)[1]
    spread = np.std(differences, ddof=1)
    if spread > 1e-6:
        p = stats.ttest_1samp(differences, 0).pvalue
        if abs(p - 0.05) > 1e-6:
            assert (told == "no difference can be told") == (p > 0.05)


def test_numbers_have_a_true_minus_and_zero_has_no_sign():
    assert (signed(-0.531), signed(1.3, 1), signed(-0.001), signed(0.0)) == ("−0.53", "+1.3", "0.00", "0.00")
    assert (passes(1.0), passes(0.25), passes(3.9999)) == ("1 pass", "0.25 passes", "4 passes")
    assert (passes(3.75, 4.0), passes(1.0, 1.0)) == ("3.75 to 4 passes", "1 pass")


def test_without_a_run_there_is_no_pair():
    empty = summary({})
    assert paired_differences(paired_runs(empty, 0.1), "valid_entropy").empty
