"""The chapter "How large must the mean be?": its rules on data that support, refute and say nothing, and its tables."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from qkrepro.chapters.how_large_a_mean import (
    CLAIMS,
    compared_ends,
    dispersion_raises_entropy,
    ends_predicted,
    plot_cosines,
    plot_curves,
    plot_entropy,
    plot_simplex,
    plot_windows,
    size_table,
    walk_is_wider,
    width_table,
)
from qkrepro.errors import ArgumentError
from qkrepro.theory.critical_mean import right_angle_curves, simplex_curves
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment
from qkrepro.theory.mean_window import (
    LAWS,
    SIMILARITY,
    input_cosines,
    measured_curves,
    normalised_tokens,
    predicted_curves,
    similarity,
    window_ends,
)
from qkrepro.theory.random_energy import entropy_over_dispersion, entropy_over_spread


def ends(*ratios, width=1.05):
    """A table of ends whose measured value is that multiple of the prediction, with intervals of this width."""
    rows = [{"predicted": 4.0, "measured": 4 * r, "low": 4 * r / width, "high": 4 * r * width} for r in ratios]
    return {"ends": pd.DataFrame(rows, columns=["predicted", "measured", "low", "high"])}


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (ends(1.0, 0.98, 1.1, 1.05), "reproduced"),
        (ends(1.0, 1.0, 1.0, 1.6), "partly"),
        (ends(1.0, 1.7, 0.5, 2.0), "not reproduced"),
        (ends(1.0, 1.0, 1.1, width=2.0), "inconclusive"),
        (ends(), "not run"),
    ],
)
def test_rule_of_predicted_ends_answers_every_kind_of_data(tables, outcome):
    assert ends_predicted(tables).outcome == outcome


def test_verdict_on_ends_moves_with_its_factor_as_its_table_says():
    verdicts = [ends_predicted(ends(1.0, 1.15, 1.15), factor) for factor in (1.06, 1.3)]
    assert [verdict.outcome for verdict in verdicts] == ["not reproduced", "reproduced"]


def widths(*intervals):
    columns = ["length", "other", "difference", "low", "high"]
    rows = [(16, "independent", (low + high) / 2, low, high) for low, high in intervals]
    return {"widths": pd.DataFrame(rows, columns=columns)}


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (widths((0.5, 1.0), (0.1, 3.0)), "reproduced"),
        (widths((0.5, 1.0), (-3.0, -1.0)), "partly"),
        (widths((-0.5, -0.1), (-3.0, -1.0), (1.0, 2.0)), "not reproduced"),
        (widths((-1.0, 1.0), (-0.5, 2.0), (0.1, 0.2)), "inconclusive"),
        (widths(), "not run"),
    ],
)
def test_rule_of_wider_windows_answers_every_kind_of_data(tables, outcome):
    assert walk_is_wider(tables).outcome == outcome


def dispersion(gain, noise, growths=(1.3, 1.6), best=2.0, seeds=6):
    rng = np.random.default_rng(0)
    rows = [
        {
            "growth": growth,
            "dispersion": spread,
            "seed": seed,
            "entropy_ratio": 0.2 + gain * (spread == 2.0) + noise * rng.standard_normal(),
            "predicted": 0.2 + 0.1 * (spread == best),
        }
        for growth in growths
        for spread in (0.0, 2.0, 4.0)
        for seed in range(seeds)
    ]
    return {"dispersion": pd.DataFrame(rows, columns=["growth", "dispersion", "seed", "entropy_ratio", "predicted"])}


@pytest.mark.parametrize(
    ("tables", "outcome"),
    [
        (dispersion(0.2, 0.01), "reproduced"),
        (dispersion(-0.1, 0.01), "not reproduced"),
        (dispersion(0.2, 0.01, best=0.0), "not reproduced"),  # the prediction itself names no dispersion
        (dispersion(0.0, 0.3), "inconclusive"),
        (dispersion(0.2, 0.01, growths=(0.7, 2.5)), "not run"),  # no mean between log T and 2 log T
    ],
)
def test_rule_of_raised_entropy_answers_every_kind_of_data(tables, outcome):
    assert dispersion_raises_entropy(tables).outcome == outcome


def test_claims_name_their_tables_and_are_judged_by_their_rules():
    tables = ends(1.0) | widths((0.5, 1.0)) | dispersion(0.2, 0.01)
    assert len(CLAIMS) == 3
    for claim in CLAIMS:
        assert claim.judge({name: tables[name] for name in claim.tables}).outcome == "reproduced"
        assert claim.provenance == "ours"
        assert claim.quote is None


def curve(values, column):
    means = [1.0, 2.0, 4.0, 8.0]
    other = "entropy_ratio" if column == "residual_ratio" else "residual_ratio"
    rows = {"tokens": "random walk", "length": 8, "layers": 2, "mean_scaled": means, column: values, other: 0.5}
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([0.1, 0.3, 0.7, 0.9], 2 * math.sqrt(2)),
        ([0.6, 0.4, 0.6, 0.9], 2 * math.sqrt(2)),
        ([0.6] * 4, 0),
        ([0.1] * 4, math.inf),
    ],
)
def test_lower_end_is_the_mean_above_which_half_of_the_residual_stays(values, end):
    assert window_ends(curve(values, "residual_ratio"))["lower"].iloc[0] == pytest.approx(end)


@pytest.mark.parametrize(
    ("values", "end"),
    [([0.9, 0.7, 0.3, 0.1], 2 * math.sqrt(2)), ([0.9] * 4, math.inf), ([0.4, 0.3, 0.2, 0.1], 0)],
)
def test_upper_end_is_the_mean_at_which_half_of_the_entropy_is_left(values, end):
    assert window_ends(curve(values, "entropy_ratio"))["upper"].iloc[0] == pytest.approx(end)


def test_compared_ends_leave_out_what_lies_outside_and_count_the_first_layer_once():
    head = {"tokens": "random walk", "length": 8}
    predicted = pd.DataFrame([{**head, "layers": n, "lower": 2.0 * (n == 4), "upper": 9.0} for n in (1, 4)])
    rows = [
        {**head, "layers": n, "seed": s, "lower": 2.0 + 0.1 * s, "upper": 9.0 + s} for n in (1, 4) for s in range(3)
    ]
    table = compared_ends(predicted, pd.DataFrame(rows))
    assert table[["layers", "end"]].to_numpy().tolist() == [[4, "lower"], [4, "upper"]]
    assert table["low"].iloc[0] < table["measured"].iloc[0] < table["high"].iloc[0]


def test_width_table_pairs_the_seeds():
    rows = [
        {"tokens": law, "length": 8, "layers": 4, "seed": seed, "lower": 2.0 * 2**seed, "upper": 2.0 * 2**seed * factor}
        for law, factor in (("random walk", 8.0), ("independent", 2.0), ("equal angles", 0.5))
        for seed in range(3)
    ]
    table = width_table(pd.DataFrame(rows), layers=4).set_index("other")
    assert table.loc["independent", "difference"] == pytest.approx(2)
    assert table.loc["equal angles", ["low", "high"]].tolist() == pytest.approx([4, 4])
    assert width_table(pd.DataFrame(rows), layers=2).empty


@pytest.mark.parametrize("law", LAWS)
def test_drawn_tokens_have_the_cosines_of_their_law(law):
    tokens = normalised_tokens(law, 12, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(tokens @ tokens.T / 20_000, input_cosines(law, 12), atol=0.04, rtol=0)
    assert float(input_cosines("equal angles", 5)[0, 1]) == pytest.approx(SIMILARITY)


def test_measured_curves_follow_the_prediction_and_the_stack_of_the_package():
    means, depths = [2.0, 16.0], [1, 4]
    predicted = predicted_curves([24], means, depths).set_index(["tokens", "layers", "mean_scaled"])
    measured = measured_curves([24], means, depths, dim=192, seeds=range(4))
    drawn = measured.groupby(["tokens", "layers", "mean_scaled"])[["residual_ratio", "entropy_ratio"]].mean()
    for column in ("residual_ratio", "entropy_ratio"):
        difference = (drawn[column] - predicted.loc[drawn.index, column]).abs()
        assert float(difference.max()) < 0.12
        assert float(difference.mean()) < 0.03
    spectra = [Spectrum(mean, 0.0) for mean in means]
    stack = Stack(layers=4, length=24, dim=192, tokens="random walk")
    table = depth_experiment(spectra, stack, seeds=range(4), measure_at=[4], measures=["residual"])
    other = table[table["layer"] == 4].groupby("mean_scaled")["residual_ratio"].mean()
    assert float((drawn.loc["random walk", 4]["residual_ratio"] - other).abs().max()) < 0.12


def test_entropy_tables_agree_with_their_exact_columns():
    spread = entropy_over_spread([64, 512], [0.3, 1.0], draws=400, seed=0)
    assert ((spread["simulated"] - spread["exact"]).abs() < 4.5 * spread["standard_error"]).all()
    table = entropy_over_dispersion([1.4], [0.0, 2.0], length=128, dim=128, seeds=range(2))
    assert ((table["entropy_ratio"] - table["predicted"]).abs() < 0.04).all()
    means = table.groupby("dispersion")["predicted"].first()
    assert means[2.0] > means[0.0]


def test_figures_have_named_axes_and_at_most_three_panels():
    predicted = predicted_curves([8, 16], [1.0, 8.0, 60.0], [1, 2])
    measured = measured_curves([8, 16], [1.0, 8.0, 60.0], [1, 2], dim=32, seeds=range(2))
    compared = compared_ends(window_ends(predicted), window_ends(measured))
    equal = simplex_curves([64, 1024], [0.5, 1.0, 1.4], similarity=SIMILARITY)
    right = right_angle_curves([1, 2], [0.2, 0.7, 1.1], length=1000)
    spread = entropy_over_spread([16], [0.2, 1.0], draws=10, seed=0)
    dispersion_table = entropy_over_dispersion([1.2], [0.0, 1.0], length=16, dim=16, seeds=range(2))
    figures = [
        plot_windows(window_ends(predicted), compared, layers=2),
        plot_curves(predicted, measured, length=16),
        plot_entropy(spread, dispersion_table),
        plot_simplex(equal, right),
    ]
    picture = plot_cosines("random walk", [1.0, 8.0], length=8, layers=2)
    assert len(picture.axes) == 4  # three images and their colour bar
    plt.close(picture)
    for figure in figures:
        assert len(figure.axes) <= 3
        assert figure.get_size_inches()[0] <= 7.5
        assert all(axis.get_title() and axis.get_xlabel() for axis in figure.axes)
        plt.close(figure)


def test_unknown_law_is_refused_by_name():
    with pytest.raises(ArgumentError, match="law"):
        input_cosines("text", 8)


def test_similarity_is_the_mean_cosine_of_different_tokens():
    cosines = input_cosines("random walk", 16).numpy()
    assert similarity("random walk", 16) == pytest.approx(cosines[~np.eye(16, dtype=bool)].mean())
    assert [similarity(law, 16) for law in LAWS[:2]] == pytest.approx([0, SIMILARITY])


def test_sizes_hold_every_account_against_the_stacks_and_an_interval_at_one_half_is_open():
    table = size_table([0.0, 3.0], length=32, layers=4, dim=128, seeds=range(4), dispersion=3.0)
    rows = table.set_index(["tokens", "growth"])
    assert len(table) == 2 * len(LAWS)
    assert rows.loc[("independent", 0.0), ["threshold", "limit", "measured"]].tolist() == ["entropy"] * 3
    assert rows.loc[("independent", 3.0), ["threshold", "limit", "measured"]].tolist() == ["differences"] * 3
    assert rows.loc[("independent", 0.0), "entropy_change"] == "more"
    assert set(table["measured"]) <= {"both", "entropy", "differences", "neither", "open"}


def test_a_dispersion_leaves_tokens_and_value_matrices_as_they_are():
    settings = {"dim": 32, "seeds": [0], "laws": ["independent"]}
    none, tiny = (measured_curves([8], [1.0], [1], **settings, dispersion=size) for size in (0.0, 1e-9))
    assert tiny["residual_ratio"].tolist() == pytest.approx(none["residual_ratio"].tolist(), abs=1e-6)
