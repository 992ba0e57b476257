"""Figures and spectra of runs: what is drawn is what the tables hold, and what is not run says so."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from qkrepro.chapters.locater import plot_against_variance
from qkrepro.chapters.spectrum_in_training import (
    moment_frames,
    ranked_eigenvalues,
    spectrum_course,
)
from qkrepro.evidence.run_figures import (
    epoch_label,
    kappa_colour,
    kappa_label,
    plot_floor,
    plot_means,
    plot_paired_over_training,
    plot_paired_points,
    plot_spectra,
)
from qkrepro.training.tables import RunTables


@pytest.fixture
def axes():
    figure, axes = plt.subplots(2, 2)
    yield list(axes.flat)
    plt.close(figure)


def means(kappa: float, *estimates: float) -> pd.DataFrame:
    epochs = np.arange(len(estimates), dtype=float)
    values = np.array(estimates)
    columns = {"kappa": kappa, "epoch": epochs, "estimate": values, "low": values - 1, "high": values + 1}
    return pd.DataFrame(columns)


def spectrum_tables(d_model: int, *evaluations: list[complex]) -> RunTables:
    updates = np.arange(len(evaluations))
    summary = pd.DataFrame([{"run": "a", "seed": 0, "kappa": 0.0, "d_model": d_model}])
    curves = pd.DataFrame({"run": "a", "update": updates, "epoch": updates / 2})
    values = np.array(evaluations)[:, None, None, :]
    return RunTables(summary, curves, {"a": {"update": updates, "eigenvalues": values}})


def test_lines_are_the_means_and_bands_their_intervals(axes):
    plot_means(pd.concat([means(0.0, 3, 2), means(0.1, 2, 1)]), axes[0])
    assert [line.get_label() for line in axes[0].lines] == ["baseline", "κ = 0.1"]
    assert axes[0].lines[1].get_ydata().tolist() == [2, 1]
    band = axes[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1, 4)


def test_differences_have_a_thin_line_a_seed_and_a_line_of_their_mean(axes):
    rows = pd.DataFrame({"kappa": 0.1, "seed": [0, 0, 1, 1], "epoch": [0.0, 1] * 2, "difference": [1.0, 3, 3, 5]})
    plot_paired_over_training(rows, means(0.1, 2, 4), axes[0])
    drawn = [line.get_ydata() for line in axes[0].lines]
    assert [list(line) for line in drawn] == [[0, 0], [1, 3], [3, 5], [2, 4]]


def test_points_of_pairs_and_their_mean_stand_in_the_row_of_their_name(axes):
    pairs = {"a": pd.DataFrame({"seed": [0, 1], "difference": [1.0, 3.0]}), "b": pd.DataFrame(columns=["difference"])}
    plot_paired_points(pairs, axes[0])
    points, mean = axes[0].lines[1], axes[0].lines[2]
    assert points.get_xdata().tolist() == [1, 3]
    assert mean.get_xdata().tolist() == [2]
    assert [text.get_text() for text in axes[0].texts] == ["not run"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b"]


def test_what_is_not_run_says_so(axes):
    nothing = means(0.0).iloc[:0]
    plot_means(nothing, axes[0])
    plot_paired_over_training(nothing, nothing, axes[1])
    assert [axis.texts[0].get_text() for axis in axes[:2]] == ["not run"] * 2


def test_variance_axis_is_logarithmic_only_where_all_variances_are_positive(axes):
    rows = pd.DataFrame({"seed": 0, "kappa": [0.0, 0.1], "eigen_variance": [0.1, 0.01], "value": [1.0, 2.0]})
    plot_against_variance(rows, "value", axes[0])
    plot_against_variance(rows.assign(eigen_variance=[0.1, -0.01]), "value", axes[1])
    assert (axes[0].get_xscale(), axes[1].get_xscale()) == ("log", "linear")
    assert [points.get_offsets()[0].tolist() for points in axes[0].collections] == [[0.1, 1], [0.01, 2]]


def test_floor_and_word_frequencies_are_two_lines(axes):
    plot_floor(5.0, 18.0, axes[0])
    assert sorted(line.get_ydata()[0] for line in axes[0].lines) == [5, 18]
    assert axes[0].get_ylim()[0] < 5 < 18 < axes[0].get_ylim()[1]


def test_planes_show_the_eigenvalues_of_their_kappa_and_epoch():
    rows = [
        {"kappa": kappa, "epoch": epoch, "real": kappa, "imag": epoch} for kappa in (0.0, 0.5) for epoch in (0.0, 1.0)
    ]
    figure, axes = plt.subplots(2, 2)
    plot_spectra(pd.DataFrame(rows), axes)
    drawn = [[axis.collections[0].get_offsets()[0].tolist() for axis in row] for row in axes]
    assert drawn == [[[0, 0], [0, 1]], [[0.5, 0], [0.5, 1]]]
    titles = [axis.get_title() or axis.get_title("left") for axis in axes[0]]  # where the style puts it
    assert titles == ["baseline, start", "baseline, after 1 pass"]
    plt.close(figure)


def test_a_moment_has_a_panel_a_kappa_with_its_eigenvalues():
    rows = pd.DataFrame({"kappa": [0.0, 0.5], "epoch": 1.0, "real": [0.1, 0.2], "imag": [0.3, 0.4]})
    figure = next(moment_frames(rows))
    drawn = [axis.collections[0].get_offsets()[0].tolist() for axis in figure.axes]
    assert drawn == [[0.1, 0.3], [0.2, 0.4]]
    plt.close(figure)


def test_relative_spread_is_zero_for_equal_eigenvalues_and_counts_the_zeros_beyond_the_head():
    course = spectrum_course(spectrum_tables(2, [3 + 0j, 3 + 0j], [1 + 1j, 1 - 1j]))
    assert course["relative_spread"].tolist() == pytest.approx([0, 1])
    assert course["rotation"].tolist() == pytest.approx([0, 0.5])
    wider = spectrum_course(spectrum_tables(4, [3 + 0j, 3 + 0j]))
    assert wider["relative_spread"].tolist() == pytest.approx([np.std([3, 3, 0, 0]) / 1.5])


def test_ranked_eigenvalues_fall_and_are_those_of_the_last_evaluation():
    ranked = ranked_eigenvalues(spectrum_tables(3, [9, 9, 9], [1, 3j, -2]).eigenvalues())
    assert ranked[["rank", "size"]].to_numpy().tolist() == [[1, 3], [2, 2], [3, 1]]


def test_every_kappa_has_one_colour_and_one_name():
    kappas = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    assert len({str(kappa_colour(kappa)) for kappa in kappas}) == 5
    assert [kappa_label(kappa) for kappa in kappas[:3]] == ["baseline", "κ = 0.0001", "κ = 0.001"]
    assert (epoch_label(0.0), epoch_label(0.25025)) == ("start", "after 0.25 passes")


@pytest.mark.parametrize("perplexities", [(17.4, 18.1), (100.0, 350.0)])
def test_a_logarithmic_axis_has_labelled_ticks_however_narrow_its_range(axes, perplexities):
    plot_means(means(0.0, *perplexities).assign(low=perplexities, high=perplexities), axes[0], log=True)
    axes[0].figure.canvas.draw()
    low, high = axes[0].get_ylim()
    shown = [tick for tick in axes[0].yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert sum(bool(tick.label1.get_text()) for tick in shown) >= 3
