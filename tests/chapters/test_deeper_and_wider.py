"""Shapes of models: pairs within a shape, Holm over the six, and a rule that can say yes, no and nothing."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qkrepro.chapters.deeper_and_wider import (
    CLAIMS,
    SHAPES,
    head_values,
    name_colours,
    plot_values,
    shape_differences,
    shape_name,
    shape_runs,
    shape_tests,
)
from qkrepro.evidence.claims import claim_named, judge, sensitivity
from qkrepro.evidence.numbers import load_numbers

CLAIM = claim_named(CLAIMS, "locater-deeper-and-wider")
NOISE = np.array([-1.0, 0.2, 0.8])  # of three seeds, mean 0


def runs(percent, noise=0.1, shapes=SHAPES, seeds=3):
    """Runs whose test perplexity differs from the baseline's by so many per cent in each shape."""
    rows = [
        {"layers": layers, "heads": heads, "seed": seed, "kappa": kappa}
        | {"test_perplexity": 100.0 * np.exp(kappa * 1000 * (gap + noise * NOISE[seed]) / 100)}
        for (layers, heads), gap in zip(shapes, percent, strict=True)
        for seed in range(seeds)
        for kappa in (0.0, 0.001)
    ]
    fixed = {"valid_perplexity": 110.0, "valid_entropy": 3.0, "concentration": 0.5}
    return pd.DataFrame(rows).assign(**fixed, best_epoch=1.0, last_epoch=1.0, corpus_words=8192)


@pytest.mark.parametrize(
    ("percent", "noise", "outcome", "holds"),
    [
        ([-3] * 6, 0.1, "reproduced", 6),
        ([-3] * 4 + [0, 0], 0.1, "partly", 4),
        ([-3] * 5 + [3], 0.1, "partly", 5),
        ([3] * 6, 0.1, "not reproduced", 0),
        ([0] * 6, 0.1, "not reproduced", 0),  # every interval lies within one per cent
        ([0] * 5 + [3], 3.0, "inconclusive", 0),
        ([-2] * 6, 3.0, "inconclusive", 0),
    ],
)
def test_the_rule_says_yes_no_and_nothing(percent, noise, outcome, holds):
    verdict = judge(CLAIM, {"shapes": runs(percent, noise)})
    assert (verdict.outcome, verdict.holds, verdict.of) == (outcome, holds, 6), verdict.because


def test_one_small_p_value_among_six_is_not_a_finding():
    """p = 0.02 in one shape alone; Holm makes 0.12 of it."""
    lucky = runs([-3] + [0] * 5, 3.0)
    first = (lucky["layers"] == 1) & (lucky["heads"] == 1) & (lucky["kappa"] > 0)
    lucky.loc[first, "test_perplexity"] = 100 * np.exp(-0.03 + 0.0075 * NOISE)
    tests = shape_tests(lucky)
    assert tests["p"].min() == pytest.approx(0.03, abs=0.02)
    assert tests["p_holm"].min() == pytest.approx(6 * tests["p"].min())
    assert judge(CLAIM, {"shapes": lucky}).outcome == "inconclusive"


def test_pure_noise_is_seldom_called_a_difference():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        noise = runs([0.0] * 6, 0.0)
        noise["test_perplexity"] *= np.exp(0.03 * rng.normal(size=len(noise)))
        found.append(judge(CLAIM, {"shapes": noise}).outcome)
    assert found.count("inconclusive") > 0.9 * len(found)


@pytest.mark.parametrize("short", [runs([-3] * 5, shapes=SHAPES[:5]), runs([-3] * 6, seeds=2), runs([-3] * 6).iloc[:0]])
def test_a_shape_without_three_pairs_leaves_the_claim_open(short):
    assert judge(CLAIM, {"shapes": short}).outcome == "not run"


def test_the_threshold_is_the_rule_at_its_own_value():
    tables = load_numbers("deeper_and_wider")
    moved = sensitivity(CLAIM, tables).set_index("threshold")
    assert moved.loc[CLAIM.threshold.value, "outcome"] == judge(CLAIM, tables).outcome
    assert moved["holds"].is_monotonic_increasing
    assert moved["outcome"].nunique() > 1


def test_log_ratios_are_tested_by_the_paired_t_test_of_scipy():
    table = runs([-2, -1, 0, 1, 2, 3], 0.5)
    row = shape_tests(table).iloc[0]
    wide = table.query("layers == 1 and heads == 1").pivot(index="seed", columns="kappa", values="test_perplexity")
    oracle = stats.ttest_rel(np.log(wide[0.001]), np.log(wide[0.0]))
    assert row["p"] == pytest.approx(oracle.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(oracle.confidence_interval(0.95)))


def test_shapes_are_paired_within_their_own_shape():
    rows = runs([-10, 10], 0.0, shapes=SHAPES[:2], seeds=1)
    assert shape_differences(shape_runs(rows), "test_perplexity", percent=True)["difference"].tolist() == pytest.approx(
        [100 * np.expm1(-0.1), 100 * np.expm1(0.1)]
    )
    alone = rows.query("not (heads == 4 and kappa == 0)")
    assert shape_differences(shape_runs(alone), "test_perplexity")["heads"].tolist() == [1]


def test_head_values_come_from_the_columns_of_the_heads():
    content = runs([0], shapes=[(1, 2)], seeds=1).iloc[:1].assign(trace=1.5, trace_0_0=1.0, trace_0_1=2.0)
    assert head_values(content, "trace", 1, 2)[["layer", "head", "value"]].to_numpy().tolist() == [[0, 0, 1], [0, 1, 2]]
    assert head_values(content.assign(heads=1), "trace", 1, 1)["value"].tolist() == [1.5]
    assert head_values(content, "trace", 4, 4).empty


def test_a_point_is_drawn_for_every_run_and_a_bar_for_their_mean():
    figure, axis = plt.subplots()
    rows = pd.DataFrame({"kappa": [0.0, 0.0, 0.1, 0.1], "layer": 1, "value": [1.0, 3.0, 5.0, 6.0]})
    plot_values(rows, "layer", "value", axis)
    heights = sorted(float(point[1]) for drawn in axis.collections for point in drawn.get_offsets())
    means = {float(line.get_ydata()[0]) for line in axis.lines if len(line.get_ydata())}
    assert heights == [1, 3, 5, 6]
    assert {2.0, 5.5} <= means
    name_colours(rows, axis)
    assert [text.get_text() for text in axis.texts] == ["baseline", "κ = 0.1"]
    plt.close(figure)


def test_shapes_are_named_in_words():
    assert [shape_name(1, 1), shape_name(2, 4)] == ["1 layer, 1 head", "2 layers, 4 heads"]
