"""Runs against runs: means, paired differences, the records that are judged, and sentences that follow from them."""

import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkrepro.chapters.locater import (
    form_differences,
    gap_over_training,
    last_gain,
    order_over_kappa,
    still_improving,
    told_by_group,
)
from qkrepro.chapters.spectrum_in_training import course
from qkrepro.evidence.claims import claim_named, judge
from qkrepro.evidence.paired_runs import (
    chosen_kappa,
    judged_kappas,
    judged_pairs,
    kappa_runs,
    nearest_epochs,
    paired_curves,
    paired_differences,
    paired_runs,
    seed_means,
)
from qkrepro.evidence.wording import change, passes, signed
from qkrepro.publishing.claims_pages import all_claims
from qkrepro.theory.statistics import difference_means
from qkrepro.training.configuration import RunConfiguration
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


def test_without_a_run_there_is_no_pair_and_the_rules_say_not_run():
    empty = summary({})
    assert paired_differences(paired_runs(empty, 0.1), "valid_entropy").empty
    given_tables = {"paired": paired_runs(empty, 0.1), "kappas": kappa_runs(empty)}
    for name in ("locater-improves-perplexity", "perplexity-follows-variance"):
        assert judge(claim_named(all_claims(), name), given_tables).outcome == "not run"


def test_tables_of_pairs_and_kappas_are_what_the_rules_read():
    content = summary({seed: (10.0, 9.0 - 0.1 * seed) for seed in range(3)})
    assert (
        judge(claim_named(all_claims(), "locater-improves-perplexity"), {"paired": paired_runs(content, 0.1)}).outcome
        == "reproduced"
    )
    content = summary(dict.fromkeys(range(3), (10.0, 9.0, 8.0, 7.0)), (0.0, 0.1, 0.2, 0.3))
    assert (
        judge(claim_named(all_claims(), "perplexity-follows-variance"), {"kappas": kappa_runs(content)}).outcome
        == "not reproduced"
    )


def test_kappa_is_chosen_by_validation_perplexity_among_regularised_runs():
    content = summary({100: (1.0, 9.0, 8.0)}, (0.0, 0.1, 0.2))
    assert chosen_kappa(content) == 0.2
    assert math.isnan(chosen_kappa(content.iloc[:1]))


def test_judged_is_the_first_sweep_with_three_pairs():
    two, three = (tables(summary(dict.fromkeys(range(n), (2.0, 1.0)))) for n in (2, 3))
    assert judged_pairs([two, three], 0.1) is three
    assert judged_pairs([three, two], 0.1) is three
    assert judged_pairs([tables(summary({})), two], 0.1) is two


def test_kappas_are_judged_where_three_seeds_have_four_of_them():
    kappas = (0.0, 0.1, 0.2, 0.3)
    few = tables(summary({0: (4.0, 3.0, 2.0, 1.0), 1: (4.0, 3.0), 2: (4.0, 3.0)}, kappas))
    enough = tables(summary(dict.fromkeys(range(3), (4.0, 3.0, 2.0, 1.0)), kappas))
    assert judged_kappas([few, enough]) is enough
    assert judged_kappas([few, tables(summary({}))]).summary.empty


def test_a_form_is_compared_with_the_baseline_that_differs_in_the_regulariser_alone():
    plain = asdict(RunConfiguration()) | {"valid_perplexity": 10.0}
    baselines = pd.DataFrame([plain | {"seed": 0}, plain | {"seed": 1, "valid_perplexity": 20.0}])
    projected = plain | {"kappa": 0.1, "mean": "projection", "scale": "variance", "valid_perplexity": 9.0}
    forms = pd.DataFrame([projected | {"seed": 0}, projected | {"seed": 1}, projected | {"seed": 1, "epochs": 2.0}])
    found = form_differences(forms, baselines, "valid_perplexity")
    assert found.to_numpy().tolist() == [["variance", "projection", 0, -1.0], ["variance", "projection", 1, -11.0]]
    percent = form_differences(forms, baselines, "valid_perplexity", percent=True)["difference"]
    assert percent.tolist() == pytest.approx([-10, -55])
    assert form_differences(forms.iloc[:0], baselines, "valid_perplexity").empty


def test_means_of_differences_have_their_t_interval_and_one_seed_has_none():
    content = pd.DataFrame({"scale": ["a", "a", "a", "b"], "mean": "m", "difference": [1.0, 2.0, 6.0, 4.0]})
    found = difference_means(content, ("scale", "mean"))
    half = T2 * np.std([1, 2, 6], ddof=1) / 3**0.5
    assert found.loc[0, ["estimate", "low", "high", "seeds"]].tolist() == pytest.approx([3, 3 - half, 3 + half, 3])
    assert found.loc[1, ["scale", "estimate", "seeds"]].tolist() == ["b", 4.0, 1]
    assert math.isnan(found.loc[1, "low"])
    assert difference_means(content.iloc[:0], ("scale", "mean")).empty


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


def test_every_group_is_told_in_its_order():
    content = pd.DataFrame({"scale": ["b", "a", "a"], "mean": "m", "difference": [2.0, 1.0, 1.0]})
    told = told_by_group(content, ("scale", "mean"), "%")
    assert told == "b, m +2.00% (one seed): nothing can be told; a, m +1.00% (+1.00 to +1.00, 2 seeds): higher"
    assert told_by_group(content.iloc[:0], ("scale", "mean")) == "not run"


def means(*rows: tuple[float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["epoch", "estimate", "low", "high"])


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ((2.0, -1.0, -2.0, -0.5), "the gain lasts"),
        ((2.0, 0.0, -2.0, 2.0), "the gain of the beginning is gone"),
        ((2.0, 1.0, 0.5, 2.0), "the gain of the beginning has turned into a loss"),
    ],
)
def test_what_became_of_an_early_gain_follows_from_the_last_interval(last, told):
    assert gap_over_training(means((0.5, -3.0, -4.0, -2.0), last)).endswith(told)


def test_no_early_gain_is_told_where_the_first_interval_reaches_zero():
    assert gap_over_training(means((0.5, -3.0, -7.0, 1.0), (1.0, 0.0, -1.0, 1.0))).endswith(
        "no gain at the beginning can be told"
    )
    single = means((0.5, -3.0, math.nan, math.nan), (1.0, 0.5, math.nan, math.nan))
    assert gap_over_training(single) == "−3.00% after 0.5 passes, +0.50% after 1 pass; one seed, no interval"
    assert gap_over_training(means()) == "not run"


def test_last_gain_is_where_the_unbroken_gain_ends():
    rows = [(0.5, -3.0, -4.0, -2.0), (1.0, -2.0, -3.0, -1.0), (1.5, 0.0, -1.0, 1.0), (2.0, -2.0, -3.0, -1.0)]
    assert last_gain(means(*rows)) == 1.0
    assert last_gain(means(*rows[2:])) == 0.0
    assert last_gain(means(*rows[:2])) == 1.0


def test_course_names_the_largest_value_only_where_it_lies_between():
    assert course(means((0, 1.0, 0, 0), (1, 5.0, 0, 0), (2, 2.0, 0, 0)), 1) == (
        "1.0 at the start, at most 5.0 (after 1 pass), 2.0 in the end"
    )
    assert course(means((0, 5.0, 0, 0), (1, 3.0, 0, 0)), 1) == "5.0 at the start, 3.0 in the end"


def test_order_over_kappa_is_the_rank_correlation_of_scipy():
    content = summary(dict.fromkeys(range(2), (4.0, 3.0, 2.0, 1.0)), (0.0, 0.1, 0.2, 0.3))
    told = order_over_kappa(kappa_runs(content))
    assert told.startswith("validation perplexity has a rank correlation of −1.00 (−1.00 to −1.00, 2 seeds)")
    assert told.endswith("Perplexity is least at κ = 0.3 and largest at κ = 0")
    assert order_over_kappa(kappa_runs(content[content["kappa"] < 0.2])) == "not run"


def test_numbers_have_a_true_minus_and_zero_has_no_sign():
    assert (signed(-0.531), signed(1.3, 1), signed(-0.001), signed(0.0)) == ("−0.53", "+1.3", "0.00", "0.00")
    assert (passes(1.0), passes(0.25), passes(3.9999)) == ("1 pass", "0.25 passes", "4 passes")
    assert (passes(3.75, 4.0), passes(1.0, 1.0)) == ("3.75 to 4 passes", "1 pass")


def test_a_run_improves_still_when_its_best_evaluation_is_its_last():
    ends = pd.DataFrame({"best_epoch": [2.0, 1.0], "last_epoch": [2.0, 2.0]})
    assert still_improving(tables(ends)).startswith("1 of 2 runs")
    assert still_improving(tables(ends.iloc[:0])) == "not run"
